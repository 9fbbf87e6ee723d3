//! Upgrades that fail, and how to roll back.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{cluster::record_measurement, eventually};

use crate::{
    background_load::BackgroundLoad,
    helm::{PODS, RELEASE},
    node_env::NodeEnv,
    pods::pods,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for an upgrade that succeeds.
const SHORT_TIMEOUT: &str = "--timeout=20s";
/// A config with a Transit mount that does not exist.
const NEVER_READY: [&str; 1] = ["vault.transitPath=nowhere"];

#[tokio::test]
async fn a_failed_upgrade_leaves_the_old_pod_running_and_can_be_rolled_back() {
    let (env, helm) = NodeEnv::installed(4, &json!({})).await;
    let pod = env.pod().await;
    let load = BackgroundLoad::start(&env).await;
    for bad in [&NEVER_READY[..], &["image.tag=absent"]] {
        let ran = helm.upgrade_within(SHORT_TIMEOUT, bad).await;
        assert!(!ran.good, "{bad:?}: {ran:?}");
        let found = pods(&env.control_plane.kubectl, PODS).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&pod), "the old pod is not ready: {found:?}");
        assert!(!found.iter().any(|one| one.ready && one.uid != pod.uid), "{found:?}");
        load.wait_for_more().await;
        let ran = helm.rollback().await;
        assert!(ran.good, "{ran:?}");
        assert_eq!(env.pod().await, pod, "the rollback changed the old pod");
    }
    load.wait_for_more().await;
    let counted = load.finish(&env).await;
    record_measurement(
        "node: bad upgrade",
        &format!("a config that never works, an image that does not exist: {counted}"),
    );

    // The worst case: the old pod and kube-apiserver end during a failed upgrade. Then kube-apiserver cannot decrypt
    // Helm's Secrets. `kubectl rollout undo` needs no Secret, and the pod template contains the config.
    env.wait_encrypted("before").await;
    let ran = helm.upgrade_within(SHORT_TIMEOUT, &NEVER_READY).await;
    assert!(!ran.good, "{ran:?}");
    env.kubectl(&["delete", "pod", "-n", "kube-system", "--wait=false", &pod.name]).await.unwrap();
    eventually("the old pod is gone", PATIENCE, async || {
        let found = pods(&env.control_plane.kubectl, PODS).await;
        if found.iter().any(|one| one.uid == pod.uid) { Err(format!("{found:?}")) } else { Ok(()) }
    })
    .await;
    assert_eq!(env.node.crash("kube-apiserver"), 1);
    let set = format!("daemonset/{RELEASE}");
    let undo = ["rollout", "undo", "-n", "kube-system", &set];
    eventually("kube-apiserver answers again", PATIENCE, async || {
        env.kubectl(&["get", &set, "-n", "kube-system"]).await
    })
    .await;
    let ran = helm.run(&["rollback", RELEASE]).await;
    assert!(!ran.good, "{ran:?}");
    let helm_error = ran.stderr.trim().lines().last().unwrap_or_default().to_owned();
    let begun = Instant::now();
    env.kubectl(&undo).await.unwrap();
    let next = env.pod().await;
    assert_ne!(next.uid, pod.uid);
    env.control_plane.wait_ready().await;
    env.wait_encrypted("after").await;
    let recovered = begun.elapsed();
    let ran = helm.rollback().await;
    assert!(ran.good, "{ran:?}");
    record_measurement(
        "node: bad upgrade",
        &format!(
            "with no pod left, helm rollback says {helm_error:?}; kubectl rollout undo works, and everything recovers within \
             {:.0} s",
            recovered.as_secs_f64()
        ),
    );
}
