//! The life of a token: how long it lives, what keeps it alive, what follows its death.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use testkit::{Caller, Daemon, KEY, Load, MOUNT, POLICY, Stage, TAKEN_WITHIN, eventually, policy};
use tokio::task::JoinSet;
use tonic::Code;

/// Between the rounds of one load.
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_session_begins_with_a_look_at_the_end_of_its_token() {
    let mut stage = Stage::start().await;
    let (daemon, _) = stage.ready([]).await;
    let (ttl, left) = life(&daemon).await;
    assert!((3590.0..=3600.0).contains(&ttl), "{ttl}");
    assert!((3580.0..=3601.0).contains(&left), "{left}");

    // Another token has another end, and root's has none.
    let short = stage.bao.create_token(json!({"ttl": "20m"})).await;
    stage.render_and_wait(&daemon, &short).await;
    let (ttl, left) = life(&daemon).await;
    assert!((1190.0..=1200.0).contains(&ttl), "{ttl}");
    assert!((1180.0..=1201.0).contains(&left), "{left}");
    assert_eq!(daemon.metric("transit_kms_token_lease_seconds", &[]).await, ttl, "that of this token");
    assert!(!daemon.log().contains(" WARN "), "there is nothing to warn of:\n{}", daemon.log());
    let root = stage.bao.root_token().to_owned();
    stage.render_and_wait(&daemon, &root).await;
    assert_eq!(daemon.metric("transit_kms_token_ttl_seconds", &[]).await, 0.0);
    assert_eq!(daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await, 0.0);
}

#[tokio::test]
async fn a_renewable_token_is_renewed_and_outlives_its_first_ttl() {
    const TTL: Duration = Duration::from_secs(7);
    let mut stage = Stage::without_file().await;
    let token = stage.bao.create_token(json!({"period": "7s"})).await;
    let created = Instant::now();
    stage.render(&token);
    let (daemon, _) = stage.ready([]).await;
    let first_end = daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await;
    let load = Load::start(&daemon, 1, PAUSE).await;

    wait_for_renewal(&daemon, "renewed", TTL).await;
    assert!(created.elapsed() > TTL / 2, "renewed after {:?} already", created.elapsed());
    let later = daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await;
    assert!(later > first_end + 2.0, "{first_end} {later}");
    eventually("the first TTL is over", TTL * 2, async || created.elapsed() > TTL + Duration::from_secs(2))
        .await;
    let calls = load.calls();
    eventually("calls go on", TAKEN_WITHIN, async || load.calls() > calls + 5).await;
    load.stop().await.assert_nothing_failed();
    assert!(daemon.log().contains("token renewed"));
    assert_eq!(stage.token(), token);
}

#[tokio::test]
async fn a_token_that_is_found_near_its_end_is_renewed_all_the_same() {
    let mut stage = Stage::without_file().await;
    let token = stage.bao.create_token(json!({"period": "6s"})).await;
    let created = Instant::now();
    eventually("not much is left", Duration::from_secs(5), async || {
        created.elapsed() > Duration::from_secs(3)
    })
    .await;
    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    wait_for_renewal(&daemon, "renewed", Duration::from_secs(3)).await;
    eventually("the first TTL is over", TAKEN_WITHIN, async || created.elapsed() > Duration::from_secs(7))
        .await;
    caller.round_trip().await;
}

