//! TLS to a node: the client's certificates, and a remedy for each way in which a connection fails.

use std::{
    error::Error,
    io,
    time::{Duration, SystemTime},
};

use error_text::{chain, root_cause};
use humantime::format_rfc3339_seconds;
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::{
    AlertDescription, CertificateError, RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
};
use zeroize::Zeroizing;

use crate::{
    ErrorKind, TransitError,
    endpoint::{Address, TlsMaterial},
};

/// What the address and the TLS settings of a node say about why a connection fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transport {
    /// Whether the config names a client certificate.
    client_certificate: bool,
    /// Whether the address is https.
    tls: bool,
    /// Whether the address is a unix socket.
    unix: bool,
}

impl Transport {
    pub(super) fn new(address: &Address, material: &TlsMaterial) -> Self {
        Self {
            client_certificate: material.client_cert.is_some(),
            tls: address.url().scheme() == "https",
            unix: address.socket().is_some(),
        }
    }

    /// Configures an HTTP client with the contents of the TLS files.
    ///
    /// # Errors
    /// If a certificate or key cannot be used. The message says what to do.
    pub(super) fn configure(
        self,
        builder: ClientBuilder,
        material: &TlsMaterial,
    ) -> Result<ClientBuilder, TransitError> {
        let mut builder = builder.https_only(self.tls);
        if !self.tls {
            // Otherwise the client loads the certificates of the system, which a minimal image does not have.
            builder = builder.tls_certs_only([]);
        } else if let Some(pem) = &material.ca {
            builder = builder.tls_certs_only(authorities(pem)?);
        }
        if let (Some(certificate), Some(key)) = (&material.client_cert, &material.client_key) {
            builder = builder.identity(identity(certificate, key)?);
        }
        Ok(builder)
    }

    /// The error for a client that cannot be built.
    pub(super) fn client_error(self, error: reqwest::Error) -> TransitError {
        use rustls::Error::{General, InconsistentKeys, InvalidCertificate};

        // `authorities` has checked the CA certificates, so rustls refuses those of the client.
        let message = match find::<rustls::Error>(&error) {
            Some(InconsistentKeys(_)) if self.client_certificate => {
                "vault.tls.client_key_file is not the key of the first certificate in \
                 vault.tls.client_cert_file: render both from the same issuance, the client's own \
                 certificate first"
                    .into()
            }
            Some(InvalidCertificate(_)) if self.client_certificate => {
                "a certificate in vault.tls.client_cert_file is damaged: issue and render it again".into()
            }
            Some(General(_)) if self.client_certificate => {
                "the key in vault.tls.client_key_file is damaged or of a type that cannot be used: use RSA, \
                 ECDSA (P-256, P-384, P-521) or Ed25519"
                    .into()
            }
            _ => format!("no TLS client can be made: {}; is vault.tls.ca_file set?", root_cause(&error)),
        };
        config_error(message).with_source(error)
    }

    /// The cause of an error, and its remedy.
    pub(super) fn explain(self, error: &reqwest::Error) -> String {
        let cause = root_cause(error);
        format!("{cause}; {}", self.remedy(error))
    }

