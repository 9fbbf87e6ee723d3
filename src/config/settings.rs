//! The settings. A value of these types has passed its rules; the constructors
//! say which rule was broken, never by what.

use std::{path::PathBuf, time::Duration};

use rustls::pki_types::ServerName;
use transit_client::{
    endpoint::Address,
    key::{KeyNames, Namespace},
    rule::BrokenRule,
    token::Token,
};
use url::Host;

/// The login methods that are known by name; none is served yet.
pub const LOGIN_METHODS: [&str; 18] = [
    "alicloud",
    "approle",
    "aws",
    "azure",
    "cert",
    "gcp",
    "github",
    "jwt",
    "kerberos",
    "kubernetes",
    "ldap",
    "oci",
    "oidc",
    "okta",
    "radius",
    "spiffe",
    "token",
    "userpass",
];

/// Everything that the file says. `Debug` is safe to print.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where Vault is, in the order in which to try; never empty, none twice.
    pub addresses: Vec<Address>,
    /// How long making a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// The Vault namespace of the token; the root namespace if none is given.
    pub namespace: Namespace,
    /// The first encrypts, all decrypt.
    pub keys: KeyNames,
    /// What concerns TLS.
    pub tls: TlsFiles,
    /// How to be let in.
    pub credentials: Credentials,
    /// What wraps seeds.
    pub encryption: Encryption,
    /// What the operator should know though it is no error, each a sentence.
    /// The watch logs them, and `/readyz` shows them.
    pub warnings: Vec<String>,
}

/// The files and names of TLS. Paths are absolute; certificate and key are both there or both not.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct TlsFiles {
    /// PEM bundle of the authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name that the server's certificate must hold, if it is not the address's host.
    pub server_name: Option<String>,
    /// PEM chain of our certificate.
    pub client_cert_file: Option<PathBuf>,
    /// PEM key of our certificate.
    pub client_key_file: Option<PathBuf>,
}

/// An absolute path.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, BrokenRule> {
    if text.is_empty() {
        return Err(BrokenRule("must not be empty"));
    }
    // Paths are shown in errors, so they must not be able to forge a line of the log.
    if text.chars().any(char::is_control) {
        return Err(BrokenRule("must be a path without control characters"));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(BrokenRule("must be an absolute path")) }
}

/// A name that a certificate can hold. It stands in URLs as their host, so it must not be one of the
/// many texts that URLs take for an IP address, such as `127.1`.
pub(super) fn server_name(text: &str) -> Result<String, BrokenRule> {
    match (ServerName::try_from(text), Host::parse(text)) {
        (Ok(ServerName::DnsName(_)), Ok(Host::Domain(_))) => Ok(text.to_owned()),
        _ => Err(BrokenRule(
            "must be a DNS name, not an IP address: for an address whose certificate names its IP, leave it out",
        )),
    }
}

/// How we are let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// A token that somebody renders.
    Token(Token),
    /// A login that is recognised but not served yet.
    Unsupported {
        /// One of [`LOGIN_METHODS`].
        method: &'static str,
    },
}

/// What wraps seeds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Encryption {
    /// A local KEK, which Transit wraps.
    LocalKek(LocalKekLimits),
    /// Transit, each.
    #[default]
    Transit,
}

/// How long and how often local KEKs are used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LocalKekLimits {
    /// Transit must have unwrapped a KEK within this time.
    pub max_age: Duration,
    /// The same while Vault is unreachable.
    pub max_age_in_outage: Duration,
    /// A KEK encrypts for so long.
    pub renew_after: Duration,
    /// And so many seeds.
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

/// The shortest time in which KEKs can be looked after.
const SHORTEST_AGE: Duration = Duration::from_secs(60);
/// Longer than this nothing that Vault has not confirmed is used.
const LONGEST_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long making a connection may take unless the file says it. A handshake costs two or three round trips, and
/// a lost packet another second.
pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const SHORTEST_CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A time such as `500ms`.
pub(super) fn connect_timeout(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(time) if (SHORTEST_CONNECT_TIMEOUT..=LONGEST_CONNECT_TIMEOUT).contains(&time) => Ok(time),
        Ok(_) => Err(BrokenRule("must be between 100ms and 30s")),
        Err(_) => Err(BrokenRule("must be a time such as 500ms or 3s")),
    }
}

/// A time such as `90m`.
pub(super) fn age(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(age) if (SHORTEST_AGE..=LONGEST_AGE).contains(&age) => Ok(age),
        Ok(_) => Err(BrokenRule("must be between 1m and 30d")),
        Err(_) => Err(BrokenRule("must be a time such as 90m or 12h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_names_are_names() {
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
