//! Token renewal when Vault refuses, delays or misreports it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    Agent, AgentOptions, Bao, Caller, ConfigFile, Daemon, DaemonOptions, Fault, FaultProxy, KEY, Login,
    MOUNT, NetworkLink, POLICY, RELOAD_TIMEOUT, TestEnv, config_file, eventually, health_checks, policy,
    port, temp_dir,
};

/// The TTL of tokens in these tests, long enough for a busy machine.
const TTL: Duration = Duration::from_secs(8);
const PERIOD: &str = "8s";

#[tokio::test]
async fn it_works_through_an_agent_that_replaces_tokens() {
    let mut env = TestEnv::without_file().await;
    let (dir, port) = (temp_dir("agent-proxy-"), port::unused());
    let options =
        AgentOptions { login: Login::AppRole, proxy: Some(port), role: json!({"token_period": PERIOD}) };
    let agent = Agent::start(&env.bao, &dir.path().join("unused.yaml"), options).await;
    env.rendered.addresses = vec![format!("http://127.0.0.1:{port}")];
    env.render("the-agent-replaces-this");
    let (daemon, caller) = env.ready(["--allow-http"]).await;
    let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
    assert!((1.0..=8.0).contains(&ttl), "{ttl}");
    wait_for_renewals(&daemon, "renewed", 2).await;
    caller.round_trip().await;
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "{}", daemon.log());
    daemon.assert_never_printed(&[&agent.token()]);
}

#[tokio::test]
async fn a_token_with_identity_policies_only_is_renewed() {
    let mut env = TestEnv::without_file().await;
    let bao = &env.bao;
    let role = json!({
        "bind_secret_id": false, "secret_id_bound_cidrs": "127.0.0.0/8", "token_no_default_policy": true,
        "token_period": PERIOD,
    });
    bao.api("POST", "auth/approle/role/identity", role).await;
    let id = bao.api("GET", "auth/approle/role/identity/role-id", Value::Null).await;
    let id = id["data"]["role_id"].as_str().unwrap();
    let entity = bao.api("POST", "identity/entity", json!({"name": "node", "policies": [POLICY]})).await;
    let methods = bao.api("GET", "sys/auth", Value::Null).await;
    let alias = json!({
        "canonical_id": entity["data"]["id"], "mount_accessor": methods["data"]["approle/"]["accessor"],
        "name": id,
    });
    bao.api("POST", "identity/entity-alias", alias).await;
    let token = log_in(bao, "approle/login", json!({"role_id": id})).await;
    let (_, answer) = bao.api_as(&token, "POST", "auth/token/renew-self", json!({})).await;
    let policies = &answer["auth"]["token_policies"];
    assert!(policies.is_null() || *policies == json!([]), "the token itself must have no policies: {answer}");

    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    let end = expiry(&daemon).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    assert!(expiry(&daemon).await > end, "the expiry has changed");
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "{}", daemon.log());
    caller.round_trip().await;
}

#[tokio::test]
async fn a_refused_renewal_is_retried_before_the_token_expires() {
    let mut env = TestEnv::without_file().await;
    let all = policy(MOUNT, KEY);
    let without: Vec<_> = all.lines().filter(|line| !line.contains("renew-self")).collect();
    env.bao.policy("moody", &without.join("\n")).await;
    let token = env.bao.create_token(json!({"policies": ["moody"], "period": PERIOD})).await;
    let created = Instant::now();
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    wait_for_renewals(&daemon, "failed", 1).await;
    env.bao.policy("moody", &all).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    wait_past_first_ttl(created).await;
    caller.round_trip().await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the token could not be renewed; trying again"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for part in ["WARN", "renew_self", "next_try_seconds=", "token_ends_in_seconds="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!log.contains("Status is not ok"), "the session was well all the time: {log}");
}

