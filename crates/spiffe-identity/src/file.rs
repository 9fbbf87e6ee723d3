//! SPIFFE IDs in a JWT or certificate that comes from a file.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::Deserialize;
use spiffe::{
    SpiffeId, SpiffeIdError,
    cert::{error::CertificateError, spiffe_id_from_der},
};
use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::FromDer};

/// The longest JWT that is read.
const MAX_JWT_BYTES: usize = 64 * 1024;
/// The longest PEM file that is read.
const MAX_PEM_BYTES: usize = 256 * 1024;

/// Why a JWT or certificate has no SPIFFE ID. The messages contain nothing of a JWT.
#[derive(Debug, thiserror::Error)]
pub enum SvidFileError {
    /// The certificate cannot be read, or does not have exactly one URI with a SPIFFE ID.
    #[error(
        "the first certificate is no X.509-SVID: {0}; it needs exactly one URI in its subject alternative names: its \
         SPIFFE ID"
    )]
    Certificate(#[source] CertificateError),
    /// The text is not a JWT.
    #[error("this is not a JWT: it {0}")]
    NotJwt(&'static str),
    /// The text has no certificate.
    #[error("this is not a certificate in PEM format: it {0}")]
    NotPem(&'static str),
    /// The claim `sub` is not a SPIFFE ID.
    #[error(
        "the claim `sub` of the JWT is not a SPIFFE ID: {0}; in a JWT-SVID, it is \
         spiffe://<trust domain>/<path>"
    )]
    Subject(#[source] SpiffeIdError),
}

/// Returns the SPIFFE ID of a JWT-SVID: its claim `sub`. Verifies neither the signature nor the lifetime.
///
/// # Errors
/// If the text is not a JWT, or its subject is not a SPIFFE ID.
pub fn spiffe_id_of_jwt(jwt: &str) -> Result<SpiffeId, SvidFileError> {
    #[derive(Deserialize)]
    struct Subject {
        sub: String,
    }

    let jwt = jwt.trim();
    if jwt.len() > MAX_JWT_BYTES {
        return Err(SvidFileError::NotJwt("is longer than 64 KiB"));
    }
    let parts: Vec<&str> = jwt.split('.').collect();
    let [_, claims, _] = parts.as_slice() else {
        return Err(SvidFileError::NotJwt("does not have three parts with a dot between them"));
    };
    // The errors of base64 and JSON quote what they read.
    let Ok(claims) = BASE64URL.decode(claims) else {
        return Err(SvidFileError::NotJwt("has claims that are not base64url without padding"));
    };
    let Ok(Subject { sub }) = serde_json::from_slice(&claims) else {
        return Err(SvidFileError::NotJwt("has claims that are not JSON with a text as `sub`"));
    };
    SpiffeId::new(sub).map_err(SvidFileError::Subject)
}

/// Returns the SPIFFE ID of the first certificate, in PEM format. Verifies neither the signature nor the lifetime.
///
/// # Errors
/// If there is no certificate, or it does not have exactly one URI with a SPIFFE ID.
pub fn spiffe_id_of_certificate(pem: &str) -> Result<SpiffeId, SvidFileError> {
    spiffe_id_from_der(&first_certificate(pem)?).map_err(SvidFileError::Certificate)
}

/// Returns the common name of the first certificate, in PEM format. `None` if the certificate has no common name, or
/// cannot be read.
///
/// Vault's auth method `cert` takes the common name as name of the entity's alias.
#[must_use]
pub fn common_name(pem: &str) -> Option<String> {
    let der = first_certificate(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The first certificate in DER format. Other PEM blocks, such as a private key, are skipped.
fn first_certificate(pem: &str) -> Result<Vec<u8>, SvidFileError> {
    if pem.len() > MAX_PEM_BYTES {
        return Err(SvidFileError::NotPem("is longer than 256 KiB"));
    }
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let Ok(block) = block else { return Err(SvidFileError::NotPem("has a block that is broken")) };
        if block.label == "CERTIFICATE" {
            return Ok(block.contents);
        }
    }
    Err(SvidFileError::NotPem("has no block CERTIFICATE"))
}

#[cfg(test)]
mod tests;
