//! `approle` with a secret_id that a courier brings: wrapped, in a cubbyhole, or sealed.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    Caller, Daemon, Fault, FaultProxy, RELOAD_TIMEOUT, TestEnv, cli, config_file, eventually, temp_dir,
};

use super::cases::{Issued, Method, ROLE, token_settings};

mod wrapped {
    use crate::auth::{
        cases::cases_of_one_process,
        deliveries::{Delivered, Form},
    };

    cases_of_one_process!(Delivered::new(Form::Wrapped));
}

mod cubbyhole {
    use crate::auth::{
        cases::cases_of_one_process,
        deliveries::{Delivered, Form},
    };

    cases_of_one_process!(Delivered::new(Form::Cubbyhole));
}

mod sealed {
    use crate::auth::{
        cases::cases,
        deliveries::{Delivered, Form},
    };

    cases!(Delivered::new(Form::Sealed));
}

/// How long it takes until an attempt would have followed: the pauses between attempts are shorter.
const PAUSES: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Eq, PartialEq)]
enum Form {
    Cubbyhole,
    Sealed,
    Wrapped,
}

struct Delivered {
    form: Form,
    made: bool,
}

impl Delivered {
    const fn new(form: Form) -> Self {
        Self { form, made: false }
    }
}

impl Method for Delivered {
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued {
        if !self.made {
            make_role(env, ROLE, token).await;
            self.made = true;
        }
        let (delivery, text, secret) = match self.form {
            Form::Wrapped => {
                let wrapping = wrapped_secret_id(env, ROLE).await;
                ("wrapped", wrapping.clone(), wrapping)
            }
            Form::Sealed => {
                let secret_id =
                    env.bao.api("POST", &format!("auth/approle/role/{ROLE}/secret-id"), json!({})).await;
                let secret_id = secret_id["data"]["secret_id"].as_str().unwrap().to_owned();
                ("sealed", sealed(&node_key(dir).await, &secret_id).await, secret_id)
            }
            Form::Cubbyhole => {
                let wrapping = wrapped_secret_id(env, ROLE).await;
                let (token, path) = in_cubbyhole(env, &json!({ "wrapping_token": wrapping })).await;
                ("cubbyhole", json!({ "token": token, "path": path }).to_string(), token)
            }
        };
        config_file::by_rename(&dir.join("delivery"), &text);
        let mut auth = json!({
            "method": "approle", "role": ROLE, "role_id": role_id(env, ROLE).await, "delivery": delivery,
            "secret_id_file": dir.join("delivery"), "state_dir": dir.join("state"),
        });
        if self.form == Form::Sealed {
            auth["private_key_file"] = json!(dir.join("node-key.pem"));
        }
        Issued { auth, secrets: vec![secret] }
    }

    fn spoil(&self, dir: &Path) {
        let text = match self.form {
            Form::Sealed => "a secret_id that nothing seals".to_owned(),
            Form::Wrapped => "hvs.forged-by-another-hand".to_owned(),
            Form::Cubbyhole => {
                json!({ "token": "hvs.forged-by-another-hand", "path": "cubbyhole/x" }).to_string()
            }
        };
        fs::write(dir.join("delivery"), text).unwrap();
    }

    fn name(&self) -> &'static str {
        "approle"
    }

    fn refusal(&self) -> &'static str {
        match self.form {
            Form::Sealed => "this is not a sealed payload",
            Form::Cubbyhole | Form::Wrapped => "or is forged",
        }
    }
}

#[tokio::test]
async fn an_intercepted_wrap_raises_an_alarm_and_is_not_tried_again() {
    let (env, wrapping) = wrapped_env().await;
    let (status, _) = env.bao.api_as(&wrapping, "POST", "sys/wrapping/unwrap", Value::Null).await;
    assert_eq!(status, 200, "the thief was faster");

    let daemon = env.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    wait_for_logins(&daemon, "tampered", 1.0).await;
    daemon.wait_printed("POSSIBLE INTERCEPTION").await;
    for said in [daemon.admin("/readyz").await.1, caller.status().await.unwrap_err().message().to_owned()] {
        assert!(said.contains("was used by another hand"), "{said}");
    }
    let requests =
        async || vault_requests(&daemon, "wrapping_lookup").await + vault_requests(&daemon, "unwrap").await;
    let before = requests().await;
    let attempts = async || daemon.metric("transit_kms_logins_total", &[("method", "approle")]).await;
    eventually("further attempts were due", PAUSES * 3, async || attempts().await >= 4.0).await;
    assert_eq!(requests().await, before, "the wrap is not sent again");
    assert_eq!(daemon.log().matches("POSSIBLE INTERCEPTION").count(), 1);

    deliver(&env, &wrapped_secret_id(&env, ROLE).await);
    daemon.wait_ready().await;
    caller.round_trip().await;
}

