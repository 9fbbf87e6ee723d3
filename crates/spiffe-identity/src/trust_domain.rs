//! The trust domain of an SVID against those that the config allows.

use spiffe::{SpiffeId, TrustDomain};

/// The SVID belongs to a trust domain that is not allowed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the SVID {spiffe_id} is of the trust domain \"{}\", and only {} is allowed: correct the trust domain in the \
     config, or use the SPIFFE server of the allowed trust domain",
    spiffe_id.trust_domain(),
    list(allowed)
)]
pub struct ForeignTrustDomain {
    /// The allowed trust domains.
    pub allowed: Vec<TrustDomain>,
    /// The SPIFFE ID of the SVID.
    pub spiffe_id: SpiffeId,
}

/// Checks the trust domain of an SVID. Call this before the SVID leaves the process: a server of another trust domain
/// could use a JWT-SVID that it receives.
///
/// # Errors
/// If `allowed` does not contain the trust domain.
pub fn check_trust_domain<'a>(
    spiffe_id: &SpiffeId,
    allowed: impl IntoIterator<Item = &'a TrustDomain>,
) -> Result<(), ForeignTrustDomain> {
    let allowed: Vec<TrustDomain> = allowed.into_iter().cloned().collect();
    if allowed.contains(spiffe_id.trust_domain()) {
        Ok(())
    } else {
        Err(ForeignTrustDomain { allowed, spiffe_id: spiffe_id.clone() })
    }
}

fn list(allowed: &[TrustDomain]) -> String {
    if allowed.is_empty() {
        return "none".into();
    }
    allowed.iter().map(|domain| format!("\"{domain}\"")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_trust_domain_is_allowed() {
        let domain = |name: &str| TrustDomain::new(name).unwrap();
        let id = SpiffeId::new("spiffe://Prod.acme.net/kms/node-1").unwrap();
        let allowed = [domain("staging.acme.net"), domain("prod.acme.net")];
        check_trust_domain(&id, &allowed).unwrap();
        // There is no hierarchy between trust domains.
        for other in ["acme.net", "eu.prod.acme.net", "prod.acme.net.example.org"] {
            let error = check_trust_domain(&id, [&domain(other)]).unwrap_err();
            assert_eq!(error.allowed, [domain(other)]);
            let text = error.to_string();
            assert!(text.contains("\"prod.acme.net\"") && text.contains(&format!("\"{other}\"")), "{text}");
        }
        check_trust_domain(&id, []).unwrap_err();
    }
}
