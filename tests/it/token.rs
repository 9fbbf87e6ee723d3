//! Tokens: expiry, renewal, and what happens when a token becomes invalid.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use testkit::{Caller, Daemon, KEY, Load, MOUNT, POLICY, RELOAD_TIMEOUT, TestEnv, eventually, policy};
use tokio::task::JoinSet;
use tonic::Code;

/// The pause between two rounds of a load task.
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_session_starts_with_a_lookup_of_its_token() {
    let mut env = TestEnv::start().await;
    let (daemon, _) = env.ready([]).await;
    let (ttl, left) = life(&daemon).await;
    assert!((3590.0..=3600.0).contains(&ttl), "{ttl}");
    assert!((3580.0..=3601.0).contains(&left), "{left}");

    // Another token has another expiry, and a root token has none.
    let short = env.bao.create_token(json!({"ttl": "20m"})).await;
    env.render_and_wait(&daemon, &short).await;
    let (ttl, left) = life(&daemon).await;
    assert!((1190.0..=1200.0).contains(&ttl), "{ttl}");
    assert!((1180.0..=1201.0).contains(&left), "{left}");
    assert_eq!(daemon.metric("transit_kms_token_lease_seconds", &[]).await, ttl, "that of this token");
    assert!(!daemon.log().contains(" WARN "), "there is nothing to warn of:\n{}", daemon.log());
    let root = env.bao.root_token().to_owned();
    env.render_and_wait(&daemon, &root).await;
    assert_eq!(daemon.metric("transit_kms_token_ttl_seconds", &[]).await, 0.0);
    assert_eq!(daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await, 0.0);
}

#[tokio::test]
async fn a_renewable_token_is_renewed_and_outlives_its_first_ttl() {
    const TTL: Duration = Duration::from_secs(7);
    let mut env = TestEnv::without_file().await;
    let token = env.bao.create_token(json!({"period": "7s"})).await;
    let created = Instant::now();
    env.render(&token);
    let (daemon, _) = env.ready([]).await;
    let first_end = daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await;
    let load = Load::start(&daemon, 1, PAUSE).await;

    wait_for_renewal(&daemon, "renewed", TTL).await;
    assert!(created.elapsed() > TTL / 2, "renewed after {:?} already", created.elapsed());
    let later = daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await;
    assert!(later > first_end + 2.0, "{first_end} {later}");
    eventually("the first TTL is over", TTL * 2, async || created.elapsed() > TTL + Duration::from_secs(2))
        .await;
    let calls = load.calls();
    eventually("further calls", RELOAD_TIMEOUT, async || load.calls() > calls + 5).await;
    load.stop().await.assert_nothing_failed();
    assert!(daemon.log().contains("token renewed"));
    assert_eq!(env.token(), token);
}

#[tokio::test]
async fn a_token_found_near_its_expiry_is_renewed() {
    let mut env = TestEnv::without_file().await;
    let token = env.bao.create_token(json!({"period": "6s"})).await;
    let created = Instant::now();
    eventually("the token is near its expiry", Duration::from_secs(5), async || {
        created.elapsed() > Duration::from_secs(3)
    })
    .await;
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    wait_for_renewal(&daemon, "renewed", Duration::from_secs(3)).await;
    eventually("the first TTL is over", RELOAD_TIMEOUT, async || created.elapsed() > Duration::from_secs(7))
        .await;
    caller.round_trip().await;
}

