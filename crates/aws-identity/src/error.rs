//! Why there are no fields for a login.

use std::error::Error;

use crate::{credentials::CredentialsError, http_client::HttpFailure, metadata::MetadataError};

/// Why there are no fields for a login. No message contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum AwsIdentityError {
    /// No source has credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There is no identity document of an EC2 instance.
    #[error("there is no identity document: {0}")]
    IdentityDocument(#[source] MetadataError),
    /// The setting or variable `name` has a value that cannot be used.
    #[error("{name} {rule}")]
    InvalidSetting {
        /// The setting or variable.
        name: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The request cannot be signed: a credential has characters that are not allowed in a header.
    #[error(
        "the GetCallerIdentity request cannot be signed; do the credentials have line breaks or spaces in them?"
    )]
    Unsignable(#[source] Box<dyn Error + Send + Sync>),
}

impl AwsIdentityError {
    /// Whether a service of this machine did not answer, or not as it should: the next attempt may succeed although
    /// nothing is changed. Otherwise a setting or a credential has to be corrected.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Credentials(error) => error.source().is_some_and(is_temporary),
            Self::IdentityDocument(error) => is_temporary(error),
            Self::InvalidSetting { .. } | Self::Unsignable(_) => false,
        }
    }
}

/// The errors of the services of this machine. Others are about files and variables.
fn is_temporary(error: &(dyn Error + 'static)) -> bool {
    match error.downcast_ref::<MetadataError>() {
        Some(MetadataError::Disabled | MetadataError::Endpoint | MetadataError::NoRole) => false,
        Some(_) => true,
        None => error.is::<HttpFailure>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_services_that_may_recover_are_temporary() {
        for (error, expected) in [
            (MetadataError::TokenRefused(503), true),
            (MetadataError::HopLimit(HttpFailure::Status(500)), true),
            (MetadataError::NoRole, false),
            (MetadataError::Disabled, false),
        ] {
            assert_eq!(AwsIdentityError::IdentityDocument(error).is_temporary(), expected);
        }
        assert!(is_temporary(&HttpFailure::Status(500)));
        assert!(!is_temporary(&std::io::Error::other("a file")));
    }
}