    fn remedy(self, error: &reqwest::Error) -> String {
        if let Some(error) = find::<rustls::Error>(error) {
            return self.tls_remedy(error);
        }
        // The innermost I/O error is that of the operating system. Those around it have the kind `Other`.
        let kind = chain(error).filter_map(|error| error.downcast_ref::<io::Error>()).last();
        if let Some(remedy) = kind.and_then(|error| self.io_remedy(error.kind())) {
            return remedy.into();
        }
        if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
            return match self.tls {
                false => "the server there does not speak HTTP: if it is a TLS port, write https:// in the address",
                true => "the server there does not speak HTTP: is this the port of Vault's API, and not its cluster port?",
            }
            .into();
        }
        if find::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message) {
            return self.closed().into();
        }
        if error.is_timeout() {
            return "nothing answers: does a firewall drop the packets, is the server frozen, or is the address wrong?".into();
        }
        CURL.into()
    }

    fn io_remedy(self, kind: io::ErrorKind) -> Option<&'static str> {
        Some(match kind {
            io::ErrorKind::ConnectionRefused if self.unix => {
                "no process listens on the socket: does the agent run, and does it have this listener?"
            }
            io::ErrorKind::NotFound if self.unix => {
                "the socket does not exist: does the agent run, does it have this listener, and is its directory \
                 mounted here?"
            }
            io::ErrorKind::PermissionDenied if self.unix => {
                "give the user of transit-kms write access to the socket: socket_mode, socket_user and \
                 socket_group of the agent's listener"
            }
            io::ErrorKind::ConnectionRefused => "does Vault run there, and is the port right?",
            io::ErrorKind::TimedOut => {
                "nothing answers: does a firewall drop the packets, is the server frozen, or is the address wrong?"
            }
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => {
                "does this node have a route to that address, and does a firewall refuse it?"
            }
            io::ErrorKind::PermissionDenied => "does a firewall or a security module of this node forbid it?",
            io::ErrorKind::AddrNotAvailable => {
                "does this node have an address of that kind (IPv4, IPv6), and free ports?"
            }
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => self.closed(),
            _ => return None,
        })
    }

    /// The remedy for a closed connection. A server that refuses a client certificate sometimes closes the
    /// connection before the client reads the reason.
    fn closed(self) -> &'static str {
        match (self.tls, self.client_certificate) {
            (false, _) => {
                "the other side closed the connection: if it is a TLS port, write https:// in the address"
            }
            (true, false) => {
                "the other side closed the connection: is a proxy in between, or does Vault ask for \
                 vault.tls.client_cert_file and client_key_file?"
            }
            (true, true) => {
                "the other side closed the connection: is a proxy in between, or does Vault refuse the \
                 certificate in vault.tls.client_cert_file? Vault's log says which"
            }
        }
    }

    fn tls_remedy(self, error: &rustls::Error) -> String {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(error) => certificate_remedy(error),
            Tls::AlertReceived(alert) => self.alert_remedy(*alert),
            // The answer of a plain HTTP server to a handshake.
            Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => {
                "the server there does not speak TLS: is it a plain listener, or another port? Give Vault a \
                 listener with TLS; for a test only, write http:// in the address and start with --allow-http"
                    .into()
            }
            Tls::PeerIncompatible(_) => {
                "the server must speak TLS 1.2 or 1.3 with a current cipher suite: look at tls_min_version \
                 and tls_cipher_suites of Vault's listener"
                    .into()
            }
            Tls::NoCertificatesPresented => "is it Vault's port?".into(),
            Tls::FailedToGetCurrentTime => "set this node's clock".into(),
            _ => CURL.into(),
        }
    }

    /// The remedy for an alert, which is what the server says about the client.
    fn alert_remedy(self, alert: AlertDescription) -> String {
        use AlertDescription as Alert;
        let ask = "Vault asks for vault.tls.client_cert_file and client_key_file";
        match alert {
            Alert::CertificateRequired | Alert::NoCertificate => ask.into(),
            // TLS 1.2 has no alert for a missing certificate.
            Alert::BadCertificate | Alert::HandshakeFailure if !self.client_certificate => ask.into(),
            Alert::CertificateExpired => {
                "Vault says that the certificate in vault.tls.client_cert_file has expired: issue a new one, \
                 or set the clocks"
                    .into()
            }
            Alert::CertificateRevoked => {
                "Vault says that the certificate in vault.tls.client_cert_file is revoked: issue a new one"
                    .into()
            }
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied
            | Alert::DecryptError => {
                "Vault refuses the certificate in vault.tls.client_cert_file: it must be made for clients \
                 (clientAuth), by an authority in tls_client_ca_file of Vault's listener, with its \
                 intermediate certificates behind it"
                    .into()
            }
            Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => {
                "the server must speak TLS 1.2 or 1.3 with a current cipher suite: look at tls_min_version \
                 and tls_cipher_suites of Vault's listener"
                    .into()
            }
            Alert::UnrecognisedName => {
                "the server does not know that name: correct the address, or set vault.tls.server_name".into()
            }
            Alert::NoApplicationProtocol => {
                "the server does not speak HTTP/1.1 there: is this the port of Vault's API, and not its \
                 cluster port?"
                    .into()
            }
            _ => CURL.into(),
        }
    }
}

/// The remedy if nothing better is known.
const CURL: &str = "`curl -v` of its /v1/sys/health, from this node, shows more";

