//! Starts and stops an agent that renders the config of the daemon with its own token.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    daemon::config_file::ConfigFile,
    process::Process,
    process::command::command,
    vault::login::{self, Jwt, ROLE},
    vault::{binary::VaultBinary, server::Bao},
    wait::eventually,
};

/// The template of the token: the agent's own token.
const OWN_TOKEN: &str = r#"{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}"#;

/// The longest time for a login and a rendering.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How an agent logs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Login {
    /// With role_id and secret_id. The agent logs in again when its token can no longer be renewed: at about 2/3 of
    /// the TTL after a revocation or near the maximum TTL.
    AppRole,
    /// With a signed JWT in a file. The agent also logs in again when the file changes, and the old token stays valid:
    /// see [`Agent::log_in_again`].
    Jwt,
}

/// Options of an agent.
pub struct AgentOptions {
    pub login: Login,
    /// A loopback port on which the agent forwards requests to the server, without TLS and with its own token
    /// (`use_auto_auth_token = "force"`).
    pub proxy: Option<u16>,
    /// Token settings of its role, such as `json!({"token_ttl": "15s"})`. See [`login::role`] for the defaults.
    pub role: Value,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { login: Login::Jwt, proxy: None, role: json!({}) }
    }
}

/// A running agent. Dropping this value kills it; the rendered file stays.
pub struct Agent {
    process: Process,
    config: PathBuf,
    jwt: Option<Jwt>,
    _dir: TempDir,
}

impl Agent {
    /// Starts an agent, and waits until it has rendered `config` (see [`ConfigFile`]) with a token of this server.
    pub async fn start(bao: &Bao, config: &Path, options: AgentOptions) -> Self {
        Self::start_with(bao, &ConfigFile::of(bao, ""), config, options).await
    }

    /// Like [`Agent::start`], with other content. The agent's token replaces the token in it.
    pub async fn start_with(bao: &Bao, content: &ConfigFile, config: &Path, options: AgentOptions) -> Self {
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
        agent.wait_for_another_token("", WAIT_TIMEOUT).await;
        agent
    }

    /// Starts an agent with this config file of the agent, and waits until it has rendered `config`.
    pub async fn of_file(file: &Path, config: &Path) -> Self {
        let mut agent = Self::of_file_unrendered(file, config);
        agent.wait_for_another_token("", WAIT_TIMEOUT).await;
        agent
    }

    /// Like [`Agent::of_file`], without waiting.
    pub fn of_file_unrendered(file: &Path, config: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("agent-").tempdir().unwrap();
        Self::spawn(file, config, None, dir)
    }

    fn spawn(file: &Path, config: &Path, jwt: Option<Jwt>, dir: TempDir) -> Self {
        let mut command = command(VaultBinary::path());
        command.arg("agent").arg("-config").arg(file);
        let process = Process::spawn("the agent", command.env("HOME", dir.path()));
        Self { process, config: config.to_owned(), jwt, _dir: dir }
    }

    /// The rendered file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The token in the rendered file; empty if there is none.
    pub fn token(&self) -> String {
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("token:"));
        line.unwrap_or_default().trim().trim_matches('\'').to_owned()
    }

    /// Makes the agent log in and render again, and returns the new token. The old one stays valid.
    ///
    /// # Panics
    /// For AppRole, whose agent logs in again only if its token is revoked or near its end.
    pub async fn log_in_again(&mut self) -> String {
        let old = self.token();
        self.try_to_log_in_again();
        self.wait_for_another_token(&old, WAIT_TIMEOUT).await
    }

    /// Like [`Agent::log_in_again`], without waiting for the result.
    pub fn try_to_log_in_again(&mut self) {
        self.jwt.as_mut().expect("only for Login::Jwt").renew();
    }

    /// Waits until the rendered file holds another token than `old`, and returns it.
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

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

/// Creates the role on the server and the files of the agent. Returns the auto-auth method for its config.
async fn prepare_login(bao: &Bao, dir: &TempDir, options: &AgentOptions) -> (Value, Option<Jwt>) {
    let file = |name: &str| dir.path().join(name);
    let (kind, settings, jwt) = match options.login {
        Login::AppRole => {
            login::approle(bao, dir.path(), &options.role).await;
            let settings = json!({
                "role_id_file_path": file("role_id"),
                "secret_id_file_path": file("secret_id"),
                // By default the agent removes the file, and cannot log in after a restart.
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
