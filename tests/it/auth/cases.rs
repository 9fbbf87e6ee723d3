//! The cases that every method must pass.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{Caller, Daemon, Load, POLICY, RELOAD_TIMEOUT, TestEnv, eventually};

use crate::leaks::{
    assert_no_secret_of_process, query_everything,
    secrets::{Output, Secrets},
};

/// The TTL of tokens that are to be replaced while a test runs: long enough for a busy machine.
const SHORT_TTL: &str = "6s";
const SHORT_MAX_TTL: &str = "12s";
/// Long enough for two tokens to be replaced.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// The name of the role, for every method.
pub(super) const ROLE: &str = "transit-kms";

/// How a method is set up on a server, and how its credentials change.
pub(super) trait Method {
    /// The server on which it is set up, and the environment of the daemon.
    async fn env(&mut self) -> TestEnv {
        TestEnv::without_file().await
    }
    /// Writes new credentials to the folder, and has the server accept them. `token` has the token settings of the
    /// role. Returns the block `auth`, which stays the same, and the secrets that must not be printed.
    async fn issue(&mut self, env: &TestEnv, dir: &Path, token: &Value) -> Issued;
    /// Replaces the credentials by some that the server does not accept.
    fn spoil(&self, dir: &Path);
    /// The name in the config and in metrics.
    fn name(&self) -> &'static str;
    /// What the refusal of wrong credentials says.
    fn refusal(&self) -> &'static str;
    /// Whether the daemon reads its credentials from files.
    fn has_files(&self) -> bool {
        true
    }
}

/// Credentials that the server accepts.
pub(super) struct Issued {
    pub(super) auth: Value,
    pub(super) secrets: Vec<String>,
}

/// A server with one method, and the credentials of one machine.
struct Bench<M> {
    dir: PathBuf,
    env: TestEnv,
    method: M,
    secrets: Vec<String>,
    token: Value,
}

impl<M: Method> Bench<M> {
    async fn new(mut method: M, token: Value) -> Self {
        let env = method.env().await;
        let dir = env.dir().join("credentials");
        std::fs::create_dir(&dir).unwrap();
        let mut bench = Self { dir, env, method, secrets: Vec::new(), token };
        let auth = bench.issue().await;
        bench.env.render_auth(auth);
        bench
    }

    /// With tokens that last for the whole test.
    async fn with_long_tokens(method: M) -> Self {
        Self::new(method, token_settings("1h", "2h")).await
    }

    async fn issue(&mut self) -> Value {
        let issued = self.method.issue(&self.env, &self.dir, &self.token).await;
        self.secrets.extend(issued.secrets);
        issued.auth
    }

    async fn logins(&self, daemon: &Daemon, result: &str) -> f64 {
        let labels = [("method", self.method.name()), ("result", result)];
        daemon.metric("transit_kms_logins_total", &labels).await
    }

    async fn wait_for_logins(&self, daemon: &Daemon, result: &str, count: f64) {
        eventually(&format!("{count} logins with result {result}"), REPLACE_TIMEOUT, async || {
            self.logins(daemon, result).await >= count
        })
        .await;
    }

    fn assert_no_secret(&self, daemon: &Daemon) {
        let secrets: Vec<_> = self.secrets.iter().map(String::as_str).collect();
        daemon.assert_never_printed(&secrets);
    }
}

/// The token settings of a role.
pub(super) fn token_settings(ttl: &str, max_ttl: &str) -> Value {
    json!({
        "token_max_ttl": max_ttl, "token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": ttl,
    })
}

/// The tokens of logins that are valid: those that are neither root tokens nor revoked.
pub(super) async fn login_tokens(env: &TestEnv) -> usize {
    let accessors = env.bao.api("LIST", "auth/token/accessors", Value::Null).await;
    let mut count = 0;
    for accessor in accessors["data"]["keys"].as_array().unwrap() {
        let lookup = json!({ "accessor": accessor });
        let (status, answer) =
            env.bao.api_as(env.bao.root_token(), "POST", "auth/token/lookup-accessor", lookup).await;
        let path = answer["data"]["path"].as_str().unwrap_or_default();
        count += usize::from(status == 200 && path.starts_with("auth/") && !path.starts_with("auth/token/"));
    }
    count
}

