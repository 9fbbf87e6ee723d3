//! The usual environment of a daemon: an OpenBao server and a rendered config.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    daemon::config_file::{self, ConfigFile},
    daemon::process::{Daemon, DaemonOptions},
    files::temp_dir::temp_dir,
    kms::caller::Caller,
    vault::server::Bao,
    wait::eventually,
};

/// Shorter intervals than the defaults, so that tests do not wait for minutes.
const SHORT_INTERVALS: [&str; 6] =
    ["--log-level", "debug", "--outage-grace", "3s", "--health-check-interval", "1s"];

/// The longest time until a changed config is in use: noticed, verified and published.
pub const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A server, and a config that is rendered for it. Dropping this value stops the server.
pub struct TestEnv {
    pub bao: Bao,
    pub config: PathBuf,
    /// Environment variables of the daemons.
    pub environment: BTreeMap<String, String>,
    /// The content of the next rendering. Its token is that of the last one.
    pub rendered: ConfigFile,
    dir: TempDir,
}

impl TestEnv {
    /// Starts a server, and renders a config with a token that has only the needed policy.
    pub async fn start() -> Self {
        let mut env = Self::without_file().await;
        let token = env.bao.token().await;
        env.render(&token);
        env
    }

    /// Like [`TestEnv::start`], without rendering the config.
    pub async fn without_file() -> Self {
        Self::of(Bao::start().await)
    }

    /// With this server, without rendering the config.
    pub fn of(bao: Bao) -> Self {
        let dir = temp_dir("test-env-");
        let rendered = ConfigFile::of(&bao, "");
        let config = dir.path().join("config.yaml");
        Self { bao, config, environment: BTreeMap::new(), rendered, dir }
    }

    /// Renders the config with this token, as an agent does.
    pub fn render(&mut self, token: &str) {
        self.rendered = self.rendered.with_token(token);
        config_file::by_rename(&self.config, &self.rendered.yaml());
    }

    /// Renders the config with this block `auth`, instead of a token.
    pub fn render_auth(&mut self, auth: serde_json::Value) {
        self.rendered.auth = Some(auth);
        config_file::by_rename(&self.config, &self.rendered.yaml());
    }

    /// The folder of the config.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Renders the config with this token, and waits until the daemon uses it.
    pub async fn render_and_wait(&mut self, daemon: &Daemon, token: &str) {
        let before = daemon.generation().await;
        self.render(token);
        wait_for_session_after(daemon, before).await;
    }

    /// The token of the last rendering.
    pub fn token(&self) -> &str {
        &self.rendered.token
    }

    /// Starts a daemon with these arguments. By default its health check interval is 1 s, its outage grace 3 s, and its
    /// log level debug; the arguments replace these defaults.
    pub async fn daemon<const N: usize>(&self, arguments: [&str; N]) -> Daemon {
        let mut all: Vec<String> = arguments.map(str::to_owned).into();
        for pair in SHORT_INTERVALS.chunks(2) {
            if !arguments.contains(&pair[0]) {
                all.extend(pair.iter().map(|text| (*text).to_owned()));
            }
        }
        let environment = self.environment.clone();
        let options = DaemonOptions { arguments: all, environment, ..DaemonOptions::default() };
        Daemon::start_with(&self.config, options).await
    }

    /// Like [`TestEnv::daemon`]; also waits until the daemon is ready, and connects a client.
    pub async fn ready<const N: usize>(&self, arguments: [&str; N]) -> (Daemon, Caller) {
        let daemon = self.daemon(arguments).await;
        daemon.wait_ready().await;
        let caller = Caller::of(&daemon).await;
        (daemon, caller)
    }

    /// Like [`TestEnv::ready`], without periodic health checks after the first: what the daemon notices from then on,
    /// it notices by calls.
    pub async fn ready_without_health_checks(&self) -> (Daemon, Caller) {
        let (daemon, caller) = self.ready(["--health-check-interval", "10m"]).await;
        // A health check from before the first session is repeated once. After that there are none.
        eventually("the first health check", RELOAD_TIMEOUT, async || health_checks(&daemon).await >= 1.0)
            .await;
        (daemon, caller)
    }
}

/// The number of health checks so far.
pub async fn health_checks(daemon: &Daemon) -> f64 {
    daemon.metric("transit_kms_health_check_duration_seconds_count", &[]).await
}

/// Waits until the daemon uses a session with a higher generation than `before`.
pub async fn wait_for_session_after(daemon: &Daemon, before: u64) {
    eventually("a new session", RELOAD_TIMEOUT, async || daemon.generation().await > before).await;
}
