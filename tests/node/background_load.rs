//! Constant load on the API server and on the KMS socket.

use std::{path::Path, time::Duration};
use testkit::{
    Load,
    cluster::{ApiLoad, KmsCalls},
    eventually,
};

use crate::{machine::SOCKET, node_env::NodeEnv};

const PATIENCE: Duration = Duration::from_secs(60);

/// Clients that write and read Secrets, and clients that call the KMS socket. None of them retries.
pub(crate) struct BackgroundLoad {
    api: ApiLoad,
    before: KmsCalls,
    kms: Load,
}

impl BackgroundLoad {
    /// Starts the load.
    pub(crate) async fn start(env: &NodeEnv) -> Self {
        let before = KmsCalls::of(&env.control_plane.api()).await;
        let api = ApiLoad::start(&[env.control_plane.api(), env.control_plane.api()], "load");
        Self { api, before, kms: Load::start_on(Path::new(SOCKET), 2, Duration::from_millis(10)).await }
    }

    /// Waits until clients of both kinds have made more requests.
    pub(crate) async fn wait_for_more(&self) {
        let (requests, calls) = (self.api.calls(), self.kms.calls());
        eventually("the load continues", PATIENCE, async || {
            self.api.calls() >= requests + 6 && self.kms.calls() >= calls + 40
        })
        .await;
    }

    /// Stops the load, asserts that nothing failed, and returns a summary in words.
    pub(crate) async fn finish(self, env: &NodeEnv) -> String {
        let (requests, calls) = (self.api.stop().await.requests, self.kms.stop().await);
        requests.assert_nothing_failed();
        calls.assert_nothing_failed();
        let KmsCalls { all, failed } = KmsCalls::of(&env.control_plane.api()).await.since(self.before);
        assert_eq!(failed, 0.0, "of {all} calls of kube-apiserver");
        format!(
            "of {} requests to kube-apiserver 0 failed (the longest took {:.0} ms), of its own {all} KMS calls 0, of {} \
             made directly 0 (the longest took {:.0} ms)",
            requests.calls,
            requests.longest.as_secs_f64() * 1000.0,
            calls.calls,
            calls.longest.as_secs_f64() * 1000.0,
        )
    }
}
