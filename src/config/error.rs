//! Why there is no config.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What kind of trouble a [`ConfigError`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfigErrorKind {
    /// The config file is not there (yet).
    Absent,
    /// The config file was read and breaks a rule.
    Invalid,
    /// The config file, or a file that it names, cannot be read.
    Unreadable,
}

/// The file, the line and the rule; never a value.
///
/// Displays as `/etc/x.yaml:12: vault.tls.ca_file: must be an absolute path`.
/// Two errors are equal if they say the same, which is how a repetition is
/// told from news.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigError {
    /// Absent, invalid or unreadable.
    pub kind: ConfigErrorKind,
    /// The config file, also where the trouble is with a file that it names.
    pub path: PathBuf,
    /// The line, from 1, where one is known.
    pub line: Option<usize>,
    /// The column, from 1; only for text that is not YAML.
    pub column: Option<usize>,
    /// The key, where one is known, and the rule that is broken.
    pub rule: String,
}

impl ConfigError {
    pub(super) fn invalid(path: &Path, line: Option<usize>, rule: impl Into<String>) -> Self {
        Self { kind: ConfigErrorKind::Invalid, path: path.to_owned(), line, column: None, rule: rule.into() }
    }

    pub(super) fn of_kind(kind: ConfigErrorKind, path: &Path, rule: impl Into<String>) -> Self {
        Self { kind, path: path.to_owned(), line: None, column: None, rule: rule.into() }
    }
}

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

impl std::error::Error for ConfigError {}