#[tokio::test]
async fn a_wrap_of_anything_else_is_not_opened() {
    let (env, _) = wrapped_env().await;
    make_role(&env, "other", &token_settings("1h", "2h")).await;
    let secret_id = env.bao.api("POST", &format!("auth/approle/role/{ROLE}/secret-id"), json!({})).await;
    let forged = wrap(&env, "sys/wrapping/wrap", secret_id["data"].clone()).await;
    let foreign = wrapped_secret_id(&env, "other").await;
    let daemon = env.daemon([]).await;
    daemon.wait_ready().await;
    for wrapping in [forged, foreign] {
        deliver(&env, &wrapping);
        let before = logins(&daemon, "tampered").await;
        env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
        wait_for_logins(&daemon, "tampered", before + 1.0).await;
        let (_, said) = daemon.admin("/readyz").await;
        assert!(said.contains(&format!("than that of auth/approle/role/{ROLE}/secret-id")), "{said}");
        let lookup = env.bao.api("POST", "sys/wrapping/lookup", json!({ "token": wrapping })).await;
        assert!(lookup["data"]["creation_path"].is_string(), "it was opened");
        deliver(&env, &wrapped_secret_id(&env, ROLE).await);
        daemon.wait_ready().await;
    }
}

#[tokio::test]
async fn the_own_use_of_a_delivery_is_not_taken_for_an_interception() {
    for (form, words) in [(Form::Wrapped, "delivery"), (Form::Cubbyhole, "delivery")] {
        let (env, _) = delivered_env(form).await;
        let (mut daemon, _) = env.ready([]).await;
        daemon.signal(Signal::KILL);
        let next = env.daemon([]).await;
        wait_for_logins(&next, "spent", 1.0).await;
        let (_, said) = next.admin("/readyz").await;
        assert!(said.contains(&format!("this machine has used the {words}")), "{said}");
        assert_eq!(logins(&next, "tampered").await, 0.0);
        assert!(!next.log().contains("POSSIBLE INTERCEPTION"));
        let state = fs::read_to_string(env.dir().join("state/logins.json")).unwrap();
        assert!(!state.contains("hvs.") && !state.contains("s."), "it holds hashes only: {state}");
    }
}

#[tokio::test]
async fn a_bad_config_does_not_cost_the_session_its_secret_id() {
    let (mut env, _) = wrapped_env().await;
    let (daemon, _) = env.ready([]).await;
    let good = env.rendered.auth.clone().unwrap();
    let mut bad = good.clone();
    bad["role_id"] = json!("00000000-0000-0000-0000-000000000000");
    env.render_auth(bad);
    wait_for_logins(&daemon, "refused", 1.0).await;
    env.render_auth(good);
    env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
    wait_for_logins(&daemon, "ok", 2.0).await;
    daemon.wait_ready().await;
}

#[tokio::test]
async fn a_process_keeps_its_secret_id_if_its_successor_has_used_the_next_delivery() {
    let (env, _) = wrapped_env().await;
    let (old, _) = env.ready([]).await;
    deliver(&env, &wrapped_secret_id(&env, ROLE).await);
    let (_successor, _) = env.ready([]).await;
    env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
    wait_for_logins(&old, "ok", 2.0).await;
    old.wait_ready().await;
    assert_eq!(logins(&old, "tampered").await, 0.0);
}

