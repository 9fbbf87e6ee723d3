//! Logs to standard error: text for people or JSON for machines.

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// Text, for people.
    Text,
}

/// The lowest level that is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogLevel {
    /// `info`, and a line for each call.
    Debug,
    /// Only errors that need an operator.
    Error,
    /// `warn`, and changes of state.
    Info,
    /// Everything.
    Trace,
    /// `error`, and problems that an operator should look at.
    Warn,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Error => Self::ERROR,
            LogLevel::Info => Self::INFO,
            LogLevel::Trace => Self::TRACE,
            LogLevel::Warn => Self::WARN,
        }
    }
}

/// Starts logging until the process exits. A second start is ignored.
///
/// Libraries log from `warn` up only, at each level: what they log below is not under the control of this
/// program, which holds secrets.
pub fn start(format: LogFormat, level: LogLevel) {
    let level = LevelFilter::from(level);
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("transit_kms", level)
        // The crates of this workspace.
        .with_target("kms_plugin", level)
        .with_target("transit_client", level)
        // They log each failed request as an error without its cause; transit-kms logs the cause.
        .with_target("rustify", LevelFilter::OFF)
        .with_target("vaultrs", LevelFilter::OFF);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    // Fails only if a subscriber is already installed, as in tests.
    drop(Registry::default().with(lines.with_filter(filter)).try_init());
}
