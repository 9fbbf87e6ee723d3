//! Tokens and keys are rotated under load.

use std::time::Duration;

use testkit::{
    Agent, AgentOptions, Bao, Daemon, DaemonOptions, KEY, Load, RELOAD_TIMEOUT,
    cluster::{ApiLoad, Cluster, ControlPlane, EncryptionConfig, SECRETS, record_measurement},
    eventually, full, temp_dir, version_of_ciphertext, wait_for_session_after,
};
use transit_client::key_id::key_id_hash;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn no_request_fails_when_an_agent_replaces_the_token() {
    let rotations = if full() { 100 } else { 15 };
    let (bao, dir) = (Bao::start().await, temp_dir("rendered-"));
    let mut agent = Agent::start(&bao, &dir.path().join("config.yaml"), AgentOptions::default()).await;
    let options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
    let mut daemon = Daemon::start_with(agent.config(), options).await;
    daemon.wait_ready().await;
    let cluster = Cluster::start().await;
    let mut server = cluster.ready(&EncryptionConfig::with_kms(daemon.socket())).await;
    let (daemon_pid, server_pid) = (daemon.pid(), server.pid());

    let api_load = ApiLoad::start(&[server.api().clone(), server.api().clone()], "load");
    // kube-apiserver decrypts a seed only once. This load calls all the time.
    let load = Load::start(&daemon, 2, Duration::from_millis(20)).await;
    for _ in 0..rotations {
        let (old, generation) = (agent.token(), daemon.generation().await);
        agent.log_in_again().await;
        wait_for_session_after(&daemon, generation).await;
        bao.revoke(&old).await;
        // Make sure that there are calls between two revocations.
        let (api_calls, calls) = (api_load.calls(), load.calls());
        eventually("the load continues", PATIENCE, async || {
            api_load.calls() >= api_calls + 4 && load.calls() >= calls + 8
        })
        .await;
    }
    let took = api_load.age();
    let (api, calls) = (api_load.stop().await, load.stop().await);
    api.requests.assert_nothing_failed();
    calls.assert_nothing_failed();
    assert_eq!((daemon.pid(), server.pid()), (daemon_pid, server_pid));
    assert_eq!((daemon.exited(), server.exited()), (None, None));
    assert!(daemon.generation().await > rotations);
    record_measurement(
        "3 token rotation",
        &format!(
            "{rotations} tokens in {:.1} s, each revoked after its replacement was in use: {} requests to kube-apiserver and {} \
             KMS calls, 0 failed; the longest took {:.3} s and {:.3} s",
            took.as_secs_f64(),
            api.requests.calls,
            calls.calls,
            api.requests.longest.as_secs_f64(),
            calls.longest.as_secs_f64(),
        ),
    );
}

#[tokio::test]
async fn after_a_key_rotation_new_writes_use_the_new_version_and_old_values_are_readable() {
    let control_plane = ControlPlane::ready([]).await;
    let ControlPlane { caller, cluster, daemon, server, env } = &control_plane;
    server.api().create_secret("old", "written before").await.unwrap();
    let old = caller.key_id().await;
    assert_eq!(cluster.etcd.stored(SECRETS, "old").await.object().key_id, old);

    env.bao.rotate_key(KEY).await;
    let new = caller.wait_key_id_after(&old, RELOAD_TIMEOUT).await;
    let name = cluster.wait_for_key_id(server.api(), &new, "new").await;
    let source = cluster.etcd.stored(SECRETS, &name).await.object().encrypted_dek_source;
    assert_eq!(version_of_ciphertext(&source), 2);
    assert_eq!(server.api().secret(&name).await.unwrap(), name);

    // Old values stay unchanged and readable. A rewrite encrypts them with the new version.
    assert_eq!(cluster.etcd.stored(SECRETS, "old").await.object().key_id, old);
    assert_eq!(server.api().secret("old").await.unwrap(), "written before");
    server.api().rewrite_secret("old").await.unwrap();
    assert_eq!(cluster.etcd.stored(SECRETS, "old").await.object().key_id, new);
    assert_eq!(server.api().secret("old").await.unwrap(), "written before");

    // The dashboard joins metrics on this hash, so transit-kms and kube-apiserver must compute the same.
    let hash = key_id_hash(&new);
    let labels = [("key_id_hash", hash.as_str())];
    assert_eq!(daemon.metric("transit_kms_key_id_hash_info", &labels).await, 1.0);
    let used = "apiserver_envelope_encryption_key_id_hash_total";
    let to_storage = [labels[0], ("provider_name", "transit"), ("transformation_type", "to_storage")];
    assert!(server.api().metric(used, &to_storage).await >= 1.0, "{hash}");
}
