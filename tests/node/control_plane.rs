//! The control plane of the node. Its API server is a static pod, as with kubeadm.

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

/// The port of the Service `kubernetes`.
const PORT: u16 = 443;
/// The name of the API server's manifest.
const API_SERVER: &str = "kube-apiserver";

/// etcd, the files of the API server, and the controllers. They run outside of the node.
pub(crate) struct NodeControlPlane {
    pub(crate) cluster: Cluster,
    pub(crate) kubectl: Kubectl,
    controllers: Vec<Process>,
    dir: TempDir,
}

impl NodeControlPlane {
    /// Starts an empty etcd, without an API server.
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start().await;
        let kubectl = cluster.kubectl_at(PORT);
        Self { cluster, kubectl, controllers: Vec::new(), dir: temp_dir("control-plane-") }
    }

    /// Kills the programs that do not run in pods: etcd and the controllers.
    pub(crate) fn kill(&mut self) {
        self.controllers.clear();
        self.cluster.etcd.kill();
    }

    /// Writes the kubeconfig of a node's kubelet.
    pub(crate) fn write_kubelet_kubeconfig(&self, node: &Node) {
        self.cluster.kubeconfig_of_kubelet(node::NAME, PORT, &node.kubeconfig());
    }

    /// Returns a client of the API server with its own connections.
    pub(crate) fn api(&self) -> Api {
        self.cluster.api_at(PORT)
    }

    /// Makes kubelet run an API server with this EncryptionConfiguration. Kills a running API server, because kubelet
    /// needs half a minute to replace it.
    pub(crate) fn run_api_server(&self, node: &Node, config: &EncryptionConfig) {
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
                    // The program and its files are mounted.
                    "image": "localhost/pause:1",
                    "imagePullPolicy": "Never",
                    "command": command,
                    // The probes of kubeadm.
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

    /// Starts or restarts kube-controller-manager and kube-scheduler. They need a minute or two to reconnect to a
    /// restarted API server, so it is faster to restart them too.
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
