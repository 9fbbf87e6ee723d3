//! A real agent that renders the daemon's config with its own token.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{KeyPair, PKCS_ED25519, SigningKey};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    process::Process,
    rendered::{self, Rendered},
    server::{Bao, POLICY, Program},
    wait::eventually,
};

/// The role that agents log in to, of either method.
const ROLE: &str = "transit-kms";
const AUDIENCE: &str = "transit-kms-test";
/// What the template writes in the place of the token: the agent's own.
const OWN_TOKEN: &str = r#"{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}"#;

/// How long a login and a rendering may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an agent logs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Login {
    /// With role_id and secret_id. It logs in again when its token can no longer be renewed: at
    /// about 2/3 of the TTL after a revocation or near the maximum.
    AppRole,
    /// With a signed JWT in a file. It also logs in again when that file changes, while the old
    /// token goes on working: see [`Agent::log_in_again`].
    Jwt,
}

/// How an agent is to be.
pub(crate) struct AgentOptions {
    pub(crate) login: Login,
    /// What its tokens are like, in the words of a role, such as `json!({"token_ttl": "15s"})`.
    /// What is not said: an hour, with [`POLICY`] and without the `default` policy.
    pub(crate) role: Value,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { login: Login::Jwt, role: json!({}) }
    }
}

/// An agent beside a daemon. It ends with this value; what it rendered stays.
pub(crate) struct Agent {
    process: Process,
    config: PathBuf,
    dir: TempDir,
    key: KeyPair,
    logins: u64,
}

impl Agent {
    /// An agent that has rendered `config` (see [`Rendered`]) with a token of this server.
    pub(crate) async fn start(bao: &Bao, config: &Path, options: AgentOptions) -> Self {
        Self::start_with(bao, &Rendered::of(bao, ""), config, options).await
    }

    /// As [`Agent::start`], with other content; its token is replaced by the agent's.
    pub(crate) async fn start_with(
        bao: &Bao,
        content: &Rendered,
        config: &Path,
        options: AgentOptions,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("agent-").tempdir().unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let method = prepare_login(bao, &dir, &key, &options).await;
        let template = dir.path().join("config.ctmpl");
        fs::write(&template, content.with_token(OWN_TOKEN).yaml()).unwrap();
        let settings = json!({
            "auto_auth": {"enable_reauth_on_new_credentials": true, "method": [method]},
            "template": [{"destination": config, "perms": "0600", "source": template}],
            "vault": {"address": bao.address(), "ca_cert": bao.ca_file()},
        });
        let file = dir.path().join("agent.json");
        fs::write(&file, settings.to_string()).unwrap();
        if options.login == Login::Jwt {
            write_jwt(&dir, &key, 1);
        }
        let process = spawn(&file, &dir);
        let mut agent = Self { process, config: config.to_owned(), dir, key, logins: 1 };
        agent.wait_for_another_token("", PATIENCE).await;
        agent
    }

    /// The rendered file.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// The token in the rendered file; empty while there is none.
    pub(crate) fn token(&self) -> String {
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("token:"));
        line.unwrap_or_default().trim().trim_matches('\'').to_owned()
    }

    /// Makes it log in and render again, and answers the new token. The old one stays valid.
    ///
    /// # Panics
    /// For AppRole: its agent cannot be told to. Revoke its token, or give it a short one.
    pub(crate) async fn log_in_again(&mut self) -> String {
        let old = self.token();
        self.try_to_log_in_again();
        self.wait_for_another_token(&old, PATIENCE).await
    }

    /// As [`Agent::log_in_again`], without waiting for what becomes of it.
    pub(crate) fn try_to_log_in_again(&mut self) {
        assert!(self.dir.path().join("jwt").exists(), "only for Login::Jwt");
        self.logins += 1;
        write_jwt(&self.dir, &self.key, self.logins);
    }

    /// Waits until the rendered file holds another token than `old`, and answers it.
    pub(crate) async fn wait_for_another_token(&mut self, old: &str, within: Duration) -> String {
        eventually("the agent renders another token", within, async || {
            if let Some(status) = self.process.exited() {
                panic!("the agent ended: {status}");
            }
            let token = self.token();
            (!token.is_empty() && token != old).then_some(token)
        })
        .await
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

/// Writes the role on the server and the agent's files; answers the method for its config.
async fn prepare_login(bao: &Bao, dir: &TempDir, key: &KeyPair, options: &AgentOptions) -> Value {
    let mut role = json!({
        "token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": "1h",
    });
    for (name, value) in options.role.as_object().unwrap() {
        role[name] = value.clone();
    }
    let file = |name: &str| dir.path().join(name);
    let (kind, settings) = match options.login {
        Login::AppRole => {
            let path = format!("auth/approle/role/{ROLE}");
            bao.api("POST", &path, role).await;
            let answer = bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
            fs::write(file("role_id"), answer["data"]["role_id"].as_str().unwrap()).unwrap();
            let answer = bao.api("POST", &format!("{path}/secret-id"), json!({})).await;
            fs::write(file("secret_id"), answer["data"]["secret_id"].as_str().unwrap()).unwrap();
            let settings = json!({
                "role_id_file_path": file("role_id"),
                "secret_id_file_path": file("secret_id"),
                // By default it works once, and not after a restart.
                "remove_secret_id_file_after_reading": false,
            });
            ("approle", settings)
        }
        Login::Jwt => {
            let keys = json!({"jwt_validation_pubkeys": [key.public_key_pem()]});
            bao.api("POST", "auth/jwt/config", keys).await;
            role["bound_audiences"] = json!([AUDIENCE]);
            role["bound_subject"] = json!(ROLE);
            role["role_type"] = json!("jwt");
            role["user_claim"] = json!("sub");
            bao.api("POST", &format!("auth/jwt/role/{ROLE}"), role).await;
            let settings = json!({
                "jwt_read_period": "50ms",
                "path": file("jwt"),
                "remove_jwt_after_reading": false,
                "role": ROLE,
            });
            ("jwt", settings)
        }
    };
    json!({"type": kind, "config": settings, "max_backoff": "1s", "min_backoff": "100ms"})
}

/// Writes the JWT of the `number`th login.
fn write_jwt(dir: &TempDir, key: &KeyPair, number: u64) {
    #[expect(clippy::disallowed_methods, reason = "a JWT says from when to when it holds")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "aud": AUDIENCE,
        "exp": now + 3600,
        "iat": now,
        "jti": number.to_string(),
        "nbf": now - 60,
        "sub": ROLE,
    });
    let part = |value: Value| BASE64URL.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({"alg": "EdDSA", "typ": "JWT"})), part(claims));
    let signature = BASE64URL.encode(key.sign(signed.as_bytes()).unwrap());
    rendered::by_rename(&dir.path().join("jwt"), &format!("{signed}.{signature}"));
}

fn spawn(settings: &Path, home: &TempDir) -> Process {
    let mut command = Command::new(&Program::found().path);
    command.arg("agent").arg("-config").arg(settings);
    Process::spawn("the agent", command.env("HOME", home.path()))
}
