//! What Status says before there is a session: the real cause, from the first moment.

use std::time::Duration;
use testkit::{Caller, Daemon, Fault, FaultProxy, Stage, Wire, closed_address, eventually};

const PATIENCE: Duration = Duration::from_secs(9);

/// The first thing that Status says, which a caller waits for.
async fn first_words(stage: &Stage) -> (Daemon, Caller, String) {
    let daemon = stage.daemon(["--allow-http"]).await;
    let caller = Caller::of(&daemon).await;
    let said = caller.health().await;
    (daemon, caller, said)
}

async fn silent_proxy(stage: &Stage) -> FaultProxy {
    let proxy = FaultProxy::before(&stage.bao).await;
    proxy.spoil("", Fault::Silence);
    proxy
}

async fn tries_ended(daemon: &Daemon) -> u64 {
    daemon.reloads("pending").await + daemon.reloads("refused").await
}

#[tokio::test]
async fn a_silent_address_is_named_with_the_call_while_it_is_still_silent() {
    let mut stage = Stage::without_file().await;
    let proxy = silent_proxy(&stage).await;
    stage.rendered.addresses = vec![proxy.address()];
    let token = stage.bao.token().await;
    stage.render(&token);
    let (daemon, caller, said) = first_words(&stage).await;
    let waiting = format!("verifying the config: waiting for {} to answer lookup_self", proxy.address());
    assert!(said.starts_with("Unavailable") && said.contains(&waiting), "{said}");
    caller.wait_health("has been silent for", PATIENCE).await;
    // The next call of the same try is named, too.
    caller.wait_health("to answer read_key", PATIENCE).await;
    let (status, text) = daemon.admin("/readyz").await;
    assert!(status == 503 && text.contains(&proxy.address()), "{status} {text}");
    assert_eq!(tries_ended(&daemon).await, 0, "all that is said during the first try");

    eventually("the try ends", PATIENCE * 2, async || tries_ended(&daemon).await == 1).await;
    let said = caller.health().await;
    assert!(said.contains(&proxy.address()) && said.contains("to answer read_key"), "{said}");
    proxy.mend();
    daemon.wait_ready_within(PATIENCE * 3).await;
}

#[tokio::test]
async fn an_address_that_refuses_is_named_while_another_is_silent() {
    let mut stage = Stage::without_file().await;
    let (proxy, closed) = (silent_proxy(&stage).await, closed_address());
    stage.rendered.addresses = vec![closed.clone(), proxy.address()];
    let token = stage.bao.token().await;
    stage.render(&token);
    let (daemon, caller, said) = first_words(&stage).await;
    assert!(said.contains(&format!("waiting for {closed}, {}", proxy.address())), "{said}");
    caller.wait_health(&format!("Vault at {closed} cannot be reached"), PATIENCE).await;
    assert_eq!(tries_ended(&daemon).await, 0, "all that is said during the first try");
    proxy.mend();
    daemon.wait_ready_within(PATIENCE * 3).await;
}

/// As behind a firewall that drops, or a server that is stopped: connections are taken, and that is all.
#[tokio::test]
async fn a_black_hole_is_named() {
    let mut stage = Stage::without_file().await;
    let wire = Wire::to(&stage.bao).await;
    wire.swallow();
    stage.rendered.addresses = vec![wire.address()];
    let token = stage.bao.token().await;
    stage.render(&token);
    let (daemon, caller, said) = first_words(&stage).await;
    assert!(said.contains(&wire.address()), "{said}");
    caller.wait_health("cannot be reached: operation timed out", PATIENCE).await;
    wire.mend().await;
    daemon.wait_ready_within(PATIENCE * 3).await;
}

#[tokio::test]
async fn a_closed_port_and_an_absent_file_are_named_at_once() {
    let mut stage = Stage::without_file().await;
    let (daemon, caller, said) = first_words(&stage).await;
    assert!(said.contains(&stage.config.display().to_string()) && said.contains("does not exist"), "{said}");
    let closed = closed_address();
    let good = std::mem::replace(&mut stage.rendered.addresses, vec![closed.clone()]);
    let token = stage.bao.token().await;
    stage.render(&token);
    caller.wait_health(&format!("Vault at {closed} cannot be reached"), PATIENCE).await;
    drop(daemon);
    let (daemon, _, said) = first_words(&stage).await;
    assert!(said.contains(&format!("Vault at {closed} cannot be reached")), "{said}");
    stage.rendered.addresses = good;
    stage.render(&token);
    daemon.wait_ready().await;
}
