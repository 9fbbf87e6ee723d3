//! The chart is uninstalled.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use testkit::{
    cluster::{EncryptionConfig, NAME, Provider, record_measurement},
    eventually,
};

use crate::{
    helm::RELEASE,
    machine::{SOCKET, SOCKETS},
    node_env::{NodeEnv, identity_only},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long the garbage collector may take for dependents of deleted objects.
const COLLECTED_WITHIN: Duration = Duration::from_secs(180);
/// All kinds that a chart could create.
const KINDS: &str = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                     controllerrevisions,endpointslices,leases,networkpolicies,poddisruptionbudgets";

#[tokio::test]
async fn uninstall_fails_while_the_api_server_uses_the_plugin_and_leaves_nothing_behind_afterwards() {
    let (mut env, helm) = NodeEnv::installed(4, &json!({})).await;
    let pod = env.pod().await;
    let ran = helm.run(&["uninstall", RELEASE, "--wait", "--timeout=90s"]).await;
    assert!(!ran.good, "{ran:?}");
    let refusal = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(env.pod().await, pod, "the refused uninstall changed the pod");
    env.wait_encrypted("still").await;

    // The procedure of docs/upgrades.md: rewrite everything without encryption, and then remove the provider.
    env.control_plane.run_api_server(
        &env.node,
        &EncryptionConfig::for_secrets([Provider::identity(), Provider::v2(NAME, Path::new(SOCKET))]),
    );
    let api = env.control_plane.api();
    eventually("Secrets are written without encryption", PATIENCE, async || {
        api.rewrite_secret("still-1").await.map_err(|error| error.to_string())?;
        let prefix = env.control_plane.cluster.etcd.stored("secrets", "still-1").await.prefix();
        if prefix.is_empty() { Ok(()) } else { Err(prefix) }
    })
    .await;
    let all = env.control_plane.kubectl.json(&["get", "secrets", "-A"]).await;
    let file = env.node.temp_dir("secrets.json");
    fs::write(&file, all.to_string()).unwrap();
    env.kubectl(&["replace", "-f", file.to_str().unwrap()]).await.unwrap();
    env.control_plane.run_api_server(&env.node, &identity_only());
    eventually("kube-apiserver has closed its connections", PATIENCE, async || {
        let open = env.metric("transit_kms_connections_open").await;
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
    env.control_plane.wait_ready().await;
    env.control_plane.start_controllers();
    let ran = helm.run(&["uninstall", RELEASE, "--wait", "--timeout=90s"]).await;
    assert!(ran.good, "{ran:?}");
    eventually("nothing is left in the cluster", COLLECTED_WITHIN, async || {
        let mut left = String::new();
        for selector in
            [format!("app.kubernetes.io/instance={RELEASE}"), format!("name={RELEASE},owner=helm")]
        {
            left += &env.kubectl(&["get", KINDS, "-A", "-l", &selector, "-o", "name"]).await?;
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let mut left: Vec<_> = fs::read_dir(SOCKETS).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert!(left.is_empty(), "{SOCKETS} still contains {left:?}");
    assert_eq!(api.secret("still-1").await.unwrap(), "still-1");
    record_measurement(
        "node: uninstall",
        &format!("the guard says {refusal:?}; afterwards only the empty {SOCKETS} is left"),
    );
}
