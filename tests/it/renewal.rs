//! Keeping a token alive against all that refuses, delays or misreports it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    Agent, AgentOptions, Bao, Caller, Daemon, DaemonOptions, Fault, FaultProxy, KEY, Login, MOUNT, POLICY,
    Rendered, Stage, TAKEN_WITHIN, Wire, eventually, policy, port, probes, rendered, scratch,
};

/// How long a token of these tests lives, with time for a busy machine.
const TTL: Duration = Duration::from_secs(8);
const PERIOD: &str = "8s";

#[tokio::test]
async fn an_agent_that_adds_its_own_token_and_strips_it_from_answers_is_no_obstacle() {
    let mut stage = Stage::without_file().await;
    let (dir, port) = (scratch("agent-proxy-"), port::unused());
    let options =
        AgentOptions { login: Login::AppRole, proxy: Some(port), role: json!({"token_period": PERIOD}) };
    let agent = Agent::start(&stage.bao, &dir.path().join("unused.yaml"), options).await;
    stage.rendered.addresses = vec![format!("http://127.0.0.1:{port}")];
    stage.render("the-agent-replaces-this");
    let (daemon, caller) = stage.ready(["--allow-http"]).await;
    let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
    assert!((1.0..=8.0).contains(&ttl), "{ttl}");
    wait_for_renewals(&daemon, "renewed", 2).await;
    caller.round_trip().await;
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "{}", daemon.log());
    daemon.assert_never_printed(&[&agent.token()]);
}

#[tokio::test]
async fn a_token_whose_policies_come_from_its_identity_only_is_renewed() {
    let mut stage = Stage::without_file().await;
    let bao = &stage.bao;
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
    assert!(policies.is_null() || *policies == json!([]), "that is what this is about: {answer}");

    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    let end = expiry(&daemon).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    assert!(expiry(&daemon).await > end, "its end has moved");
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "{}", daemon.log());
    caller.round_trip().await;
}

#[tokio::test]
async fn a_refused_renewal_is_tried_again_before_the_token_ends() {
    let mut stage = Stage::without_file().await;
    let all = policy(MOUNT, KEY);
    let without: Vec<_> = all.lines().filter(|line| !line.contains("renew-self")).collect();
    stage.bao.policy("moody", &without.join("\n")).await;
    let token = stage.bao.create_token(json!({"policies": ["moody"], "period": PERIOD})).await;
    let created = Instant::now();
    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    wait_for_renewals(&daemon, "failed", 1).await;
    stage.bao.policy("moody", &all).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    outlive(created).await;
    caller.round_trip().await;
    let log = daemon.log();
    let told = log.lines().find(|line| line.contains("the token could not be renewed; trying again"));
    let told = told.unwrap_or_else(|| panic!("{log}"));
    for part in ["WARN", "renew_self", "next_try_seconds=", "token_ends_in_seconds="] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!log.contains("Status is not ok"), "the session was well all the time: {log}");
}

/// The words are Vault's own, so that a new version with others is found out here.
#[tokio::test]
async fn what_only_a_new_login_heals_is_said_so_and_the_session_serves_to_the_end() {
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
        let subject = Subject::start(&bao, &token).await;
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
        let told = log.lines().find(|line| line.contains("cannot be renewed any more")).unwrap();
        for part in ["WARN", words, "token_ends_in_seconds="] {
            assert!(told.contains(part), "{part}: {told}");
        }
        Caller::of(daemon).await.round_trip().await;
        assert_eq!(daemon.metric("transit_kms_health", &[("state", "ok")]).await, 1.0, "{words}");
    }
    // It is not tried again while there is nothing to win, and the next token heals it.
    for (subject, words) in &cases {
        assert_eq!(renewals(&subject.daemon, "failed").await, 1.0, "{words}");
        subject.render(&bao, &bao.token().await);
        subject.daemon.wait_generation(2).await;
        assert!(!subject.daemon.log().contains("Status is not ok"), "{words}: {}", subject.daemon.log());
    }
}

#[tokio::test]
async fn a_node_that_fails_renewals_only_stays_well_and_is_not_probed_for_it() {
    let mut stage = Stage::without_file().await;
    let proxy = FaultProxy::before(&stage.bao).await;
    proxy.spoil("renew-self", Fault::errors(500, &["internal error"]));
    let token = stage.bao.create_token(json!({"period": PERIOD})).await;
    let created = Instant::now();
    stage.rendered.addresses = vec![proxy.address()];
    stage.render(&token);
    let (daemon, caller) = stage.ready(["--allow-http", "--health-check-interval", "10m"]).await;
    eventually("the first probe", TAKEN_WITHIN, async || probes(&daemon).await >= 1.0).await;
    let probed = probes(&daemon).await;
    wait_for_renewals(&daemon, "failed", 2).await;
    let mended = Instant::now();
    proxy.mend();
    assert!(created.elapsed() < TTL, "this machine is too slow for this test: {:?}", mended - created);
    wait_for_renewals(&daemon, "renewed", 1).await;
    outlive(created).await;
    caller.round_trip().await;
    assert_eq!(probes(&daemon).await, probed, "{}", daemon.log());
    assert!(!daemon.log().contains("Status is not ok"), "{}", daemon.log());
}

