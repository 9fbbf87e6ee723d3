//! Starts and stops one server of OpenBao (or Vault).
//!
//! The server serves TLS on the loopback. Transit, AppRole and JWT are enabled, and [`KEY`] and [`POLICY`] exist.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Certificate, Client, redirect};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    files::small_disk::SmallDisk, files::temp_dir::temp_dir, net::authority::Authority, net::http::client,
    net::port, process::Process, process::command::command, vault::binary::VaultBinary,
    vault::initialized_storage::Seed, wait::eventually,
};

/// The Transit key of every server.
pub const KEY: &str = "kms";
/// The mount of Transit.
pub const MOUNT: &str = "transit";
/// The policy of every server: exactly what the daemon needs with [`KEY`].
pub const POLICY: &str = "transit-kms";

/// Enough for the audit log of a test.
const AUDIT_DISK: &str = "32m";
/// A server without a response after this time counts as down.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest time for a request, a start or a seal.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The rules of a policy that allows exactly what the daemon needs with the key `key`.
pub fn policy(mount: &str, key: &str) -> String {
    format!(
        r#"
path "{mount}/encrypt/{key}"  {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}"  {{ capabilities = ["update"] }}
path "{mount}/keys/{key}"     {{ capabilities = ["read"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self"  {{ capabilities = ["update"] }}
path "auth/token/revoke-self" {{ capabilities = ["update"] }}
"#
    )
}

/// Options of a member of a raft cluster.
pub struct Member {
    /// Whether its audit log is on a small disk, mounted at `audit` in its folder.
    pub(crate) audit_disk: bool,
    /// The certificate authority of all members.
    pub(crate) authority: Arc<Authority>,
    /// The address of the member to join; `None` for the first.
    pub(crate) leader: Option<String>,
    pub(crate) name: String,
}

/// Options of a server.
pub struct BaoOptions {
    /// Write an audit log, for [`Bao::audit_log`].
    pub audit: bool,
    /// Further listeners on the loopback, in the format of the server's config but without an address; see
    /// [`Bao::port_of_listener`].
    pub listeners: Vec<Value>,
    /// Makes it a member of a cluster.
    pub member: Option<Member>,
    /// The folder of the plugins that the server may start.
    pub plugin_directory: Option<PathBuf>,
    /// Refuse clients without a certificate of the server's authority; see
    /// [`Bao::client_certificate`].
    pub require_client_certificate: bool,
}

impl Default for BaoOptions {
    fn default() -> Self {
        Self {
            audit: true,
            listeners: Vec::new(),
            member: None,
            plugin_directory: None,
            require_client_certificate: false,
        }
    }
}

/// A running server with its storage on disk. Dropping this value kills it and removes its folder.
pub struct Bao {
    process: Option<Process>,
    audit_disk: Option<SmallDisk>,
    authority: Arc<Authority>,
    dir: TempDir,
    pub(super) http: Client,
    options: BaoOptions,
    port: u16,
    /// The ports of [`BaoOptions::listeners`].
    ports: Vec<u16>,
    pub(super) root_token: String,
    unseal_key: String,
}

impl Bao {
    /// Starts and unseals a server with [`KEY`] and [`POLICY`].
    pub async fn start() -> Self {
        Self::start_with(BaoOptions::default()).await
    }

    /// Like [`Bao::start`], with options.
    pub async fn start_with(options: BaoOptions) -> Self {
        let seed = Seed::of_this_process().await;
        let mut bao = Self::launch(options, Some(seed)).await;
        bao.set_credentials(&seed.root_token, &seed.unseal_key);
        bao.unseal().await;
        let own = bao.create_token(json!({"policies": ["root"]})).await;
        bao.set_credentials(&own, &seed.unseal_key);
        bao.revoke(&seed.root_token).await;
        if bao.options.audit && VaultBinary::found().is_vault {
            let device = json!({"type": "file", "options": {"file_path": bao.audit_file()}});
            bao.api("PUT", "sys/audit/main", device).await;
        }
        bao.api("POST", &format!("{MOUNT}/keys/{KEY}"), json!({})).await;
        bao.policy(POLICY, &policy(MOUNT, KEY)).await;
        bao
    }

    /// Starts a server and waits until it listens. It is sealed if `seed` is given, otherwise not initialized.
    pub(crate) async fn launch(options: BaoOptions, seed: Option<&Seed>) -> Self {
        let dir = temp_dir("bao-");
        let audit_disk = options.member.as_ref().filter(|member| member.audit_disk).and_then(|_| {
            let at = dir.path().join("audit");
            fs::create_dir(&at).unwrap();
            SmallDisk::mounted(&at, AUDIT_DISK)
        });
        let authority = match &options.member {
            Some(member) => Arc::clone(&member.authority),
            None => Arc::new(Authority::new(dir.path())),
        };
        let mut http = client()
            .tls_certs_only([Certificate::from_pem(authority.pem().as_bytes()).unwrap()])
            .redirect(redirect::Policy::none())
            // A kept connection would be broken after a restart. A new one costs 4 ms.
            .pool_max_idle_per_host(0)
            .timeout(WAIT_TIMEOUT);
        if options.require_client_certificate {
            let (chain, key) = authority.client("root");
            let identity = [fs::read(key).unwrap(), fs::read(chain).unwrap()].concat();
            http = http.identity(reqwest::Identity::from_pem(&identity).unwrap());
        }
        let mut bao = Self {
            process: None,
            audit_disk,
            authority,
            dir,
            http: http.build().unwrap(),
            options,
            port: 0,
            ports: Vec::new(),
            root_token: String::new(),
            unseal_key: String::new(),
        };
        fs::create_dir(bao.storage()).unwrap();
        if let Some(seed) = seed {
            seed.write(&bao.storage());
        }
        loop {
            bao.port = port::unused();
            bao.ports = bao.options.listeners.iter().map(|_| port::unused()).collect();
            bao.write_config();
            match bao.listen().await {
                Ok(()) => return bao,
                // Another process has taken the port.
                Err(said) if said.contains("address already in use") => {}
                Err(said) => panic!("the server ended at its start:\n{said}"),
            }
        }
    }

    /// Sets the root token and unseal key for the next requests.
    pub(crate) fn set_credentials(&mut self, root_token: &str, unseal_key: &str) {
        root_token.clone_into(&mut self.root_token);
        unseal_key.clone_into(&mut self.unseal_key);
    }

    /// Whether the servers are Vault, not OpenBao.
    pub fn is_vault() -> bool {
        VaultBinary::found().is_vault
    }

    /// The path of the binary, which is also the client.
    pub fn program() -> &'static Path {
        &VaultBinary::found().path
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The authority that has issued the server's certificate.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A client that trusts this server.
    pub(crate) fn http(&self) -> &Client {
        &self.http
    }

    /// The certificate of the authority that has issued the server's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.authority.file()
    }

    /// The port of one of [`BaoOptions::listeners`].
    pub fn port_of_listener(&self, index: usize) -> u16 {
        self.ports[index]
    }

    /// A client certificate of the server's authority: the paths of the chain and of its key.
    pub fn client_certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        self.authority.client(name)
    }

    /// A root token, valid on this server only.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// The unseal key, which is the same for all servers of this process.
    pub fn unseal_key(&self) -> &str {
        &self.unseal_key
    }

    /// Seals it, and waits until its health is 503.
    pub async fn seal(&self) {
        self.api("PUT", "sys/seal", Value::Null).await;
        self.health_is(503).await;
    }

    /// Unseals it, and waits until its health is 200.
    pub async fn unseal(&self) {
        self.api("PUT", "sys/unseal", json!({"key": self.unseal_key})).await;
        self.health_is(200).await;
    }

    /// Unseals a member of a cluster, and waits until it is the leader or a standby.
    pub async fn unseal_member(&self) {
        eventually("the member is unsealed", WAIT_TIMEOUT, async || match self.health().await {
            Some(200 | 429) => Ok(()),
            found => {
                // The member refuses to unseal until it has joined the leader.
                drop(self.call("", "PUT", "sys/unseal", json!({"key": self.unseal_key})).await);
                Err(format!("{found:?}"))
            }
        })
        .await;
    }

    /// The HTTP status of `sys/health`, or `None` without a response in time.
    pub async fn health(&self) -> Option<u16> {
        let asked = timeout(HEALTH_TIMEOUT, self.call("", "GET", "sys/health", Value::Null)).await;
        Some(asked.ok()?.ok()?.0)
    }

    /// Kills it, as in a crash: connections are refused from now on. The storage stays.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again with the same address and storage, and unseals it.
    pub async fn start_again(&mut self) {
        self.start_again_sealed().await;
        self.unseal().await;
    }

    /// Starts it again with the same address and storage, and leaves it sealed.
    pub async fn start_again_sealed(&mut self) {
        assert!(self.process.is_none(), "stop it first");
        if let Err(said) = self.listen().await {
            panic!("the server ended at its start:\n{said}");
        }
    }

    /// Freezes it (SIGSTOP): the kernel accepts connections, but no request is answered.
    pub async fn freeze(&mut self) {
        let process = self.process.as_mut().expect("it is stopped");
        process.signal(Signal::STOP);
        // `kill` may return before all threads are stopped, so the server could still answer.
        eventually("the server is frozen", WAIT_TIMEOUT, async || process.is_frozen()).await;
    }

    /// Lets it continue (SIGCONT).
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("it is stopped").signal(Signal::CONT);
    }

    /// The small disk of its audit log, if it has one.
    pub fn audit_disk(&self) -> Option<&SmallDisk> {
        self.audit_disk.as_ref()
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    pub(super) fn audit_file(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn write_config(&self) {
        let path = |path: &Path| path.display().to_string();
        let (chain, key) = self.authority.server();
        let cluster = format!("127.0.0.1:{}", port::unused());
        let mut config = json!({
            "api_addr": self.address(),
            "cluster_addr": format!("https://{cluster}"),
            // Vault requires this setting. OpenBao warns that it never locks memory.
            "disable_mlock": true,
            "listener": [{"tcp": {
                "address": format!("127.0.0.1:{}", self.port),
                "cluster_address": cluster,
                "tls_cert_file": path(&chain),
                "tls_key_file": path(&key),
            }}],
            "storage": {"raft": {
                "node_id": self.options.member.as_ref().map_or("one", |member| &member.name),
                "path": path(&self.storage()),
                "performance_multiplier": 1,
            }},
        });
        if let Some(leader) = self.options.member.as_ref().and_then(|member| member.leader.as_ref()) {
            config["storage"]["raft"]["retry_join"] =
                json!([{"leader_api_addr": leader, "leader_ca_cert_file": path(&self.ca_file())}]);
        }
        if let Some(directory) = &self.options.plugin_directory {
            config["plugin_directory"] = json!(path(directory));
        }
        if self.options.require_client_certificate {
            let listener = &mut config["listener"][0]["tcp"];
            listener["tls_client_ca_file"] = json!(path(&self.ca_file()));
            listener["tls_require_and_verify_client_cert"] = json!(true);
        }
        for (options, port) in self.options.listeners.iter().zip(&self.ports) {
            let mut listener = options.clone();
            listener["address"] = json!(format!("127.0.0.1:{port}"));
            // Each listener needs a cluster address, but only that of the first is used.
            listener["cluster_address"] = json!(format!("127.0.0.1:{}", port::unused()));
            config["listener"].as_array_mut().unwrap().push(json!({ "tcp": listener }));
        }
        if (self.options.audit || self.audit_disk.is_some()) && !VaultBinary::found().is_vault {
            // All members of a cluster have the same path of the audit device. It is relative, so that each member
            // writes to its own working directory.
            let file = self.audit_disk.as_ref().map_or(path(&self.audit_file()), |_| "audit/main.log".into());
            config["audit"] = json!([{"type": "file", "path": "main", "options": {"file_path": file}}]);
        }
        fs::write(self.dir.path().join("server.json"), config.to_string()).unwrap();
    }

    /// Starts the process, and waits for its first response. Fails with its output if it ends before.
    async fn listen(&mut self) -> Result<(), String> {
        let mut command = command(VaultBinary::path());
        command.arg("server").arg("-config").arg(self.dir.path().join("server.json"));
        command.env("HOME", self.dir.path()).current_dir(self.dir.path());
        let mut process = Process::spawn("the server", &mut command);
        let result = eventually("the server listens", WAIT_TIMEOUT, async || {
            if process.exited().is_some() {
                return Some(Err(()));
            }
            self.call("", "GET", "sys/seal-status", Value::Null).await.is_ok().then_some(Ok(()))
        })
        .await;
        if result.is_err() {
            process.kill();
            return Err(process.output());
        }
        self.process = Some(process);
        Ok(())
    }

    pub(super) async fn health_is(&self, wanted: u16) {
        eventually(&format!("health {wanted}"), WAIT_TIMEOUT, async || {
            match self.call("", "GET", "sys/health", Value::Null).await {
                Ok((status, _)) if status == wanted => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(e) => Err(e.to_string()),
            }
        })
        .await;
    }
}
