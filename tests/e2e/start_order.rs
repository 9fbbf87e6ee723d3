//! Components that start in the wrong order.

use std::time::{Duration, Instant};
use testkit::{
    Daemon, DaemonOptions, TestEnv, calls,
    cluster::{ApiServerOptions, Cluster, EncryptionConfig, READY_WITHIN, record_measurement},
    eventually, temp_dir,
};

/// How often kube-apiserver calls Status of an unhealthy plugin.
/// Source: `kmsPluginHealthzNegativeInterval` in k8s.io/apiserver `pkg/server/options/encryptionconfig/config.go`.
const STATUS_INTERVAL_UNHEALTHY: Duration = Duration::from_secs(10);
/// The default of `--health-check-interval`.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(30);

#[tokio::test]
async fn kube_apiserver_becomes_ready_when_the_plugin_starts_after_it() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("late-"));
    let socket = dir.path().join("kms.sock");
    let mut server = cluster.api_server(&EncryptionConfig::with_kms(&socket), ApiServerOptions::default());
    eventually("kube-apiserver reports that the plugin is missing", READY_WITHIN, async || {
        let (status, text) = server.api().text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-providers failed") { Ok(()) } else { Err(text) }
    })
    .await;
    eventually("writes are refused", READY_WITHIN, async || {
        // The status is 404 until kube-apiserver knows its own namespaces.
        let refused = server.api().create_secret("early", "never stored").await.unwrap_err();
        if refused.status == 500 { Ok(()) } else { Err(refused) }
    })
    .await;

    let begun = Instant::now();
    let daemon =
        Daemon::start_with(&env.config, DaemonOptions { socket: Some(socket), ..DaemonOptions::default() })
            .await;
    server.wait_ready(READY_WITHIN).await;
    let took = begun.elapsed();
    server.api().create_secret("late", "stored").await.unwrap();
    assert_eq!(server.api().secret("late").await.unwrap(), "stored");
    drop(daemon);
    record_measurement(
        "5 start order",
        &format!("kube-apiserver is ready {:.1} s after the missing plugin starts", took.as_secs_f64()),
    );
}

#[tokio::test]
async fn kube_apiserver_becomes_ready_when_vault_starts_last() {
    let (cluster, mut env) = (Cluster::start().await, TestEnv::start().await);
    env.bao.stop();
    // With the default intervals, as in production.
    let daemon = Daemon::start_with(&env.config, DaemonOptions::arguments(["--log-level", "debug"])).await;
    let mut server =
        cluster.api_server(&EncryptionConfig::with_kms(daemon.socket()), ApiServerOptions::default());
    eventually("kube-apiserver waits for the plugin", READY_WITHIN, async || {
        let (status, text) = server.api().text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-providers failed") { Ok(()) } else { Err(text) }
    })
    .await;
    let reason = calls::status(&daemon.kms().await).await.unwrap_err();
    assert!(reason.message().contains("cannot be reached"), "{reason}");

    env.bao.start_again().await;
    let begun = Instant::now();
    // Recovery takes at most one interval of kube-apiserver and one of the daemon.
    server.wait_ready(STATUS_INTERVAL_UNHEALTHY + HEALTH_CHECK_INTERVAL).await;
    let took = begun.elapsed();
    server.api().create_secret("late", "stored").await.unwrap();
    assert_eq!(server.api().secret("late").await.unwrap(), "stored");
    record_measurement(
        "5 start order",
        &format!("kube-apiserver is ready {:.1} s after Vault", took.as_secs_f64()),
    );
}
