//! The config file: its settings, how it is read, and how its changes are noticed.
//!
//! ```text
//! watch     file events, debounce, polls  -> Observation, if it differs from the last one
//! load      bounded reads, fingerprints   -> LoadedConfig
//! parse     YAML, rules, line numbers     -> Config
//! settings  the settings, each checked by its constructor
//! source    a file, or a fixed text
//! ```
//!
//! No error, log line or `Debug` output shows a value of the file, because a damaged file can contain the
//! token anywhere. Errors name the file, the line, the key and the rule. Paths are the exception: an error
//! about a file is useless without its path.

mod error;
pub mod load;
pub mod parse;
pub mod settings;
mod source;
pub mod watch;

pub use error::{ConfigError, ConfigErrorKind};
pub use load::{Fingerprint, LoadedConfig, load};
pub use parse::{MAX_FILE_BYTES, ParseOptions, parse};
pub use settings::{Config, Credentials, Encryption, LocalKekLimits, TlsFiles};
pub use source::ConfigSource;
pub use watch::{Observation, ReloadHandle, WatchOptions, Watcher, watch};