#[tokio::test]
async fn a_renewal_that_is_capped_is_told_in_time() {
    let mut stage = Stage::without_file().await;
    let token = stage.bao.create_token(json!({"ttl": "7s", "explicit_max_ttl": "9s"})).await;
    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    wait_for_renewal(&daemon, "capped", Duration::from_secs(7)).await;
    assert_eq!(caller.health().await, "ok", "there is time left to act");
    let (ttl, _) = life(&daemon).await;
    assert!((1.0..7.0).contains(&ttl), "{ttl}");
    let log = daemon.log();
    let warning = log.lines().find(|line| line.contains("has reached its maximum TTL"));
    assert!(warning.is_some_and(|line| line.contains("WARN")), "{log}");
    assert_eq!(renewals(&daemon, "renewed").await, 0.0);

    // The agent is told; once it acts, the next token is looked after like the first.
    let next = stage.bao.token().await;
    stage.render_and_wait(&daemon, &next).await;
    stage.bao.revoke(&token).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn tokens_that_are_allowed_but_not_wise_are_warned_of() {
    let mut stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    let warned =
        |log: &str, words: &str| log.lines().any(|line| line.contains("WARN") && line.contains(words));
    let root = stage.bao.root_token().to_owned();
    let default = json!({"policies": [POLICY, "default"], "no_default_policy": false, "ttl": "1h"});
    let default = stage.bao.create_token(default).await;
    let short = stage.bao.create_token(json!({"ttl": "5m", "renewable": false})).await;
    for (token, words) in [
        (root, "the token is a root token"),
        (default, "the policy `default`"),
        (short, "not renewable and ends soon"),
    ] {
        assert!(!warned(&daemon.log(), words), "too early: {words}");
        stage.render_and_wait(&daemon, &token).await;
        eventually(words, TAKEN_WITHIN, async || warned(&daemon.log(), words)).await;
        caller.round_trip().await;
    }
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn a_token_whose_uses_are_counted_is_refused() {
    let mut stage = Stage::without_file().await;
    let counted = stage.bao.create_token(json!({"ttl": "1h", "num_uses": 1000})).await;
    stage.render(&counted);
    let daemon = stage.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    caller.wait_health("limited number of uses", TAKEN_WITHIN).await;
    let error = caller.status().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("num_uses=0"), "{error}");

    // Nor does it displace one that works.
    let good = stage.bao.token().await;
    stage.render_and_wait(&daemon, &good).await;
    caller.round_trip().await;
    let refused = async || daemon.metric("transit_kms_config_reloads_total", &[("result", "refused")]).await;
    let before = refused().await;
    let counted = stage.bao.create_token(json!({"ttl": "1h", "num_uses": 1000})).await;
    stage.render(&counted);
    eventually("it is refused", TAKEN_WITHIN, async || refused().await > before).await;
    let (status, words) = daemon.admin("/readyz").await;
    assert_eq!(status, 200, "{words}");
    assert!(words.contains("newest config is not in use") && words.contains("number of uses"), "{words}");
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn a_token_that_may_not_look_at_itself_works_with_a_warning() {
    let mut stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("auth/token/")).collect();
    stage.bao.policy("blind", &rules.join("\n")).await;
    let blind = stage.bao.create_token(json!({"policies": ["blind"], "ttl": "1h"})).await;
    stage.render_and_wait(&daemon, &blind).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
    let log = daemon.log();
    assert!(
        log.lines().any(|line| line.contains("WARN") && line.contains("may not look itself up")),
        "{log}"
    );
    // Of this token nothing is known; the end of the one before it would be a false alarm.
    assert_eq!(daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await, 0.0);
    assert_eq!(daemon.metric("transit_kms_token_ttl_seconds", &[]).await, 0.0);
}

#[tokio::test]
async fn a_revoked_token_is_healed_by_the_next_one_and_calls_in_flight_do_not_fail() {
    let mut stage = Stage::start().await;
    // The first call shows it.
    let (daemon, caller) = stage.ready_without_probes().await;
    let sealed = caller.round_trip().await;
    stage.bao.revoke(stage.token()).await;
    assert_eq!(caller.health().await, "ok", "nobody has asked Vault since");

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

    let token = stage.bao.token().await;
    let rendered = Instant::now();
    stage.render(&token);
    caller.wait_ok(Duration::from_secs(2)).await;
    println!("healed {:?} after the rendering", rendered.elapsed());
    for answer in calls.join_all().await {
        answer.unwrap();
    }
    caller.round_trip().await;
    assert_eq!(daemon.metric("transit_kms_health", &[("state", "ok")]).await, 1.0);
}

#[tokio::test]
async fn nothing_loops_on_403() {
    let mut stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    let load = Load::start(&daemon, 8, PAUSE).await;
    eventually("load", TAKEN_WITHIN, async || load.calls() > 50).await;
    let revoked = Instant::now();
    stage.bao.revoke(stage.token()).await;
    caller.wait_health("does not accept the token any more", Duration::from_secs(3)).await;

    // For ten seconds calls wait for a new token; then they fail at once, hundreds of them.
    let patient = Duration::from_secs(9);
    eventually("patience", patient * 2, async || revoked.elapsed() > patient).await;
    let calls = load.calls();
    eventually("calls fail at once", Duration::from_secs(10), async || load.calls() > calls + 400).await;
    let elapsed = revoked.elapsed().as_secs_f64();
    let refused = daemon.metric("transit_kms_vault_requests_total", &[("outcome", "token_invalid")]).await;
    println!("{refused} calls to Vault were refused in {elapsed:.0} s, of {} calls", load.calls());
    // Those in flight at the revocation, and a probe a second.
    assert!(refused <= 8.0 + 4.0 + elapsed, "{refused} in {elapsed} s");
    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("the agent has to render a new one"), "{error}");
    let report = load.stop().await;
    assert!(report.failed > 0);
    assert!(report.longest < Duration::from_secs(3), "{:?}", report.longest);

    let token = stage.bao.token().await;
    stage.render_and_wait(&daemon, &token).await;
    caller.round_trip().await;
    assert_eq!(caller.health().await, "ok");
}

/// The token's TTL when it was last looked at, and the time left by the metric of its end.
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
