//! What the AWS auth method of Vault needs to prove the identity of this machine or container.
//!
//! - Type `iam`: [`AwsIdentity::iam_login`] signs a `GetCallerIdentity` request. Vault sends it to STS, which answers with
//!   the principal of the credentials. The credentials stay here.
//! - Type `ec2`: [`AwsIdentity::ec2_login`] reads the signed identity document of the instance, and adds a [`Nonce`] that
//!   only this machine has.
//!
//! Nothing is cached: temporary credentials expire, and a login is rare.
//!
//! Not supported: credentials by web identity (IAM roles for service accounts). kube-apiserver issues those tokens, and it
//! needs its KMS plugin before it can do that.

mod credentials;
mod ec2;
mod environment;
mod error;
mod http_client;
mod iam;
mod login_fields;
mod metadata;
mod nonce;
mod signature;

pub use credentials::{CredentialSource, CredentialsError, SourceFailure};
pub use ec2::DocumentSignature;
pub use environment::Environment;
pub use error::AwsIdentityError;
pub use http_client::HttpFailure;
pub use iam::IamSettings;
pub use login_fields::LoginFields;
pub use metadata::MetadataError;
pub use nonce::{Nonce, NonceError};

use http_client::HttpClient;

/// Makes the fields of logins.
pub struct AwsIdentity {
    environment: Environment,
    http: HttpClient,
}

impl AwsIdentity {
    /// Reads where credentials are from `environment`, at each login.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self { environment, http: HttpClient::default() }
    }
}
