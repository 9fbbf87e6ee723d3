//! The config file: its settings, how it is read, and how its changes are noticed.
//!
//! ```text
//! watch     file events, debounce, polls  -> Observation, if it differs from the last one
//! load      bounded reads, fingerprints   -> LoadedConfig
//! material  the files of a login, which may be missing
//! parse     YAML, rules, line numbers     -> Config
//! settings  the settings, each checked by its constructor
//! source    a file, or a fixed text
//! ```
//!
//! No error, log line or `Debug` output shows a value of the file, because a damaged file can contain the
//! token anywhere. Errors name the file, the line, the key and the rule. Paths are the exception: an error
//! about a file is useless without its path.

mod error;
mod fingerprint;
pub mod load;
pub mod material;
pub mod parse;
mod read_file;
pub mod settings;
mod source;
mod token_file;
pub mod watch;

pub use error::{ConfigError, ConfigErrorKind};
pub use fingerprint::Fingerprint;
pub use load::{LoadedConfig, load};
pub use material::{LoginMaterial, MaterialError};
pub use parse::{MAX_FILE_BYTES, ParseOptions, parse};
pub use settings::{
    Config, CredentialSettings, Credentials, Encryption, LocalKekLimits, TlsFiles, auth::AuthSettings,
};
pub use source::ConfigSource;
pub use watch::{Observation, ReloadHandle, WatchOptions, Watcher, watch};
