//! The login method `spiffe` of Vault Enterprise: an SVID, whose SPIFFE ID Vault maps to policies.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/spiffe>

use secrecy::SecretString;

use super::{AuthMount, Login, LoginMethod};

/// A login with a JWT-SVID. It travels in the header `Authorization` only, so the mount must pass this header to the
/// method (`passthrough_request_headers`).
#[must_use]
pub fn jwt_login(at: AuthMount, role: &str, jwt: SecretString) -> Login {
    login(at, role, "jwt").with_bearer(jwt)
}

/// A login with an X.509-SVID, which the connections of the [`LoginContext`](super::LoginContext) present.
#[must_use]
pub fn x509_login(at: AuthMount, role: &str) -> Login {
    login(at, role, "cert")
}

fn login(at: AuthMount, role: &str, kind: &str) -> Login {
    Login::new(LoginMethod::Spiffe, at, [("role", role.into()), ("type", kind.into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{MountPath, Namespace};

    #[test]
    fn the_body_has_no_jwt() {
        let at = AuthMount { mount: MountPath::new("spiffe").unwrap(), namespace: Namespace::default() };
        let body = jwt_login(at, "kms", "a.b.c".into()).body();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json, serde_json::json!({ "role": "kms", "type": "jwt" }));
    }
}
