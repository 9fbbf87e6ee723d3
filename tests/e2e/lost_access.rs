//! Vault refuses access, or the key is deleted.

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

/// How long kube-apiserver writes with a DEK seed after the last successful Status.
/// Source: `kmsv2PluginWriteDEKSourceMaxTTL` in k8s.io/apiserver
/// `pkg/server/options/encryptionconfig/config.go`.
const DEK_SEED_MAX_TTL: Duration = Duration::from_secs(180);
/// What one health check and the interval of the test's writes may add.
const MARGIN: Duration = Duration::from_secs(5);
/// The time between two writes of the test, and so the precision of the measurement.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_revoked_policy_is_reported_immediately_and_recovers_when_granted_again() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let (daemon, _) = env.ready([]).await;
    // At lower levels, kube-apiserver does not log why a plugin is unhealthy.
    let options = ApiServerOptions::arguments(["--v=2"]);
    let mut server = cluster.api_server(&EncryptionConfig::with_kms(daemon.socket()), options);
    server.wait_ready(READY_WITHIN).await;
    server.api().create_secret("before", "written before").await.unwrap();
    let rules = policy(MOUNT, KEY).replace("/decrypt/", "/never/");
    env.bao.policy(POLICY, &rules).await;

    let begun = Instant::now();
    let reason = eventually("the plugin's /readyz has the reason", RELOAD_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        if status == 503 { Ok(text) } else { Err(text) }
    })
    .await;
    let reported = begun.elapsed();
    let expected = "policy does not allow decrypt: grant `update` on transit/decrypt/kms";
    assert!(reason.contains(expected), "{reason}");
    eventually("kube-apiserver's /readyz fails", READY_WITHIN, async || {
        let (status, text) = server.api().text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-providers failed") { Ok(()) } else { Err(text) }
    })
    .await;
    eventually("kube-apiserver logs the reason", RELOAD_TIMEOUT, async || server.log().contains(expected))
        .await;
    // kube-apiserver still reads with the DEK seeds in its cache.
    assert_eq!(server.api().secret("before").await.unwrap(), "written before");

    env.bao.policy(POLICY, &policy(MOUNT, KEY)).await;
    server.wait_ready(READY_WITHIN).await;
    record_measurement(
        "8 revoked",
        &format!(
            "the plugin's /readyz has the reason {:.2} s after the policy changes",
            reported.as_secs_f64()
        ),
    );
}

/// Takes three minutes, because kube-apiserver waits that long before it refuses writes.
#[tokio::test]
async fn a_deleted_key_stops_writes_and_everything_is_readable_after_it_is_restored() {
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
        control_plane.caller.status().await.err().ok_or("Status is ok")
    })
    .await;
    assert!(error.message().contains("does not exist") || error.message().contains("not found"), "{error}");

    // Clients write until kube-apiserver refuses.
    let refusal = eventually("writes stop", DEK_SEED_MAX_TTL + MARGIN, async || {
        drop(tokio::time::timeout(WRITE_INTERVAL, std::future::pending::<()>()).await);
        write(&api, &mut written).await.err().ok_or("the write succeeded")
    })
    .await;
    let stopped = deleted.elapsed();
    assert!(refusal.contains("expired"), "{refusal}");
    let stored = control_plane.cluster.etcd.all_stored(SECRETS).await.len();
    assert_eq!(stored, written.len());
    // kube-apiserver stores nothing more, because it could not be decrypted later.
    for _ in 0..10 {
        write(&api, &mut written).await.unwrap_err();
    }
    assert_eq!(control_plane.cluster.etcd.all_stored(SECRETS).await.len(), stored);

    let restored = json!({"backup": backup["data"]["backup"]});
    control_plane.env.bao.api("POST", &format!("{MOUNT}/restore/{KEY}"), restored).await;
    let begun = Instant::now();
    control_plane.server.wait_ready(READY_WITHIN).await;
    let recovered = begun.elapsed();
    write(&api, &mut written).await.unwrap();
    // Restart, so that kube-apiserver has nothing cached.
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
            "writes stop {:.0} s after the key is deleted ({} were stored until then), and succeed again {:.1} s after it is \
             restored; all are readable after a restart",
            stopped.as_secs_f64(),
            stored - 1,
            recovered.as_secs_f64(),
        ),
    );
}

/// Writes another Secret, and adds it to `written` if the API server confirms the write.
async fn write(api: &Api, written: &mut Vec<(String, String)>) -> Result<(), String> {
    let (name, value) = (format!("secret-{}", written.len()), format!("value {}", written.len()));
    api.create_secret(&name, &value).await.map_err(|error| error.to_string())?;
    written.push((name, value));
    Ok(())
}
