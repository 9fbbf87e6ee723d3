//! Why a command failed, and its exit code.

use std::{io, path::PathBuf};

use kms_plugin::cli::EXIT_USAGE;
use sealed_payload::SealedPayloadError;

/// The operating system refuses something; `EX_OSERR` of sysexits.h.
pub(crate) const EXIT_SYSTEM: u8 = 71;

/// Why a command failed. No variant contains a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{}: {source}", path.display())]
    Key { path: PathBuf, source: SealedPayloadError },
    #[error("cannot read {what}: {source}")]
    Read { what: String, source: io::Error },
    #[error("cannot write {what}: {source}")]
    Write { what: String, source: io::Error },
    #[error(transparent)]
    Seal(#[from] SealedPayloadError),
}

impl CommandError {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Key { .. } | Self::Seal(_) => EXIT_USAGE,
            Self::Read { .. } | Self::Write { .. } => EXIT_SYSTEM,
        }
    }
}
