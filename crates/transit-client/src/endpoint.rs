//! The addresses of a Vault, and how to connect to them.

use std::{fmt, time::Duration};

use url::Url;
use zeroize::Zeroizing;

use crate::rule::BrokenRule;

/// One Vault: the addresses of its nodes, and how to connect to them.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The addresses, in the order in which they are tried. At least one, and none twice.
    pub addresses: Vec<Address>,
    /// How long it may take to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// The name that certificates must carry, if it is not the host of the address.
    pub server_name: Option<String>,
    /// The contents of the TLS files.
    pub tls: TlsMaterial,
}

/// The contents of the TLS files: PEM that is not parsed yet, and not empty.
#[derive(Clone, Default)]
pub struct TlsMaterial {
    /// The certificate authorities to trust; those of the system if `None`.
    pub ca: Option<Vec<u8>>,
    /// The client certificate. It is set if and only if [`Self::client_key`] is.
    pub client_cert: Option<Vec<u8>>,
    /// The key of the client certificate. It is wiped on drop.
    pub client_key: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("ca", &self.ca.as_ref().map(Vec::len))
            .field("client_cert", &self.client_cert.as_ref().map(Vec::len))
            .field("client_key", &self.client_key.as_ref().map(|_| "***"))
            .finish()
    }
}

/// The address of a Vault server: `https://host[:port][/prefix]`. It is displayed without a slash at the end.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address(Url);

impl Address {
    /// Accepts `https://` URLs, and `http://` URLs if `allow_http` is set. The path of the URL is a prefix of
    /// Vault's paths. Slashes at its end are removed.
    ///
    /// # Errors
    /// If it is not a URL, or one with another scheme, user information, a query, a fragment, dot segments,
    /// empty segments or percent signs.
    pub fn new(text: &str, allow_http: bool) -> Result<Self, BrokenRule> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BrokenRule("must not be empty"));
        }
        if text.contains(',') || text.matches("://").count() > 1 {
            return Err(BrokenRule(
                "must be one address: write several as a list, addresses: [https://…, https://…]",
            ));
        }
        // `Url` removes tabs and line breaks and replaces `\` by `/`. The address would be another one than the
        // operator sees.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('\\') {
            return Err(BrokenRule("must be a URL of visible ASCII characters without spaces"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(BrokenRule("must be a URL that begins with https://"));
        };
        if scheme.eq_ignore_ascii_case("http") {
            if !allow_http {
                return Err(BrokenRule(
                    "is http://, which would send the token in clear: use https://, or start with --allow-http",
                ));
            }
        } else if !scheme.eq_ignore_ascii_case("https") {
            return Err(BrokenRule("must be a URL that begins with https://"));
        }
        if rest.contains(['?', '#']) {
            return Err(BrokenRule("must not have a query or a fragment"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(BrokenRule("must not have a user name or password in it"));
        }
        let path = path.trim_end_matches('/');
        if path.contains('%') || path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(BrokenRule("must have a plain path: no %, no dot segments"));
        }
        if !path.is_empty() && path.split('/').any(str::is_empty) {
            return Err(BrokenRule("must not have two slashes in a row in its path"));
        }
        if matches!(path.rsplit('/').next(), Some("v1" | "ui")) {
            return Err(BrokenRule(
                "must end before /v1 and /ui: write the address alone, such as https://vault:8200",
            ));
        }
        let unreadable = BrokenRule("is not a URL: check the host and the port");
        let mut url = Url::parse(text).map_err(|_| unreadable)?;
        if !url.has_host() || authority.is_empty() {
            return Err(unreadable);
        }
        url.set_path(path);
        Ok(Self(url))
    }

    /// The address as a URL. Its path is the prefix, or `/`.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_prefix_without_slashes_at_the_end() {
        for (text, shown) in [
            ("https://vault:8200", "https://vault:8200"),
            ("HTTPS://Vault:8200/", "https://vault:8200"),
            (" https://vault/a/b// ", "https://vault/a/b"),
            ("https://[::1]:8200", "https://[::1]:8200"),
            ("https://10.0.0.1", "https://10.0.0.1"),
            ("https://vault:443", "https://vault"),
        ] {
            assert_eq!(Address::new(text, false).unwrap().to_string(), shown, "{text}");
        }
        assert_eq!(Address::new("http://v:1", true).unwrap().to_string(), "http://v:1");
    }

    #[test]
    fn ambiguous_addresses_are_refused() {
        for text in [
            "",
            "vault:8200",
            "http://vault:8200",
            "unix:///run/agent.sock",
            "https:vault",
            "https://",
            "https:///path",
            "https://user@vault",
            "https://user:pass@vault",
            "https://@vault",
            "https://vault?x=1",
            "https://vault/#x",
            "https://vault/a//b",
            "https://vault//a",
            "https://vault/../a",
            "https://vault/%2e%2e/a",
            "https://vault\\a",
            "https://va ult",
            "https://vault:99999",
            "https://va\nult",
            "https://vault:8200/v1",
            "https://vault/prefix/v1//",
            "https://vault/ui/",
            "https://a,https://b",
            "https://a https://b",
        ] {
            assert!(Address::new(text, false).is_err(), "{text}");
        }
        assert!(Address::new("http://vault", false).unwrap_err().to_string().contains("--allow-http"));
    }
}
