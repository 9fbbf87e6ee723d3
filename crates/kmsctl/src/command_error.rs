//! Why a command failed, and its exit code.

use std::{io, path::PathBuf};

use kms_plugin::cli::{EXIT_CHECK_FAILED, EXIT_NO_ANSWER, EXIT_USAGE};
use sealed_payload::SealedPayloadError;

use crate::vault::VaultError;

/// The operating system refuses something; `EX_OSERR` of sysexits.h.
pub(crate) const EXIT_SYSTEM: u8 = 71;

/// Why a command failed. No variant contains a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{}: {source}", path.display())]
    Key { path: PathBuf, source: SealedPayloadError },
    #[error("{0}")]
    Failed(String),
    #[error("cannot read {what}: {source}")]
    Read { what: String, source: io::Error },
    #[error(transparent)]
    Seal(#[from] SealedPayloadError),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("cannot write {what}: {source}")]
    Write { what: String, source: io::Error },
}

impl CommandError {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => EXIT_CHECK_FAILED,
            Self::Key { .. } | Self::Seal(_) | Self::Usage(_) => EXIT_USAGE,
            Self::Read { .. } | Self::Write { .. } => EXIT_SYSTEM,
            Self::Vault(VaultError::Away { .. }) => EXIT_NO_ANSWER,
            Self::Vault(_) => EXIT_CHECK_FAILED,
        }
    }
}
