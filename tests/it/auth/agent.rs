//! `agent`: the daemon has no token, and a real agent adds its token to the requests.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{Agent, Caller, Daemon, Load, RELOAD_TIMEOUT, TestEnv, eventually, login, port};

use super::cases::token_settings;

const PAUSE: Duration = Duration::from_millis(20);
/// Long enough for two logins of the agent.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(60);

/// A server, and an agent in front of it.
struct Site {
    agent: Option<Agent>,
    env: TestEnv,
    file: PathBuf,
    listener: PathBuf,
}

impl Site {
    /// An agent on a unix socket, as `docs/auth/agent.md` describes it.
    async fn new(token: Value) -> Self {
        Self::with(token, Some(json!({ "use_auto_auth_token": true }))).await
    }

    async fn with(token: Value, api_proxy: Option<Value>) -> Self {
        let env = TestEnv::without_file().await;
        let socket = env.dir().join("agent.sock");
        let listener = json!({ "unix": {
            "address": socket, "require_request_header": true, "socket_mode": "0600", "tls_disable": true,
        } });
        let address = format!("unix://{}", socket.display());
        Self::behind(env, token, api_proxy, (listener, address, socket)).await
    }

    async fn behind(
        mut env: TestEnv,
        token: Value,
        api_proxy: Option<Value>,
        (listener, address, place): (Value, String, PathBuf),
    ) -> Self {
        let dir = env.dir().to_owned();
        login::approle(&env.bao, &dir, &token).await;
        let method = json!({ "type": "approle", "max_backoff": "1s", "min_backoff": "100ms", "config": {
            "role_id_file_path": dir.join("role_id"), "secret_id_file_path": dir.join("secret_id"),
            "remove_secret_id_file_after_reading": false,
        } });
        let mut settings = json!({
            "listener": [listener],
            "vault": { "address": env.bao.address(), "ca_cert": env.bao.ca_file() },
        });
        if let Some(api_proxy) = api_proxy {
            settings["api_proxy"] = api_proxy;
            settings["auto_auth"] = json!({ "method": [method] });
        }
        let file = dir.join("agent.json");
        fs::write(&file, settings.to_string()).unwrap();
        env.rendered.addresses = vec![address];
        env.render_auth(json!({ "method": "agent" }));
        let mut site = Self { agent: None, env, file, listener: place };
        site.start_agent();
        site
    }

    fn start_agent(&mut self) {
        self.agent = Some(Agent::of_file_unrendered(&self.file, Path::new("/nonexistent")));
    }

    /// The logins of the agent so far.
    fn logins(&self) -> usize {
        let is_login = |entry: &&Value| {
            entry["type"] == "response"
                && entry["request"]["path"] == "auth/approle/login"
                && entry["error"].is_null()
        };
        self.env.bao.audit_log().iter().filter(is_login).count()
    }

    fn secret_id(&self) -> String {
        fs::read_to_string(self.env.dir().join("secret_id")).unwrap()
    }
}

/// The requests that the daemon has sent about a token, or to get one.
async fn token_requests(daemon: &Daemon) -> f64 {
    let mut requests = 0.0;
    for operation in ["login", "lookup_self", "renew_self", "revoke_self"] {
        requests += daemon.metric("transit_kms_vault_requests_total", &[("operation", operation)]).await;
    }
    requests
}

async fn explained(daemon: &Daemon, words: &[&str]) {
    eventually(&format!("/readyz says {words:?}"), RELOAD_TIMEOUT * 2, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && words.iter().all(|words| said.contains(words)) { Ok(()) } else { Err(said) }
    })
    .await;
    let (_, said) = daemon.admin("/readyz").await;
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

