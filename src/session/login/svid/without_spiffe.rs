//! Takes the place of `spiffe.rs` in a build without the feature `spiffe`.

use secrecy::SecretString;
use transit_client::{key::MountPath, vault::auth::LoginError};

use super::{super::credential_source::not_built_in, CertificateForMount, JwtForMount};
use crate::config::settings::auth::{AuthSettings, TrustDomains, WorkloadApiSettings};

fn missing() -> LoginError {
    not_built_in("spiffe")
}

pub(super) async fn fetch_jwt(
    _: &AuthSettings,
    _: &WorkloadApiSettings,
    _: &str,
) -> Result<JwtForMount, LoginError> {
    Err(missing())
}

pub(super) async fn fetch_certificate(
    _: &AuthSettings,
    _: &WorkloadApiSettings,
) -> Result<CertificateForMount, LoginError> {
    Err(missing())
}

pub(super) fn mount_of_jwt(_: &TrustDomains, _: &SecretString, _: &str) -> Result<MountPath, LoginError> {
    Err(missing())
}

pub(super) fn mount_of_certificate(_: &TrustDomains, _: &[u8], _: &str) -> Result<MountPath, LoginError> {
    Err(missing())
}
