//! A node with a control plane, and a Vault somewhere else.

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
    control_plane::Plane,
    helm::{Helm, PODS},
    machine::{CREDENTIALS, SOCKET},
    node::{NAME, Node},
    pods::{Pod, pods},
};

/// A pod that is started, with what it waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// All of it, one of each.
pub(crate) struct Site {
    pub(crate) bao: Bao,
    pub(crate) node: Node,
    pub(crate) plane: Plane,
}

impl Site {
    /// A node that is off, without an API server; the agent's credentials are on its disk, for a role like
    /// this.
    pub(crate) async fn dark(role: &Value) -> Self {
        let (bao, plane) = (Bao::start().await, Plane::start().await);
        let node = Node::new().await;
        plane.admit(&node);
        fs::create_dir_all(CREDENTIALS).unwrap();
        login::approle(&bao, Path::new(CREDENTIALS), role).await;
        Self { bao, node, plane }
    }

    /// A cluster that works and encrypts nothing, ready for the chart.
    pub(crate) async fn plain(role: &Value) -> Self {
        let mut site = Self::dark(role).await;
        site.plane.give_api_server(&site.node, &plain());
        site.node.boot().await;
        site.plane.wait_ready().await;
        site.plane.start_controllers();
        eventually("the node is there", PATIENCE, async || {
            site.kubectl(&["label", "node", NAME, "node-role.kubernetes.io/control-plane="]).await
        })
        .await;
        let taint = "node-role.kubernetes.io/control-plane:NoSchedule";
        site.kubectl(&["taint", "node", NAME, taint]).await.unwrap();
        site
    }

    /// As [`Site::plain`], with the chart installed by this Helm, and Secrets encrypted through it.
    pub(crate) async fn installed(major: u8, role: &Value) -> (Self, Helm) {
        let mut site = Self::plain(role).await;
        let helm = Helm::new(major, &site.plane.kubectl, &site.bao);
        let ran = helm.upgrade(&[]).await;
        assert!(ran.good, "{ran:?}\n{}", site.described().await);
        site.encrypt().await;
        // That has restarted the API server. The controllers of before miss events while they find it again:
        // one was seen to leave a rollout where it was, with the new pod ready, until the object was changed.
        site.plane.start_controllers();
        (site, helm)
    }

    /// Has the API server write Secrets through our socket, and waits until it does.
    pub(crate) async fn encrypt(&self) {
        self.plane.give_api_server(&self.node, &ours());
        self.wait_encrypted("first").await;
    }

    /// Waits until a new Secret, whose name begins with this, is encrypted through us; answers its name.
    pub(crate) async fn wait_encrypted(&self, prefix: &str) -> String {
        let mut tries = 0;
        eventually("Secrets are encrypted through us", PATIENCE, async || {
            tries += 1;
            let name = format!("{prefix}-{tries}");
            self.write_secret(&name).await.map(|()| name)
        })
        .await
    }

    /// Kills all that runs on the node and for it, but for Vault, and empties what is in memory.
    pub(crate) async fn power_off(&mut self) {
        self.node.power_off().await;
        self.plane.kill();
    }

    /// Starts all of it again, in the order in which a machine does.
    pub(crate) async fn boot(&mut self) {
        self.plane.cluster.etcd.start_again().await;
        self.node.boot().await;
        self.plane.start_controllers();
    }

    /// Writes a Secret, which must then be encrypted through us in etcd.
    pub(crate) async fn write_secret(&self, name: &str) -> Result<(), String> {
        self.plane.api().create_secret(name, name).await.map_err(|error| error.to_string())?;
        let prefix = self.plane.cluster.etcd.stored(SECRETS, name).await.prefix();
        if prefix == "k8s:enc:kms:v2:transit:" { Ok(()) } else { Err(format!("{prefix:?}")) }
    }

    /// Runs kubectl: what it printed, or why it failed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let Ran { good, stdout, stderr } = self.plane.kubectl.run(arguments).await;
        if good { Ok(stdout) } else { Err(stderr) }
    }

    /// Waits until somebody listens on the socket; answers how long it took.
    pub(crate) async fn wait_socket(&self) -> Duration {
        let begun = Instant::now();
        eventually("the socket is there", PATIENCE, async || connect(Path::new(SOCKET)).await).await;
        begun.elapsed()
    }

    /// Waits until the DaemonSet has one pod, and it is ready.
    pub(crate) async fn pod(&self) -> Pod {
        eventually("there is one pod, and it is ready", PATIENCE, async || {
            let found = pods(&self.plane.kubectl, PODS).await;
            match &found[..] {
                [one] if one.ready => Ok(one.clone()),
                _ => Err(format!("{found:?}")),
            }
        })
        .await
    }

    /// The sum of the samples of a metric of the daemon that run with the chart's default port.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let http = client().build().unwrap();
        let text = http.get("http://127.0.0.1:9797/metrics").send().await.unwrap().text().await.unwrap();
        samples(&text, name, &[]).iter().sum()
    }

    /// What is said of our pods, for a failure.
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

/// Nothing is encrypted.
pub(crate) fn plain() -> EncryptionConfig {
    EncryptionConfig::for_secrets([Provider::identity()])
}

/// Ours writes Secrets, and what is not encrypted is read too.
pub(crate) fn ours() -> EncryptionConfig {
    EncryptionConfig::for_secrets([Provider::v2(cluster::NAME, Path::new(SOCKET)), Provider::identity()])
}

/// A role whose tokens die every few seconds.
pub(crate) fn short_lived() -> Value {
    json!({"token_ttl": "4s", "token_max_ttl": "8s"})
}
