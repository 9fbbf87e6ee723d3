//! The daemon is killed under load and started again.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, RELOAD_TIMEOUT, TestEnv, calls,
    cluster::{ApiLoad, Cluster, EncryptionConfig, record_measurement},
    eventually, kms_client, temp_dir,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// kube-apiserver's timeout for KMS calls. A new daemon must answer within it.
const KMS_TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn no_api_request_fails_when_the_daemon_is_killed_and_started_again() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("crash-"));
    let socket = dir.path().join("kms.sock");
    let start = async || {
        let options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
        Daemon::start_with(&env.config, DaemonOptions { socket: Some(socket.clone()), ..options }).await
    };
    let mut daemon = start().await;
    daemon.wait_ready().await;
    let server = cluster.ready(&EncryptionConfig::with_kms(&socket)).await;
    let api_load = ApiLoad::start(&[server.api().clone(), server.api().clone()], "load");
    let load = Load::start_on(&socket, 2, Duration::from_millis(10)).await;
    let wait_for_more_calls = async || {
        let (api_calls, calls) = (api_load.calls(), load.calls());
        eventually("the load continues", PATIENCE, async || {
            api_load.calls() >= api_calls + 10 && load.calls() >= calls + 20
        })
        .await;
    };
    wait_for_more_calls().await;

    daemon.signal(Signal::KILL);
    let killed = Instant::now();
    daemon.wait_ended(PATIENCE).await;
    assert!(socket.exists(), "a killed process does not remove its socket");
    let daemon = start().await;
    let listening = killed.elapsed();
    eventually("calls are answered again", KMS_TIMEOUT, async || {
        calls::encrypt(&kms_client(&socket).await, &[7; 32], "after").await
    })
    .await;
    let answering = killed.elapsed();
    wait_for_more_calls().await;
    let (api, calls) = (api_load.stop().await, load.stop().await);
    // kube-apiserver keeps DEK seeds in memory. It calls the daemon for unknown seeds only.
    api.requests.assert_nothing_failed();
    assert!(calls.failed < calls.calls / 2, "{calls:?}");

    // kube-apiserver uses the new process: it learns of a key rotation.
    let caller = Caller::of(&daemon).await;
    let before = caller.key_id().await;
    env.bao.rotate_key(KEY).await;
    let key_id = caller.wait_key_id_after(&before, RELOAD_TIMEOUT).await;
    cluster.wait_for_key_id(server.api(), &key_id, "after").await;
    for (name, value) in &api.written {
        assert_eq!(server.api().secret(name).await.unwrap(), *value);
    }
    record_measurement(
        "6 crash",
        &format!(
            "SIGKILL under load, started again immediately: listening after {:.0} ms, answering after {:.0} ms; of {} \
             KMS calls made without a pause {} failed; of {} requests to kube-apiserver 0",
            listening.as_secs_f64() * 1000.0,
            answering.as_secs_f64() * 1000.0,
            calls.calls,
            calls.failed,
            api.requests.calls,
        ),
    );
}
