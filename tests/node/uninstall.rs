//! The way out.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use testkit::{
    cluster::{EncryptionConfig, NAME, Provider, record_measurement},
    eventually,
};

use crate::{
    helm::RELEASE,
    machine::{SOCKET, SOCKETS},
    node_env::{Site, plain},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// What belongs to what is deleted goes a while later.
const COLLECTED_WITHIN: Duration = Duration::from_secs(180);
/// Whatever a chart may make.
const KINDS: &str = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                     controllerrevisions,endpointslices,leases,networkpolicies,poddisruptionbudgets";

#[tokio::test]
async fn it_is_refused_while_the_api_server_uses_us_and_leaves_nothing_behind_afterwards() {
    let (mut site, helm) = Site::installed(4, &json!({})).await;
    let pod = site.pod().await;
    let ran = helm.run(&["uninstall", RELEASE, "--wait", "--timeout=90s"]).await;
    assert!(!ran.good, "{ran:?}");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(site.pod().await, pod, "nothing has happened to it");
    site.wait_encrypted("still").await;

    // What docs/upgrades.md says of leaving: write everything plainly, and then take the provider away.
    site.plane.give_api_server(
        &site.node,
        &EncryptionConfig::for_secrets([Provider::identity(), Provider::v2(NAME, Path::new(SOCKET))]),
    );
    let api = site.plane.api();
    eventually("Secrets are written plainly", PATIENCE, async || {
        api.rewrite_secret("still-1").await.map_err(|error| error.to_string())?;
        let prefix = site.plane.cluster.etcd.stored("secrets", "still-1").await.prefix();
        if prefix.is_empty() { Ok(()) } else { Err(prefix) }
    })
    .await;
    let all = site.plane.kubectl.json(&["get", "secrets", "-A"]).await;
    let file = site.node.temp_dir("secrets.json");
    fs::write(&file, all.to_string()).unwrap();
    site.kubectl(&["replace", "-f", file.to_str().unwrap()]).await.unwrap();
    site.plane.give_api_server(&site.node, &plain());
    eventually("kube-apiserver has let go of the socket", PATIENCE, async || {
        let open = site.metric("transit_kms_connections_open").await;
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
    site.plane.wait_ready().await;
    site.plane.start_controllers();
    let ran = helm.run(&["uninstall", RELEASE, "--wait", "--timeout=90s"]).await;
    assert!(ran.good, "{ran:?}");
    eventually("nothing is left in the cluster", COLLECTED_WITHIN, async || {
        let mut left = String::new();
        for selector in
            [format!("app.kubernetes.io/instance={RELEASE}"), format!("name={RELEASE},owner=helm")]
        {
            left += &site.kubectl(&["get", KINDS, "-A", "-l", &selector, "-o", "name"]).await?;
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let mut left: Vec<_> = fs::read_dir(SOCKETS).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert!(left.is_empty(), "{SOCKETS} is still there, and in it {left:?}");
    assert_eq!(api.secret("still-1").await.unwrap(), "still-1");
    record_measurement(
        "node: uninstall",
        &format!("the guard says {said:?}; afterwards nothing is left but {SOCKETS}, empty"),
    );
}
