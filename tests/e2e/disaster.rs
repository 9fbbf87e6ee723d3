//! The procedures of docs/disaster-recovery.md: each loss, its symptoms, and the recovery.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testkit::{
    Bao, Caller, ConfigFile, Daemon, DaemonOptions, KEY, MOUNT, POLICY, RELOAD_TIMEOUT, TestEnv,
    cluster::{ApiServer, ApiServerOptions, Cluster, ControlPlane, EncryptionConfig, READY_WITHIN},
    config_file, eventually, policy, temp_dir, version_of_key_id,
};

/// The key that replaces a lost key.
const NEW_KEY: &str = "kms-2";

/// (a) Vault is restored from a backup that is older than the last key rotation.
#[tokio::test]
async fn a_rewrite_repairs_data_after_vault_is_restored_from_before_a_rotation() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let snapshot = env.bao.snapshot().await;
    env.bao.rotate_key(KEY).await;
    let (daemon, caller) = env.ready([]).await;
    let config = EncryptionConfig::with_kms(daemon.socket());
    let server = cluster.ready(&config).await;
    server.api().create_secret("kept", "from before").await.unwrap();
    let lost = caller.round_trip().await;
    assert_eq!(cluster.etcd.key_ids().await, [lost.key_id.clone()].into());

    env.bao.restore(&snapshot).await;
    let restored = caller.wait_key_id_after(&lost.key_id, RELOAD_TIMEOUT).await;
    daemon.wait_printed("Vault keeps reporting an older key version, as after a backup was restored").await;
    assert_eq!(version_of_key_id(&restored), 1);
    assert_eq!(daemon.metric("transit_kms_key_version_regressions_total", &[]).await, 1.0);
    assert_eq!(daemon.metric("transit_kms_key_version", &[("key", "transit/kms")]).await, 1.0);
    assert_eq!(caller.health().await, "ok");
    let expected = "this Vault node does not know the key version";
    let error = caller.decrypt(&lost).await.unwrap_err();
    assert!(error.message().contains(expected), "{error}");

    // An API server that starts now cannot decrypt what was written since the backup, so it does not become ready.
    let mut new_server = cluster.api_server(&config, ApiServerOptions::default());
    wait_unreadable(&new_server, expected).await;
    assert_ne!(new_server.api().text("/readyz").await.0, 200);

    // The API server that was running before has the DEK seeds in memory.
    cluster.wait_for_key_id(server.api(), &restored, "again").await;
    rewrite(&server).await;
    assert_eq!(cluster.etcd.key_ids().await, [restored.clone()].into());
    new_server.wait_ready(READY_WITHIN).await;
    assert_eq!(new_server.api().secret("kept").await.unwrap(), "from before");

    // The new key version has the same number, but another key_id.
    env.bao.rotate_key(KEY).await;
    let next = caller.wait_key_id_after(&restored, RELOAD_TIMEOUT).await;
    assert_eq!(version_of_key_id(&next), 2);
    assert_ne!(next, lost.key_id);
    let error = caller.decrypt(&lost).await.unwrap_err();
    assert!(error.message().contains("version 2 of key `kms` was created at another time"), "{error}");
}

/// (a) As above, but the key is rotated before transit-kms notices the restored Vault.
#[tokio::test]
async fn a_restored_vault_that_rotates_immediately_is_reported_as_another_key() {
    let mut env = TestEnv::start().await;
    // transit-kms accepts an older version after three health checks. By then the key is rotated again.
    let (mut daemon, caller) = env.ready(["--health-check-interval", "5s"]).await;
    let token = env.bao.token().await;
    let snapshot = env.bao.snapshot().await;
    env.bao.rotate_key(KEY).await;
    env.render_and_wait(&daemon, &token).await;
    let lost = caller.round_trip().await;
    assert_eq!(version_of_key_id(&lost.key_id), 2);

    env.bao.restore(&snapshot).await;
    env.bao.rotate_key(KEY).await;
    let expected = "key `kms` is not the one that was in use under that name";
    eventually("Status is an error", RELOAD_TIMEOUT, async || {
        let said = caller.health().await;
        if said.starts_with("FailedPrecondition") && said.contains(expected) { Ok(()) } else { Err(said) }
    })
    .await;
    daemon.terminate().await;
    let (_daemon, caller) = env.ready([]).await;
    caller.round_trip().await;
    caller.decrypt(&lost).await.unwrap_err();
}

