//! Counts how often Vault has reported only key versions older than the published one.
//!
//! A standby node that lags does that, and so does a Vault that was restored from a backup. Only the latter
//! justifies that an older version is published, so it takes several checks in a row.

use tracing::warn;
use transit_client::ErrorKind;

use super::verification::{Verification, VerificationError};

/// An older version is published after this many checks in a row in which the active node reports it.
const MIN_CHECKS: u32 = 3;

/// The checks in a row in which the active node of one session reported only older versions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OlderVersions {
    checks: u32,
    /// The session that was checked; `None` for a candidate.
    generation: Option<u64>,
}

impl OlderVersions {
    /// Returns the count of the session of `generation`. The checks of an earlier session do not count: that
    /// session may have used another Vault.
    pub(super) fn of_session(&mut self, generation: u64) -> &mut Self {
        if self.generation != Some(generation) {
            *self = Self { checks: 0, generation: Some(generation) };
        }
        self
    }

    /// Whether the next check may accept an older version.
    #[must_use]
    pub(super) fn next_is_accepted(&self) -> bool {
        self.checks + 1 >= MIN_CHECKS
    }

    /// Counts the outcome of a check.
    pub(super) fn count(&mut self, outcome: &Result<Verification, VerificationError>) {
        match outcome {
            Err(VerificationError::Older(version)) => {
                self.checks += 1;
                warn!(%version, checks = self.checks, "Vault's active node reports an older key version than the one in use");
            }
            // Without a valid answer, nothing is known about the versions.
            Err(VerificationError::Failed(error))
                if matches!(
                    error.kind,
                    ErrorKind::DeadlineExceeded
                        | ErrorKind::InvalidResponse
                        | ErrorKind::Throttled
                        | ErrorKind::Unreachable
                ) => {}
            _ => self.checks = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use transit_client::{TransitError, key_id::KeyVersion};

    use super::*;

    #[test]
    fn older_versions_are_counted_for_one_session() {
        let mut older = OlderVersions::default();
        let version = KeyVersion::new(1).unwrap();
        for _ in 0..2 {
            assert!(!older.of_session(1).next_is_accepted());
            older.of_session(1).count(&Err(VerificationError::Older(version)));
        }
        let unreachable = TransitError::new(ErrorKind::Unreachable, "unreachable");
        older.of_session(1).count(&Err(unreachable.into()));
        assert!(older.of_session(1).next_is_accepted());
        assert!(!older.of_session(2).next_is_accepted(), "the checks of session 1 do not count");
        assert!(!older.of_session(1).next_is_accepted());
    }
}
