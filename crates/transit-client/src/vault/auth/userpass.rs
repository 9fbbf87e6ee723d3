//! The login method `userpass`: a user name and a password.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/userpass>

use secrecy::SecretString;

use super::{AuthMount, Login, LoginMethod, login::unusable};
use crate::TransitError;

/// A login of this user.
///
/// # Errors
/// If the name cannot be a part of a path.
pub fn login(at: AuthMount, username: &str, password: SecretString) -> Result<Login, TransitError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if username.is_empty() || !username.bytes().all(plain) || username.bytes().all(|byte| byte == b'.') {
        return Err(unusable("vault.auth.username must consist of letters, digits and - _ . @"));
    }
    let login = Login::new(LoginMethod::Userpass, at, [("password", password)]);
    Ok(login.at_path(format!("login/{username}")))
}
