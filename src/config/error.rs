//! Why a config cannot be used.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The kind of a [`ConfigError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfigErrorKind {
    /// The config file does not exist.
    Absent,
    /// The config file was read and breaks a rule.
    Invalid,
    /// The config file, or a file that it names, cannot be read.
    Unreadable,
}

/// The file, the line, the key and the rule that is broken, but no value.
///
/// Displays as `/etc/x.yaml:12: vault.tls.ca_file: must be an absolute path`.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// Absent, invalid or unreadable.
    pub kind: ConfigErrorKind,
    /// The config file, also if the error concerns a file that it names.
    pub path: PathBuf,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The column, from 1; only for text that is not YAML.
    pub column: Option<usize>,
    /// The key, if it is known, and the rule that is broken.
    pub rule: String,
    /// Why a file cannot be read.
    pub(super) source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ConfigError {
    pub(super) fn invalid(path: &Path, line: Option<usize>, rule: impl Into<String>) -> Self {
        Self { line, ..Self::new(ConfigErrorKind::Invalid, path, rule) }
    }

    pub(super) fn new(kind: ConfigErrorKind, path: &Path, rule: impl Into<String>) -> Self {
        Self { kind, path: path.to_owned(), line: None, column: None, rule: rule.into(), source: None }
    }

    pub(super) fn with_source(self, source: impl Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..self }
    }
}

/// Two errors are equal if they have the same text and kind. The watcher compares them to report an error once.
impl PartialEq for ConfigError {
    fn eq(&self, other: &Self) -> bool {
        let parts = |error: &Self| (error.kind, error.line, error.column);
        parts(self) == parts(other) && self.path == other.path && self.rule == other.rule
    }
}

impl Eq for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.rule)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
