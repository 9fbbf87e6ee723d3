//! Two API servers share an etcd, and each has its own daemon.

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

/// The pause between two reads of all Secrets.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[tokio::test]
async fn everything_is_readable_on_both_nodes_when_one_sees_a_rotation_first() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let (fast, fast_caller) = env.ready([]).await;
    // Without a hint, this daemon would not notice a rotation for ten minutes.
    let (slow, slow_caller) = env.ready_without_health_checks().await;
    let first = cluster.ready(&EncryptionConfig::with_kms(fast.socket())).await;
    let second = cluster.ready(&EncryptionConfig::with_kms(slow.socket())).await;
    let apis = [first.api().clone(), second.api().clone()];
    for (number, api) in apis.iter().enumerate() {
        api.create_secret(&format!("old-{number}"), &format!("old-{number}")).await.unwrap();
    }
    let old = fast_caller.key_id().await;
    assert_eq!(slow_caller.key_id().await, old);

    let polls = Poller::start(&apis);
    env.bao.rotate_key(KEY).await;
    let new = fast_caller.wait_key_id_after(&old, RELOAD_TIMEOUT).await;
    assert_eq!(slow_caller.key_id().await, old, "the slow daemon does not know of the rotation yet");
    let name = cluster.wait_for_key_id(&apis[0], &new, "new").await;
    // The second server decrypts with a key version that its daemon does not know, so the daemon checks the key.
    assert_eq!(apis[1].secret(&name).await.unwrap(), name);
    eventually("the slow daemon knows of the rotation", RELOAD_TIMEOUT, async || {
        slow_caller.key_id().await == new
    })
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
        &format!("{reads} reads on both servers during the rotation, 0 failed"),
    );
}

/// Reads all Secrets from all servers repeatedly.
struct Poller {
    reads: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Poller {
    fn start(apis: &[Api]) -> Self {
        let mut polls = Self { reads: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        for api in apis {
            let (api, reads, stop) = (api.clone(), polls.reads.clone(), polls.stop.clone());
            polls.tasks.spawn(async move {
                while !stop.is_cancelled() {
                    for (name, _) in api.secrets().await.unwrap() {
                        // kube-apiserver does not read single objects from its cache.
                        let value = api.secret(&name).await.unwrap();
                        assert_eq!(value, name);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(tokio::time::timeout(POLL_INTERVAL, stop.cancelled()).await);
                }
            });
        }
        polls
    }

    /// Returns how many objects were read.
    ///
    /// # Panics
    /// Panics if a read failed.
    async fn stop(mut self) -> u64 {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.reads.load(Ordering::Relaxed)
    }
}
