//! Upgrades that go wrong, and the ways back.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{cluster::record_measurement, eventually};

use crate::{
    background_load::Scene,
    helm::{PODS, RELEASE},
    node_env::Site,
    pods::pods,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for a good one.
const SHORT: &str = "--timeout=20s";
/// A config that no Vault is good for.
const NEVER_READY: [&str; 1] = ["vault.transitPath=nowhere"];

#[tokio::test]
async fn a_bad_upgrade_leaves_the_old_pod_in_place_and_there_is_a_way_back() {
    let (site, helm) = Site::installed(4, &json!({})).await;
    let pod = site.pod().await;
    let scene = Scene::set(&site).await;
    for bad in [&NEVER_READY[..], &["image.tag=absent"]] {
        let ran = helm.upgrade_within(SHORT, bad).await;
        assert!(!ran.good, "{bad:?}: {ran:?}");
        let found = pods(&site.plane.kubectl, PODS).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&pod), "the old one is there and ready: {found:?}");
        assert!(!found.iter().any(|one| one.ready && one.uid != pod.uid), "{found:?}");
        scene.goes_on().await;
        let ran = helm.rollback().await;
        assert!(ran.good, "{ran:?}");
        assert_eq!(site.pod().await, pod, "nobody has touched it");
    }
    scene.goes_on().await;
    let counted = scene.end(&site).await;
    record_measurement(
        "node: bad upgrade",
        &format!("a config that is never good, an image that is not there: {counted}"),
    );

    // Now the old pod dies meanwhile, and kube-apiserver with it: nobody can read what Helm needs. The config is a part
    // of the pod, so that `undo` brings it back.
    site.wait_encrypted("before").await;
    let ran = helm.upgrade_within(SHORT, &NEVER_READY).await;
    assert!(!ran.good, "{ran:?}");
    site.kubectl(&["delete", "pod", "-n", "kube-system", "--wait=false", &pod.name]).await.unwrap();
    eventually("the old pod is gone", PATIENCE, async || {
        let found = pods(&site.plane.kubectl, PODS).await;
        if found.iter().any(|one| one.uid == pod.uid) { Err(format!("{found:?}")) } else { Ok(()) }
    })
    .await;
    assert_eq!(site.node.crash("kube-apiserver"), 1);
    let set = format!("daemonset/{RELEASE}");
    let undo = ["rollout", "undo", "-n", "kube-system", &set];
    eventually("kube-apiserver answers again", PATIENCE, async || {
        site.kubectl(&["get", &set, "-n", "kube-system"]).await
    })
    .await;
    let ran = helm.run(&["rollback", RELEASE]).await;
    assert!(!ran.good, "{ran:?}");
    let said = ran.stderr.trim().lines().last().unwrap_or_default().to_owned();
    let begun = Instant::now();
    site.kubectl(&undo).await.unwrap();
    let next = site.pod().await;
    assert_ne!(next.uid, pod.uid);
    site.plane.wait_ready().await;
    site.wait_encrypted("after").await;
    let back = begun.elapsed();
    let ran = helm.rollback().await;
    assert!(ran.good, "{ran:?}");
    record_measurement(
        "node: bad upgrade",
        &format!(
            "with no pod of ours left, helm rollback says {said:?}; kubectl rollout undo works, and all is well {:.0} s \
             after it",
            back.as_secs_f64()
        ),
    );
}
