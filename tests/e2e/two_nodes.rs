//! Two API servers on one etcd, each with a daemon of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use testkit::{
    KEY, RELOAD_TIMEOUT, TestEnv,
    cluster::{Api, Cluster, EncryptionConfig, SECRETS, record_measurement},
    eventually, version_of_key_id,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two looks at everything.
const PACE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_rotation_seen_by_one_node_first_leaves_everything_readable_on_both() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let (quick, quick_caller) = env.ready([]).await;
    // Of itself it would not notice for ten minutes.
    let (slow, slow_caller) = env.ready_without_health_checks().await;
    let first = cluster.ready(&EncryptionConfig::with_kms(quick.socket())).await;
    let second = cluster.ready(&EncryptionConfig::with_kms(slow.socket())).await;
    let apis = [first.api().clone(), second.api().clone()];
    for (number, api) in apis.iter().enumerate() {
        api.create_secret(&format!("old-{number}"), &format!("old-{number}")).await.unwrap();
    }
    let old = quick_caller.key_id().await;
    assert_eq!(slow_caller.key_id().await, old);

    let polls = Polls::start(&apis);
    env.bao.rotate_key(KEY).await;
    let new = quick_caller.wait_key_id_after(&old, RELOAD_TIMEOUT).await;
    assert_eq!(slow_caller.key_id().await, old, "the other has not");
    let name = cluster.wait_for_key_id(&apis[0], &new, "new").await;
    // The server of the slow one has read what it could not know of, and so its daemon looked.
    assert_eq!(apis[1].secret(&name).await.unwrap(), name);
    eventually("the other node has seen it", RELOAD_TIMEOUT, async || slow_caller.key_id().await == new)
        .await;
    slow.wait_printed("another node has seen a newer key version").await;
    cluster.wait_for_key_id(&apis[1], &new, "newer").await;
    let reads = polls.stop().await;

    for api in &apis {
        let mut read: Vec<String> = api.secrets().await.unwrap().into_iter().map(|(name, _)| name).collect();
        read.sort();
        let mut stored = cluster.etcd.all_stored(SECRETS).await;
        stored.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(read, stored.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        let versions: Vec<u64> =
            stored.iter().map(|(_, stored)| version_of_key_id(&stored.object().key_id)).collect();
        assert!(versions.contains(&1) && versions.contains(&2), "{versions:?}");
    }
    record_measurement(
        "9 two nodes",
        &format!("{reads} reads of everything on both servers during the rotation, 0 failed"),
    );
}

/// Reads all Secrets from both servers, over and over.
struct Polls {
    reads: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Polls {
    fn start(apis: &[Api]) -> Self {
        let mut polls = Self { reads: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        for api in apis {
            let (api, reads, stop) = (api.clone(), polls.reads.clone(), polls.stop.clone());
            polls.tasks.spawn(async move {
                while !stop.is_cancelled() {
                    for (name, _) in api.secrets().await.unwrap() {
                        // Uncached: kube-apiserver reads a single object from etcd.
                        let value = api.secret(&name).await.unwrap();
                        assert_eq!(value, name);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(tokio::time::timeout(PACE, stop.cancelled()).await);
                }
            });
        }
        polls
    }

    /// How many objects were read.
    ///
    /// # Panics
    /// If a read failed.
    async fn stop(mut self) -> u64 {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.reads.load(Ordering::Relaxed)
    }
}
