//! Failures of the agent and of the rendered file. No call fails.

use std::{fs, time::Duration};

use serde_json::json;
use testkit::{
    Agent, AgentOptions, Bao, Daemon, DaemonOptions, Load, RELOAD_TIMEOUT, SmallDisk, TestEnv, eventually,
    temp_dir, wait_for_session_after, without_inotify,
};

const CALLERS: usize = 2;
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than the TTL of a token whose agent has ended.
const RENEWED_WITHIN: Duration = Duration::from_secs(30);

/// Waits for enough further calls to notice an error.
async fn wait_for_more_calls(load: &Load) {
    let calls = load.calls();
    eventually("further calls", RELOAD_TIMEOUT, async || load.calls() >= calls + 40).await;
}

async fn daemon_of(agent: &Agent) -> Daemon {
    let options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
    let daemon = Daemon::start_with(agent.config(), options).await;
    daemon.wait_ready().await;
    daemon
}

#[tokio::test]
async fn the_token_is_renewed_after_the_agent_dies() {
    let (bao, dir) = (Bao::start().await, temp_dir("rendered-"));
    let options = AgentOptions { role: json!({"token_ttl": "6s"}), ..AgentOptions::default() };
    let agent = Agent::start(&bao, &dir.path().join("config.yaml"), options).await;
    let daemon = daemon_of(&agent).await;
    let load = Load::start(&daemon, CALLERS, PAUSE).await;
    drop(agent);
    let renewed = async || daemon.metric("transit_kms_token_renewals_total", &[("result", "renewed")]).await;
    let before = renewed().await;
    // Without these renewals the token would have expired.
    eventually("the token outlives its agent", RENEWED_WITHIN, async || renewed().await >= before + 3.0)
        .await;
    wait_for_more_calls(&load).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(daemon.generation().await, 1);
}

#[tokio::test]
async fn no_call_fails_while_the_config_file_is_missing() {
    let mut env = TestEnv::start().await;
    let (daemon, _) = env.ready([]).await;
    let load = Load::start(&daemon, CALLERS, PAUSE).await;
    fs::remove_file(&env.config).unwrap();
    eventually("readyz reports the missing file", RELOAD_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        if status == 200 && text.contains("the newest config is not in use") { Ok(()) } else { Err(text) }
    })
    .await;
    wait_for_more_calls(&load).await;
    let token = env.bao.token().await;
    env.render_and_wait(&daemon, &token).await;
    wait_for_more_calls(&load).await;
    load.stop().await.assert_nothing_failed();
}

#[tokio::test]
async fn a_new_token_is_found_when_inotify_is_exhausted() {
    let Some(wrapper) = without_inotify() else { return };
    let mut env = TestEnv::start().await;
    let options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
    let options = DaemonOptions { wrapper, ..options };
    let daemon = Daemon::start_with(&env.config, options).await;
    daemon.wait_ready().await;
    let load = Load::start(&daemon, CALLERS, PAUSE).await;
    let old = env.token().to_owned();
    let token = env.bao.token().await;
    env.render_and_wait(&daemon, &token).await;
    env.bao.revoke(&old).await;
    wait_for_more_calls(&load).await;
    load.stop().await.assert_nothing_failed();
    assert!(daemon.log().contains("the files are polled"), "{}", daemon.log());
}

#[tokio::test]
async fn no_call_fails_while_the_disk_of_the_agent_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mounted(dir.path(), "64k") else { return };
    let bao = Bao::start().await;
    let mut agent = Agent::start(&bao, &dir.path().join("config.yaml"), AgentOptions::default()).await;
    let daemon = daemon_of(&agent).await;
    let load = Load::start(&daemon, CALLERS, PAUSE).await;
    let rendered = agent.token();

    disk.fill();
    agent.try_to_log_in_again();
    eventually("the agent cannot render", RELOAD_TIMEOUT, async || {
        let said = agent.output();
        if said.contains("no space left on device") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(agent.token(), rendered, "the rendered file is unchanged");
    wait_for_more_calls(&load).await;

    disk.free();
    let generation = daemon.generation().await;
    agent.log_in_again().await;
    wait_for_session_after(&daemon, generation).await;
    wait_for_more_calls(&load).await;
    load.stop().await.assert_nothing_failed();
}
