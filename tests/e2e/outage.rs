//! Vault is unavailable while API servers run.

use std::time::Instant;
use testkit::{
    RELOAD_TIMEOUT, TestEnv,
    cluster::{Cluster, ControlPlane, EncryptionConfig, READY_WITHIN, record_measurement},
    eventually,
};

#[tokio::test]
async fn api_servers_work_while_vault_is_sealed_and_status_reports_it_after_the_grace_period() {
    let mut control_plane = ControlPlane::ready(["--outage-grace", "5s"]).await;
    let api = control_plane.server.api().clone();
    api.create_secret("before", "written before").await.unwrap();
    control_plane.env.bao.seal().await;
    let sealed = Instant::now();

    // During the grace period, the plugin is healthy and its `/readyz` reports the outage.
    eventually("the plugin's /readyz reports the outage", RELOAD_TIMEOUT, async || {
        let (status, text) = control_plane.daemon.admin("/readyz").await;
        if status == 200 && text.contains("Vault does not answer right now") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(control_plane.caller.health().await, "ok");
    assert_eq!(api.text("/readyz").await.0, 200);

    // After the grace period, Status is an error with the reason. Requests that need no new DEK seed still succeed.
    control_plane.caller.wait_health("Vault is sealed", RELOAD_TIMEOUT).await;
    let reported = sealed.elapsed();
    assert_eq!(control_plane.daemon.admin("/readyz").await.0, 503);
    eventually("kube-apiserver's /readyz fails", READY_WITHIN, async || {
        let (status, text) = api.text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-providers failed") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(api.secret("before").await.unwrap(), "written before");
    api.create_secret("during", "written while it was sealed").await.unwrap();
    assert_eq!(api.secret("during").await.unwrap(), "written while it was sealed");
    assert_eq!(api.secrets().await.unwrap().len(), 2);

    control_plane.env.bao.unseal().await;
    let unsealed = Instant::now();
    control_plane.server.wait_ready(READY_WITHIN).await;
    assert_eq!(control_plane.daemon.admin("/readyz").await.0, 200);
    record_measurement(
        "7 sealed",
        &format!(
            "with --outage-grace 5s Status has the reason after {:.1} s; kube-apiserver is ready {:.1} s after \
             the unseal",
            reported.as_secs_f64(),
            unsealed.elapsed().as_secs_f64(),
        ),
    );
}

/// Shows what a load balancer sees of API servers that share an outage, as `docs/operations.md` describes.
#[tokio::test]
async fn a_load_balancer_that_excludes_kms_providers_keeps_api_servers_during_an_outage() {
    let (cluster, mut env) = (Cluster::start().await, TestEnv::start().await);
    let daemons = [env.ready([]).await.0, env.ready([]).await.0];
    let configs = daemons.each_ref().map(|daemon| EncryptionConfig::with_kms(daemon.socket()));
    let mut servers = [cluster.ready(&configs[0]).await, cluster.ready(&configs[1]).await];
    servers[0].api().create_secret("before", "written before").await.unwrap();
    assert_eq!(servers[1].api().secret("before").await.unwrap(), "written before");

    env.bao.stop();
    for server in &servers {
        eventually("kube-apiserver's /readyz fails", READY_WITHIN, async || {
            let (status, text) = server.api().text("/readyz").await;
            if status == 500 { Ok(()) } else { Err(text) }
        })
        .await;
        // A load balancer that uses this health check removes none of them.
        assert_eq!(server.api().text("/readyz?exclude=kms-providers").await.0, 200);
        // `/livez` does not include plugins, so kubelet restarts no API server.
        assert_eq!(server.api().text("/livez").await.0, 200);
    }
    // This is right: a server needs Vault only for DEK seeds that it has not seen.
    for (number, server) in servers.iter().enumerate() {
        server.api().create_secret(&format!("during-{number}"), "written during the outage").await.unwrap();
        assert_eq!(server.api().secret("before").await.unwrap(), "written before");
        assert_eq!(server.api().secret("during-0").await.unwrap(), "written during the outage");
    }
    // The second server's first write uses a DEK seed that the first server has not seen.
    assert_eq!(servers[1].api().secret("during-1").await.unwrap(), "written during the outage");
    let unseen = servers[0].api().secret("during-1").await.unwrap_err();
    assert_eq!(unseen.status, 500, "{unseen}");
    assert!(unseen.message.contains("cannot be reached"), "{unseen}");

    // A server that starts now has no DEK seed.
    servers[0].kill();
    servers[0].start_again();
    // Newer versions wait for their storage for a minute, and then start without it.
    eventually("the restarted server waits for its informers only", READY_WITHIN * 3, async || {
        let (_, text) = servers[0].api().text("/readyz?verbose&exclude=kms-providers").await;
        let failed: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
        if failed == ["informer-sync failed: reason withheld"] { Ok(()) } else { Err(text) }
    })
    .await;
    // So `informer-sync`, and not the excluded check, keeps clients away from this server.
    assert_eq!(servers[0].api().text("/livez").await.0, 200);
    let error = servers[0].api().secret("before").await.unwrap_err();
    assert_eq!(error.status, 500, "{error}");
    assert_eq!(servers[1].api().secret("before").await.unwrap(), "written before");

    env.bao.start_again().await;
    for server in &mut servers {
        server.wait_ready(READY_WITHIN).await;
        for name in ["during-0", "during-1"] {
            assert_eq!(server.api().secret(name).await.unwrap(), "written during the outage");
        }
    }
}
