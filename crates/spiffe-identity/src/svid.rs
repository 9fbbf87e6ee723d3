//! SVIDs in the form that a client of Vault needs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use secrecy::SecretString;
use spiffe::SpiffeId;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// A JWT-SVID: a bearer token for one audience.
#[derive(Debug)]
pub struct JwtSvid {
    /// The time when it expires: the claim `exp`.
    pub expiry: SystemTime,
    /// The SPIFFE ID: the claim `sub`.
    pub spiffe_id: SpiffeId,
    /// The JWT itself. Each server that receives it can use it until it expires.
    pub token: SecretString,
}

/// An X.509-SVID: a certificate with its private key.
#[derive(Debug)]
pub struct X509Svid {
    /// The certificate and its intermediates in PEM format. The certificate comes first, and the root is not included.
    pub certificate: String,
    /// The time when the certificate expires.
    pub expiry: SystemTime,
    /// The private key of the certificate: PKCS #8 in PEM format.
    pub private_key: SecretString,
    /// The SPIFFE ID: the only URI in the subject alternative names.
    pub spiffe_id: SpiffeId,
}

impl From<&spiffe::JwtSvid> for JwtSvid {
    fn from(svid: &spiffe::JwtSvid) -> Self {
        Self {
            expiry: at(svid.claims().exp()),
            spiffe_id: svid.spiffe_id().clone(),
            token: SecretString::from(svid.token()),
        }
    }
}

impl From<&spiffe::X509Svid> for X509Svid {
    fn from(svid: &spiffe::X509Svid) -> Self {
        let expiry = match X509Certificate::from_der(svid.leaf().as_bytes()) {
            Ok((_, leaf)) => at(leaf.validity().not_after.timestamp()),
            // The `spiffe` crate has parsed it with the same parser.
            Err(_) => UNIX_EPOCH,
        };
        Self {
            certificate: svid.cert_chain().iter().map(|it| pem("CERTIFICATE", it.as_bytes())).collect(),
            expiry,
            private_key: SecretString::from(pem("PRIVATE KEY", svid.private_key().as_bytes())),
            spiffe_id: svid.spiffe_id().clone(),
        }
    }
}

/// Seconds since 1970 as a time; negative ones count as 1970.
fn at(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// A PEM block. The string never grows, because a growing string leaves copies of a private key in memory.
fn pem(label: &str, der: &[u8]) -> String {
    /// This many bytes are one line of 64 characters.
    const BYTES_PER_LINE: usize = 48;
    let (begin, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    let lines = der.len().div_ceil(BYTES_PER_LINE);
    let length = begin.len() + 4 * der.len().div_ceil(3) + lines + end.len();
    let mut pem = String::with_capacity(length);
    pem.push_str(&begin);
    for line in der.chunks(BYTES_PER_LINE) {
        BASE64.encode_string(line, &mut pem);
        pem.push('\n');
    }
    pem.push_str(&end);
    debug_assert_eq!(pem.len(), length);
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_has_the_length_that_was_allocated() {
        for length in [0, 1, 47, 48, 49, 96, 1000] {
            let pem = pem("PRIVATE KEY", &vec![7; length]);
            assert_eq!(pem.len(), pem.capacity());
            assert!(pem.lines().all(|line| line.len() <= 64));
            let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            assert_eq!(BASE64.decode(base64).unwrap(), vec![7; length]);
        }
    }

    #[test]
    fn times_that_do_not_exist_have_expired() {
        assert_eq!(at(-1), UNIX_EPOCH);
        assert_eq!(at(60), UNIX_EPOCH + Duration::from_secs(60));
    }
}
