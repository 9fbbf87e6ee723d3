//! `transit-kms probe unused`: whoever is about to take the plugin away is told whether it is in use.

use std::{fs, path::Path};

use serde_json::Value;
use testkit::{
    KEY, TestEnv,
    cluster::{ApiServer, ControlPlane, EncryptionConfig, NAME, Provider, READY_WITHIN},
    command, eventually, temp_dir, unix_url,
};
use transit_client::key_id::key_id_hash;

/// The only API server there is.
const ALONE: [&str; 1] = ["--no-discovery"];
const OTHER: [&str; 2] = ["--no-discovery", "--other-provider=transit"];

const MAY_LOOK: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: guard}
rules:
  - {nonResourceURLs: [/metrics], verbs: [get]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: guard}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: guard}
subjects: [{kind: ServiceAccount, namespace: default, name: guard}]
"#;

#[tokio::test]
async fn a_plugin_is_in_use_until_no_configuration_names_it() {
    let mut control_plane = ControlPlane::ready([]).await;
    let account = temp_dir("account-");
    let kubectl = control_plane.server.kubectl();
    assert!(kubectl.run(&["create", "serviceaccount", "guard"]).await.good);
    let token = kubectl.run(&["create", "token", "guard"]).await;
    assert!(token.good, "{}", token.stderr);
    fs::write(account.path().join("token"), token.stdout).unwrap();
    fs::copy(control_plane.server.ca_file(), account.path().join("ca.crt")).unwrap();
    let ours = control_plane.daemon.socket().to_owned();

    // A right that is missing is named, and is no yes.
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &[]);
    assert_eq!((code, reason_has(&said, "the verb `list` on `endpointslices`")), (1, true), "{said}");
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
    assert_eq!((code, reason_has(&said, "nonResourceURL /metrics")), (1, true), "{said}");
    let rights = account.path().join("rights.yaml");
    fs::write(&rights, MAY_LOOK).unwrap();
    assert!(kubectl.run(&["apply", "-f", rights.to_str().unwrap()]).await.good);

    // An API server on the loopback is in no list, so the list is empty, and that is no yes either.
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &[]);
    assert_eq!((code, reason_has(&said, "the list is empty")), (1, true), "{said}");

    let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
    assert_eq!((code, reason_has(&said, "as its provider \"transit\"")), (1, true), "{said}");
    assert_eq!(said["key_id_hash"], key_id_hash(&control_plane.caller.key_id().await));

    // Another plugin is this one as far as can be told, until it is said to be another.
    let other = TestEnv::start().await;
    let (stranger, _) = other.ready([]).await;
    let (code, said) = unused(&control_plane.server, account.path(), stranger.socket(), &ALONE);
    assert_eq!((code, reason_has(&said, "--other-provider=transit")), (1, true), "{said}");
    let (code, said) = unused(&control_plane.server, account.path(), stranger.socket(), &OTHER);
    assert_eq!(code, 0, "{said}");

    // One that does not say who it is may be.
    let (code, said) = unused(&control_plane.server, account.path(), Path::new("/nowhere/kms.sock"), &ALONE);
    assert_eq!((code, reason_has(&said, "cannot be determined")), (1, true), "{said}");

    // After a rotation kube-apiserver has been told the old key_id only, until it asks again.
    let old = control_plane.caller.key_id().await;
    control_plane.env.bao.rotate_key(KEY).await;
    eventually("the daemon has moved", READY_WITHIN, async || control_plane.caller.key_id().await != old)
        .await;
    let new = key_id_hash(&control_plane.caller.key_id().await);
    eventually("kube-apiserver has moved, and was in use all the time", READY_WITHIN * 2, async || {
        let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
        assert_eq!((code, &said["key_id_hash"]), (1, &new.as_str().into()), "{said}");
        if reason_has(&said, "asked this plugin") { Ok(()) } else { Err(said.to_string()) }
    })
    .await;

    // Named second, it is still needed for what is not rewritten yet.
    restart_with(&mut control_plane.server, [Provider::identity(), Provider::v2(NAME, &ours)]).await;
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
    assert_eq!((code, reason_has(&said, "still names it")), (1, true), "{said}");
    let all = account.path().join("all.json");
    let stored = kubectl.json(&["get", "secrets,configmaps", "-A"]).await;
    fs::write(&all, stored.to_string()).unwrap();
    let rewritten = kubectl.run(&["replace", "-f", all.to_str().unwrap()]).await;
    assert!(rewritten.good, "{}", rewritten.stderr);

    restart_with(&mut control_plane.server, [Provider::identity()]).await;
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
    assert_eq!(code, 0, "{said}");

    control_plane.server.kill();
    let (code, said) = unused(&control_plane.server, account.path(), &ours, &ALONE);
    assert_eq!((code, reason_has(&said, "did not answer")), (2, true), "{said}");
}

async fn restart_with<const N: usize>(server: &mut ApiServer, providers: [Provider; N]) {
    server.configure(&EncryptionConfig::new(providers));
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
}

/// Its exit code and what it has learnt.
fn unused(server: &ApiServer, account: &Path, socket: &Path, more: &[&str]) -> (i32, Value) {
    let mut command = command(testkit::repository::daemon());
    command.args(["probe", "unused", "-o", "json", "--timeout", "30s", "--api-server", &server.address()]);
    command.arg("--service-account").arg(account).arg("--socket").arg(unix_url(socket)).args(more);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn reason_has(said: &Value, words: &str) -> bool {
    said["reason"].as_str().is_some_and(|reason| reason.contains(words))
}
