//! `transit-kms probe unused` reports whether API servers still use the plugin, so that it can be removed.

use std::{fs, path::Path};

use serde_json::Value;
use testkit::{
    KEY, TestEnv,
    cluster::{ApiServer, ControlPlane, EncryptionConfig, NAME, Provider, READY_WITHIN},
    command, eventually, temp_dir, unix_url,
};
use transit_client::key_id::key_id_hash;

/// Checks only the API server of `--api-server`.
const NO_DISCOVERY: [&str; 1] = ["--no-discovery"];
/// As [`NO_DISCOVERY`], and the provider `transit` is known to be another plugin.
const OTHER_PROVIDER: [&str; 2] = ["--no-discovery", "--other-provider=transit"];

/// The permissions that the check needs.
const PERMISSIONS: &str = r#"
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
    let socket = control_plane.daemon.socket().to_owned();

    // The error names a missing permission, and the plugin counts as used.
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &[]);
    assert_eq!((code, reason_has(&said, "the verb `list` on `endpointslices`")), (1, true), "{said}");
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "nonResourceURL /metrics")), (1, true), "{said}");
    let rights = account.path().join("rights.yaml");
    fs::write(&rights, PERMISSIONS).unwrap();
    assert!(kubectl.run(&["apply", "-f", rights.to_str().unwrap()]).await.good);

    // An API server on a loopback address is not listed. With an empty list, the plugin counts as used.
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &[]);
    assert_eq!((code, reason_has(&said, "the list is empty")), (1, true), "{said}");

    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "as its provider \"transit\"")), (1, true), "{said}");
    assert_eq!(said["key_id_hash"], key_id_hash(&control_plane.caller.key_id().await));

    // The API server uses another plugin than the checked one. Only `--other-provider` can say so.
    let other = TestEnv::start().await;
    let (other_daemon, _) = other.ready([]).await;
    let (code, said) =
        probe_unused(&control_plane.server, account.path(), other_daemon.socket(), &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "--other-provider=transit")), (1, true), "{said}");
    let (code, said) =
        probe_unused(&control_plane.server, account.path(), other_daemon.socket(), &OTHER_PROVIDER);
    assert_eq!(code, 0, "{said}");

    // A plugin whose key_id is unknown counts as used.
    let (code, said) =
        probe_unused(&control_plane.server, account.path(), Path::new("/nowhere/kms.sock"), &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "cannot be determined")), (1, true), "{said}");

    // After a rotation, kube-apiserver knows only the old key_id until its next Status call.
    let old = control_plane.caller.key_id().await;
    control_plane.env.bao.rotate_key(KEY).await;
    eventually("the daemon uses the new key_id", READY_WITHIN, async || {
        control_plane.caller.key_id().await != old
    })
    .await;
    let new = key_id_hash(&control_plane.caller.key_id().await);
    eventually(
        "kube-apiserver uses the new key_id, and the plugin is reported as used until then",
        READY_WITHIN * 2,
        async || {
            let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
            assert_eq!((code, &said["key_id_hash"]), (1, &new.as_str().into()), "{said}");
            if reason_has(&said, "asked this plugin") { Ok(()) } else { Err(said.to_string()) }
        },
    )
    .await;

    // As the second provider, the plugin is needed until all data is rewritten.
    restart_with(&mut control_plane.server, [Provider::identity(), Provider::v2(NAME, &socket)]).await;
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "still names it")), (1, true), "{said}");
    let all = account.path().join("all.json");
    let stored = kubectl.json(&["get", "secrets,configmaps", "-A"]).await;
    fs::write(&all, stored.to_string()).unwrap();
    let rewritten = kubectl.run(&["replace", "-f", all.to_str().unwrap()]).await;
    assert!(rewritten.good, "{}", rewritten.stderr);

    restart_with(&mut control_plane.server, [Provider::identity()]).await;
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
    assert_eq!(code, 0, "{said}");

    control_plane.server.kill();
    let (code, said) = probe_unused(&control_plane.server, account.path(), &socket, &NO_DISCOVERY);
    assert_eq!((code, reason_has(&said, "did not answer")), (2, true), "{said}");
}

async fn restart_with<const N: usize>(server: &mut ApiServer, providers: [Provider; N]) {
    server.configure(&EncryptionConfig::new(providers));
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
}

/// Runs `transit-kms probe unused` and returns its exit code and JSON output.
fn probe_unused(server: &ApiServer, account: &Path, socket: &Path, more: &[&str]) -> (i32, Value) {
    let mut command = command(testkit::repository::daemon());
    command.args(["probe", "unused", "-o", "json", "--timeout", "30s", "--api-server", &server.address()]);
    command.arg("--service-account").arg(account).arg("--socket").arg(unix_url(socket)).args(more);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn reason_has(said: &Value, words: &str) -> bool {
    said["reason"].as_str().is_some_and(|reason| reason.contains(words))
}
