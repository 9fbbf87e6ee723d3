//! The daemon is killed under load, and comes back.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, Stage, TAKEN_WITHIN, calls,
    cluster::{ApiLoad, Cluster, EncryptionConfig, figure},
    eventually, kms_client, scratch,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// kube-apiserver's timeout: by then it must have its answer, whoever died.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_killed_daemon_is_followed_by_another_and_kube_apiserver_does_not_notice() {
    let (cluster, stage, dir) = (Cluster::start().await, Stage::start().await, scratch("crash-"));
    let socket = dir.path().join("kms.sock");
    let start = async || {
        let options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
        Daemon::start_with(&stage.config, DaemonOptions { socket: Some(socket.clone()), ..options }).await
    };
    let mut daemon = start().await;
    daemon.wait_ready().await;
    let server = cluster.ready(&EncryptionConfig::ours(&socket)).await;
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
    stage.bao.rotate_key(KEY).await;
    let key_id = caller.wait_key_id_after(&before, TAKEN_WITHIN).await;
    cluster.wait_moved(server.api(), &key_id, "after").await;
    for (name, value) in &api.written {
        assert_eq!(server.api().secret(name).await.unwrap(), *value);
    }
    figure(
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
