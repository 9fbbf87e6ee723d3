//! `inline`: a login travels with each request, and there is no token. OpenBao has it, and Vault refuses it.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    Bao, Caller, ConfigFile, Daemon, DaemonOptions, Load, POLICY, RELOAD_TIMEOUT, TestEnv, ThreeNodeVault,
    config_file, eventually, login, temp_dir, wait_for_session_after,
};

use super::cases::{ROLE, login_tokens, token_settings};

const PAUSE: Duration = Duration::from_millis(20);
const USER: &str = "node-1";

/// The method whose login travels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Inner {
    AppRole,
    Jwt,
    Userpass,
}

/// A server with one method, and the credentials of one machine in a file.
struct Bench {
    env: TestEnv,
    inner: Inner,
    jwt: Option<login::Jwt>,
    secrets: Vec<String>,
}

impl Bench {
    /// `None` if the server is Vault: then the refusal was checked.
    async fn new(inner: Inner) -> Option<Self> {
        let env = TestEnv::without_file().await;
        if inner == Inner::Userpass {
            env.bao.api("POST", "sys/auth/userpass", json!({ "type": "userpass" })).await;
        } else if inner == Inner::AppRole {
            env.bao.api("POST", &format!("auth/approle/role/{ROLE}"), token_settings("1h", "2h")).await;
        }
        let mut bench = Self { env, inner, jwt: None, secrets: Vec::new() };
        bench.rotate().await;
        let file = bench.file();
        let login = match inner {
            Inner::AppRole => {
                let path = format!("auth/approle/role/{ROLE}/role-id");
                let role_id = bench.env.bao.api("GET", &path, Value::Null).await;
                json!({ "method": "approle", "role_id": role_id["data"]["role_id"], "secret_id_file": file })
            }
            Inner::Jwt => json!({ "method": "jwt", "role": ROLE, "jwt_file": file }),
            Inner::Userpass => json!({ "method": "userpass", "username": USER, "password_file": file }),
        };
        bench.env.render_auth(json!({ "method": "inline", "login": login }));
        if Bao::is_vault() {
            let daemon = bench.env.daemon([]).await;
            explained(&daemon, "inline authentication needs OpenBao 2.6.2 or newer").await;
            return None;
        }
        Some(bench)
    }

    fn file(&self) -> PathBuf {
        self.env.dir().join("credential")
    }

    /// Has the server accept new credentials, and writes them to the file. Only for `userpass` does that end the old
    /// ones.
    async fn rotate(&mut self) {
        let file = self.file();
        let (field, secret) = match self.inner {
            Inner::AppRole => {
                let path = format!("auth/approle/role/{ROLE}/secret-id");
                let secret_id = self.env.bao.api("POST", &path, json!({})).await;
                ("secret_id", secret_id["data"]["secret_id"].as_str().unwrap().to_owned())
            }
            Inner::Jwt => {
                match &mut self.jwt {
                    Some(jwt) => jwt.renew(),
                    None => {
                        let token = token_settings("1h", "2h");
                        self.jwt = Some(login::Jwt::issued(&self.env.bao, &file, &token).await);
                    }
                }
                ("jwt", fs::read_to_string(&file).unwrap())
            }
            Inner::Userpass => {
                let password = format!("{:032x}", rand::random::<u128>());
                let user = json!({ "password": password, "token_policies": [POLICY] });
                self.env.bao.api("POST", &format!("auth/userpass/users/{USER}"), user).await;
                ("password", password)
            }
        };
        if self.inner != Inner::Jwt {
            config_file::by_rename(&file, &secret);
        }
        // As the header has it.
        let header = BASE64URL.encode(json!({ "key": field, "value": secret }).to_string());
        self.secrets.extend([secret, header]);
    }

