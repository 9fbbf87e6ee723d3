//! A server and a rendered file, ready for daemons.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;

use crate::{
    daemon::config_file::{self, Rendered},
    daemon::process::{Daemon, DaemonOptions},
    files::temp_dir::scratch,
    kms::caller::Caller,
    vault::server::Bao,
    wait::eventually,
};

/// So that tests need not wait long for what takes minutes in earnest.
const IN_A_HURRY: [&str; 6] =
    ["--log-level", "debug", "--outage-grace", "3s", "--health-check-interval", "1s"];

/// How long a change of the file may take to be in use: noticed, proven and published.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// A server, and a file that is rendered for it.
pub struct Stage {
    pub bao: Bao,
    pub config: PathBuf,
    /// What the file is to say; its token is the one rendered last.
    pub rendered: Rendered,
    _dir: TempDir,
}

impl Stage {
    /// A server, and a file with a token of the least rights.
    pub async fn start() -> Self {
        let mut stage = Self::without_file().await;
        let token = stage.bao.token().await;
        stage.render(&token);
        stage
    }

    /// As [`Stage::start`], but nothing is rendered yet.
    pub async fn without_file() -> Self {
        let bao = Bao::start().await;
        let dir = scratch("stage-");
        let rendered = Rendered::of(&bao, "");
        Self { bao, config: dir.path().join("config.yaml"), rendered, _dir: dir }
    }

    /// Renders the file with this token, as an agent does.
    pub fn render(&mut self, token: &str) {
        self.rendered = self.rendered.with_token(token);
        config_file::by_rename(&self.config, &self.rendered.yaml());
    }

    /// Renders the file with this token and waits until the daemon uses it.
    pub async fn render_and_wait(&mut self, daemon: &Daemon, token: &str) {
        let before = daemon.generation().await;
        self.render(token);
        wait_for_session_after(daemon, before).await;
    }

    /// The token rendered last.
    pub fn token(&self) -> &str {
        &self.rendered.token
    }

    /// A daemon that listens, probes each second and is patient with outages for three; these
    /// arguments come after, so they replace what is said here.
    pub async fn daemon<const N: usize>(&self, arguments: [&str; N]) -> Daemon {
        let mut all: Vec<String> = arguments.map(str::to_owned).into();
        for pair in IN_A_HURRY.chunks(2) {
            if !arguments.contains(&pair[0]) {
                all.extend(pair.iter().map(|text| (*text).to_owned()));
            }
        }
        Daemon::start_with(&self.config, DaemonOptions { arguments: all, ..DaemonOptions::default() }).await
    }

    /// As [`Stage::daemon`], once it is ready, with a caller.
    pub async fn ready<const N: usize>(&self, arguments: [&str; N]) -> (Daemon, Caller) {
        let daemon = self.daemon(arguments).await;
        daemon.wait_ready().await;
        let caller = Caller::of(&daemon).await;
        (daemon, caller)
    }

    /// As [`Stage::ready`], but after its first probe none comes of itself: whatever is found out
    /// from then on, a call has found.
    pub async fn ready_without_probes(&self) -> (Daemon, Caller) {
        let (daemon, caller) = self.ready(["--health-check-interval", "10m"]).await;
        // A prober that began before the session was there looks again soon, and then no more.
        eventually("the first probe", TAKEN_WITHIN, async || probes(&daemon).await >= 1.0).await;
        (daemon, caller)
    }
}

/// How many probes there were.
pub async fn probes(daemon: &Daemon) -> f64 {
    daemon.metric("transit_kms_health_check_duration_seconds_count", &[]).await
}

/// Waits until the daemon uses a newer session than that of generation `before`.
pub async fn wait_for_session_after(daemon: &Daemon, before: u64) {
    eventually("a new session", TAKEN_WITHIN, async || daemon.generation().await > before).await;
}
