//! The addresses of a Vault, and how to connect to them.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use url::{Host, Url};
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

/// The longest path of a unix socket on Linux, in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The address of a Vault server, or of an agent or proxy in front of it. It is displayed without a slash at the end:
/// `https://host[:port][/prefix]` or `unix:///path`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    socket: Option<PathBuf>,
    url: Url,
}

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
        if is_unix(text) {
            return Err(BrokenRule("is a unix socket, which only auth.method: agent can use"));
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
        Ok(Self { socket: None, url })
    }

    /// Accepts the address of an agent or proxy that adds its token to requests. Besides the URLs of [`Self::new`],
    /// these are `unix:///path` and `http://` URLs of the loopback interface, because no secret leaves the machine
    /// there.
    ///
    /// # Errors
    /// As [`Self::new`], and if the path of the socket is not absolute or too long.
    pub fn of_agent(text: &str, allow_http: bool) -> Result<Self, BrokenRule> {
        if is_unix(text) {
            return Self::unix(text);
        }
        match Self::new(text, true) {
            Ok(address) if address.url.scheme() == "http" && !address.is_loopback() => {
                Self::new(text, allow_http)
            }
            result => result,
        }
    }

    /// Accepts `unix:///path`.
    ///
    /// # Errors
    /// If it is not the address of a unix socket, or if its path is not absolute or too long.
    pub fn unix(text: &str) -> Result<Self, BrokenRule> {
        let path = text.trim().strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or(BrokenRule("must be a unix socket such as unix:///run/agent.sock"))?;
        if path.chars().any(char::is_control) || path.ends_with('/') {
            return Err(BrokenRule("must be the path of a socket, without control characters"));
        }
        if path.len() > MAX_SOCKET_PATH_BYTES {
            return Err(BrokenRule("must have a path of at most 107 bytes"));
        }
        let url = Url::parse("http://localhost").map_err(|_| BrokenRule("is not a URL"))?;
        Ok(Self { socket: Some(path.into()), url })
    }

    /// The address as a URL. Its path is the prefix, or `/`. For a unix socket, it is the URL of requests over the
    /// socket, and its host means nothing.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The path of the unix socket; `None` if the address is a URL.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The host of the URL; `None` for a unix socket.
    #[must_use]
    pub fn host(&self) -> Option<Host<&str>> {
        self.url.host().filter(|_| self.socket.is_none())
    }

    fn is_loopback(&self) -> bool {
        match self.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
    }
}

fn is_unix(text: &str) -> bool {
    text.trim().split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("unix"))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Some(path) => write!(f, "unix://{}", path.display()),
            None => f.write_str(self.url.as_str().trim_end_matches('/')),
        }
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

    #[test]
    fn an_agent_may_be_on_this_machine_without_tls() {
        for (text, shown) in [
            ("unix:///run/agent.sock", "unix:///run/agent.sock"),
            (" unix:///run/a b.sock ", "unix:///run/a b.sock"),
            ("http://127.0.0.1:8100/", "http://127.0.0.1:8100"),
            ("http://[::1]:8100", "http://[::1]:8100"),
            ("http://localhost:8100", "http://localhost:8100"),
            ("https://vault:8200", "https://vault:8200"),
        ] {
            assert_eq!(Address::of_agent(text, false).unwrap().to_string(), shown, "{text}");
        }
        let socket = Address::unix("unix:///run/agent.sock").unwrap();
        assert_eq!((socket.socket(), socket.host()), (Some(Path::new("/run/agent.sock")), None));
        let long = format!("unix:///{}", "x".repeat(MAX_SOCKET_PATH_BYTES));
        for text in ["unix:/run/agent.sock", "unix://run/agent.sock", "unix:///", "unix:///a\nb", &long, ""] {
            assert!(Address::of_agent(text, true).is_err(), "{text}");
        }
        assert!(
            Address::of_agent("http://vault:8200", false).unwrap_err().to_string().contains("--allow-http")
        );
        assert!(Address::of_agent("http://127.0.0.1.example", false).is_err());
        assert!(Address::of_agent("http://vault:8200", true).is_ok());
        let refused = Address::new("unix:///run/agent.sock", true).unwrap_err().to_string();
        assert_eq!(refused, "is a unix socket, which only auth.method: agent can use");
    }
}
