//! The login methods that take a role and a JWT: `jwt` and `kubernetes`.
//!
//! Sources: <https://developer.hashicorp.com/vault/api-docs/auth/jwt>,
//! <https://developer.hashicorp.com/vault/api-docs/auth/kubernetes>

use secrecy::SecretString;

use super::{AuthMount, Login, LoginMethod, login::unusable};
use crate::TransitError;

/// The longest JWT, in bytes. Vault's listener refuses larger requests by default, and a JWT with many claims has
/// a few KiB.
const MAX_JWT_BYTES: usize = 64 * 1024;

/// A login of `method` with this role and JWT.
#[must_use]
pub fn login(method: LoginMethod, at: AuthMount, role: &str, jwt: SecretString) -> Login {
    Login::new(method, at, [("role", role.into()), ("jwt", jwt)])
}

/// Reads a JWT from a file. `what` names it in errors.
///
/// # Errors
/// If it does not have the form of a JWT. The error contains nothing of it.
pub fn parse(bytes: &[u8], what: &str) -> Result<SecretString, TransitError> {
    let text = std::str::from_utf8(bytes).map_err(|_| unusable(format!("{what} is not text")))?.trim();
    if text.is_empty() {
        return Err(unusable(format!("{what} is empty: it may be half written")));
    }
    let is_jwt_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte);
    if text.len() > MAX_JWT_BYTES || text.split('.').count() != 3 || !text.bytes().all(is_jwt_byte) {
        return Err(unusable(format!(
            "{what} is not a JWT: it must be three parts of base64url with dots between"
        )));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jwt_is_sent() {
        assert!(parse(b" aaa.bbb.ccc\n", "it").is_ok());
        for text in ["", "aaa", "aaa.bbb", "aaa.bbb.ccc.ddd", "aaa.b b.ccc", "{\"jwt\":\"a.b.c\"}"] {
            assert!(parse(text.as_bytes(), "vault.auth.jwt_file").is_err(), "{text}");
        }
    }
}
