//! A node with a control plane, and a Vault outside of the node.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    Bao,
    cluster::{self, EncryptionConfig, Provider, Ran, SECRETS},
    connect,
    daemon::samples,
    eventually,
    http::client,
    login,
};

use crate::{
    control_plane::NodeControlPlane,
    helm::{Helm, PODS},
    machine::{CREDENTIALS, SOCKET, STATE},
    node::{NAME, Node},
    pods::{Pod, pods},
};

/// How long a pod may take to start, with everything that it waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The whole environment of a test.
pub(crate) struct NodeEnv {
    pub(crate) bao: Bao,
    pub(crate) node: Node,
    pub(crate) control_plane: NodeControlPlane,
}

impl NodeEnv {
    /// Returns a node that is powered off, without an API server. Its disk has the agent's credentials for this role.
    pub(crate) async fn powered_off(role: &Value) -> Self {
        let env = Self::without_credentials().await;
        login::approle(&env.bao, Path::new(CREDENTIALS), role).await;
        env
    }

    /// As [`NodeEnv::powered_off`], without credentials.
    pub(crate) async fn without_credentials() -> Self {
        let (bao, control_plane) = (Bao::start().await, NodeControlPlane::start().await);
        let node = Node::new().await;
        control_plane.write_kubelet_kubeconfig(&node);
        for folder in [CREDENTIALS, STATE] {
            // An earlier test may have left files there.
            if Path::new(folder).exists() {
                fs::remove_dir_all(folder).unwrap();
            }
        }
        fs::create_dir_all(CREDENTIALS).unwrap();
        Self { bao, node, control_plane }
    }

    /// Starts a cluster that encrypts nothing, for the chart to be installed.
    pub(crate) async fn without_encryption(role: &Value) -> Self {
        Self::powered_off(role).await.boot_without_encryption().await
    }

    /// Boots the node, and starts a cluster on it that encrypts nothing.
    pub(crate) async fn boot_without_encryption(self) -> Self {
        let mut env = self;
        env.control_plane.run_api_server(&env.node, &identity_only());
        env.node.boot().await;
        env.control_plane.wait_ready().await;
        env.control_plane.start_controllers();
        eventually("the node is registered", PATIENCE, async || {
            env.kubectl(&["label", "node", NAME, "node-role.kubernetes.io/control-plane="]).await
        })
        .await;
        let taint = "node-role.kubernetes.io/control-plane:NoSchedule";
        env.kubectl(&["taint", "node", NAME, taint]).await.unwrap();
        env
    }

    /// As [`NodeEnv::without_encryption`], with the chart installed by this major version of Helm, and Secrets encrypted
    /// with it.
    pub(crate) async fn installed(major: u8, role: &Value) -> (Self, Helm) {
        let mut env = Self::without_encryption(role).await;
        let helm = Helm::new(major, &env.control_plane.kubectl, &env.bao);
        let ran = helm.upgrade(&[]).await;
        assert!(ran.good, "{ran:?}\n{}", env.described().await);
        env.encrypt().await;
        // The API server was restarted. The old controllers can miss events while they reconnect: a rollout can stop,
        // with the new pod ready, until the object changes.
        env.control_plane.start_controllers();
        (env, helm)
    }

    /// Configures the API server to encrypt Secrets with transit-kms, and waits until it does.
    pub(crate) async fn encrypt(&self) {
        self.control_plane.run_api_server(&self.node, &transit_kms_first());
        self.wait_encrypted("first").await;
    }

    /// Writes new Secrets with this name prefix until one is encrypted with transit-kms. Returns its name.
    pub(crate) async fn wait_encrypted(&self, prefix: &str) -> String {
        let mut tries = 0;
        eventually("transit-kms encrypts Secrets", PATIENCE, async || {
            tries += 1;
            let name = format!("{prefix}-{tries}");
            self.write_secret(&name).await.map(|()| name)
        })
        .await
    }

    /// Kills everything that runs on the node, etcd and the controllers, and empties `/run`. Vault continues to run.
    pub(crate) async fn power_off(&mut self) {
        self.node.power_off().await;
        self.control_plane.kill();
    }

    /// Starts everything again, in the order of a real boot.
    pub(crate) async fn boot(&mut self) {
        self.boot_without_controllers().await;
        self.control_plane.start_controllers();
    }

    /// As [`NodeEnv::boot`], without the controllers. Static pods do not need them.
    pub(crate) async fn boot_without_controllers(&mut self) {
        self.control_plane.cluster.etcd.start_again().await;
        self.node.boot().await;
    }

    /// Writes a Secret. Returns an error unless transit-kms encrypted it in etcd.
    pub(crate) async fn write_secret(&self, name: &str) -> Result<(), String> {
        self.control_plane.api().create_secret(name, name).await.map_err(|error| error.to_string())?;
        let prefix = self.control_plane.cluster.etcd.stored(SECRETS, name).await.prefix();
        if prefix == "k8s:enc:kms:v2:transit:" { Ok(()) } else { Err(format!("{prefix:?}")) }
    }

    /// Runs kubectl. Returns its output, or its error output if it fails.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let Ran { good, stdout, stderr } = self.control_plane.kubectl.run(arguments).await;
        if good { Ok(stdout) } else { Err(stderr) }
    }

    /// Waits until the KMS socket accepts connections. Returns how long it took.
    pub(crate) async fn wait_socket(&self) -> Duration {
        let begun = Instant::now();
        eventually("the socket accepts connections", PATIENCE, async || connect(Path::new(SOCKET)).await)
            .await;
        begun.elapsed()
    }

    /// Waits until the DaemonSet has exactly one pod and it is ready.
    pub(crate) async fn pod(&self) -> Pod {
        eventually("there is one pod, and it is ready", PATIENCE, async || {
            let found = pods(&self.control_plane.kubectl, PODS).await;
            match &found[..] {
                [one] if one.ready => Ok(one.clone()),
                _ => Err(format!("{found:?}")),
            }
        })
        .await
    }

    /// Returns the sum of all samples of a metric of the daemon, which listens on the chart's default port.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, &[]).await
    }

    /// As [`NodeEnv::metric`], of the samples with these labels.
    pub(crate) async fn metric_with(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let http = client().build().unwrap();
        let text = http.get("http://127.0.0.1:9797/metrics").send().await.unwrap().text().await.unwrap();
        samples(&text, name, labels).iter().sum()
    }

    /// Returns the output of `kubectl describe` for the pods of transit-kms, for failure messages.
    pub(crate) async fn described(&self) -> String {
        let pods = self.kubectl(&[
            "describe",
            "pods",
            "-n",
            "kube-system",
            "-l",
            "app.kubernetes.io/name=transit-kms",
        ]);
        pods.await.unwrap_or_else(|error| error)
    }
}

/// An EncryptionConfiguration that encrypts nothing.
pub(crate) fn identity_only() -> EncryptionConfig {
    EncryptionConfig::for_secrets([Provider::identity()])
}

/// An EncryptionConfiguration that encrypts Secrets with transit-kms, and reads unencrypted ones too.
pub(crate) fn transit_kms_first() -> EncryptionConfig {
    EncryptionConfig::for_secrets([Provider::v2(cluster::NAME, Path::new(SOCKET)), Provider::identity()])
}

/// A role whose tokens expire after a few seconds.
pub(crate) fn short_lived() -> Value {
    json!({"token_ttl": "4s", "token_max_ttl": "8s"})
}