pub(super) async fn tokens_are_replaced_under_load_and_revoked<M: Method>(method: M) {
    let bench = Bench::new(method, token_settings(SHORT_TTL, SHORT_MAX_TTL)).await;
    let (mut daemon, _) = bench.env.ready(["--log-level", "trace"]).await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    bench.wait_for_logins(&daemon, "ok", 3.0).await;
    daemon.wait_generation(3).await;
    load.stop().await.assert_nothing_failed();
    eventually("the replaced tokens are revoked", RELOAD_TIMEOUT, async || {
        login_tokens(&bench.env).await <= 1
    })
    .await;
    assert_eq!(bench.logins(&daemon, "refused").await, 0.0, "{}", daemon.log());
    assert!(daemon.terminate().await.success());
    assert_eq!(login_tokens(&bench.env).await, 0, "the token is revoked before the exit: {}", daemon.log());
    bench.assert_no_secret(&daemon);
}

pub(super) async fn rotated_credentials_are_used_at_the_next_login<M: Method>(method: M) {
    let mut bench = Bench::with_long_tokens(method).await;
    let (daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    bench.issue().await;
    caller.round_trip().await;
    assert_eq!(bench.logins(&daemon, "ok").await, 1.0, "the session works, so there is no login");
    revoke_all(&bench.env).await;
    caller.wait_ok(RELOAD_TIMEOUT).await;
    bench.wait_for_logins(&daemon, "ok", 2.0).await;
    caller.round_trip().await;
    bench.assert_no_secret(&daemon);
}

pub(super) async fn an_expired_token_is_replaced<M: Method>(method: M) {
    let bench = Bench::with_long_tokens(method).await;
    let (daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let (_, metrics) = daemon.admin("/metrics").await;
    for (result, count) in
        [("ok", 1), ("away", 0), ("blocked", 0), ("refused", 0), ("spent", 0), ("tampered", 0)]
    {
        let method = bench.method.name();
        let line = format!("transit_kms_logins_total{{method=\"{method}\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "an alert must see the first failure: {line}{metrics}");
    }
    revoke_all(&bench.env).await;
    bench.wait_for_logins(&daemon, "ok", 2.0).await;
    caller.wait_ok(RELOAD_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
    bench.assert_no_secret(&daemon);
}

pub(super) async fn wrong_credentials_are_explained_and_replaced<M: Method>(method: M) {
    let mut bench = Bench::with_long_tokens(method).await;
    bench.method.spoil(&bench.dir);
    let daemon = bench.env.daemon(["--log-level", "trace"]).await;
    let wanted = bench.method.refusal();
    eventually("the refusal is explained", RELOAD_TIMEOUT, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && said.contains(wanted) { Ok(()) } else { Err(said) }
    })
    .await;
    let (_, said) = daemon.admin("/readyz").await;
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    bench.issue().await;
    daemon.wait_ready().await;
    Caller::of(&daemon).await.round_trip().await;
    bench.assert_no_secret(&daemon);
}

pub(super) async fn vault_may_be_away_at_the_login<M: Method>(method: M) {
    let mut bench = Bench::with_long_tokens(method).await;
    bench.env.bao.stop();
    let daemon = bench.env.daemon(["--log-level", "trace"]).await;
    let caller = Caller::of(&daemon).await;
    eventually("the reason names the server", RELOAD_TIMEOUT, async || {
        let said = caller.status().await.map_or_else(|error| error.message().to_owned(), |ok| ok.healthz);
        if said.contains("refused") || said.contains("Connection") { Ok(()) } else { Err(said) }
    })
    .await;
    bench.env.bao.start_again().await;
    daemon.wait_ready().await;
    caller.round_trip().await;
    assert_eq!(bench.logins(&daemon, "refused").await, 0.0);
    bench.assert_no_secret(&daemon);
}

pub(super) async fn a_restart_logs_in_again<M: Method>(method: M) {
    let bench = Bench::with_long_tokens(method).await;
    let (mut daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    daemon.signal(Signal::KILL);
    let (next, caller) = bench.env.ready(["--log-level", "trace"]).await;
    caller.decrypt(&sealed).await.unwrap();
    bench.assert_no_secret(&daemon);
    bench.assert_no_secret(&next);
}

/// Runs a daemon through a login, a refusal, another login, and an outage of Vault. Then searches everything that it has
/// printed, answered and written for the credentials and for tokens.
pub(super) async fn nothing_leaks<M: Method>(method: M, format: &str) {
    let mut bench = Bench::with_long_tokens(method).await;
    let arguments = ["--log-level", "trace", "--log-format", format];
    let (mut daemon, caller) = bench.env.ready(arguments).await;
    let mut said = Output::default();
    let seed: [u8; 32] = rand::random();
    caller.round_trip().await;
    query_everything(&daemon, &mut said, &seed).await;

    let noticed = || daemon.log().matches("the config on disk is the one in use").count();
    let before = noticed();
    bench.method.spoil(&bench.dir);
    if bench.method.has_files() {
        eventually("the wrong credentials are noticed", RELOAD_TIMEOUT, async || noticed() > before).await;
    }
    revoke_all(&bench.env).await;
    let wanted = bench.method.refusal();
    eventually("the refusal is explained", REPLACE_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        let is_explained = text.contains("the next login fails: ") && text.contains(wanted);
        if status == 503 && is_explained { Ok(()) } else { Err(text) }
    })
    .await;
    query_everything(&daemon, &mut said, &seed).await;
    bench.issue().await;
    daemon.wait_ready_within(REPLACE_TIMEOUT).await;
    caller.round_trip().await;
    bench.env.bao.stop();
    query_everything(&daemon, &mut said, &seed).await;
    let mut secrets = Secrets::default();
    for secret in &bench.secrets {
        secrets.add("a credential", secret);
    }
    assert_no_secret_of_process(&daemon, &secrets);
    assert!(daemon.terminate().await.success());
    said.add("the log", daemon.log());

    let mut daemon = bench.env.daemon(arguments).await;
    eventually("a login without Vault", REPLACE_TIMEOUT, async || {
        daemon.metric("transit_kms_logins_total", &[("method", bench.method.name())]).await >= 1.0
    })
    .await;
    query_everything(&daemon, &mut said, &seed).await;
    assert!(daemon.terminate().await.success());
    said.add("the log without Vault", daemon.log());
    for file in std::fs::read_dir(bench.env.dir().join("state")).into_iter().flatten() {
        said.add("the state", std::fs::read_to_string(file.unwrap().path()).unwrap());
    }
    secrets.assert_none_in(&said);
    said.assert_no_token();
}

/// Revokes every token of a login.
async fn revoke_all(env: &TestEnv) {
    let methods = env.bao.api("GET", "sys/auth", Value::Null).await;
    let mounts = methods["data"].as_object().unwrap().keys().map(|mount| mount.trim_end_matches('/'));
    for mount in mounts.filter(|mount| *mount != "token") {
        env.bao.api("PUT", &format!("sys/leases/revoke-prefix/auth/{mount}/login"), json!({})).await;
    }
}

/// The tests of a method, by an expression that makes it.
macro_rules! cases {
    ($method:expr) => {
        $crate::auth::cases::cases_of_one_process!($method);

        #[tokio::test]
        async fn a_restart_logs_in_again() {
            $crate::auth::cases::a_restart_logs_in_again($method).await;
        }
    };
}

/// As [`cases`], for credentials that a restart does not survive.
macro_rules! cases_of_one_process {
    ($method:expr) => {
        #[tokio::test]
        async fn tokens_are_replaced_under_load_and_revoked() {
            $crate::auth::cases::tokens_are_replaced_under_load_and_revoked($method).await;
        }

        #[tokio::test]
        async fn rotated_credentials_are_used_at_the_next_login() {
            $crate::auth::cases::rotated_credentials_are_used_at_the_next_login($method).await;
        }

        #[tokio::test]
        async fn an_expired_token_is_replaced() {
            $crate::auth::cases::an_expired_token_is_replaced($method).await;
        }

        #[tokio::test]
        async fn wrong_credentials_are_explained_and_replaced() {
            $crate::auth::cases::wrong_credentials_are_explained_and_replaced($method).await;
        }

        #[tokio::test]
        async fn vault_may_be_away_at_the_login() {
            $crate::auth::cases::vault_may_be_away_at_the_login($method).await;
        }

        #[tokio::test]
        async fn nothing_leaks_in_text() {
            $crate::auth::cases::nothing_leaks($method, "text").await;
        }

        #[tokio::test]
        async fn nothing_leaks_in_json() {
            $crate::auth::cases::nothing_leaks($method, "json").await;
        }
    };
}

pub(super) use cases;
pub(super) use cases_of_one_process;
