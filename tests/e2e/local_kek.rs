//! Encryption mode `local-kek`: API servers start while Vault is down.

use std::time::Instant;
use testkit::{
    RELOAD_TIMEOUT, TestEnv,
    cluster::{Cluster, EncryptionConfig, READY_WITHIN, record_measurement},
    eventually,
};

#[tokio::test]
async fn an_api_server_restarted_with_vault_down_becomes_ready_and_reads_its_secrets() {
    let (cluster, mut env) = (Cluster::start().await, TestEnv::start().await);
    let token = env.token().to_owned();
    env.rendered.local_kek = true;
    env.render(&token);
    let (daemon, caller) = env.ready(["--outage-grace", "1s"]).await;
    let mut server = cluster.ready(&EncryptionConfig::with_kms(daemon.socket())).await;
    // Each start makes a new DEK seed, which the local KEK encrypts.
    let mut written = Vec::new();
    for start in 0..3 {
        server.kill();
        server.start_again();
        server.wait_ready(READY_WITHIN).await;
        for number in 0..10 {
            let (name, value) = (format!("secret-{start}-{number}"), format!("value {start} {number}"));
            server.api().create_secret(&name, &value).await.unwrap();
            written.push((name, value));
        }
    }

    env.bao.stop();
    eventually("the outage is noticed", RELOAD_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        if status == 200 && text.contains("Vault does not answer right now") { Ok(()) } else { Err(text) }
    })
    .await;
    let down = Instant::now();
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    let ready = down.elapsed();
    let mut read = server.api().secrets().await.unwrap();
    read.sort();
    assert_eq!(read, written);
    server.api().create_secret("during", "written during the outage").await.unwrap();
    assert_eq!(server.api().secret("during").await.unwrap(), "written during the outage");
    // The outage is longer than `--outage-grace`.
    assert!(down.elapsed().as_secs() >= 1);
    assert_eq!(caller.health().await, "ok");

    env.bao.start_again().await;
    eventually("/readyz does not report the outage any more", READY_WITHIN, async || {
        let (_, text) = daemon.admin("/readyz").await;
        if text.contains("does not answer") { Err(text) } else { Ok(()) }
    })
    .await;

    // In mode `transit`, everything is readable again while Vault is available.
    env.rendered.local_kek = false;
    env.render_and_wait(&daemon, &token).await;
    server.kill();
    server.start_again();
    server.wait_ready(READY_WITHIN).await;
    written.push(("during".into(), "written during the outage".into()));
    written.sort();
    let mut read = server.api().secrets().await.unwrap();
    read.sort();
    assert_eq!(read, written);
    record_measurement(
        "5 local KEK",
        &format!("restarted with Vault down: ready after {:.1} s", ready.as_secs_f64()),
    );
}
