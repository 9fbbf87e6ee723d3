//! `token_file`: another program writes a token to a file, as it is or wrapped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    Agent, Caller, Daemon, Load, MOUNT, POLICY, RELOAD_TIMEOUT, TestEnv, config_file, eventually, login,
    wait_for_session_after,
};

use super::cases::{ROLE, token_settings};

/// The pause of the load.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// A server, and the file of a token.
struct Site {
    env: TestEnv,
    file: PathBuf,
}

impl Site {
    async fn new(delivery: &str) -> Self {
        let mut env = TestEnv::without_file().await;
        let file = env.dir().join("token");
        let mut auth = json!({ "method": "token_file", "token_file": file, "delivery": delivery });
        if delivery == "wrapped" {
            auth["state_dir"] = json!(env.dir().join("state"));
        }
        env.render_auth(auth);
        Self { env, file }
    }

    fn write(&self, text: &str) {
        config_file::by_rename(&self.file, text);
    }

    async fn token(&self) -> String {
        self.env.bao.create_token(json!({ "ttl": "1h" })).await
    }

    /// The wrapping token of a token, in the form of an agent's sink.
    async fn wrapped(&self) -> Value {
        let token = json!({ "token": self.token().await });
        self.env.bao.api_wrapped("POST", "sys/wrapping/wrap", token, "10m").await["wrap_info"].take()
    }
}