#[tokio::test]
async fn without_the_right_to_look_itself_up_a_token_is_renewed_all_the_same() {
    let mut stage = Stage::without_file().await;
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("lookup-self")).collect();
    stage.bao.policy("blind", &rules.join("\n")).await;
    let token = stage.bao.create_token(json!({"policies": ["blind"], "period": PERIOD})).await;
    let created = Instant::now();
    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
    assert!((7.0..=8.0).contains(&ttl), "one renewal tells it: {ttl}");
    assert!(expiry(&daemon).await > 0.0);
    wait_for_renewals(&daemon, "renewed", 2).await;
    outlive(created).await;
    caller.round_trip().await;
}

/// A lookup is of use and not needed: Encrypt and Decrypt work.
#[tokio::test]
async fn a_lookup_that_fails_in_whatever_way_keeps_no_config_from_being_taken() {
    let mut stage = Stage::without_file().await;
    let token = stage.bao.create_token(json!({"period": "1h"})).await;
    for fault in [
        Fault::html(200),
        Fault::html(502),
        Fault::errors(500, &["internal error"]),
        Fault::json(200, &json!({"data": null})),
        Fault::quota(1),
        Fault::Silence,
    ] {
        let proxy = FaultProxy::before(&stage.bao).await;
        proxy.spoil("lookup-self", fault.clone());
        stage.rendered.addresses = vec![proxy.address()];
        stage.render(&token);
        let (daemon, caller) = stage.ready(["--allow-http"]).await;
        caller.round_trip().await;
        wait_for_renewals(&daemon, "renewed", 1).await;
        let ttl = daemon.metric("transit_kms_token_ttl_seconds", &[]).await;
        assert!((3590.0..=3600.0).contains(&ttl), "one renewal tells it, {fault:?}: {ttl}");
        assert!(daemon.log().contains("the token could not be looked up"), "{fault:?}");
    }
}

#[tokio::test]
async fn a_candidate_that_gets_no_answer_delays_no_renewal() {
    let mut stage = Stage::without_file().await;
    let wire = Wire::to(&stage.bao).await;
    wire.swallow();
    let token = stage.bao.create_token(json!({"period": PERIOD})).await;
    let created = Instant::now();
    stage.render(&token);
    let (daemon, caller) = stage.ready([]).await;
    let good = stage.rendered.addresses.clone();
    stage.rendered.addresses = vec![wire.address()];
    let next = stage.bao.token().await;
    stage.render(&next);
    eventually("the candidate waits", TAKEN_WITHIN, async || {
        daemon.admin("/readyz").await.1.contains("waiting for")
    })
    .await;
    wait_for_renewals(&daemon, "renewed", 1).await;
    outlive(created).await;
    caller.round_trip().await;
    assert_eq!(daemon.generation().await, 1);

    // And it is superseded at once, in the middle of a try.
    stage.rendered.addresses = good;
    stage.render_and_wait(&daemon, &next).await;
    assert_eq!(caller.health().await, "ok");
}

#[tokio::test]
async fn a_renewal_that_gets_no_answer_delays_no_config() {
    let mut stage = Stage::without_file().await;
    let proxy = FaultProxy::before(&stage.bao).await;
    proxy.spoil("renew-self", Fault::Silence);
    // Nothing is known of its end, so its renewal begins at once and may take long.
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("lookup-self")).collect();
    stage.bao.policy("blind", &rules.join("\n")).await;
    let token = stage.bao.create_token(json!({"policies": ["blind"], "period": "1h"})).await;
    stage.rendered.addresses = vec![proxy.address()];
    stage.render(&token);
    let (daemon, _) = stage.ready(["--allow-http"]).await;
    eventually("a renewal is asked for", TAKEN_WITHIN, async || proxy.requests("renew-self") > 0).await;
    let next = stage.bao.token().await;
    stage.render_and_wait(&daemon, &next).await;
    assert_eq!(renewals(&daemon, "failed").await, 0.0, "the renewal had not ended by then");
}

/// A daemon with a file of its own.
struct Subject {
    daemon: Daemon,
    dir: TempDir,
}

impl Subject {
    async fn start(bao: &Bao, token: &str) -> Self {
        let dir = scratch("subject-");
        let config = dir.path().join("config.yaml");
        rendered::by_rename(&config, &Rendered::of(bao, token).yaml());
        let options = DaemonOptions::arguments(["--health-check-interval", "1s", "--log-level", "debug"]);
        Self { daemon: Daemon::start_with(&config, options).await, dir }
    }

    fn render(&self, bao: &Bao, token: &str) {
        rendered::by_rename(&self.dir.path().join("config.yaml"), &Rendered::of(bao, token).yaml());
    }
}

async fn log_in(bao: &Bao, path: &str, request: Value) -> String {
    let (status, answer) = bao.api_as("", "POST", &format!("auth/{path}"), request).await;
    assert_eq!(status, 200, "{answer}");
    answer["auth"]["client_token"].as_str().unwrap().to_owned()
}

/// Waits until a token of [`TTL`] would have ended if it had not been renewed.
async fn outlive(created: Instant) {
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
