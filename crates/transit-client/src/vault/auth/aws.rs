//! The login method `aws`: a signed request to AWS's STS, or the identity document of an EC2 instance.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/aws>

use secrecy::SecretString;

use super::{AuthMount, Login, LoginMethod};

/// A login with the fields of a signed request or of an identity document.
///
/// With a nonce, only the first login of an instance is accepted without it, so a lost answer does not matter:
/// the nonce is chosen by the client and is the same in the next attempt.
#[must_use]
pub fn login(
    at: AuthMount,
    role: &str,
    fields: impl IntoIterator<Item = (&'static str, SecretString)>,
) -> Login {
    Login::new(LoginMethod::Aws, at, [("role", role.into())].into_iter().chain(fields))
}