async fn explained(daemon: &Daemon, words: &str) -> String {
    eventually(&format!("/readyz says {words:?}"), RELOAD_TIMEOUT, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
    let (_, said) = daemon.admin("/readyz").await;
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    said
}

#[tokio::test]
async fn each_form_of_the_file_is_used_at_once_under_load() {
    let site = Site::new("plain").await;
    let mut secrets = vec![site.token().await];
    site.write(&secrets[0]);
    let (daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    for form in ["raw", "sink", "login", "answer"] {
        let token = site.token().await;
        let before = daemon.generation().await;
        site.write(&match form {
            "raw" => format!("{token}\n"),
            "sink" => json!({ "token": token, "wrap_info": null }).to_string(),
            "login" => json!({ "client_token": token, "accessor": "a" }).to_string(),
            _ => json!({ "auth": { "client_token": token, "policies": [] }, "data": null }).to_string(),
        });
        wait_for_session_after(&daemon, before).await;
        // The old token is not needed any more.
        site.env.bao.revoke(secrets.last().unwrap()).await;
        secrets.push(token);
    }
    load.stop().await.assert_nothing_failed();
    caller.decrypt(&sealed).await.unwrap();
    let secrets: Vec<_> = secrets.iter().map(String::as_str).collect();
    daemon.assert_never_printed(&secrets);
}

#[tokio::test]
async fn a_file_without_a_token_is_named_and_not_quoted() {
    let site = Site::new("plain").await;
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    let path = site.file.display().to_string();
    assert!(explained(&daemon, &path).await.contains("does not exist"));
    let secrets = ["{\"token\": \"hvs.SENTINEL-half", "hvs.SENTINEL two words", "{\"other\": \"SENTINEL\"}"];
    for (text, words) in secrets.into_iter().zip([
        "is not the JSON of a token",
        "must contain a token",
        "is JSON without token, client_token or auth.client_token",
    ]) {
        site.write(text);
        assert!(explained(&daemon, words).await.contains(&path));
    }
    site.write(&site.wrapped().await.to_string());
    explained(&daemon, "set delivery: wrapped").await;
    site.write(&site.token().await);
    daemon.wait_ready().await;
    Caller::of(&daemon).await.round_trip().await;
    daemon.assert_never_printed(&["SENTINEL"]);
}

#[tokio::test]
async fn a_token_that_expires_is_explained_and_replaced() {
    let site = Site::new("plain").await;
    let token = site.token().await;
    site.write(&token);
    let (daemon, caller) = site.env.ready([]).await;
    site.env.bao.revoke(&token).await;
    caller.wait_health("does not accept the token any more", RELOAD_TIMEOUT).await;
    site.write(&site.token().await);
    caller.wait_ok(RELOAD_TIMEOUT).await;
    assert_eq!(daemon.generation().await, 2);
}

#[tokio::test]
async fn the_wrapped_tokens_of_an_agent_are_each_unwrapped_once() {
    let site = Site::new("wrapped").await;
    let wrap = r#"path "sys/wrapping/wrap" { capabilities = ["update"] }"#;
    site.env.bao.policy("wrap", wrap).await;
    let mut token = token_settings("1h", "2h");
    token["token_policies"] = json!([POLICY, "wrap"]);
    let dir = site.env.dir().to_owned();
    let mut jwt = login::Jwt::issued(&site.env.bao, &dir.join("jwt"), &token).await;
    let settings = json!({
        "auto_auth": {
            "enable_reauth_on_new_credentials": true,
            "method": [{
                "type": "jwt", "max_backoff": "1s", "min_backoff": "100ms", "config": {
                    "jwt_read_period": "50ms", "path": dir.join("jwt"), "remove_jwt_after_reading": false,
                    "role": ROLE,
                },
            }],
            "sink": [{ "type": "file", "wrap_ttl": "5m", "config": { "path": site.file, "mode": 0o600 } }],
        },
        "vault": { "address": site.env.bao.address(), "ca_cert": site.env.bao.ca_file() },
    });
    let agent_file = dir.join("agent.json");
    fs::write(&agent_file, settings.to_string()).unwrap();
    let agent = Agent::of_file_unrendered(&agent_file, Path::new("/nonexistent"));

    let (mut daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let mut secrets = vec![fs::read_to_string(&site.file).unwrap()];
    let load = Load::start(&daemon, 1, PAUSE).await;
    for unwrapped in [2.0, 3.0] {
        let before = daemon.generation().await;
        jwt.renew();
        wait_for_session_after(&daemon, before).await;
        secrets.push(fs::read_to_string(&site.file).unwrap());
        assert_eq!(requests(&daemon, "unwrap").await, unwrapped);
    }
    load.stop().await.assert_nothing_failed();
    let wrapping: Vec<_> = secrets
        .iter()
        .map(|text| {
            let json: Value = serde_json::from_str(text).unwrap();
            json["token"].as_str().unwrap().to_owned()
        })
        .collect();
    let wrapping: Vec<_> = wrapping.iter().map(String::as_str).collect();
    daemon.assert_never_printed(&wrapping);

    // The token was in memory only, and the file has the wrapping token that was used.
    daemon.signal(Signal::KILL);
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    let said = explained(&daemon, "this machine has used the delivery").await;
    assert!(said.contains("have the agent log in again") && !said.contains("secret_id"), "{said}");
    assert_eq!(requests(&daemon, "unwrap").await, 0.0);
    jwt.renew();
    daemon.wait_ready().await;
    Caller::of(&daemon).await.decrypt(&sealed).await.unwrap();
    assert!(!daemon.log().contains("POSSIBLE INTERCEPTION"), "{}", daemon.log());
    drop(agent);
}

async fn requests(daemon: &Daemon, operation: &str) -> f64 {
    daemon.metric("transit_kms_vault_requests_total", &[("operation", operation)]).await
}

#[tokio::test]
async fn an_intercepted_token_raises_an_alarm() {
    let site = Site::new("wrapped").await;
    let wrapped = site.wrapped().await;
    let wrapping = wrapped["token"].as_str().unwrap();
    let (status, _) = site.env.bao.api_as(wrapping, "POST", "sys/wrapping/unwrap", Value::Null).await;
    assert_eq!(status, 200, "the thief was faster");
    site.write(&wrapped.to_string());
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    let said = explained(&daemon, "was used by another hand").await;
    assert!(said.contains("revoke the token in it") && !said.contains("secret_id"), "{said}");
    daemon.wait_printed("POSSIBLE INTERCEPTION").await;
    let labels = [("method", "token_file"), ("result", "tampered")];
    assert!(daemon.metric("transit_kms_logins_total", &labels).await >= 1.0);
    site.write(&site.wrapped().await.to_string());
    daemon.wait_ready().await;
    daemon.assert_never_printed(&[wrapping]);
}

/// The broker of `docs/auth/token_file.md`: a token role limits what it can create, whatever it asks for.
#[tokio::test]
async fn a_broker_can_hand_out_tokens_with_the_allowed_policy_only() {
    let site = Site::new("wrapped").await;
    let bao = &site.env.bao;
    let role = json!({
        "allowed_policies": [POLICY], "orphan": true, "renewable": true, "token_no_default_policy": true,
        "token_period": "1h", "token_type": "service", "allowed_entity_aliases": ["node-*"],
    });
    bao.api("POST", &format!("auth/token/roles/{ROLE}"), role).await;
    let create = format!("auth/token/create/{ROLE}");
    let rules = format!(
        r#"
path "{create}" {{
  capabilities       = ["update"]
  min_wrapping_ttl   = "1m"
  max_wrapping_ttl   = "10m"
  allowed_parameters = {{ "entity_alias" = ["node-*"] }}
}}
"#
    );
    bao.policy("broker", &rules).await;
    let broker = bao.create_token(json!({ "policies": ["broker"], "period": "1h" })).await;
    let wrapped = |body: Value, ttl: &'static str| {
        let broker = broker.clone();
        let create = create.clone();
        async move { bao.api_wrapped_as(&broker, "POST", &create, body, ttl).await }
    };
    for (body, ttl) in [
        (json!({ "policies": ["root"] }), "5m"),
        (json!({ "entity_alias": "other" }), "5m"),
        (json!({ "entity_alias": "node-1" }), "1h"),
    ] {
        let (status, answer) = wrapped(body.clone(), ttl).await;
        assert!([400, 403].contains(&status), "{body} {ttl}: {status} {answer}");
    }
    for path in [create.as_str(), "auth/token/create", "auth/token/create-orphan"] {
        let (status, answer) = bao.api_as(&broker, "POST", path, json!({})).await;
        assert_eq!(status, 403, "{path} without a wrap: {answer}");
    }
    let (status, _) = bao.api_as(&broker, "GET", &format!("{MOUNT}/keys/kms"), Value::Null).await;
    assert_eq!(status, 403, "the broker itself cannot use the key");

    let (status, answer) = wrapped(json!({ "entity_alias": "node-1" }), "5m").await;
    assert_eq!(status, 200, "{answer}");
    site.write(&answer["wrap_info"].to_string());
    let (daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let accessor = answer["wrap_info"]["wrapped_accessor"].clone();
    let token = bao.api("POST", "auth/token/lookup-accessor", json!({ "accessor": accessor })).await;
    assert_eq!(token["data"]["policies"], json!([POLICY]), "{token}");
    assert_eq!(token["data"]["orphan"], json!(true), "{token}");
    // The end of the broker is not the end of the nodes.
    bao.revoke(&broker).await;
    caller.decrypt(&sealed).await.unwrap();
    daemon.assert_never_printed(&[answer["wrap_info"]["token"].as_str().unwrap(), &broker]);
}
