//! A cluster with one API server, one daemon and one OpenBao.

use super::{ApiServer, Cluster, EncryptionConfig};
use crate::{Caller, Daemon, TestEnv};

/// An etcd and an API server that encrypts Secrets and ConfigMaps through a daemon. All parts are ready.
pub struct ControlPlane {
    pub caller: Caller,
    pub cluster: Cluster,
    pub daemon: Daemon,
    pub server: ApiServer,
    pub env: TestEnv,
}

impl ControlPlane {
    /// Starts everything. The daemon gets these arguments, and short intervals: see [`TestEnv::daemon`].
    pub async fn ready<const N: usize>(arguments: [&str; N]) -> Self {
        let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
        let (daemon, caller) = env.ready(arguments).await;
        let server = cluster.ready(&EncryptionConfig::with_kms(daemon.socket())).await;
        Self { caller, cluster, daemon, server, env }
    }

    /// The number of KMS calls of this method that the daemon has answered, including errors.
    pub async fn calls(&self, method: &str) -> f64 {
        self.daemon.metric("transit_kms_requests_total", &[("method", method)]).await
    }
}