/// The error texts come from a real server, so that a new version with other texts fails here.
#[tokio::test]
async fn a_final_refusal_of_a_renewal_asks_for_a_new_login_and_the_session_is_used_to_its_end() {
    let bao = Bao::start().await;
    let lease = json!({"token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": PERIOD});
    bao.api("POST", "sys/auth/userpass", json!({"type": "userpass"})).await;
    let mut user = lease.clone();
    user["password"] = json!("x");
    for name in ["changed", "gone"] {
        bao.api("POST", &format!("auth/userpass/users/{name}"), user.clone()).await;
    }
    let mut role = lease.clone();
    role["bind_secret_id"] = json!(false);
    role["secret_id_bound_cidrs"] = json!("127.0.0.0/8");
    bao.api("POST", "auth/approle/role/gone", role).await;
    let id = bao.api("GET", "auth/approle/role/gone/role-id", Value::Null).await;
    bao.api("POST", "auth/token/roles/gone", json!({"allowed_policies": POLICY, "orphan": true})).await;
    let of_token_role = json!({"policies": [POLICY], "no_default_policy": true, "ttl": PERIOD});
    let of_token_role = bao.api("POST", "auth/token/create/gone", of_token_role).await;

    let mut cases = Vec::new();
    for (token, words) in [
        (
            log_in(&bao, "userpass/login/changed", json!({"password": "x"})).await,
            "the policies of its user or role have changed since the login",
        ),
        (
            log_in(&bao, "userpass/login/gone", json!({"password": "x"})).await,
            "the user or role that it was issued for does not exist any more",
        ),
        (
            log_in(&bao, "approle/login", json!({"role_id": id["data"]["role_id"]})).await,
            "the role that it was issued for does not exist any more",
        ),
        (
            of_token_role["auth"]["client_token"].as_str().unwrap().to_owned(),
            "the token role that it was issued for does not exist any more",
        ),
    ] {
        let subject = DaemonWithFile::start(&bao, &token).await;
        subject.daemon.wait_ready().await;
        cases.push((subject, words));
    }
    user["token_policies"] = json!([POLICY, "another"]);
    bao.api("POST", "auth/userpass/users/changed", user).await;
    for gone in ["auth/userpass/users/gone", "auth/approle/role/gone", "auth/token/roles/gone"] {
        bao.api("DELETE", gone, Value::Null).await;
    }
    for (subject, words) in &cases {
        let daemon = &subject.daemon;
        daemon.wait_printed("the agent must log in again and render a new one").await;
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("cannot be renewed any more")).unwrap();
        for part in ["WARN", words, "token_ends_in_seconds="] {
            assert!(line.contains(part), "{part}: {line}");
        }
        Caller::of(daemon).await.round_trip().await;
        assert_eq!(daemon.metric("transit_kms_health", &[("state", "ok")]).await, 1.0, "{words}");
    }
    // The renewal is not retried, and the next token ends the warning.
    for (subject, words) in &cases {
        assert_eq!(renewals(&subject.daemon, "failed").await, 1.0, "{words}");
        subject.render(&bao, &bao.token().await);
        subject.daemon.wait_generation(2).await;
        assert!(!subject.daemon.log().contains("Status is not ok"), "{words}: {}", subject.daemon.log());
    }
}

#[tokio::test]
async fn a_node_that_fails_only_renewals_is_not_ejected() {
    let mut env = TestEnv::without_file().await;
    let proxy = FaultProxy::in_front_of(&env.bao).await;
    proxy.inject("renew-self", Fault::errors(500, &["internal error"]));
    let token = env.bao.create_token(json!({"period": PERIOD})).await;
    let created = Instant::now();
    env.rendered.addresses = vec![proxy.address()];
    env.render(&token);
    let (daemon, caller) = env.ready(["--allow-http", "--health-check-interval", "10m"]).await;
    eventually("the first health check", RELOAD_TIMEOUT, async || health_checks(&daemon).await >= 1.0).await;
    let checked = health_checks(&daemon).await;
    wait_for_renewals(&daemon, "failed", 2).await;
    let recovered = Instant::now();
    proxy.clear();
    assert!(created.elapsed() < TTL, "this machine is too slow for this test: {:?}", recovered - created);
    wait_for_renewals(&daemon, "renewed", 1).await;
    wait_past_first_ttl(created).await;
    caller.round_trip().await;
    assert_eq!(health_checks(&daemon).await, checked, "{}", daemon.log());
    assert!(!daemon.log().contains("Status is not ok"), "{}", daemon.log());
}

#[tokio::test]
async fn a_token_without_lookup_permission_is_renewed() {
    let mut env = TestEnv::without_file().await;
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("lookup-self")).collect();
    env.bao.policy("blind", &rules.join("\n")).await;
    let token = env.bao.create_token(json!({"policies": ["blind"], "period": PERIOD})).await;
    let created = Instant::now();
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
    assert!((7.0..=8.0).contains(&ttl), "one renewal tells it: {ttl}");
    assert!(expiry(&daemon).await > 0.0);
    wait_for_renewals(&daemon, "renewed", 2).await;
    wait_past_first_ttl(created).await;
    caller.round_trip().await;
}

