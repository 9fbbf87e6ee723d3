//! Migration from other KMS providers, without rewriting data first.

use std::{path::Path, time::Instant};

use testkit::{
    Daemon, DaemonOptions, TestEnv,
    cluster::{
        Api, ApiServerOptions, Cluster, EncryptionConfig, NAME, Provider, READY_WITHIN, SECRETS,
        record_measurement,
    },
    eventually, port, temp_dir, unix_url,
};
use tokio::task::JoinSet;

use crate::fake_plugin::FakePlugin;

/// The provider name in Trousseau's documentation. It is part of every stored value.
const TROUSSEAU: &str = "vaultprovider";
/// The provider name in the documentation of vault-kubernetes-kms.
const VAULT_KUBERNETES_KMS: &str = "vault-kubernetes-kms";
/// The number of Secrets. KMS v1 has a DEK for each, so a list makes as many Decrypts.
const COUNT: usize = 5000;
/// The number of concurrent writers.
const WRITERS: usize = 8;

#[tokio::test]
async fn values_of_trousseau_are_read_with_kms_v1_and_rewritten_with_kms_v2() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("migration-"));
    let old = dir.path().join("trousseau@localhost");
    let trousseau = FakePlugin::trousseau(&env.bao, &old);
    let before = EncryptionConfig::new([Provider::v1(TROUSSEAU, &old), Provider::identity()]);
    let mut server = cluster.api_server(&before, with_kms_v1());
    server.wait_ready(READY_WITHIN).await;
    let began = Instant::now();
    write(server.api(), COUNT).await;
    let wrote = began.elapsed();
    let prefix = cluster.etcd.stored(SECRETS, "secret-0").await.prefix();
    assert_eq!(prefix, format!("k8s:enc:kms:v1:{TROUSSEAU}:"));
    server.kill();
    drop(trousseau);

    // The provider name stays, because it is part of every value. Its endpoint is transit-kms, and KMS v2 encrypts new
    // values.
    let new = dir.path().join("v1@localhost");
    let daemon = daemon_with_v1(&env, &new).await;
    let v2 = Provider::v2(NAME, daemon.socket());
    server.configure(&EncryptionConfig::new([
        v2.clone(),
        Provider::v1(TROUSSEAU, &new),
        Provider::identity(),
    ]));
    let begun = Instant::now();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    let ready = begun.elapsed();
    let read = server.api().secrets().await.unwrap();
    let listed = begun.elapsed();
    assert_eq!(read.len(), COUNT);
    assert!(read.iter().all(|(name, value)| *value == format!("value of {name}")));
    let decrypts = daemon.metric("transit_kms_requests_total", &[("method", "v1_decrypt")]).await;
    assert!(decrypts as usize >= COUNT, "a Decrypt for each DEK: {decrypts}");
    let succeeded =
        daemon.metric("transit_kms_requests_total", &[("method", "v1_decrypt"), ("code", "OK")]).await;
    assert_eq!(succeeded.to_bits(), decrypts.to_bits(), "a Decrypt failed");
    record_measurement(
        "11 migration from KMS v1",
        &format!(
            "{COUNT} Secrets, a DEK each, written in {:.1} s: ready {:.1} s after the start, all listed after {:.1} s, \
             {decrypts} Decrypts, 0 failures",
            wrote.as_secs_f64(),
            ready.as_secs_f64(),
            listed.as_secs_f64(),
        ),
    );

    // Rewritten objects do not need KMS v1.
    let kubectl = server.kubectl();
    for name in ["secret-0", "secret-1"] {
        let object = kubectl.run(&["get", "secret", name, "-o", "json"]).await;
        assert!(object.good, "{object:?}");
        server.api().rewrite_secret(name).await.unwrap();
        let prefix = cluster.etcd.stored(SECRETS, name).await.prefix();
        assert_eq!(prefix, format!("k8s:enc:kms:v2:{NAME}:"));
        assert_eq!(server.api().secret(name).await.unwrap(), format!("value of {name}"));
    }
}