/// (b) Vault is lost. Only a backup of the key is left.
#[tokio::test]
async fn a_key_restored_into_a_new_vault_keeps_its_key_id_and_decrypts_everything() {
    let mut control_plane = ControlPlane::ready([]).await;
    let ControlPlane { caller, daemon, server, env, .. } = &mut control_plane;
    env.bao.rotate_key(KEY).await;
    let allowed = json!({"allow_plaintext_backup": true, "exportable": true});
    env.bao.api("POST", &format!("{MOUNT}/keys/{KEY}/config"), allowed).await;
    let backup = env.bao.api("GET", &format!("{MOUNT}/backup/{KEY}"), Value::Null).await;
    let key_id = eventually("version 2", RELOAD_TIMEOUT, async || {
        let key_id = caller.key_id().await;
        (version_of_key_id(&key_id) == 2).then_some(key_id)
    })
    .await;
    server.api().create_secret("kept", "from before").await.unwrap();
    env.bao.stop();
    caller.wait_health("Vault has not been usable for", RELOAD_TIMEOUT).await;

    let new = Bao::start().await;
    let restored = json!({"backup": backup["data"]["backup"], "force": true});
    new.api("POST", &format!("{MOUNT}/restore/{KEY}"), restored).await;
    let rendered = ConfigFile::with_new_token(&new).await;
    config_file::by_rename(&env.config, &rendered.yaml());
    caller.wait_ok(RELOAD_TIMEOUT).await;
    assert_eq!(
        caller.key_id().await,
        key_id,
        "the backup contains the creation times, so the key_id is the same"
    );

    // Restart both, so that neither has anything cached.
    daemon.terminate().await;
    let options = DaemonOptions { socket: Some(daemon.socket().to_path_buf()), ..DaemonOptions::default() };
    let daemon = Daemon::start_with(&env.config, options).await;
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    assert_eq!(server.api().secret("kept").await.unwrap(), "from before");
    assert_eq!(Caller::of(&daemon).await.key_id().await, key_id);
}

/// (c) etcd is restored from a backup that is older than a completed key rotation.
#[tokio::test]
async fn a_restored_etcd_needs_the_key_versions_of_its_backup() {
    let mut control_plane = ControlPlane::ready([]).await;
    let ControlPlane { caller, cluster, server, env, .. } = &mut control_plane;
    server.api().create_secret("kept", "from before").await.unwrap();
    let old = caller.key_id().await;
    let snapshot = cluster.etcd.snapshot().await;
    server.kill();
    env.bao.rotate_key(KEY).await;
    let new = caller.wait_key_id_after(&old, RELOAD_TIMEOUT).await;
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    rewrite(server).await;
    assert_eq!(cluster.etcd.key_ids().await, [new.clone()].into());
    set_min_decryption_version(&env.bao, 2).await;

    server.kill();
    cluster.etcd.restore(&snapshot).await;
    server.start_again();
    wait_unreadable(server, "the ciphertext's key version is below min_decryption_version of the key").await;
    assert_eq!(caller.health().await, "ok", "the key itself works");

    set_min_decryption_version(&env.bao, 1).await;
    server.wait_ready(READY_WITHIN).await;
    assert_eq!(server.api().secret("kept").await.unwrap(), "from before");
    rewrite(server).await;
    assert_eq!(cluster.etcd.key_ids().await, [new.clone()].into());
}

async fn delete_key(bao: &Bao) {
    let key = format!("{MOUNT}/keys/{KEY}");
    bao.api("POST", &format!("{key}/config"), json!({"deletion_allowed": true})).await;
    bao.api("DELETE", &key, Value::Null).await;
}

