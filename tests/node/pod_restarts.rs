//! What a pod lives through: new tokens, an outage of Vault, its own death.

use std::{
    path::Path,
    time::{Duration, Instant},
};
use testkit::{
    Gaps,
    cluster::{ApiLoad, record_measurement},
    eventually, full,
};

use crate::{
    background_load::Scene,
    helm::PODS,
    machine::SOCKET,
    node_env::{Site, short_lived},
    pods::pods,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// More than the liveness probe would forgive: three failures in a row, ten seconds apart.
const OUTAGE: Duration = Duration::from_secs(45);
/// Named by the pod's metrics.
const SESSIONS: &str = "transit_kms_session_generation";

fn tokens() -> f64 {
    if full() { 50.0 } else { 6.0 }
}

#[tokio::test]
async fn no_pod_restarts_for_a_new_token_an_outage_of_vault_or_a_crash_of_another() {
    let (mut site, helm) = Site::installed(4, &short_lived()).await;
    // So that it need not be a minute until an outage counts.
    let ran = helm.upgrade(&["extraArgs={--outage-grace=3s}"]).await;
    assert!(ran.good, "{ran:?}");
    let pod = site.pod().await;
    let scene = Scene::set(&site).await;
    let (begun, first) = (Instant::now(), site.metric(SESSIONS).await);
    eventually("token after token is in use", Duration::from_secs(10) * tokens() as u32, async || {
        let found = site.metric(SESSIONS).await - first;
        if found >= tokens() { Ok(()) } else { Err(found) }
    })
    .await;
    let rotations = begun.elapsed();
    let counted = scene.end(&site).await;
    assert_eq!(site.pod().await, pod, "the same, and no container has started again");
    record_measurement(
        "node: tokens",
        &format!("{} new tokens in {:.0} s, no restart; {counted}", tokens(), rotations.as_secs_f64()),
    );

    site.bao.stop();
    let begun = Instant::now();
    eventually("the pod is not ready", PATIENCE, async || {
        let found = pods(&site.plane.kubectl, PODS).await;
        if found.iter().any(|pod| !pod.ready) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let noticed = begun.elapsed();
    eventually("an outage is long", OUTAGE * 2, async || begun.elapsed() > OUTAGE).await;
    site.bao.start_again().await;
    let begun = Instant::now();
    assert_eq!(site.pod().await, pod, "the same, and no container has started again");
    let healed = begun.elapsed();
    site.wait_encrypted("after-outage").await;

    let load = ApiLoad::start(&[site.plane.api(), site.plane.api()], "crash");
    let gaps = Gaps::measure(Path::new(SOCKET));
    let so_far = load.calls();
    eventually("load goes on", PATIENCE, async || load.calls() > so_far + 6).await;
    assert_eq!(site.node.crash("transit-kms"), 1);
    let after = eventually("the container has started again", PATIENCE, async || {
        let found = site.pod().await;
        if found.restarts > pod.restarts { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!((after.uid, after.restarts), (pod.uid, pod.restarts + 1));
    let gap = gaps.stop(1).await[0];
    let requests = load.stop().await.requests;
    requests.assert_nothing_failed();
    site.wait_encrypted("after-crash").await;
    record_measurement(
        "node: survives",
        &format!(
            "{} s without Vault: the pod is not ready after {:.0} s, and again {:.1} s after Vault is back, no restart; \
             SIGKILL of the daemon: kubelet starts it again, no call on the socket is answered for {:.1} s, of {} requests \
             to kube-apiserver 0 failed",
            OUTAGE.as_secs(),
            noticed.as_secs_f64(),
            healed.as_secs_f64(),
            gap.as_secs_f64(),
            requests.calls,
        ),
    );
}