    fn spoil(&self) -> &'static str {
        let (text, refusal) = match self.inner {
            Inner::AppRole => (
                "00000000-0000-0000-0000-000000000000".to_owned(),
                "does not accept the role_id or the secret_id",
            ),
            Inner::Jwt => {
                let jwt = fs::read_to_string(self.file()).unwrap();
                let (signed, _) = jwt.rsplit_once('.').unwrap();
                (format!("{signed}.{}", "A".repeat(86)), "add the issuer's key to the mount")
            }
            Inner::Userpass => ("wrong".to_owned(), "does not accept the user name or the password"),
        };
        config_file::by_rename(&self.file(), &text);
        refusal
    }

    fn assert_no_secret(&self, daemon: &Daemon) {
        let secrets: Vec<_> = self.secrets.iter().map(String::as_str).collect();
        daemon.assert_never_printed(&secrets);
    }
}

async fn explained(daemon: &Daemon, words: &str) {
    eventually(&format!("/readyz says {words:?}"), RELOAD_TIMEOUT, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
    let (_, said) = daemon.admin("/readyz").await;
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

async fn vault_requests(daemon: &Daemon) -> f64 {
    let mut requests = 0.0;
    for operation in ["decrypt", "encrypt", "read_key"] {
        requests += daemon.metric("transit_kms_vault_requests_total", &[("operation", operation)]).await;
    }
    requests
}

async fn more_calls(load: &Load) {
    let calls = load.calls();
    eventually("further calls", RELOAD_TIMEOUT, async || load.calls() > calls + 40).await;
}

async fn a_rotated_credential_is_used_at_once(inner: Inner) {
    let Some(mut bench) = Bench::new(inner).await else { return };
    let (mut daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    more_calls(&load).await;
    for _ in 0..2 {
        let before = daemon.generation().await;
        bench.rotate().await;
        // The session was healthy, so no login was due.
        wait_for_session_after(&daemon, before).await;
        more_calls(&load).await;
    }
    let report = load.stop().await;
    if inner != Inner::Userpass {
        report.assert_nothing_failed();
    }
    caller.wait_ok(RELOAD_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
    for operation in ["login", "lookup_self", "renew_self", "revoke_self"] {
        let sent = daemon.metric("transit_kms_vault_requests_total", &[("operation", operation)]).await;
        assert_eq!(sent, 0.0, "{operation}");
    }
    assert_eq!(login_tokens(&bench.env).await, 0, "no token is stored");
    assert!(daemon.terminate().await.success());
    bench.assert_no_secret(&daemon);
}

async fn a_wrong_credential_is_explained_and_not_sent_a_third_time(inner: Inner) {
    let Some(mut bench) = Bench::new(inner).await else { return };
    let refusal = bench.spoil();
    let daemon = bench.env.daemon(["--log-level", "trace"]).await;
    explained(&daemon, "refused this credential twice").await;
    explained(&daemon, refusal).await;
    explained(&daemon, "credential) changes").await;
    assert_eq!(vault_requests(&daemon).await, 2.0, "the server locks users after five");
    bench.rotate().await;
    daemon.wait_ready().await;
    Caller::of(&daemon).await.round_trip().await;
    bench.assert_no_secret(&daemon);
}

mod approle {
    use super::Inner::AppRole;

    #[tokio::test]
    async fn a_rotated_credential_is_used_at_once() {
        super::a_rotated_credential_is_used_at_once(AppRole).await;
    }

    #[tokio::test]
    async fn a_wrong_credential_is_explained_and_not_sent_a_third_time() {
        super::a_wrong_credential_is_explained_and_not_sent_a_third_time(AppRole).await;
    }
}

mod jwt {
    use super::Inner::Jwt;

    #[tokio::test]
    async fn a_rotated_credential_is_used_at_once() {
        super::a_rotated_credential_is_used_at_once(Jwt).await;
    }

    #[tokio::test]
    async fn a_wrong_credential_is_explained_and_not_sent_a_third_time() {
        super::a_wrong_credential_is_explained_and_not_sent_a_third_time(Jwt).await;
    }
}

mod userpass {
    use super::Inner::Userpass;

    #[tokio::test]
    async fn a_rotated_credential_is_used_at_once() {
        super::a_rotated_credential_is_used_at_once(Userpass).await;
    }

    #[tokio::test]
    async fn a_wrong_credential_is_explained_and_not_sent_a_third_time() {
        super::a_wrong_credential_is_explained_and_not_sent_a_third_time(Userpass).await;
    }
}

#[tokio::test]
async fn calls_with_a_local_kek_cost_no_login() {
    let Some(mut bench) = Bench::new(Inner::Userpass).await else { return };
    bench.env.rendered.local_kek = true;
    let auth = bench.env.rendered.auth.clone().unwrap();
    bench.env.render_auth(auth);
    let (daemon, caller) = bench.env.ready_without_health_checks().await;
    caller.round_trip().await;
    let before = vault_requests(&daemon).await;
    for _ in 0..50 {
        caller.round_trip().await;
    }
    assert_eq!(vault_requests(&daemon).await, before);
}

#[tokio::test]
async fn a_missing_file_is_named_and_the_session_keeps_its_credential() {
    let Some(mut bench) = Bench::new(Inner::Jwt).await else { return };
    let (daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    fs::remove_file(bench.file()).unwrap();
    let path = bench.file().display().to_string();
    eventually("/readyz names the file", RELOAD_TIMEOUT, async || {
        let (_, said) = daemon.admin("/readyz").await;
        if said.contains(&path) { Ok(()) } else { Err(said) }
    })
    .await;
    caller.round_trip().await;
    let before = daemon.generation().await;
    bench.rotate().await;
    wait_for_session_after(&daemon, before).await;
    caller.round_trip().await;
    bench.assert_no_secret(&daemon);
}

#[tokio::test]
async fn vault_may_be_away_and_a_restart_loses_nothing() {
    let Some(mut bench) = Bench::new(Inner::Jwt).await else { return };
    let (mut daemon, caller) = bench.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    daemon.signal(Signal::KILL);
    bench.env.bao.stop();
    let daemon = bench.env.daemon(["--log-level", "trace"]).await;
    explained(&daemon, "refused").await;
    bench.env.bao.start_again().await;
    daemon.wait_ready().await;
    Caller::of(&daemon).await.decrypt(&sealed).await.unwrap();
    bench.assert_no_secret(&daemon);
}

/// Standbys of OpenBao answer Transit requests themselves, and a login that travels with a request writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_a_restart_need_no_leader() {
    if Bao::is_vault() {
        return;
    }
    let mut vault = ThreeNodeVault::start().await;
    let leader = vault.leader().await;
    let api = &vault.members[leader];
    api.api("POST", "sys/auth/userpass", json!({ "type": "userpass" })).await;
    let user = json!({ "password": "SENTINEL-password", "token_policies": [POLICY] });
    api.api("POST", &format!("auth/userpass/users/{USER}"), user).await;
    let dir = temp_dir("inline-");
    let password = dir.path().join("password");
    config_file::by_rename(&password, "SENTINEL-password");
    let login = json!({ "method": "userpass", "username": USER, "password_file": password });
    let auth = Some(json!({ "method": "inline", "login": login }));
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile { auth, ..vault.rendered().await }.yaml());
    vault.wait_complete().await;
    let options = || DaemonOptions::arguments(["--log-level", "trace", "--health-check-interval", "1s"]);
    let mut daemon = Daemon::start_with(&config, options()).await;
    daemon.wait_ready().await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    more_calls(&load).await;
    vault.members[leader].stop();
    more_calls(&load).await;
    // A single member of three cannot be the leader.
    vault.members[(leader + 1) % 3].stop();
    more_calls(&load).await;
    load.stop().await.assert_nothing_failed();
    let sealed = Caller::of(&daemon).await.round_trip().await;
    daemon.signal(Signal::KILL);

    let next = Daemon::start_with(&config, options()).await;
    next.wait_ready().await;
    Caller::of(&next).await.decrypt(&sealed).await.unwrap();
    assert_ne!(vault.members[(leader + 2) % 3].health().await, Some(200), "there is no leader");
    for daemon in [&daemon, &next] {
        daemon.assert_never_printed(&["SENTINEL-password"]);
    }
}
