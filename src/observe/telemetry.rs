//! Logs: `tracing`, as text for people or JSON for machines, on standard error.

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For eyes.
    Text,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogLevel {
    /// One line a call.
    Debug,
    /// What stops us.
    Error,
    /// Changes of state.
    Info,
    /// Everything that we say.
    Trace,
    /// What needs a look.
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

/// Starts logging for the rest of the process; a second start is ignored.
///
/// Whatever the level, libraries speak only from `warn` up: what they print
/// below that is theirs to choose, and this program holds secrets.
pub fn start(format: LogFormat, level: LogLevel) {
    let ours = LevelFilter::from(level);
    let filter = Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("transit_kms", ours)
        // They log each failed request as an error, without a word of what it was; we say it.
        .with_target("rustify", LevelFilter::OFF)
        .with_target("vaultrs", LevelFilter::OFF);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    // Fails only when a subscriber is already in place, as in tests.
    drop(Registry::default().with(lines.with_filter(filter)).try_init());
}
