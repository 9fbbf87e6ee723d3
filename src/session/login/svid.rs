//! JWTs and certificates, above all SVIDs: where they come from, and which mount may see them.
//!
//! With `trust_domains`, the trust domain of an SVID chooses the mount. An SVID of another domain is refused here,
//! before a request or a TLS connection presents it: a server that receives a JWT-SVID could use it.

#[cfg(feature = "spiffe")]
mod spiffe;
#[cfg(not(feature = "spiffe"))]
#[path = "svid/without_spiffe.rs"]
mod spiffe;

use secrecy::SecretString;
use transit_client::{
    key::MountPath,
    vault::auth::{AuthMount, LoginError, jwt},
};
use zeroize::Zeroizing;

use super::credential_source::{blocked, contents, fixed};
use crate::config::{
    LoginMaterial,
    settings::auth::{AuthSettings, JwtSource, LoginMount, MaterialFile, X509Source},
};

/// A JWT for one mount.
pub(super) struct JwtForMount {
    pub(super) at: AuthMount,
    pub(super) jwt: SecretString,
    pub(super) origin: Origin,
}

/// A certificate for one mount. Chain and key are in PEM format.
pub(super) struct CertificateForMount {
    pub(super) at: AuthMount,
    pub(super) chain: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) origin: Origin,
}

/// Where a JWT or certificate comes from.
pub(super) enum Origin {
    /// The setting and the path of a file.
    File(String),
    #[cfg_attr(not(feature = "spiffe"), expect(dead_code, reason = "only the feature spiffe fetches SVIDs"))]
    WorkloadApi,
}

impl Origin {
    pub(super) fn is_fetched(&self) -> bool {
        matches!(self, Self::WorkloadApi)
    }

    /// The name for messages.
    pub(super) fn into_name(self) -> String {
        match self {
            Self::File(name) => name,
            Self::WorkloadApi => "the SVID of the Workload API".to_owned(),
        }
    }
}

/// Reads the JWT from its file, or fetches one.
pub(super) async fn jwt(
    auth: &AuthSettings,
    material: &LoginMaterial,
    source: &JwtSource,
) -> Result<JwtForMount, LoginError> {
    match source {
        JwtSource::File(jwt_file) => jwt_of_file(auth, material, jwt_file),
        JwtSource::WorkloadApi { api, audience } => spiffe::fetch_jwt(auth, api, audience).await,
    }
}

/// Reads the JWT from its file.
pub(super) fn jwt_of_file(
    auth: &AuthSettings,
    material: &LoginMaterial,
    jwt_file: &MaterialFile,
) -> Result<JwtForMount, LoginError> {
    let (bytes, name) = contents(material, jwt_file)?;
    let jwt = jwt::parse(bytes, &name).map_err(blocked)?;
    let at = match &auth.mount {
        LoginMount::Fixed(_) => fixed(auth)?,
        LoginMount::ByTrustDomain(domains) => at(auth, spiffe::mount_of_jwt(domains, &jwt, &name)?),
    };
    Ok(JwtForMount { at, jwt, origin: Origin::File(name) })
}

/// Reads the certificate from its files, or fetches one.
pub(super) async fn certificate(
    auth: &AuthSettings,
    material: &LoginMaterial,
    source: &X509Source,
) -> Result<CertificateForMount, LoginError> {
    let (cert_file, key_file) = match source {
        X509Source::Files { cert_file, key_file } => (cert_file, key_file),
        X509Source::WorkloadApi(api) => return spiffe::fetch_certificate(auth, api).await,
    };
    let (chain, name) = contents(material, cert_file)?;
    let (key, _) = contents(material, key_file)?;
    let at = match &auth.mount {
        LoginMount::Fixed(_) => fixed(auth)?,
        LoginMount::ByTrustDomain(domains) => at(auth, spiffe::mount_of_certificate(domains, chain, &name)?),
    };
    Ok(CertificateForMount {
        at,
        chain: chain.to_vec(),
        key: Zeroizing::new(key.to_vec()),
        origin: Origin::File(name),
    })
}

fn at(auth: &AuthSettings, mount: MountPath) -> AuthMount {
    AuthMount { mount, namespace: auth.namespace.clone() }
}