fn certificate_remedy(error: &CertificateError) -> String {
    use CertificateError as Wrong;
    match error {
        Wrong::UnknownIssuer => "vault.tls.ca_file must hold the authority of Vault's certificate, and Vault \
                                 must send the intermediate certificates"
            .into(),
        Wrong::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "Vault's certificate names no host: issue it with the address or name as subjectAltName; its \
             common name (CN) does not count"
                .into()
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "set vault.tls.server_name to a name in Vault's certificate".into()
        }
        Wrong::ExpiredContext { not_after, .. } => format!(
            "Vault's certificate, or one of its authorities, ended at {}: renew it, or set this node's clock",
            date(*not_after)
        ),
        Wrong::NotValidYetContext { not_before, .. } => format!(
            "Vault's certificate, or one of its authorities, begins at {}: set this node's clock, or wait",
            date(*not_before)
        ),
        Wrong::Expired | Wrong::NotValidYet => {
            "renew Vault's certificate, or set this node's clock".into()
        }
        Wrong::Revoked => "Vault's certificate is revoked: issue a new one".into(),
        Wrong::BadSignature => "the signature is not valid: vault.tls.ca_file holds an authority of the same \
                                name with another key; use the one that issued Vault's certificate"
            .into(),
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => {
            "issue Vault's certificate for servers (extended key usage serverAuth)".into()
        }
        #[allow(deprecated, reason = "older verifiers return it")]
        Wrong::UnsupportedSignatureAlgorithm
        | Wrong::UnsupportedSignatureAlgorithmContext { .. }
        | Wrong::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the signature algorithm of Vault's certificate is not supported: issue it with SHA-256 and RSA (2048 bits or \
             more), ECDSA or Ed25519"
                .into()
        }
        // The type of this error is in a crate that rustls does not re-export. `tests/it/remedies.rs` checks
        // its words against a real listener.
        Wrong::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "Vault's certificate is an authority's (CA:TRUE), as `openssl req -x509` makes it: issue one for \
             the server (CA:FALSE), and put the authority that signs it into vault.tls.ca_file"
                .into()
        }
        _ => "Vault's certificate cannot be used: issue another one (X.509 v3, subjectAltName, serverAuth)"
            .into(),
    }
}

fn date(time: UnixTime) -> String {
    // The last second of the year 9999, in Unix time: later dates cannot be formatted.
    const LAST: u64 = 253_402_300_799;
    format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs().min(LAST))).to_string()
}

/// The certificates of `vault.tls.ca_file`. Each is checked alone, so that the message can name the damaged one.
fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, TransitError> {
    let mut good = Vec::new();
    for (number, found) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
        let certificate = found.ok().and_then(|der| {
            RootCertStore::empty().add(der.clone()).ok()?;
            Certificate::from_der(&der).ok()
        });
        good.push(certificate.ok_or_else(|| {
            config_error(format!(
                "certificate {number} in vault.tls.ca_file is damaged: replace it, or remove it"
            ))
        })?);
    }
    if good.is_empty() {
        let hint = if contains(pem, b"PRIVATE KEY") { "; it holds a private key" } else { "" };
        return Err(config_error(format!(
            "vault.tls.ca_file holds no certificate in PEM form (-----BEGIN CERTIFICATE-----){hint}"
        )));
    }
    Ok(good)
}

/// The client certificate and its key.
fn identity(certificate: &[u8], key: &[u8]) -> Result<Identity, TransitError> {
    for (number, found) in (1..).zip(CertificateDer::pem_slice_iter(certificate)) {
        if found.is_err() {
            return Err(config_error(format!(
                "certificate {number} in vault.tls.client_cert_file is damaged: issue and render it again"
            )));
        }
    }
    if !contains(certificate, b"-----BEGIN CERTIFICATE-----") {
        return Err(config_error(
            "vault.tls.client_cert_file holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
        ));
    }
    if contains(key, b"ENCRYPTED") {
        return Err(config_error(
            "the key in vault.tls.client_key_file is encrypted with a password: render it without one, \
             readable by transit-kms only",
        ));
    }
    let mut pem = Zeroizing::new(Vec::with_capacity(certificate.len() + key.len() + 1));
    pem.extend_from_slice(certificate);
    pem.push(b'\n');
    pem.extend_from_slice(key);
    Identity::from_pem(&pem).map_err(|_| {
        config_error(
            "vault.tls.client_key_file holds no private key in PEM form (-----BEGIN PRIVATE KEY-----, or \
             RSA or EC)",
        )
    })
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn config_error(message: impl Into<String>) -> TransitError {
    TransitError::new(ErrorKind::Config, message)
}
