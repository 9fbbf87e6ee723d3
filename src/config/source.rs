//! Where the settings come from.

use std::{
    fmt,
    path::{self, Path, PathBuf},
    sync::Arc,
};

/// Where the settings come from. `Debug` shows none of them.
#[derive(Clone)]
pub enum ConfigSource {
    /// A YAML file, which is watched.
    File(PathBuf),
    /// A YAML text that stays the same while the process runs. The files that it names are watched.
    Text {
        /// Stands for the path of a file in errors and logs.
        name: PathBuf,
        /// The YAML.
        text: Arc<str>,
    },
}

impl ConfigSource {
    /// Returns the path of the file, or the name of the text, for errors and logs.
    #[must_use]
    pub fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Text { name, .. } => name,
        }
    }

    /// Returns the file to watch, if there is one.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text { .. } => None,
        }
    }

    /// Makes the path of a file absolute, because watches need the directories above it.
    pub(super) fn into_absolute(self) -> Self {
        match self {
            Self::File(relative) => Self::File(path::absolute(&relative).unwrap_or(relative)),
            text @ Self::Text { .. } => text,
        }
    }
}

impl From<PathBuf> for ConfigSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigSource({})", self.name().display())
    }
}
