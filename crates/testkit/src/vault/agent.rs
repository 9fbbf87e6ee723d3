//! A real agent that renders the daemon's config with its own token.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    daemon::config_file::Rendered,
    process::Process,
    process::command::command,
    vault::login::{self, Jwt, ROLE},
    vault::server::{Bao, Program},
    wait::eventually,
};

/// What the template writes in the place of the token: the agent's own.
const OWN_TOKEN: &str = r#"{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}"#;

/// How long a login and a rendering may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an agent logs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Login {
    /// With role_id and secret_id. It logs in again when its token can no longer be renewed: at
    /// about 2/3 of the TTL after a revocation or near the maximum.
    AppRole,
    /// With a signed JWT in a file. It also logs in again when that file changes, while the old
    /// token goes on working: see [`Agent::log_in_again`].
    Jwt,
}

/// How an agent is to be.
pub struct AgentOptions {
    pub login: Login,
    /// It also passes requests on to the server, on this port of the loopback and without TLS, and
    /// replaces their tokens by its own (`use_auto_auth_token = "force"`).
    pub proxy: Option<u16>,
    /// What its tokens are like, in the words of a role, such as `json!({"token_ttl": "15s"})`.
    /// What is not said: an hour, with [`POLICY`] and without the `default` policy.
    pub role: Value,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { login: Login::Jwt, proxy: None, role: json!({}) }
    }
}

/// An agent beside a daemon. It ends with this value; what it rendered stays.
pub struct Agent {
    process: Process,
    config: PathBuf,
    jwt: Option<Jwt>,
    _dir: TempDir,
}

impl Agent {
    /// An agent that has rendered `config` (see [`Rendered`]) with a token of this server.
    pub async fn start(bao: &Bao, config: &Path, options: AgentOptions) -> Self {
        Self::start_with(bao, &Rendered::of(bao, ""), config, options).await
    }

    /// As [`Agent::start`], with other content; its token is replaced by the agent's.
    pub async fn start_with(bao: &Bao, content: &Rendered, config: &Path, options: AgentOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("agent-").tempdir().unwrap();
        let (method, jwt) = prepare_login(bao, &dir, &options).await;
        let template = dir.path().join("config.ctmpl");
        fs::write(&template, content.with_token(OWN_TOKEN).yaml()).unwrap();
        let mut settings = json!({
            "auto_auth": {"enable_reauth_on_new_credentials": true, "method": [method]},
            "template": [{"destination": config, "perms": "0600", "source": template}],
            "vault": {"address": bao.address(), "ca_cert": bao.ca_file()},
        });
        if let Some(port) = options.proxy {
            settings["api_proxy"] = json!({"use_auto_auth_token": "force"});
            settings["listener"] =
                json!([{"tcp": {"address": format!("127.0.0.1:{port}"), "tls_disable": true}}]);
        }
        let file = dir.path().join("agent.json");
        fs::write(&file, settings.to_string()).unwrap();
        let mut agent = Self::spawn(&file, config, jwt, dir);
        agent.wait_for_another_token("", PATIENCE).await;
        agent
    }

    /// An agent that has rendered `config`, as a config file of its own has it do.
    pub async fn of_file(file: &Path, config: &Path) -> Self {
        let mut agent = Self::of_file_unrendered(file, config);
        agent.wait_for_another_token("", PATIENCE).await;
        agent
    }

    /// As [`Agent::of_file`], without waiting for anything.
    pub fn of_file_unrendered(file: &Path, config: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("agent-").tempdir().unwrap();
        Self::spawn(file, config, None, dir)
    }

    fn spawn(file: &Path, config: &Path, jwt: Option<Jwt>, dir: TempDir) -> Self {
        let mut command = command(Program::path());
        command.arg("agent").arg("-config").arg(file);
        let process = Process::spawn("the agent", command.env("HOME", dir.path()));
        Self { process, config: config.to_owned(), jwt, _dir: dir }
    }

    /// The rendered file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The token in the rendered file; empty while there is none.
    pub fn token(&self) -> String {
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("token:"));
        line.unwrap_or_default().trim().trim_matches('\'').to_owned()
    }

    /// Makes it log in and render again, and answers the new token. The old one stays valid.
    ///
    /// # Panics
    /// For AppRole: its agent cannot be told to. Revoke its token, or give it a short one.
    pub async fn log_in_again(&mut self) -> String {
        let old = self.token();
        self.try_to_log_in_again();
        self.wait_for_another_token(&old, PATIENCE).await
    }

    /// As [`Agent::log_in_again`], without waiting for what becomes of it.
    pub fn try_to_log_in_again(&mut self) {
        self.jwt.as_mut().expect("only for Login::Jwt").renew();
    }

    /// Waits until the rendered file holds another token than `old`, and answers it.
    pub async fn wait_for_another_token(&mut self, old: &str, within: Duration) -> String {
        eventually("the agent renders another token", within, async || {
            if let Some(status) = self.process.exited() {
                panic!("the agent ended: {status}");
            }
            let token = self.token();
            (!token.is_empty() && token != old).then_some(token)
        })
        .await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

/// Writes the role on the server and the agent's files; answers the method for its config.
async fn prepare_login(bao: &Bao, dir: &TempDir, options: &AgentOptions) -> (Value, Option<Jwt>) {
    let file = |name: &str| dir.path().join(name);
    let (kind, settings, jwt) = match options.login {
        Login::AppRole => {
            login::approle(bao, dir.path(), &options.role).await;
            let settings = json!({
                "role_id_file_path": file("role_id"),
                "secret_id_file_path": file("secret_id"),
                // By default it works once, and not after a restart.
                "remove_secret_id_file_after_reading": false,
            });
            ("approle", settings, None)
        }
        Login::Jwt => {
            let jwt = Jwt::issued(bao, &file("jwt"), &options.role).await;
            let settings = json!({
                "jwt_read_period": "50ms",
                "path": file("jwt"),
                "remove_jwt_after_reading": false,
                "role": ROLE,
            });
            ("jwt", settings, Some(jwt))
        }
    };
    (json!({"type": kind, "config": settings, "max_backoff": "1s", "min_backoff": "100ms"}), jwt)
}
