//! The addresses of sockets: unix sockets as kube-apiserver writes them, and TCP addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The size of `sun_path` in `sockaddr_un`, less the NUL byte that ends a path or starts an abstract name.
///
/// Source: unix(7).
const MAX_BYTES: usize = 107;

/// The address of a unix socket: `unix:///absolute/path`, or `unix:///@name` (also `unix://@name`) for a name
/// in the abstract namespace.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum UnixAddress {
    /// A name without the `@`. It belongs to a network namespace and has no file, so no file mode protects it:
    /// only the check of the peer's uid does.
    Abstract(String),
    /// An absolute path.
    Path(PathBuf),
}

/// A [`UnixAddress`], or a TCP address such as `127.0.0.1:9797`, `[::1]:9797` or `localhost:9797`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(UnixAddress),
}

/// Why a text is not an address. The message says what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AddressError {
    /// There is no path or name after `unix://`.
    #[error("\"{0}\" names no socket: write unix:///path/to/kms.sock, or unix:///@name")]
    Empty(String),
    /// The address contains a NUL byte.
    #[error("the address contains a NUL byte")]
    Nul,
    /// The scheme is not `unix`, or there is none.
    #[error("\"{0}\" is not a unix socket: write unix:///path/to/kms.sock, or unix:///@name")]
    NotUnix(String),
    /// The text is neither an IP address with a port nor a unix socket.
    #[error(
        "\"{0}\" is neither an IP address with a port (127.0.0.1:9797, 0.0.0.0:9797, [::1]:9797) \
         nor a unix socket (unix:///path)"
    )]
    NotTcp(String),
    /// The path does not start with `/`.
    #[error("\"{given}\" is a relative path: write unix:///{path} with three slashes and the absolute path")]
    Relative {
        /// The whole address.
        given: String,
        /// The part after `unix://`.
        path: String,
    },
    /// The name is longer than the kernel accepts.
    #[error(
        "\"{given}\" is {bytes} bytes long, but the name of a unix socket has at most {MAX_BYTES} bytes: shorten it"
    )]
    TooLong {
        /// The whole address.
        given: String,
        /// The length of the name, without the scheme.
        bytes: usize,
    },
}

impl UnixAddress {
    /// Returns the path. An abstract socket has none.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Abstract(_) => None,
            Self::Path(path) => Some(path),
        }
    }

    /// Returns the `:authority` that grpc-go sends by default to this address: the path, percent-encoded.
    ///
    /// Source: `encodeAuthority` in google.golang.org/grpc `clientconn.go`.
    #[must_use]
    pub fn grpc_authority(&self) -> String {
        let target = match self {
            Self::Abstract(name) => format!("@{name}").into_bytes(),
            Self::Path(path) => path.as_os_str().as_encoded_bytes().to_owned(),
        };
        target.into_iter().fold(String::new(), |mut encoded, byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            encoded
        })
    }
}

impl FromStr for UnixAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = text.strip_prefix("unix://").ok_or_else(|| AddressError::NotUnix(text.into()))?;
        if rest.contains('\0') {
            return Err(AddressError::Nul);
        }
        let fits = |name: &str| {
            if name.len() > MAX_BYTES {
                Err(AddressError::TooLong { given: text.into(), bytes: name.len() })
            } else {
                Ok(())
            }
        };
        // kube-apiserver reads `unix:///@name` as an abstract name. `unix://@name` is a common mistake.
        if let Some(name) = rest.strip_prefix("/@").or_else(|| rest.strip_prefix('@')) {
            if name.is_empty() {
                return Err(AddressError::Empty(text.into()));
            }
            fits(name)?;
            return Ok(Self::Abstract(name.into()));
        }
        if rest.is_empty() || rest.ends_with('/') {
            return Err(AddressError::Empty(text.into()));
        }
        if !rest.starts_with('/') {
            return Err(AddressError::Relative { given: text.into(), path: rest.into() });
        }
        fits(rest)?;
        Ok(Self::Path(rest.into()))
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with("unix:") {
            return text.parse().map(Self::Unix);
        }
        let tcp = text.strip_prefix("tcp://").unwrap_or(text);
        if let Some(port) = tcp.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
            return Ok(Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        tcp.parse().map(Self::Tcp).map_err(|_| AddressError::NotTcp(text.into()))
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "unix:///@{name}"),
            Self::Path(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(address) => address.fmt(f),
        }
    }
}

impl From<UnixAddress> for ListenAddress {
    fn from(address: UnixAddress) -> Self {
        Self::Unix(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(text: &str) -> Result<UnixAddress, AddressError> {
        text.parse()
    }

    #[test]
    fn each_form_is_parsed() {
        assert_eq!(unix("unix:///run/a/kms.sock"), Ok(UnixAddress::Path("/run/a/kms.sock".into())));
        assert_eq!(unix("unix:///@kms.sock"), Ok(UnixAddress::Abstract("kms.sock".into())));
        assert_eq!(unix("unix://@kms.sock"), unix("unix:///@kms.sock"));
        for (text, tcp) in [
            ("127.0.0.1:9797", "127.0.0.1:9797"),
            ("tcp://127.0.0.1:9797", "127.0.0.1:9797"),
            ("localhost:1", "127.0.0.1:1"),
            ("[::1]:0", "[::1]:0"),
        ] {
            assert_eq!(text.parse(), Ok(ListenAddress::Tcp(tcp.parse().unwrap())), "{text}");
        }
        assert_eq!("unix:///a".parse(), Ok(ListenAddress::Unix(UnixAddress::Path("/a".into()))));
    }

    #[test]
    fn the_authority_is_that_of_grpc_go() {
        let authority = |text: &str| unix(text).unwrap().grpc_authority();
        assert_eq!(authority("unix:///@kms-v1"), "@kms-v1");
        assert_eq!(authority("unix:///opt/kms/v 1@localhost"), "%2Fopt%2Fkms%2Fv%201@localhost");
        assert_eq!(authority("unix:///\u{e9}"), "%2F%C3%A9");
    }

    #[test]
    fn a_printed_address_parses() {
        for text in ["unix:///run/kms.sock", "unix:///@kms", "127.0.0.1:9797", "[::1]:80"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn the_error_names_the_mistake() {
        for (text, expected) in [
            ("unix://run/kms.sock", "three slashes"),
            ("unix://", "names no socket"),
            ("unix:///", "names no socket"),
            ("unix:///run/", "names no socket"),
            ("unix:///@", "names no socket"),
            ("unix:/run/kms.sock", "is not a unix socket"),
            ("/run/kms.sock", "is not a unix socket"),
            ("127.0.0.1:9797", "is not a unix socket"),
            ("unix:///a\0b", "NUL"),
        ] {
            let error = unix(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        for text in [":9797", "127.0.0.1", "example.org:80", "http://127.0.0.1:9797"] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:9797"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_name_has_at_most_107_bytes() {
        for prefix in ["unix:///", "unix:///@"] {
            let max = if prefix.ends_with('@') { MAX_BYTES } else { MAX_BYTES - 1 };
            assert!(unix(&format!("{prefix}{}", "a".repeat(max))).is_ok());
            let error = unix(&format!("{prefix}{}", "a".repeat(max + 1))).unwrap_err();
            assert!(error.to_string().contains("108 bytes"), "{error}");
        }
    }
}
