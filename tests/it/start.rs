//! Status before the first session names the real cause from the start.

use std::time::Duration;
use testkit::{Caller, Daemon, Fault, FaultProxy, NetworkLink, TestEnv, closed_address, eventually};

const WAIT_TIMEOUT: Duration = Duration::from_secs(9);

/// Starts a daemon, and returns its first Status.
async fn first_status(env: &TestEnv) -> (Daemon, Caller, String) {
    let daemon = env.daemon(["--allow-http"]).await;
    let caller = Caller::of(&daemon).await;
    let said = caller.health().await;
    (daemon, caller, said)
}

async fn silent_proxy(env: &TestEnv) -> FaultProxy {
    let proxy = FaultProxy::in_front_of(&env.bao).await;
    proxy.inject("", Fault::NoAnswer);
    proxy
}

async fn attempts_ended(daemon: &Daemon) -> u64 {
    daemon.reloads("pending").await + daemon.reloads("refused").await
}

#[tokio::test]
async fn a_silent_address_is_named_with_the_request_that_it_does_not_answer() {
    let mut env = TestEnv::without_file().await;
    let proxy = silent_proxy(&env).await;
    env.rendered.addresses = vec![proxy.address()];
    let token = env.bao.token().await;
    env.render(&token);
    let (daemon, caller, said) = first_status(&env).await;
    let waiting = format!("verifying the config: waiting for {} to answer lookup_self", proxy.address());
    assert!(said.starts_with("Unavailable") && said.contains(&waiting), "{said}");
    caller.wait_health("has been silent for", WAIT_TIMEOUT).await;
    // The next request of the same try is named, too.
    caller.wait_health("to answer read_key", WAIT_TIMEOUT).await;
    let (status, text) = daemon.admin("/readyz").await;
    assert!(status == 503 && text.contains(&proxy.address()), "{status} {text}");
    assert_eq!(attempts_ended(&daemon).await, 0, "the first try is still running");

    eventually("the try ends", WAIT_TIMEOUT * 2, async || attempts_ended(&daemon).await == 1).await;
    let said = caller.health().await;
    assert!(said.contains(&proxy.address()) && said.contains("to answer read_key"), "{said}");
    proxy.clear();
    daemon.wait_ready_within(WAIT_TIMEOUT * 3).await;
}

#[tokio::test]
async fn an_address_that_refuses_is_named_while_another_is_silent() {
    let mut env = TestEnv::without_file().await;
    let (proxy, closed) = (silent_proxy(&env).await, closed_address());
    env.rendered.addresses = vec![closed.clone(), proxy.address()];
    let token = env.bao.token().await;
    env.render(&token);
    let (daemon, caller, said) = first_status(&env).await;
    assert!(said.contains(&format!("waiting for {closed}, {}", proxy.address())), "{said}");
    caller.wait_health(&format!("Vault at {closed} cannot be reached"), WAIT_TIMEOUT).await;
    assert_eq!(attempts_ended(&daemon).await, 0, "the first try is still running");
    proxy.clear();
    daemon.wait_ready_within(WAIT_TIMEOUT * 3).await;
}

/// As with a firewall that drops packets or a stopped server: connections are accepted, and nothing else happens.
#[tokio::test]
async fn an_address_that_drops_all_traffic_is_named() {
    let mut env = TestEnv::without_file().await;
    let link = NetworkLink::to(&env.bao).await;
    link.drop_traffic();
    env.rendered.addresses = vec![link.address()];
    let token = env.bao.token().await;
    env.render(&token);
    let (daemon, caller, said) = first_status(&env).await;
    assert!(said.contains(&link.address()), "{said}");
    caller.wait_health("cannot be reached: operation timed out", WAIT_TIMEOUT).await;
    link.restore().await;
    daemon.wait_ready_within(WAIT_TIMEOUT * 3).await;
}

#[tokio::test]
async fn a_closed_port_and_a_missing_file_are_named_at_once() {
    let mut env = TestEnv::without_file().await;
    let (daemon, caller, said) = first_status(&env).await;
    assert!(said.contains(&env.config.display().to_string()) && said.contains("does not exist"), "{said}");
    let closed = closed_address();
    let good = std::mem::replace(&mut env.rendered.addresses, vec![closed.clone()]);
    let token = env.bao.token().await;
    env.render(&token);
    caller.wait_health(&format!("Vault at {closed} cannot be reached"), WAIT_TIMEOUT).await;
    drop(daemon);
    let (daemon, _, said) = first_status(&env).await;
    assert!(said.contains(&format!("Vault at {closed} cannot be reached")), "{said}");
    env.rendered.addresses = good;
    env.render(&token);
    daemon.wait_ready().await;
}
