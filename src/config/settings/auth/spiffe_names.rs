//! The names of SPIFFE: trust domains, IDs, and the mount of each trust domain.
//!
//! The config is parsed without the feature `spiffe`, so its names are checked here. A test compares the rules with
//! those of the crate `spiffe`.
//!
//! Source: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>

use std::collections::{BTreeMap, BTreeSet};

use transit_client::{key::MountPath, rule::BrokenRule};

const MAX_TRUST_DOMAIN_BYTES: usize = 255;
pub(super) const MAX_SPIFFE_ID_BYTES: usize = 2048;

/// The name of a SPIFFE trust domain, such as `prod.acme.net`.
///
/// Source: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomainName(String);

impl TrustDomainName {
    /// Checks the characters and the length.
    ///
    /// # Errors
    /// If the text is not the name of a trust domain.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_')
        };
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(allowed) {
            return Err(BrokenRule(
                "must be the name of a trust domain, such as prod.acme.net: lower-case letters, digits, ., - and _, \
                 without spiffe://",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>/<path>`.
///
/// Source: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    text: String,
    trust_domain: TrustDomainName,
}

impl SpiffeId {
    /// Checks the trust domain and the path.
    ///
    /// # Errors
    /// If the text is not the SPIFFE ID of a workload.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let broken =
            BrokenRule("must be a SPIFFE ID with a path, such as spiffe://prod.acme.net/transit-kms");
        let (domain, path) =
            text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or(broken)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed);
        if text.len() > MAX_SPIFFE_ID_BYTES || !path.split('/').all(is_segment) {
            return Err(broken);
        }
        Ok(Self { text: text.to_owned(), trust_domain: TrustDomainName::new(domain).map_err(|_| broken)? })
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomainName {
        &self.trust_domain
    }
}

/// The mount of each trust domain. There is at least one, and no two domains have the same mount: a mount trusts
/// one bundle, so a shared mount would accept the SVIDs of one domain for the other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustDomains(BTreeMap<TrustDomainName, MountPath>);

impl TrustDomains {
    /// Maps each trust domain to its mount.
    ///
    /// # Errors
    /// If there is none, or if two have the same mount.
    pub fn new(mounts: BTreeMap<TrustDomainName, MountPath>) -> Result<Self, BrokenRule> {
        let distinct: BTreeSet<&str> = mounts.values().map(MountPath::as_str).collect();
        if mounts.is_empty() {
            Err(BrokenRule("must map at least one trust domain to a mount"))
        } else if distinct.len() < mounts.len() {
            Err(BrokenRule("must not map two trust domains to one mount"))
        } else {
            Ok(Self(mounts))
        }
    }

    /// Returns the mount of a trust domain.
    #[must_use]
    pub fn mount_of(&self, trust_domain: &str) -> Option<&MountPath> {
        self.0.iter().find(|(name, _)| name.as_str() == trust_domain).map(|(_, mount)| mount)
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &TrustDomainName> {
        self.0.keys()
    }
}
