//! The settings. Each value of these types obeys its rules. The constructors return the broken rule, never the
//! value.

pub mod auth;

use std::{path::PathBuf, time::Duration};

use rustls::pki_types::ServerName;
use transit_client::{
    endpoint::Address,
    key::{KeyNames, Namespace},
    rule::BrokenRule,
    token::Token,
};
use url::Host;

use self::auth::{AuthSettings, MaterialFile};

/// All settings of the file. `Debug` shows no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config<C = Credentials> {
    /// The addresses of Vault, in the order of preference; at least one, without duplicates.
    pub addresses: Vec<Address>,
    /// The maximum time to establish a connection, TLS handshake included.
    pub connect_timeout: Duration,
    /// The Vault namespace of the token; by default the root namespace.
    pub namespace: Namespace,
    /// The first key encrypts, all keys decrypt.
    pub keys: KeyNames,
    /// The files and the server name for TLS.
    pub tls: TlsFiles,
    /// How to authenticate.
    pub credentials: C,
    /// What wraps DEK seeds.
    pub encryption: Encryption,
    /// Problems that are not errors, one sentence each. They are logged, and `/readyz` shows them.
    pub warnings: Vec<String>,
}

/// The files and the server name for TLS. Paths are absolute. The client certificate and its key are either both
/// set or both `None`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct TlsFiles {
    /// PEM bundle of the trusted authorities, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name that the server's certificate must contain, instead of the host of the address.
    pub server_name: Option<String>,
    /// PEM chain of the client certificate.
    pub client_cert_file: Option<PathBuf>,
    /// PEM key of the client certificate.
    pub client_key_file: Option<PathBuf>,
}

/// Parses an absolute path.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, BrokenRule> {
    if text.is_empty() {
        return Err(BrokenRule("must not be empty"));
    }
    // Errors show paths, so a path must not be able to forge a line of the log.
    if text.chars().any(char::is_control) {
        return Err(BrokenRule("must be a path without control characters"));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(BrokenRule("must be an absolute path")) }
}

/// Parses a name that a certificate can contain. It is used as the host of URLs, so it must not be a text that a
/// URL interprets as an IP address, such as `127.1`.
pub(super) fn server_name(text: &str) -> Result<String, BrokenRule> {
    match (ServerName::try_from(text), Host::parse(text)) {
        (Ok(ServerName::DnsName(_)), Ok(Host::Domain(_))) => Ok(text.to_owned()),
        _ => Err(BrokenRule(
            "must be a DNS name, not an IP address: remove this setting if the certificate contains the IP address",
        )),
    }
}

impl<C> Config<C> {
    /// Returns the same settings with other credentials.
    pub(super) fn with_credentials<D>(self, credentials: D) -> Config<D> {
        let Self { addresses, connect_timeout, namespace, keys, tls, credentials: _, encryption, warnings } =
            self;
        Config { addresses, connect_timeout, namespace, keys, tls, credentials, encryption, warnings }
    }
}

/// How to authenticate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// Not at all: an agent or proxy adds its token to requests.
    Agent,
    /// With a login of transit-kms.
    Login(Box<AuthSettings>),
    /// With a token that another program has put into the config file or into a file that it names.
    Token(Token),
}

/// How to authenticate, as the config file says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialSettings {
    /// See [`Credentials::Agent`].
    Agent,
    /// See [`Credentials::Login`].
    Login(Box<AuthSettings>),
    /// A token in the config file.
    Token(Token),
    /// A token in another file, which becomes [`Credentials::Token`] when that file is read.
    TokenFile(MaterialFile),
}

/// What wraps DEK seeds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Encryption {
    /// Local KEKs wrap the seeds, and Transit wraps the local KEKs.
    LocalKek(LocalKekLimits),
    /// Transit wraps each seed.
    #[default]
    Transit,
}

/// The limits of the use of local KEKs.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LocalKekLimits {
    /// The maximum time since Transit last wrapped or unwrapped a KEK.
    pub max_age: Duration,
    /// The same maximum while Vault is unreachable.
    pub max_age_in_outage: Duration,
    /// The time after which a new KEK is used to encrypt.
    pub renew_after: Duration,
    /// The number of encrypted seeds after which a new KEK is used to encrypt.
    pub renew_after_uses: u64,
}

impl Default for LocalKekLimits {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(60 * 60),
            max_age_in_outage: Duration::from_secs(24 * 60 * 60),
            renew_after: Duration::from_secs(24 * 60 * 60),
            renew_after_uses: 100_000,
        }
    }
}

/// KEKs cannot be refreshed more often than health checks run.
const MIN_AGE: Duration = Duration::from_secs(60);
/// The maximum time for which a KEK may be used without a confirmation by Vault.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A handshake needs two or three round trips, and each lost packet costs another second.
pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Parses a duration such as `500ms`.
pub(super) fn connect_timeout(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(time) if (MIN_CONNECT_TIMEOUT..=MAX_CONNECT_TIMEOUT).contains(&time) => Ok(time),
        Ok(_) => Err(BrokenRule("must be between 100ms and 30s")),
        Err(_) => Err(BrokenRule("must be a duration such as 500ms or 3s")),
    }
}

/// Parses a duration such as `90m`.
pub(super) fn age(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(age) if (MIN_AGE..=MAX_AGE).contains(&age) => Ok(age),
        Ok(_) => Err(BrokenRule("must be between 1m and 30d")),
        Err(_) => Err(BrokenRule("must be a duration such as 90m or 12h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_server_names_are_dns_names() {
        assert!(absolute_path("/etc/ca.pem").is_ok());
        for text in ["", "ca.pem", "./ca.pem", "~/ca.pem", "/a\nb", "/a\0b"] {
            assert!(absolute_path(text).is_err(), "{text}");
        }
        assert!(server_name("vault.example").is_ok());
        for text in ["", "https://vault", "10.0.0.1", "127.1", "0x7f.1", "::1", "[::1]", "a b", "vault:8200"]
        {
            assert!(server_name(text).is_err(), "{text}");
        }
    }
}
