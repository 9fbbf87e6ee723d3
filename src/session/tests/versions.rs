//! Which key version is published when Vault reports others.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_new_version_that_cannot_be_used_yet_is_not_published() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    let first = bench.key_id();
    bench.model.rotate("kms");
    bench.model.change(|state| {
        state.fails.insert("encrypt", ErrorKind::VersionUnavailable);
    });
    pass(40).await;
    assert_eq!(bench.key_id(), first);
    bench.model.change(|state| state.fails.clear());
    pass(31).await;
    assert_ne!(bench.key_id(), first);
}

#[tokio::test(start_paused = true)]
async fn a_lagging_standby_never_moves_the_key_id_back() {
    let model = Model::new();
    model.rotate("kms");
    let bench = SessionBench::with_health_checker(model).await;
    let newest = bench.key_id();
    bench.model.change(|state| state.lag = 1);
    for _ in 0..50 {
        pass(1).await;
        assert_eq!((bench.key_id(), bench.healthz()), (newest.clone(), "ok".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_version_is_published_after_three_checks_of_the_active_node() {
    let model = Model::new();
    let first = SessionBench::ready(model.clone(), &["kms"]).await.key_id();
    model.rotate("kms");
    let bench = SessionBench::with_health_checker(model).await;
    let second = bench.key_id();
    assert_ne!(first, second);
    // A backup was restored.
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    pass(31).await;
    assert_eq!(bench.key_id(), second, "one check is not enough");
    pass(10).await;
    assert_eq!((bench.key_id(), bench.healthz()), (first, "ok".into()));
    assert_eq!(bench.wrap(b"seed").await.unwrap().version().number(), 1);
}

#[tokio::test(start_paused = true)]
async fn older_versions_that_one_session_reported_do_not_count_for_the_next() {
    let model = Model::new();
    model.rotate("kms");
    let mut bench = SessionBench::with_health_checker(model).await;
    let second = bench.key_id();
    let versions = |count: i64| {
        let key = FakeKey::new(1, &(1..=count).map(|version| version * 100).collect::<Vec<_>>());
        bench.model.change(|state| state.keys.insert("kms".into(), key));
    };
    versions(1);
    pass(31).await;
    bench.store.request_health_check();
    pass(1).await;
    versions(2);
    bench.publish(&["kms"]).await.unwrap();
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    bench.store.request_health_check();
    pass(2).await;
    assert_eq!(bench.key_id(), second, "the third check, but of two sessions");
    pass(15).await;
    assert_ne!(bench.key_id(), second, "the third check of one session");
}
