//! Constant load on the API server and on the socket.

use std::{path::Path, time::Duration};
use testkit::{
    Load,
    cluster::{ApiLoad, KmsCalls},
    eventually,
};

use crate::{machine::SOCKET, node_env::Site};

const PATIENCE: Duration = Duration::from_secs(60);

/// Secrets written and read by clients that try nothing twice, and calls on the socket.
pub(crate) struct Scene {
    api: ApiLoad,
    before: KmsCalls,
    kms: Load,
}

impl Scene {
    /// Load that has begun.
    pub(crate) async fn set(site: &Site) -> Self {
        let before = KmsCalls::of(&site.plane.api()).await;
        let api = ApiLoad::start(&[site.plane.api(), site.plane.api()], "load");
        Self { api, before, kms: Load::start_on(Path::new(SOCKET), 2, Duration::from_millis(10)).await }
    }

    /// Waits until there was more of it.
    pub(crate) async fn goes_on(&self) {
        let (requests, calls) = (self.api.calls(), self.kms.calls());
        eventually("load goes on", PATIENCE, async || {
            self.api.calls() >= requests + 6 && self.kms.calls() >= calls + 40
        })
        .await;
    }

    /// Nothing has failed; in words, how much there was.
    pub(crate) async fn end(self, site: &Site) -> String {
        let (requests, calls) = (self.api.stop().await.requests, self.kms.stop().await);
        requests.assert_nothing_failed();
        calls.assert_nothing_failed();
        let KmsCalls { all, failed } = KmsCalls::of(&site.plane.api()).await.since(self.before);
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