#[tokio::test]
async fn values_of_vault_kubernetes_kms_are_read_after_a_change_of_the_endpoint_only() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("migration-"));
    let old = dir.path().join("vaultkms.socket");
    let fake = FakePlugin::vault_kubernetes_kms(&env.bao, &old);
    let config = |socket: &Path| {
        EncryptionConfig::new([Provider::v2(VAULT_KUBERNETES_KMS, socket), Provider::identity()])
    };
    let mut server = cluster.ready(&config(&old)).await;
    write(server.api(), 20).await;
    assert_eq!(cluster.etcd.stored(SECRETS, "secret-0").await.object().key_id, "1");
    server.kill();
    drop(fake);

    let (daemon, caller) = env.ready([]).await;
    server.configure(&config(daemon.socket()));
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    let read = server.api().secrets().await.unwrap();
    assert_eq!(read.len(), 20);
    assert!(read.iter().all(|(name, value)| *value == format!("value of {name}")));
    // New values have the same provider name, and the key_id of transit-kms.
    server.api().rewrite_secret("secret-0").await.unwrap();
    let stored = cluster.etcd.stored(SECRETS, "secret-0").await;
    assert_eq!(stored.prefix(), format!("k8s:enc:kms:v2:{VAULT_KUBERNETES_KMS}:"));
    assert_eq!(stored.object().key_id, caller.key_id().await);
    assert_eq!(server.api().secret("secret-0").await.unwrap(), "value of secret-0");
}

/// Proves which names a socket for KMS v1 may have, as `docs/migration.md` says.
#[tokio::test]
async fn kube_apiservers_kms_v1_client_needs_an_abstract_socket_or_a_name_with_localhost() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("names-"));
    for socket in [port::abstract_name(), dir.path().join("v1@localhost")] {
        let daemon = daemon_with_v1(&env, &socket).await;
        let config = EncryptionConfig::new([Provider::v1(TROUSSEAU, &socket), Provider::identity()]);
        let mut server = cluster.api_server(&config, with_kms_v1());
        server.wait_ready(READY_WITHIN).await;
        let name = format!("through-{}", daemon.pid());
        server.api().create_secret(&name, &name).await.unwrap();
        assert_eq!(server.api().secret(&name).await.unwrap(), name, "{}", socket.display());
    }

    // kube-apiserver cannot use other names. `--kms-v1-listen` rejects them, so a fake plugin listens here.
    let plain = dir.path().join("v1.sock");
    let _fake = FakePlugin::trousseau(&env.bao, &plain);
    let config = EncryptionConfig::new([Provider::v1(TROUSSEAU, &plain), Provider::identity()]);
    let server = cluster.api_server(&config, with_kms_v1());
    eventually("the client of kube-apiserver is rejected", READY_WITHIN, async || {
        let (status, text) = server.api().text("/readyz?verbose").await;
        let refused = server.log().contains("PROTOCOL_ERROR");
        if status == 500 && text.contains("[-]kms-provider") && refused { Ok(()) } else { Err(text) }
    })
    .await;
}

fn with_kms_v1() -> ApiServerOptions {
    ApiServerOptions::arguments(["--feature-gates=KMSv1=true"])
}

async fn daemon_with_v1(env: &TestEnv, socket: &Path) -> Daemon {
    let v1 = unix_url(socket).into_string().unwrap();
    let arguments = ["--kms-v1-listen", &v1, "--log-level", "info", "--health-check-interval", "1s"];
    let daemon = Daemon::start_with(&env.config, DaemonOptions::arguments(arguments)).await;
    daemon.wait_ready().await;
    daemon
}

/// Writes `count` Secrets `secret-0`, `secret-1` and so on, with the value `value of <name>`.
async fn write(api: &Api, count: usize) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let api = api.clone();
        writers.spawn(async move {
            for number in (writer..count).step_by(WRITERS) {
                let name = format!("secret-{number}");
                api.create_secret(&name, &format!("value of {name}")).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
}
