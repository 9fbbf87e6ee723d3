//! The rendered file: what it may say, how it is read, how its changes are seen.
//!
//! ```text
//! watch    events, debounce, polls      -> Observation, only when it differs
//! source   bounded reads, fingerprints  -> Reading
//! parse    YAML, rules, lines           -> Config
//! settings the settings, each proven by its constructor
//! ```
//!
//! Nothing here shows a value of the file in an error, a log line or a
//! `Debug`: a mangled file may hold the token anywhere. Errors name the file,
//! the line, the key and the rule. Paths of files are the one exception: they
//! must be known to be mended.

mod error;
pub mod load;
pub mod parse;
pub mod settings;
pub mod watch;

pub use error::{ConfigError, ConfigErrorKind};
pub use load::{Fingerprint, Reading, read};
pub use parse::{MAX_FILE_BYTES, ParseOptions, parse};
pub use settings::{Config, Credentials, Encryption, LocalKekLimits, TlsFiles};
pub use watch::{Observation, Rereader, WatchOptions, Watcher, watch};
