//! Changes of the DaemonSet under constant load fail no request.

use std::time::Instant;

use serde_json::json;
use testkit::cluster::record_measurement;

use crate::{background_load::BackgroundLoad, helm::RELEASE, node_env::NodeEnv};

async fn restarts_upgrades_and_rollbacks(major: u8) {
    let (env, helm) = NodeEnv::installed(major, &json!({})).await;
    let mut pod = env.pod().await;
    let load = BackgroundLoad::start(&env).await;
    let mut took = Vec::new();
    for change in ["kubectl rollout restart", "helm upgrade", "helm rollback"] {
        load.wait_for_more().await;
        let begun = Instant::now();
        let set = format!("daemonset/{RELEASE}");
        match change {
            "kubectl rollout restart" => {
                env.kubectl(&["rollout", "restart", "-n", "kube-system", &set]).await.unwrap();
                let status = ["rollout", "status", "-n", "kube-system", "--timeout=5m", &set];
                if let Err(said) = env.kubectl(&status).await {
                    panic!("{said}\n{}", env.described().await);
                }
            }
            "helm upgrade" => {
                let ran = helm.upgrade(&["podAnnotations.upgraded=yes"]).await;
                assert!(ran.good, "{ran:?}");
            }
            _ => {
                let ran = helm.rollback().await;
                assert!(ran.good, "{ran:?}");
            }
        }
        took.push(format!("{change} {:.1} s", begun.elapsed().as_secs_f64()));
        let next = env.pod().await;
        assert_ne!(next.uid, pod.uid, "after {change}");
        pod = next;
    }
    load.wait_for_more().await;
    let counted = load.finish(&env).await;
    record_measurement("node: rollout", &format!("Helm {major}: {}; {counted}", took.join(", ")));
}

#[tokio::test]
async fn no_request_fails_while_the_daemon_set_is_changed_by_helm_3() {
    restarts_upgrades_and_rollbacks(3).await;
}

#[tokio::test]
async fn no_request_fails_while_the_daemon_set_is_changed_by_helm_4() {
    restarts_upgrades_and_rollbacks(4).await;
}
