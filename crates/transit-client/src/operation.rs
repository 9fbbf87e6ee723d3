//! The operations that the client asks of Vault.

use http::Method;

/// What is asked of Vault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VaultOperation {
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

impl VaultOperation {
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
    pub(crate) fn capability(self) -> &'static str {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => "update",
            Self::Health | Self::LookupSelf | Self::ReadKey => "read",
        }
    }
}
