//! The usual set: one of each part.

use super::{ApiServer, Cluster, EncryptionConfig};
use crate::{Caller, Daemon, Stage};

/// A control plane whose Secrets and ConfigMaps go through a daemon, all of it ready.
pub struct Plane {
    pub caller: Caller,
    pub cluster: Cluster,
    pub daemon: Daemon,
    pub server: ApiServer,
    pub stage: Stage,
}

impl Plane {
    /// With these arguments of the daemon, which is in a hurry: see [`Stage::daemon`].
    pub async fn ready<const N: usize>(arguments: [&str; N]) -> Self {
        let (cluster, stage) = (Cluster::start().await, Stage::start().await);
        let (daemon, caller) = stage.ready(arguments).await;
        let server = cluster.ready(&EncryptionConfig::ours(daemon.socket())).await;
        Self { caller, cluster, daemon, server, stage }
    }

    /// How many KMS calls of this method the daemon has answered, well or not.
    pub async fn calls(&self, method: &str) -> f64 {
        self.daemon.metric("transit_kms_requests_total", &[("method", method)]).await
    }
}
