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
    /// The login path of an auth method, such as `auth/approle/login`.
    Login,
    /// `auth/token/lookup-self`.
    LookupSelf,
    /// A path below `cubbyhole/`, where credentials for a login were delivered.
    ReadCubbyhole,
    /// `<mount>/keys/<key>`.
    ReadKey,
    /// `auth/token/renew-self`.
    RenewSelf,
    /// `auth/token/revoke-self`.
    RevokeSelf,
    /// `sys/wrapping/unwrap`.
    Unwrap,
    /// `sys/wrapping/lookup`.
    WrappingLookup,
}

impl VaultOperation {
    /// The name in metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
            Self::Health => "health",
            Self::Login => "login",
            Self::LookupSelf => "lookup_self",
            Self::ReadCubbyhole => "read_cubbyhole",
            Self::ReadKey => "read_key",
            Self::RenewSelf => "renew_self",
            Self::RevokeSelf => "revoke_self",
            Self::Unwrap => "unwrap",
            Self::WrappingLookup => "wrapping_lookup",
        }
    }

    /// Whether a caller waits for the answer. Such calls are hedged, and wait for a node during a short
    /// outage. The others are made by background tasks, which repeat them anyway.
    pub(crate) fn is_call(self) -> bool {
        matches!(self, Self::Decrypt | Self::Encrypt)
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Decrypt
            | Self::Encrypt
            | Self::Login
            | Self::RenewSelf
            | Self::RevokeSelf
            | Self::Unwrap
            | Self::WrappingLookup => Method::POST,
            Self::Health | Self::LookupSelf | Self::ReadCubbyhole | Self::ReadKey => Method::GET,
        }
    }

    /// Whether the operation is about the token itself, or fetches one. Its outcome says nothing about the health
    /// of a node.
    pub(crate) fn is_about_token(self) -> bool {
        match self {
            Self::Decrypt | Self::Encrypt | Self::Health | Self::ReadKey => false,
            Self::Login
            | Self::LookupSelf
            | Self::ReadCubbyhole
            | Self::RenewSelf
            | Self::RevokeSelf
            | Self::Unwrap
            | Self::WrappingLookup => true,
        }
    }

    /// The capability that a policy must grant on the path.
    pub(crate) fn capability(self) -> &'static str {
        if self.method() == Method::GET { "read" } else { "update" }
    }
}