/// (d) The key is lost, and an API server is still running.
#[tokio::test]
async fn data_survives_a_lost_key_if_a_running_api_server_has_the_dek_seeds() {
    let mut control_plane = ControlPlane::ready([]).await;
    let ControlPlane { caller, cluster, daemon, server, env } = &mut control_plane;
    server.api().create_secret("kept", "from before").await.unwrap();
    server.api().create_config_map("kept", "from before").await.unwrap();
    delete_key(&env.bao).await;
    eventually("Status is an error", RELOAD_TIMEOUT, async || caller.status().await.err()).await;

    let saved = temp_dir("saved-");
    let saved = saved.path().join("objects.json");
    export(server, &saved).await;

    // The new key has another name. The config must not name the lost key.
    env.bao.api("POST", &format!("{MOUNT}/keys/{NEW_KEY}"), json!({})).await;
    env.bao.policy(POLICY, &policy(MOUNT, NEW_KEY)).await;
    env.rendered.keys = vec![NEW_KEY.into(), KEY.into()];
    let token = env.token().to_owned();
    env.render(&token);
    daemon.wait_printed("the new config is not in use yet; trying again").await;
    env.rendered.keys = vec![NEW_KEY.into()];
    env.render(&token);
    caller.wait_ok(RELOAD_TIMEOUT).await;
    daemon.wait_printed("the key that encrypted so far is no longer configured").await;

    cluster.wait_for_key_id(server.api(), &caller.key_id().await, "new").await;
    replace(server, &saved).await;
    assert_eq!(cluster.etcd.key_ids().await, [caller.key_id().await].into());
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    assert_eq!(server.api().secret("kept").await.unwrap(), "from before");
}

/// (e) The key is lost, and no running API server has the DEK seeds.
#[tokio::test]
async fn an_api_server_recovers_from_a_lost_key_once_the_unreadable_objects_are_deleted() {
    let mut control_plane = ControlPlane::ready([]).await;
    let ControlPlane { caller, cluster, server, env, .. } = &mut control_plane;
    server.api().create_secret("kept", "from before").await.unwrap();
    server.kill();
    let lost = caller.key_id().await;
    delete_key(&env.bao).await;
    // Wait, because the new policy does not mention the lost key, which would hide that the key is lost.
    eventually("Status is an error", RELOAD_TIMEOUT, async || caller.status().await.err()).await;
    env.bao.api("POST", &format!("{MOUNT}/keys/{NEW_KEY}"), json!({})).await;
    env.bao.policy(POLICY, &policy(MOUNT, NEW_KEY)).await;
    env.rendered.keys = vec![NEW_KEY.into()];
    let token = env.bao.token().await;
    env.render(&token);
    let key_id = caller.wait_key_id_after(&lost, RELOAD_TIMEOUT).await;

    server.start_again();
    let expected = "the key_id is of a Transit key that is not configured here";
    wait_unreadable(server, expected).await;
    let unready = server.api().text("/readyz?verbose").await;
    assert!(unready.0 == 500 && unready.1.contains("[-]informer-sync failed"), "{unready:?}");
    let kubectl = server.kubectl();
    let ran = kubectl.run(&["delete", "secret", "kept"]).await;
    assert!(!ran.good && ran.stderr.contains(expected), "{ran:?}");
    for (resource, namespace, name) in cluster.etcd.names().await {
        let object = format!("/api/v1/namespaces/{namespace}/{resource}/{name}");
        let uri = format!("{object}?ignoreStoreReadErrorWithClusterBreakingPotential=true");
        // kube-apiserver immediately creates its own objects again.
        let ran = kubectl.run(&["delete", "--raw", &uri]).await;
        assert!(ran.good, "{ran:?}");
    }
    server.wait_ready(READY_WITHIN).await;
    server.api().create_secret("kept", "new value").await.unwrap();
    assert_eq!(cluster.etcd.key_ids().await, [key_id].into());
}

/// Waits until reading the Secret `kept` fails with an error that contains `words`.
async fn wait_unreadable(server: &ApiServer, words: &str) {
    eventually("the Secret `kept` cannot be read", READY_WITHIN, async || {
        let said = server.api().secret("kept").await.err().map(|error| error.message).unwrap_or_default();
        if said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Rewrites all objects with the command of the documents.
async fn rewrite(server: &ApiServer) {
    let saved = temp_dir("saved-");
    let saved = saved.path().join("objects.json");
    export(server, &saved).await;
    replace(server, &saved).await;
}

async fn export(server: &ApiServer, to: &Path) {
    let ran = server.kubectl().run(&["get", "secrets,configmaps", "-A", "-o", "json"]).await;
    assert!(ran.good, "{}", ran.stderr);
    fs::write(to, ran.stdout).unwrap();
}

async fn replace(server: &ApiServer, from: &Path) {
    let ran = server.kubectl().run(&["replace", "-f", from.to_str().unwrap()]).await;
    assert!(ran.good, "{}", ran.stderr);
}

async fn set_min_decryption_version(bao: &Bao, version: u64) {
    let config = json!({"min_decryption_version": version});
    bao.api("POST", &format!("{MOUNT}/keys/{KEY}/config"), config).await;
}
