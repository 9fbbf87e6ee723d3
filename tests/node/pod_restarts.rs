//! A pod does not restart for a new token or an outage of Vault, and restarts after a crash.

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
    background_load::BackgroundLoad,
    helm::PODS,
    machine::SOCKET,
    node_env::{NodeEnv, short_lived},
    pods::pods,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the liveness probe allows: it fails after three failures in a row, ten seconds apart.
const OUTAGE: Duration = Duration::from_secs(45);
/// The metric that counts sessions, and so the tokens.
const SESSION_GENERATION: &str = "transit_kms_session_generation";

fn tokens() -> f64 {
    if full() { 50.0 } else { 6.0 }
}

#[tokio::test]
async fn a_pod_does_not_restart_for_a_new_token_or_an_outage_and_restarts_after_a_crash() {
    let (mut env, helm) = NodeEnv::installed(4, &short_lived()).await;
    // Shorter than the default, so that the pod becomes unready early.
    let ran = helm.upgrade(&["extraArgs={--outage-grace=3s}"]).await;
    assert!(ran.good, "{ran:?}");
    let pod = env.pod().await;
    let load = BackgroundLoad::start(&env).await;
    let (begun, first) = (Instant::now(), env.metric(SESSION_GENERATION).await);
    eventually("the new tokens are in use", Duration::from_secs(10) * tokens() as u32, async || {
        let found = env.metric(SESSION_GENERATION).await - first;
        if found >= tokens() { Ok(()) } else { Err(found) }
    })
    .await;
    let rotations = begun.elapsed();
    let counted = load.finish(&env).await;
    assert_eq!(env.pod().await, pod, "the pod was replaced or a container restarted");
    record_measurement(
        "node: tokens",
        &format!("{} new tokens in {:.0} s, no restart; {counted}", tokens(), rotations.as_secs_f64()),
    );

    env.bao.stop();
    let begun = Instant::now();
    eventually("the pod is not ready", PATIENCE, async || {
        let found = pods(&env.control_plane.kubectl, PODS).await;
        if found.iter().any(|pod| !pod.ready) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let noticed = begun.elapsed();
    eventually("the outage lasts long enough", OUTAGE * 2, async || begun.elapsed() > OUTAGE).await;
    env.bao.start_again().await;
    let begun = Instant::now();
    assert_eq!(env.pod().await, pod, "the pod was replaced or a container restarted");
    let recovered = begun.elapsed();
    env.wait_encrypted("after-outage").await;

    let load = ApiLoad::start(&[env.control_plane.api(), env.control_plane.api()], "crash");
    let gaps = Gaps::measure(Path::new(SOCKET));
    let so_far = load.calls();
    eventually("the load continues", PATIENCE, async || load.calls() > so_far + 6).await;
    assert_eq!(env.node.crash("transit-kms"), 1);
    let after = eventually("the container restarted", PATIENCE, async || {
        let found = env.pod().await;
        if found.restarts > pod.restarts { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!((after.uid, after.restarts), (pod.uid, pod.restarts + 1));
    let gap = gaps.stop(1).await[0];
    let requests = load.stop().await.requests;
    requests.assert_nothing_failed();
    env.wait_encrypted("after-crash").await;
    record_measurement(
        "node: pod restarts",
        &format!(
            "{} s without Vault: the pod is not ready after {:.0} s, and ready {:.1} s after Vault is back, no restart; \
             SIGKILL of the daemon: kubelet starts it again, no call on the socket is answered for {:.1} s, of {} requests \
             to kube-apiserver 0 failed",
            OUTAGE.as_secs(),
            noticed.as_secs_f64(),
            recovered.as_secs_f64(),
            gap.as_secs_f64(),
            requests.calls,
        ),
    );
}
