//! The daemon is killed under load, and comes back.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, RELOAD_TIMEOUT, TestEnv, calls,
    cluster::{ApiLoad, Cluster, EncryptionConfig, record_measurement},
    eventually, kms_client, temp_dir,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// kube-apiserver's timeout: by then it must have its answer, whoever died.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_killed_daemon_is_followed_by_another_and_kube_apiserver_does_not_notice() {
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
    let goes_on = async || {
        let (api_calls, calls) = (api_load.calls(), load.calls());
        eventually("load goes on", PATIENCE, async || {
            api_load.calls() >= api_calls + 10 && load.calls() >= calls + 20
        })
        .await;
    };
    goes_on().await;

    daemon.signal(Signal::KILL);
    let killed = Instant::now();
    daemon.wait_ended(PATIENCE).await;
    assert!(socket.exists(), "a killed process cleans nothing up");
    let daemon = start().await;
    let listening = killed.elapsed();
    eventually("calls are answered again", ANSWERS_WITHIN, async || {
        calls::encrypt(&kms_client(&socket).await, &[7; 32], "after").await
    })
    .await;
    let answering = killed.elapsed();
    goes_on().await;
    let (api, calls) = (api_load.stop().await, load.stop().await);
    // Seeds live in kube-apiserver's memory; it needs the daemon for new ones only.
    api.requests.assert_nothing_failed();
    assert!(calls.failed < calls.calls / 2, "{calls:?}");

    // It has found the new process: a rotation reaches it.
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
            "SIGKILL under load, started again at once: listening after {:.0} ms, answering after {:.0} ms; of {} \
             KMS calls made without a pause {} failed; of {} requests to kube-apiserver 0",
            listening.as_secs_f64() * 1000.0,
            answering.as_secs_f64() * 1000.0,
            calls.calls,
            calls.failed,
            api.requests.calls,
        ),
    );
}