/// A lookup is optional: Encrypt and Decrypt work without it.
#[tokio::test]
async fn a_failed_lookup_does_not_block_a_config() {
    let mut env = TestEnv::without_file().await;
    let token = env.bao.create_token(json!({"period": "1h"})).await;
    for fault in [
        Fault::html(200),
        Fault::html(502),
        Fault::errors(500, &["internal error"]),
        Fault::json(200, &json!({"data": null})),
        Fault::quota(1),
        Fault::NoAnswer,
    ] {
        let proxy = FaultProxy::in_front_of(&env.bao).await;
        proxy.inject("lookup-self", fault.clone());
        env.rendered.addresses = vec![proxy.address()];
        env.render(&token);
        let (daemon, caller) = env.ready(["--allow-http"]).await;
        caller.round_trip().await;
        wait_for_renewals(&daemon, "renewed", 1).await;
        let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
        assert!((3590.0..=3600.0).contains(&ttl), "one renewal tells it, {fault:?}: {ttl}");
        assert!(daemon.log().contains("the token could not be looked up"), "{fault:?}");
    }
}

#[tokio::test]
async fn an_unanswered_candidate_does_not_delay_renewals() {
    let mut env = TestEnv::without_file().await;
    let link = NetworkLink::to(&env.bao).await;
    link.drop_traffic();
    let token = env.bao.create_token(json!({"period": PERIOD})).await;
    let created = Instant::now();
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    let good = env.rendered.addresses.clone();
    env.rendered.addresses = vec![link.address()];
    let next = env.bao.token().await;
    env.render(&next);
    eventually("the candidate waits", RELOAD_TIMEOUT, async || {
        daemon.admin("/readyz").await.1.contains("waiting for")
    })
    .await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    wait_past_first_ttl(created).await;
    caller.round_trip().await;
    assert_eq!(daemon.generation().await, 1);

    // A new config replaces the candidate at once, in the middle of a try.
    env.rendered.addresses = good;
    env.render_and_wait(&daemon, &next).await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn an_unanswered_renewal_does_not_delay_a_config() {
    let mut env = TestEnv::without_file().await;
    let proxy = FaultProxy::in_front_of(&env.bao).await;
    proxy.inject("renew-self", Fault::NoAnswer);
    // The expiry of the token is unknown, so its renewal starts at once and may take long.
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("lookup-self")).collect();
    env.bao.policy("blind", &rules.join("\n")).await;
    let token = env.bao.create_token(json!({"policies": ["blind"], "period": "1h"})).await;
    env.rendered.addresses = vec![proxy.address()];
    env.render(&token);
    let (daemon, _) = env.ready(["--allow-http"]).await;
    eventually("a renewal is asked for", RELOAD_TIMEOUT, async || proxy.requests("renew-self") > 0).await;
    let next = env.bao.token().await;
    env.render_and_wait(&daemon, &next).await;
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "the renewal had not ended by then");
}

/// A daemon with its own config.
struct DaemonWithFile {
    daemon: Daemon,
    dir: TempDir,
}

impl DaemonWithFile {
    async fn start(bao: &Bao, token: &str) -> Self {
        let dir = temp_dir("subject-");
        let config = dir.path().join("config.yaml");
        config_file::by_rename(&config, &ConfigFile::of(bao, token).yaml());
        let options = DaemonOptions::arguments(["--health-check-interval", "1s", "--log-level", "debug"]);
        Self { daemon: Daemon::start_with(&config, options).await, dir }
    }

    fn render(&self, bao: &Bao, token: &str) {
        config_file::by_rename(&self.dir.path().join("config.yaml"), &ConfigFile::of(bao, token).yaml());
    }
}

async fn log_in(bao: &Bao, path: &str, request: Value) -> String {
    let (status, answer) = bao.api_as("", "POST", &format!("auth/{path}"), request).await;
    assert_eq!(status, 200, "{answer}");
    answer["auth"]["client_token"].as_str().unwrap().to_owned()
}

/// Waits until a token of [`TTL`] would have expired without a renewal.
async fn wait_past_first_ttl(created: Instant) {
    let over = TTL + Duration::from_secs(2);
    eventually("the first TTL is over", over * 2, async || created.elapsed() > over).await;
}

async fn expiry(daemon: &Daemon) -> f64 {
    daemon.metric("transit_kms_token_expiry_timestamp_seconds", &[]).await
}

async fn renewals(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_token_renewals_total", &[("result", result)]).await
}

async fn wait_for_renewals(daemon: &Daemon, result: &str, count: u32) {
    let what = format!("{count} renewals end as {result}");
    eventually(&what, TTL * 2, async || renewals(daemon, result).await >= f64::from(count)).await;
}