#[tokio::test]
async fn a_capped_renewal_is_reported_before_the_token_expires() {
    let mut env = TestEnv::without_file().await;
    let token = env.bao.create_token(json!({"ttl": "7s", "explicit_max_ttl": "9s"})).await;
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    wait_for_renewal(&daemon, "capped", Duration::from_secs(7)).await;
    assert_eq!(caller.health().await, "ok", "there is time left to act");
    let (ttl, _) = life(&daemon).await;
    assert!((1.0..7.0).contains(&ttl), "{ttl}");
    let log = daemon.log();
    let warning = log.lines().find(|line| line.contains("has reached its maximum TTL"));
    assert!(warning.is_some_and(|line| line.contains("WARN")), "{log}");
    assert_eq!(renewals(&daemon, "renewed").await, 0.0);

    // The warning is for the agent. Its next token is renewed like the first.
    let next = env.bao.token().await;
    env.render_and_wait(&daemon, &next).await;
    env.bao.revoke(&token).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn risky_tokens_are_accepted_with_a_warning() {
    let mut env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let warned =
        |log: &str, words: &str| log.lines().any(|line| line.contains("WARN") && line.contains(words));
    let root = env.bao.root_token().to_owned();
    let default = json!({"policies": [POLICY, "default"], "no_default_policy": false, "ttl": "1h"});
    let default = env.bao.create_token(default).await;
    let short = env.bao.create_token(json!({"ttl": "5m", "renewable": false})).await;
    for (token, words) in [
        (root, "the token is a root token"),
        (default, "the policy `default`"),
        (short, "not renewable and ends soon"),
    ] {
        assert!(!warned(&daemon.log(), words), "too early: {words}");
        env.render_and_wait(&daemon, &token).await;
        eventually(words, RELOAD_TIMEOUT, async || warned(&daemon.log(), words)).await;
        caller.round_trip().await;
    }
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn a_token_with_a_limited_number_of_uses_is_refused() {
    let mut env = TestEnv::without_file().await;
    let counted = env.bao.create_token(json!({"ttl": "1h", "num_uses": 1000})).await;
    env.render(&counted);
    let daemon = env.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    caller.wait_health("limited number of uses", RELOAD_TIMEOUT).await;
    let error = caller.status().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("num_uses=0"), "{error}");

    // It does not replace a working token either.
    let good = env.bao.token().await;
    env.render_and_wait(&daemon, &good).await;
    caller.round_trip().await;
    let refused = async || daemon.metric("transit_kms_config_reloads_total", &[("result", "refused")]).await;
    let before = refused().await;
    let counted = env.bao.create_token(json!({"ttl": "1h", "num_uses": 1000})).await;
    env.render(&counted);
    eventually("the token is refused", RELOAD_TIMEOUT, async || refused().await > before).await;
    let (status, words) = daemon.admin("/readyz").await;
    assert_eq!(status, 200, "{words}");
    assert!(words.contains("newest config is not in use") && words.contains("number of uses"), "{words}");
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn a_token_without_lookup_permission_works_with_a_warning() {
    let mut env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("auth/token/")).collect();
    env.bao.policy("blind", &rules.join("\n")).await;
    let blind = env.bao.create_token(json!({"policies": ["blind"], "ttl": "1h"})).await;
    env.render_and_wait(&daemon, &blind).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
    let log = daemon.log();
    assert!(
        log.lines().any(|line| line.contains("WARN") && line.contains("may not look itself up")),
        "{log}"
    );
    // The expiry of this token is unknown. The expiry of the previous one would cause a false alarm.
    assert_eq!(daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await, 0.0);
    assert_eq!(daemon.metric("transit_kms_token_ttl_seconds", &[]).await, 0.0);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_by_the_next_one_and_calls_in_flight_succeed() {
    let mut env = TestEnv::start().await;
    // The first call notices it.
    let (daemon, caller) = env.ready_without_health_checks().await;
    let sealed = caller.round_trip().await;
    env.bao.revoke(env.token()).await;
    assert_eq!(caller.health().await, "ok", "Vault has not been called since");

    let mut calls = JoinSet::new();
    for number in 0..10 {
        let (caller, sealed) = (caller.clone(), sealed.clone());
        calls.spawn(async move {
            if number % 2 == 0 {
                caller.encrypt(b"in flight").await.map(drop)
            } else {
                caller.decrypt(&sealed).await.map(drop)
            }
        });
    }
    caller.wait_health("does not accept the token any more", Duration::from_secs(2)).await;
    let status = caller.status().await.unwrap();
    assert_eq!(status.key_id, sealed.key_id, "a reason, not an error: the key is not lost");
    let (code, words) = daemon.admin("/readyz").await;
    assert!(code == 503 && words.contains("does not accept the token"), "{code} {words}");

    let token = env.bao.token().await;
    let rendered = Instant::now();
    env.render(&token);
    caller.wait_ok(Duration::from_secs(2)).await;
    println!("recovered {:?} after the rendering", rendered.elapsed());
    for answer in calls.join_all().await {
        answer.unwrap();
    }
    caller.round_trip().await;
    assert_eq!(daemon.metric("transit_kms_health", &[("state", "ok")]).await, 1.0);
}

#[tokio::test]
async fn nothing_loops_on_403() {
    let mut env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let load = Load::start(&daemon, 8, PAUSE).await;
    eventually("load", RELOAD_TIMEOUT, async || load.calls() > 50).await;
    let revoked = Instant::now();
    env.bao.revoke(env.token()).await;
    caller.wait_health("does not accept the token any more", Duration::from_secs(3)).await;

    // For ten seconds calls wait for a new token. After that, hundreds of calls fail at once.
    let wait = Duration::from_secs(9);
    eventually("calls no longer wait for a token", wait * 2, async || revoked.elapsed() > wait).await;
    let calls = load.calls();
    eventually("calls fail at once", Duration::from_secs(10), async || load.calls() > calls + 400).await;
    let elapsed = revoked.elapsed().as_secs_f64();
    let refused = daemon.metric("transit_kms_vault_requests_total", &[("outcome", "token_invalid")]).await;
    println!("{refused} calls to Vault were refused in {elapsed:.0} s, of {} calls", load.calls());
    // Refused were only the calls in flight at the revocation and one health check per second.
    assert!(refused <= 8.0 + 4.0 + elapsed, "{refused} in {elapsed} s");
    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("the agent has to render a new one"), "{error}");
    let report = load.stop().await;
    assert!(report.failed > 0);
    assert!(report.longest < Duration::from_secs(3), "{:?}", report.longest);

    let token = env.bao.token().await;
    env.render_and_wait(&daemon, &token).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

/// The TTL of the token at its last lookup, and the remaining time by the metric of its expiry.
async fn life(daemon: &Daemon) -> (f64, f64) {
    let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
    let end = daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await;
    (ttl, end - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64())
}

async fn renewals(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_token_renewals_total", &[("result", result)]).await
}

async fn wait_for_renewal(daemon: &Daemon, result: &str, within: Duration) {
    let what = format!("a renewal ends as {result}");
    eventually(&what, within, async || renewals(daemon, result).await >= 1.0).await;
}
