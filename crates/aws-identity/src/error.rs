//! Why there are no fields for a login.

use crate::{credentials::CredentialsError, metadata::MetadataError};

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
    Unsignable(#[source] Box<dyn std::error::Error + Send + Sync>),
}
