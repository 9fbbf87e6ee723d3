//! The trust domain of an SVID against those that the config allows.

use spiffe::SpiffeId;

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
    pub allowed: Vec<String>,
    /// The SPIFFE ID of the SVID.
    pub spiffe_id: SpiffeId,
}

/// Checks the trust domain of an SVID. Call this before the SVID leaves the process: a server of another trust domain
/// could use a JWT-SVID that it receives. The names of the allowed trust domains are in lower case.
///
/// # Errors
/// If `allowed` does not contain the trust domain.
pub fn check_trust_domain(
    spiffe_id: &SpiffeId,
    allowed: impl IntoIterator<Item: AsRef<str>>,
) -> Result<(), ForeignTrustDomain> {
    let allowed: Vec<String> = allowed.into_iter().map(|domain| domain.as_ref().to_owned()).collect();
    if allowed.iter().any(|domain| domain == spiffe_id.trust_domain_name()) {
        Ok(())
    } else {
        Err(ForeignTrustDomain { allowed, spiffe_id: spiffe_id.clone() })
    }
}

fn list(allowed: &[String]) -> String {
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
        let id = SpiffeId::new("spiffe://Prod.acme.net/kms/node-1").unwrap();
        check_trust_domain(&id, ["staging.acme.net", "prod.acme.net"]).unwrap();
        check_trust_domain(&id, [id.trust_domain()]).unwrap();
        // There is no hierarchy between trust domains.
        for other in ["acme.net", "eu.prod.acme.net", "prod.acme.net.example.org"] {
            let error = check_trust_domain(&id, [other]).unwrap_err();
            assert_eq!(error.allowed, [other]);
            let text = error.to_string();
            assert!(text.contains("\"prod.acme.net\"") && text.contains(&format!("\"{other}\"")), "{text}");
        }
        check_trust_domain(&id, [""; 0]).unwrap_err();
    }
}
