//! The control plane of the node: its API server is a static pod, as kubeadm has it.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    cluster::{Api, Cluster, EncryptionConfig, Kubectl, READY_WITHIN, tool},
    command, eventually,
    process::Process,
    temp_dir,
};

use crate::{
    machine::SOCKETS,
    node::{self, Node},
};

/// As the Service `kubernetes` has it.
const PORT: u16 = 443;
/// The name of its manifest.
const API_SERVER: &str = "kube-apiserver";

/// etcd, what API servers are started with, and the controllers; it lasts whatever becomes of the node.
pub(crate) struct Plane {
    pub(crate) cluster: Cluster,
    pub(crate) kubectl: Kubectl,
    controllers: Vec<Process>,
    dir: TempDir,
}

impl Plane {
    /// With an etcd that is empty, and no API server yet.
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start().await;
        let kubectl = cluster.kubectl_at(PORT);
        Self { cluster, kubectl, controllers: Vec::new(), dir: temp_dir("plane-") }
    }

    /// Kills what does not run in pods: etcd and the controllers.
    pub(crate) fn kill(&mut self) {
        self.controllers.clear();
        self.cluster.etcd.kill();
    }

    /// Introduces a node's kubelet.
    pub(crate) fn admit(&self, node: &Node) {
        self.cluster.kubeconfig_of_kubelet(node::NAME, PORT, &node.kubeconfig());
    }

    /// A client of the API server on connections of its own.
    pub(crate) fn api(&self) -> Api {
        self.cluster.api_at(PORT)
    }

    /// Has kubelet run an API server with this EncryptionConfiguration. One that runs is killed and started
    /// again, for kubelet takes half a minute to stop one and start another.
    pub(crate) fn give_api_server(&self, node: &Node, config: &EncryptionConfig) {
        let files = self.dir.path();
        let mut command = vec![format!("/programs/{API_SERVER}")];
        command.extend(self.cluster.api_server_flags(config, files, PORT));
        command.extend(
            [
                "--advertise-address=10.99.0.1",
                "--allow-privileged=true",
                "--bind-address=0.0.0.0",
                "--endpoint-reconciler-type=lease",
            ]
            .map(str::to_owned),
        );
        let programs = tool(API_SERVER).parent().unwrap().to_owned();
        let mounts = [
            ("files", files.to_owned(), files.to_owned()),
            ("pki", self.cluster.pki().dir().to_owned(), self.cluster.pki().dir().to_owned()),
            ("programs", programs, PathBuf::from("/programs")),
            ("kms", SOCKETS.into(), SOCKETS.into()),
        ];
        let probe = |path: &str| json!({"host": "127.0.0.1", "path": path, "port": PORT, "scheme": "HTTPS"});
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": API_SERVER,
                "namespace": "kube-system",
            },
            "spec": {
                "containers": [{
                    "name": API_SERVER,
                    // All that it needs is mounted.
                    "image": "localhost/pause:1",
                    "imagePullPolicy": "Never",
                    "command": command,
                    // As kubeadm has them.
                    "livenessProbe": {
                        "failureThreshold": 8, "httpGet": probe("/livez"), "initialDelaySeconds": 10,
                        "periodSeconds": 10, "timeoutSeconds": 15,
                    },
                    "startupProbe": {
                        "failureThreshold": 24, "httpGet": probe("/livez"), "initialDelaySeconds": 10,
                        "periodSeconds": 10, "timeoutSeconds": 15,
                    },
                    "volumeMounts": mounts.iter().map(|(name, _, at)| json!({"name": name, "mountPath": at}))
                        .collect::<Vec<Value>>(),
                }],
                "hostNetwork": true,
                "priorityClassName": "system-node-critical",
                "volumes": mounts.iter()
                    .map(|(name, from, _)| json!({"name": name, "hostPath": {"path": from, "type": "DirectoryOrCreate"}}))
                    .collect::<Vec<Value>>(),
            },
        });
        node.static_pod(API_SERVER, &pod.to_string());
        node.crash(API_SERVER);
    }

    /// Waits until the API server is ready.
    pub(crate) async fn wait_ready(&self) {
        let api = self.api();
        eventually("kube-apiserver is ready", READY_WITHIN, async || {
            for path in ["/readyz", "/api/v1/namespaces/kube-system"] {
                let (status, text) = api.text(path).await;
                if status != 200 {
                    return Err(format!("{path}: {status} {text}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Starts what makes pods of DaemonSets and Jobs, gives them nodes, and takes away what nobody owns any more;
    /// anew, if it runs: to find an API server again that was restarted takes it a minute or two.
    pub(crate) fn start_controllers(&mut self) {
        self.controllers.clear();
        let kubeconfig = self.kubectl.config();
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let mut command = command(tool(name));
            let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
            command
                .arg(flag("kubeconfig", kubeconfig.clone()))
                .args(["--leader-elect=false", "--secure-port=0"]);
            if name == "kube-controller-manager" {
                let pki = self.cluster.pki();
                command
                    .arg(flag("root-ca-file", pki.ca_file()))
                    .arg(flag("service-account-private-key-file", pki.service_account_key()))
                    .arg("--use-service-account-credentials=true");
            }
            self.controllers.push(Process::spawn(name, &mut command));
        }
    }
}
