//! Starts and stops a kube-apiserver.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use super::{api::Api, encryption::EncryptionConfig, etcd::Etcd, kubectl::Kubectl, pki::Pki, tools::tool};
use crate::{command, eventually, port, process::Process, temp_dir};

/// A start takes three seconds on two idle cores.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// Options of an API server.
#[derive(Default)]
pub struct ApiServerOptions {
    /// Further flags.
    pub arguments: Vec<String>,
}

impl ApiServerOptions {
    /// With these flags.
    pub fn arguments<const N: usize>(arguments: [&str; N]) -> Self {
        Self { arguments: arguments.map(str::to_owned).into() }
    }
}

/// A running kube-apiserver. Dropping this value kills it.
pub struct ApiServer {
    api: Api,
    arguments: Vec<String>,
    dir: TempDir,
    pki: Arc<Pki>,
    port: u16,
    process: Process,
}

impl ApiServer {
    pub(super) fn start(
        etcd: &Etcd,
        pki: Arc<Pki>,
        config: &EncryptionConfig,
        options: ApiServerOptions,
    ) -> Self {
        let dir = temp_dir("api-server-");
        config.write(&encryption_file(dir.path()));
        let port = port::unused();
        let mut arguments = flags(etcd, &pki, dir.path(), port);
        arguments.extend(options.arguments);
        let process = spawn(&arguments);
        let api = Api::new(&pki, &format!("https://127.0.0.1:{port}"));
        Self { api, arguments, dir, pki, port, process }
    }

    /// A client of this API server.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate authority that has issued its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.pki.ca_file()
    }

    /// A kubectl for this API server.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::of(&self.pki, &self.address())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// All that it has printed so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Replaces its EncryptionConfiguration, which it reads at its next start or, with a flag, at once.
    pub fn configure(&self, config: &EncryptionConfig) {
        config.write(&encryption_file(self.dir.path()));
    }

    /// Waits until `/readyz` is 200 and the namespace `default` exists.
    ///
    /// # Panics
    /// If it is not ready in time, or if the process ends.
    pub async fn wait_ready(&mut self, within: Duration) {
        let Self { api, process, .. } = self;
        eventually("kube-apiserver is ready", within, async || {
            if let Some(status) = process.exited() {
                panic!("kube-apiserver ended: {status}");
            }
            for path in ["/readyz", "/api/v1/namespaces/default"] {
                let (status, text) = api.text(path).await;
                if status != 200 {
                    return Err(format!("{path}: {status} {text}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Kills it, as in a crash.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`ApiServer::kill`], with the same flags.
    pub fn start_again(&mut self) {
        self.process = spawn(&self.arguments);
        // The connections of the old client ended with the process.
        self.api = Api::new(&self.pki, &format!("https://127.0.0.1:{}", self.port));
    }
}

/// Where an API server with this folder has its EncryptionConfiguration.
pub(super) fn encryption_file(dir: &Path) -> PathBuf {
    dir.join("encryption.yaml")
}

/// Its flags; it keeps its files in `dir`.
pub(super) fn flags(etcd: &Etcd, pki: &Pki, dir: &Path, port: u16) -> Vec<String> {
    let (chain, key) = pki.server();
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    vec![
        flag("advertise-address", &"127.0.0.1"),
        flag("bind-address", &"127.0.0.1"),
        flag("cert-dir", &dir.display()),
        flag("client-ca-file", &pki.ca_file().display()),
        flag("encryption-provider-config", &encryption_file(dir).display()),
        // Two API servers on one etcd would otherwise overwrite each other's address of the Service `kubernetes`.
        flag("endpoint-reconciler-type", &"none"),
        flag("etcd-servers", &etcd.address()),
        flag("secure-port", &port),
        flag("service-account-issuer", &"https://kubernetes.default.svc"),
        flag("service-account-key-file", &pki.service_account_public_key().display()),
        flag("service-account-signing-key-file", &pki.service_account_key().display()),
        flag("service-cluster-ip-range", &"10.0.0.0/24"),
        flag("authorization-mode", &"Node,RBAC"),
        flag("tls-cert-file", &chain.display()),
        flag("tls-private-key-file", &key.display()),
    ]
}

fn spawn(arguments: &[String]) -> Process {
    Process::spawn("kube-apiserver", command(tool("kube-apiserver")).args(arguments))
}
