//! SVIDs of the Workload API, and the trust domains of all SVIDs.

use secrecy::{ExposeSecret, SecretString};
use spiffe_identity::{
    FetchError, SpiffeId, SvidFileError, WorkloadApi, check_trust_domain, spiffe_id_of_certificate,
    spiffe_id_of_jwt,
};
use transit_client::{
    ErrorKind, TransitError,
    key::MountPath,
    vault::auth::{AuthMount, LoginError, LoginFailure},
};
use zeroize::Zeroizing;

use super::{
    super::credential_source::{blocked, fixed},
    CertificateForMount, JwtForMount, Origin, at,
};
use crate::config::settings::auth::{
    AuthSettings, LoginMount, TrustDomainName, TrustDomains, WorkloadApiSettings,
};

pub(super) async fn fetch_jwt(
    auth: &AuthSettings,
    api: &WorkloadApiSettings,
    audience: &str,
) -> Result<JwtForMount, LoginError> {
    let wanted = wanted(api)?;
    let svid = WorkloadApi::at(&api.socket).jwt_svid(audience, wanted.as_ref()).await.map_err(not_fetched)?;
    let at = mount_of(auth, &svid.spiffe_id)?;
    Ok(JwtForMount { at, jwt: svid.token, origin: Origin::WorkloadApi })
}

pub(super) async fn fetch_certificate(
    auth: &AuthSettings,
    api: &WorkloadApiSettings,
) -> Result<CertificateForMount, LoginError> {
    let wanted = wanted(api)?;
    let svid = WorkloadApi::at(&api.socket).x509_svid(wanted.as_ref()).await.map_err(not_fetched)?;
    let at = mount_of(auth, &svid.spiffe_id)?;
    let key = Zeroizing::new(svid.private_key.expose_secret().as_bytes().to_vec());
    Ok(CertificateForMount { at, chain: svid.certificate.into_bytes(), key, origin: Origin::WorkloadApi })
}

/// `name` is that of the file.
pub(super) fn mount_of_jwt(
    domains: &TrustDomains,
    jwt: &SecretString,
    name: &str,
) -> Result<MountPath, LoginError> {
    let id = spiffe_id_of_jwt(jwt.expose_secret()).map_err(|error| not_an_svid(name, error))?;
    mount_of_domain(domains, &id)
}

/// `name` is that of the file.
pub(super) fn mount_of_certificate(
    domains: &TrustDomains,
    pem: &[u8],
    name: &str,
) -> Result<MountPath, LoginError> {
    // A certificate in PEM format is ASCII. What surrounds it, such as a comment, need not be.
    let id =
        spiffe_id_of_certificate(&String::from_utf8_lossy(pem)).map_err(|error| not_an_svid(name, error))?;
    mount_of_domain(domains, &id)
}

fn mount_of(auth: &AuthSettings, id: &SpiffeId) -> Result<AuthMount, LoginError> {
    match &auth.mount {
        LoginMount::Fixed(_) => fixed(auth),
        LoginMount::ByTrustDomain(domains) => Ok(at(auth, mount_of_domain(domains, id)?)),
    }
}

fn mount_of_domain(domains: &TrustDomains, id: &SpiffeId) -> Result<MountPath, LoginError> {
    let foreign = |error| blocked(config_error(&error).with_source(error));
    check_trust_domain(id, domains.names().map(TrustDomainName::as_str)).map_err(foreign)?;
    let mount = domains.mount_of(id.trust_domain_name()).cloned();
    mount.ok_or_else(|| blocked(config_error("the trust domain of the SVID has no mount")))
}

/// The SPIFFE ID of the settings.
fn wanted(api: &WorkloadApiSettings) -> Result<Option<SpiffeId>, LoginError> {
    let id = api.spiffe_id.as_ref().map(|id| SpiffeId::new(id.as_str())).transpose();
    id.map_err(|error| blocked(config_error(format!("workload_api.spiffe_id: {error}"))))
}

fn not_an_svid(name: &str, error: SvidFileError) -> LoginError {
    blocked(
        config_error(format!("{name} has no SPIFFE ID, which trust_domains needs: {error}"))
            .with_source(error),
    )
}

fn not_fetched(error: FetchError) -> LoginError {
    let (failure, kind) = match &error {
        FetchError::Failed { .. } | FetchError::TimedOut { .. } | FetchError::Unreachable { .. } => {
            (LoginFailure::Away, ErrorKind::Unreachable)
        }
        FetchError::NotIssued { .. } | FetchError::Refused { .. } | FetchError::Unusable { .. } => {
            (LoginFailure::Blocked, ErrorKind::Config)
        }
    };
    LoginError::new(failure, TransitError::new(kind, error.to_string()).with_source(error))
}

fn config_error(message: impl ToString) -> TransitError {
    TransitError::new(ErrorKind::Config, message.to_string())
}