#[tokio::test]
async fn no_call_fails_while_the_agent_replaces_its_token() {
    let site = Site::new(token_settings("6s", "12s")).await;
    let (mut daemon, _) = site.env.ready(["--log-level", "trace"]).await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    eventually("the agent logs in twice more", REPLACE_TIMEOUT, async || site.logins() >= 3).await;
    let calls = load.calls();
    eventually("further calls", RELOAD_TIMEOUT, async || load.calls() > calls + 20).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(token_requests(&daemon).await, 0.0, "{}", daemon.log());
    assert_eq!(daemon.generation().await, 1, "one session");
    assert!(daemon.terminate().await.success());
    assert_eq!(token_requests_in_audit(&site), 0, "the token of the agent is not revoked");
    daemon.assert_never_printed(&[&site.secret_id()]);
}

/// The revocations that the server has seen.
fn token_requests_in_audit(site: &Site) -> usize {
    let is_revocation = |entry: &&Value| entry["request"]["path"] == "auth/token/revoke-self";
    site.env.bao.audit_log().iter().filter(is_revocation).count()
}

#[tokio::test]
async fn a_listener_on_the_loopback_needs_no_tls() {
    let env = TestEnv::without_file().await;
    let port = port::unused();
    let address = format!("127.0.0.1:{port}");
    let listener =
        json!({ "tcp": { "address": address, "require_request_header": true, "tls_disable": true } });
    let place = (listener, format!("http://{address}"), PathBuf::new());
    let forced = json!({ "use_auto_auth_token": "force" });
    let site = Site::behind(env, token_settings("1h", "2h"), Some(forced), place).await;
    let (daemon, caller) = site.env.ready([]).await;
    caller.round_trip().await;
    assert_eq!(token_requests(&daemon).await, 0.0);
}

#[tokio::test]
async fn an_agent_that_stops_is_named_and_the_session_heals() {
    let mut site = Site::new(token_settings("1h", "2h")).await;
    let (daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    site.agent = None;
    let socket = site.listener.display().to_string();
    explained(&daemon, &[&socket, "does the agent run"]).await;
    site.start_agent();
    caller.wait_ok(RELOAD_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
    assert_eq!(daemon.generation().await, 1, "the session is the same");
    daemon.assert_never_printed(&[&site.secret_id()]);
}

#[tokio::test]
async fn an_agent_that_adds_no_token_is_explained() {
    let site = Site::with(token_settings("1h", "2h"), None).await;
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    explained(&daemon, &["the agent adds no token", "set use_auto_auth_token"]).await;
    let (_, said) = daemon.admin("/readyz").await;
    assert!(!said.contains("render"), "{said}");
}

#[tokio::test]
async fn a_revoked_token_of_the_agent_is_explained_and_the_session_heals() {
    let site = Site::new(token_settings("6s", "12s")).await;
    let (daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    site.env.bao.api("PUT", "sys/leases/revoke-prefix/auth/approle", json!({})).await;
    explained(&daemon, &["one that Vault does not accept any more"]).await;
    // The agent notices it at its next renewal.
    caller.wait_ok(REPLACE_TIMEOUT).await;
    caller.round_trip().await;
}

#[tokio::test]
async fn vault_may_be_away_behind_the_agent() {
    let mut site = Site::new(token_settings("1h", "2h")).await;
    let (daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    site.env.bao.stop();
    explained(&daemon, &["does the agent reach Vault"]).await;
    site.env.bao.start_again().await;
    caller.wait_ok(REPLACE_TIMEOUT).await;
    caller.round_trip().await;
}

#[tokio::test]
async fn a_restart_needs_no_login() {
    let site = Site::new(token_settings("1h", "2h")).await;
    let (mut daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    daemon.signal(Signal::KILL);
    let (next, caller) = site.env.ready(["--log-level", "trace"]).await;
    caller.decrypt(&sealed).await.unwrap();
    assert_eq!(token_requests(&next).await, 0.0);
}

#[tokio::test]
async fn the_agent_may_start_last() {
    let mut site = Site::new(token_settings("1h", "2h")).await;
    site.agent = None;
    fs::remove_file(&site.listener).unwrap_or_default();
    let daemon = site.env.daemon([]).await;
    explained(&daemon, &["the socket does not exist"]).await;
    site.start_agent();
    daemon.wait_ready().await;
    Caller::of(&daemon).await.round_trip().await;
}
