//! What is asked of Vault, and the path that it is asked on.

use std::fmt;

use http::Method;

/// What is asked of Vault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// `<mount>/decrypt/<key>`.
    Decrypt,
    /// `<mount>/encrypt/<key>`.
    Encrypt,
    /// `sys/health`.
    Health,
    /// `auth/token/lookup-self`.
    LookupSelf,
    /// `<mount>/keys/<key>`.
    ReadKey,
    /// `auth/token/renew-self`.
    RenewSelf,
}

impl Operation {
    /// The name in metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
            Self::Health => "health",
            Self::LookupSelf => "lookup_self",
            Self::ReadKey => "read_key",
            Self::RenewSelf => "renew_self",
        }
    }

    /// Whether a caller waits for the answer. Such calls are hedged, and wait for a node during a short
    /// outage. The others are made by background tasks, which repeat them anyway.
    pub(crate) fn is_call(self) -> bool {
        matches!(self, Self::Decrypt | Self::Encrypt)
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => Method::POST,
            Self::Health | Self::LookupSelf | Self::ReadKey => Method::GET,
        }
    }

    /// Whether the operation is about the token itself. Its outcome says nothing about the health of a node.
    pub(crate) fn is_about_token(self) -> bool {
        matches!(self, Self::LookupSelf | Self::RenewSelf)
    }

    /// The capability that a policy must grant on the path.
    pub(super) fn capability(self) -> &'static str {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => "update",
            Self::Health | Self::LookupSelf | Self::ReadKey => "read",
        }
    }
}

/// The path of a request, with its namespace, as messages name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestPath<'a> {
    /// `None` for the root namespace.
    pub(crate) namespace: Option<&'a str>,
    /// Without `/v1/`.
    pub(crate) path: &'a str,
}

impl RequestPath<'_> {
    /// What may be wrong with the namespace, as the end of a sentence.
    pub(super) fn namespace_hint(self) -> &'static str {
        match self.namespace {
            Some(_) => "; Vault Community Edition has no namespaces: leave vault.namespace out there",
            None => "; a token of a child namespace needs vault.namespace",
        }
    }
}

impl fmt::Display for RequestPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace `{namespace}`"),
            None => Ok(()),
        }
    }
}
