//! Vault says no, or has lost the key.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{
    KEY, MOUNT, POLICY, RELOAD_TIMEOUT, TestEnv,
    cluster::{
        Api, ApiServerOptions, Cluster, ControlPlane, EncryptionConfig, READY_WITHIN, SECRETS,
        record_measurement,
    },
    eventually, policy,
};

/// How long kube-apiserver writes under a seed that Status no longer vouches for, and how often it
/// looks. Source: `kmsv2PluginWriteDEKSourceMaxTTL` in k8s.io/apiserver
/// `pkg/server/options/encryptionconfig/config.go`.
const WRITES_GO_ON_FOR: Duration = Duration::from_secs(180);
/// What the test's own clocks may add: a probe of ours, and the pace of its writes.
const MARGIN: Duration = Duration::from_secs(5);
/// Between two writes of the test; each is a moment at which writing may have stopped.
const PACE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn revoked_access_is_told_at_once_and_heals() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let (daemon, _) = env.ready([]).await;
    // Below this it does not say why a plugin is not healthy.
    let options = ApiServerOptions::arguments(["--v=2"]);
    let mut server = cluster.api_server(&EncryptionConfig::with_kms(daemon.socket()), options);
    server.wait_ready(READY_WITHIN).await;
    server.api().create_secret("before", "written before").await.unwrap();
    let rules = policy(MOUNT, KEY).replace("/decrypt/", "/never/");
    env.bao.policy(POLICY, &rules).await;

    let begun = Instant::now();
    let reason = eventually("our /readyz says why", RELOAD_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        if status == 503 { Ok(text) } else { Err(text) }
    })
    .await;
    let told = begun.elapsed();
    let words = "policy does not allow decrypt: grant `update` on transit/decrypt/kms";
    assert!(reason.contains(words), "{reason}");
    eventually("kube-apiserver's /readyz fails", READY_WITHIN, async || {
        let (status, text) = server.api().text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-providers failed") { Ok(()) } else { Err(text) }
    })
    .await;
    eventually("it logs our reason", RELOAD_TIMEOUT, async || server.log().contains(words)).await;
    // What is cached is served on.
    assert_eq!(server.api().secret("before").await.unwrap(), "written before");

    env.bao.policy(POLICY, &policy(MOUNT, KEY)).await;
    server.wait_ready(READY_WITHIN).await;
    record_measurement(
        "8 revoked",
        &format!("our /readyz has the reason {:.2} s after the policy has it", told.as_secs_f64()),
    );
}

/// It takes the three minutes that kube-apiserver takes.
#[tokio::test]
async fn a_deleted_key_stops_writes_before_they_cannot_be_read_and_its_return_heals() {
    let mut control_plane = ControlPlane::ready([]).await;
    let bao = &control_plane.env.bao;
    let key = format!("{MOUNT}/keys/{KEY}");
    let allowed = json!({"allow_plaintext_backup": true, "deletion_allowed": true, "exportable": true});
    bao.api("POST", &format!("{key}/config"), allowed).await;
    let backup = bao.api("GET", &format!("{MOUNT}/backup/{KEY}"), Value::Null).await;

    let api = control_plane.server.api().clone();
    let mut written = Vec::new();
    write(&api, &mut written).await.unwrap();
    bao.api("DELETE", &key, Value::Null).await;
    let deleted = Instant::now();
    let error = eventually("Status is an error", RELOAD_TIMEOUT, async || {
        control_plane.caller.status().await.err().ok_or("it is not")
    })
    .await;
    assert!(error.message().contains("does not exist") || error.message().contains("not found"), "{error}");

    // Clients go on writing, as long as they may.
    let refusal = eventually("writes stop", WRITES_GO_ON_FOR + MARGIN, async || {
        drop(tokio::time::timeout(PACE, std::future::pending::<()>()).await);
        write(&api, &mut written).await.err().ok_or("they do not")
    })
    .await;
    let stopped = deleted.elapsed();
    assert!(refusal.contains("expired"), "{refusal}");
    let stored = control_plane.cluster.etcd.all_stored(SECRETS).await.len();
    assert_eq!(stored, written.len());
    // From now on none: what would be stored, nobody could read.
    for _ in 0..10 {
        write(&api, &mut written).await.unwrap_err();
    }
    assert_eq!(control_plane.cluster.etcd.all_stored(SECRETS).await.len(), stored);

    let restored = json!({"backup": backup["data"]["backup"]});
    control_plane.env.bao.api("POST", &format!("{MOUNT}/restore/{KEY}"), restored).await;
    let begun = Instant::now();
    control_plane.server.wait_ready(READY_WITHIN).await;
    let healed = begun.elapsed();
    write(&api, &mut written).await.unwrap();
    // With nothing cached.
    control_plane.server.kill();
    control_plane.server.start_again();
    control_plane.server.wait_ready(READY_WITHIN).await;
    let mut read = control_plane.server.api().secrets().await.unwrap();
    read.sort();
    written.sort();
    assert_eq!(read, written);
    record_measurement(
        "8 deleted",
        &format!(
            "writes stop {:.0} s after the key is deleted ({} were stored until then), and go on {:.1} s after it is \
             restored; all are readable after a restart",
            stopped.as_secs_f64(),
            stored - 1,
            healed.as_secs_f64(),
        ),
    );
}

/// Writes one more Secret, and notes it if that was confirmed.
async fn write(api: &Api, written: &mut Vec<(String, String)>) -> Result<(), String> {
    let (name, value) = (format!("secret-{}", written.len()), format!("value {}", written.len()));
    api.create_secret(&name, &value).await.map_err(|error| error.to_string())?;
    written.push((name, value));
    Ok(())
}