#[tokio::test]
async fn a_token_of_a_cubbyhole_is_used_once_and_not_looked_up() {
    let (env, token) = delivered_env(Form::Cubbyhole).await;
    let (daemon, caller) = env.ready([]).await;
    assert_eq!(vault_requests(&daemon, "lookup_self").await, 0.0, "a lookup burns the last use");
    caller.round_trip().await;
    let (status, _) = env.bao.api_as(&token, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!(status, 403, "it is used up");
}

#[tokio::test]
async fn two_refusals_are_the_limit_also_for_a_storm_of_restarts() {
    let env = plain_env(json!({})).await;
    let good = fs::read_to_string(env.dir().join("delivery")).unwrap();
    deliver(&env, "00000000-0000-0000-0000-000000000000");
    let mut sent = 0.0;
    for _ in 0..6 {
        let mut daemon = env.daemon([]).await;
        wait_for_logins(&daemon, "refused", 1.0).await;
        eventually("the next attempt was due", PAUSES, async || {
            daemon.metric("transit_kms_logins_total", &[("method", "approle")]).await >= 3.0
        })
        .await;
        sent += vault_requests(&daemon, "login").await;
        daemon.signal(Signal::KILL);
    }
    assert_eq!(sent, 2.0);
    let daemon = env.daemon([]).await;
    wait_for_logins(&daemon, "refused", 1.0).await;
    let (_, said) = daemon.admin("/readyz").await;
    assert!(said.contains("logs in again when vault.auth.secret_id_file"), "{said}");
    deliver(&env, &good);
    daemon.wait_ready().await;
}

#[tokio::test]
async fn a_locked_alias_is_tried_again_without_another_credential() {
    let env = plain_env(json!({})).await;
    let role_id = role_id(&env, ROLE).await;
    let bad = json!({ "role_id": role_id, "secret_id": "00000000-0000-0000-0000-000000000000" });
    for _ in 0..6 {
        env.bao.api_as("", "POST", "auth/approle/login", bad.clone()).await;
    }
    let daemon = env.daemon([]).await;
    wait_for_logins(&daemon, "blocked", 1.0).await;
    let (_, said) = daemon.admin("/readyz").await;
    assert!(said.contains("locked after failed logins"), "{said}");
    let accessor = env.bao.api("GET", "sys/auth", Value::Null).await["data"]["approle/"]["accessor"].clone();
    let path = format!("sys/locked-users/{}/unlock/{role_id}", accessor.as_str().unwrap());
    env.bao.api("POST", &path, json!({})).await;
    daemon.wait_ready_within(Duration::from_secs(60)).await;
    assert_eq!(logins(&daemon, "refused").await, 0.0);
}

#[tokio::test]
async fn a_single_use_secret_id_is_warned_about_and_its_loss_is_explained() {
    let (env, _) = delivered_env_with(Form::Wrapped, json!({ "secret_id_num_uses": 1 })).await;
    let (daemon, caller) = env.ready([]).await;
    daemon.wait_printed("the secret_id allows one login").await;
    env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
    wait_for_logins(&daemon, "refused", 1.0).await;
    deliver(&env, &wrapped_secret_id(&env, ROLE).await);
    caller.wait_ok(RELOAD_TIMEOUT).await;
}

#[tokio::test]
async fn a_sealed_delivery_is_only_for_one_node_and_shows_each_change() {
    let (env, _) = delivered_env(Form::Sealed).await;
    let good = fs::read_to_string(env.dir().join("delivery")).unwrap();
    let daemon = env.daemon([]).await;
    daemon.wait_ready().await;

    let other = env.dir().join("other");
    fs::create_dir(&other).unwrap();
    let for_another_node = sealed(&node_key(&other).await, "00000000-0000-0000-0000-000000000000").await;
    let middle = good.len() / 2;
    let (before, after) = good.split_at(middle);
    let flipped = if after.starts_with('A') { "B" } else { "A" };
    let changed = format!("{before}{flipped}{}", after.get(1..).unwrap());
    for (text, result, words) in [
        (for_another_node, "refused", "is sealed for the key"),
        (changed, "tampered", "the sealed payload is damaged"),
    ] {
        deliver(&env, &text);
        env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
        wait_for_logins(&daemon, result, 1.0).await;
        let (_, said) = daemon.admin("/readyz").await;
        assert!(said.contains(words), "{said}");
        deliver(&env, &good);
        daemon.wait_ready().await;
    }
}

#[tokio::test]
async fn a_lost_answer_to_an_unwrap_is_no_interception_and_uses_nothing_up() {
    let (mut env, _) = wrapped_env().await;
    let proxy = FaultProxy::in_front_of(&env.bao).await;
    proxy.inject("sys/wrapping/unwrap", Fault::NoAnswer);
    env.rendered.addresses = vec![proxy.address()];
    env.render_auth(env.rendered.auth.clone().unwrap());
    let daemon = env.daemon(["--allow-http"]).await;
    wait_for_logins(&daemon, "away", 1.0).await;
    assert_eq!(proxy.requests("sys/wrapping/unwrap"), 1, "it is not sent again without a look");
    proxy.clear();
    daemon.wait_ready_within(PAUSES * 2).await;
    assert_eq!(logins(&daemon, "tampered").await, 0.0);
    assert_eq!(logins(&daemon, "spent").await, 0.0);
}

#[tokio::test]
async fn a_login_with_a_secret_id_of_one_use_is_not_sent_again() {
    let (mut env, _) = delivered_env_with(Form::Wrapped, json!({ "secret_id_num_uses": 1 })).await;
    let proxy = FaultProxy::in_front_of(&env.bao).await;
    proxy.inject("approle/login", Fault::NoAnswer);
    // The second address is the same server: the login must not go there either.
    env.rendered.addresses = vec![proxy.address(), env.bao.address()];
    env.render_auth(env.rendered.auth.clone().unwrap());
    let daemon = env.daemon(["--allow-http"]).await;
    wait_for_logins(&daemon, "spent", 1.0).await;
    let (_, said) = daemon.admin("/readyz").await;
    assert!(said.contains("the answer to the login was lost"), "{said}");
    eventually("further attempts were due", PAUSES, async || {
        daemon.metric("transit_kms_logins_total", &[("method", "approle")]).await >= 4.0
    })
    .await;
    assert_eq!(vault_requests(&daemon, "login").await, 1.0);
    proxy.clear();
    deliver(&env, &wrapped_secret_id(&env, ROLE).await);
    daemon.wait_ready().await;
}

/// Makes the key of a node, unless there is one, and returns its public key.
async fn node_key(dir: &Path) -> String {
    let out = dir.join("node-key.pem").display().to_string();
    let made = cli::run(&["keygen", "--out", &out]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    made.stdout
}

/// Seals a secret_id with the operator's program.
async fn sealed(public_key: &str, secret_id: &str) -> String {
    let dir = temp_dir("seal-");
    let key = dir.path().join("node.pub");
    fs::write(&key, public_key).unwrap();
    let ran = cli::run_kmsctl(&["seal", "--to", key.to_str().unwrap()], secret_id).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.stdout
}

/// A server with the role, and a wrapped secret_id in the config. Returns the wrapping token too.
async fn wrapped_env() -> (TestEnv, String) {
    delivered_env(Form::Wrapped).await
}

async fn delivered_env(form: Form) -> (TestEnv, String) {
    delivered_env_with(form, json!({})).await
}

async fn delivered_env_with(form: Form, role: Value) -> (TestEnv, String) {
    let mut env = TestEnv::without_file().await;
    let mut settings = token_settings("1h", "2h");
    for (name, value) in role.as_object().unwrap() {
        settings[name] = value.clone();
    }
    make_role(&env, ROLE, &settings).await;
    let mut method = Delivered { form, made: true };
    let dir = env.dir().to_owned();
    let Issued { auth, secrets } = method.issue(&env, &dir, &settings).await;
    env.render_auth(auth);
    (env, secrets.into_iter().next().unwrap())
}

/// A server with the role, and a plain secret_id.
async fn plain_env(role: Value) -> TestEnv {
    let (mut env, _) = delivered_env_with(Form::Wrapped, role).await;
    let secret_id = env.bao.api("POST", &format!("auth/approle/role/{ROLE}/secret-id"), json!({})).await;
    deliver(&env, secret_id["data"]["secret_id"].as_str().unwrap());
    let mut auth = env.rendered.auth.clone().unwrap();
    auth["delivery"] = json!("plain");
    env.render_auth(auth);
    env
}

async fn make_role(env: &TestEnv, name: &str, settings: &Value) {
    env.bao.api("POST", &format!("auth/approle/role/{name}"), settings.clone()).await;
}

async fn role_id(env: &TestEnv, role: &str) -> String {
    let answer = env.bao.api("GET", &format!("auth/approle/role/{role}/role-id"), Value::Null).await;
    answer["data"]["role_id"].as_str().unwrap().to_owned()
}

async fn wrapped_secret_id(env: &TestEnv, role: &str) -> String {
    wrap(env, &format!("auth/approle/role/{role}/secret-id"), json!({})).await
}

/// The wrapping token of an answer.
async fn wrap(env: &TestEnv, path: &str, body: Value) -> String {
    let answer = env.bao.api_wrapped("POST", path, body, "1h").await;
    answer["wrap_info"]["token"].as_str().unwrap().to_owned()
}

/// A token with one use left, and the path of its cubbyhole.
async fn in_cubbyhole(env: &TestEnv, data: &Value) -> (String, String) {
    let token = env
        .bao
        .create_token(
            json!({ "policies": ["default"], "no_default_policy": false, "num_uses": 2, "ttl": "10m" }),
        )
        .await;
    let path = "cubbyhole/node-1";
    let (status, answer) = env.bao.api_as(&token, "POST", path, data.clone()).await;
    assert_eq!(status, 204, "{answer}");
    (token, path.to_owned())
}

fn deliver(env: &TestEnv, text: &str) {
    config_file::by_rename(&env.dir().join("delivery"), text);
}

async fn logins(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_logins_total", &[("method", "approle"), ("result", result)]).await
}

async fn wait_for_logins(daemon: &Daemon, result: &str, count: f64) {
    eventually(&format!("{count} logins with result {result}"), PAUSES * 2, async || {
        if logins(daemon, result).await >= count { Ok(()) } else { Err(daemon.admin("/readyz").await.1) }
    })
    .await;
}

/// The requests that were sent to Vault for this operation.
async fn vault_requests(daemon: &Daemon, operation: &str) -> f64 {
    daemon.metric("transit_kms_vault_requests_total", &[("operation", operation)]).await
}
