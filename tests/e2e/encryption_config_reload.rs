//! kube-apiserver reloads its EncryptionConfiguration while it runs.

use std::time::Duration;
use testkit::{
    TestEnv,
    cluster::{
        ApiLoad, ApiServerOptions, Cluster, EncryptionConfig, NAME, Provider, READY_WITHIN, SECRETS,
        record_measurement,
    },
    eventually,
};

/// kube-apiserver reads the file once a minute, and then waits until the new provider is healthy.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(150);

#[tokio::test]
async fn a_reload_from_identity_to_transit_kms_fails_no_request() {
    let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
    let (daemon, _) = env.ready([]).await;
    let transit = || Provider::v2(NAME, daemon.socket());
    let options = ApiServerOptions::arguments(["--encryption-provider-config-automatic-reload=true"]);
    let before = EncryptionConfig::new([Provider::identity(), transit()]);
    let mut server = cluster.api_server(&before, options);
    server.wait_ready(READY_WITHIN).await;
    let api = server.api().clone();
    api.create_secret("plain", "written before").await.unwrap();
    assert_eq!(cluster.etcd.stored(SECRETS, "plain").await.prefix(), "");
    let connections = async || daemon.metric("transit_kms_connections_open", &[]).await;
    assert_eq!(connections().await, 1.0, "one client, for reads");

    let load = ApiLoad::start(std::slice::from_ref(&api), "load");
    server.configure(&EncryptionConfig::new([transit(), Provider::identity()]));
    let both = eventually("the old client and the new one share the socket", RELOAD_TIMEOUT, async || {
        let open = connections().await;
        if open >= 2.0 { Ok(open) } else { Err(open) }
    })
    .await;
    let mut tries = 0;
    eventually("transit-kms encrypts new Secrets", RELOAD_TIMEOUT, async || {
        tries += 1;
        let name = format!("new-{tries}");
        api.create_secret(&name, "written after").await.unwrap();
        let prefix = cluster.etcd.stored(SECRETS, &name).await.prefix();
        if prefix == format!("k8s:enc:kms:v2:{NAME}:") { Ok(()) } else { Err(prefix) }
    })
    .await;
    let took = load.age();
    load.stop().await.requests.assert_nothing_failed();

    assert_eq!(api.secret("plain").await.unwrap(), "written before");
    api.rewrite_secret("plain").await.unwrap();
    assert_eq!(cluster.etcd.stored(SECRETS, "plain").await.prefix(), format!("k8s:enc:kms:v2:{NAME}:"));
    assert_eq!(api.secret("plain").await.unwrap(), "written before");
    record_measurement(
        "10 reload",
        &format!(
            "reloaded after {:.0} s under load, 0 failures; {both} connections meanwhile",
            took.as_secs_f64()
        ),
    );
}
