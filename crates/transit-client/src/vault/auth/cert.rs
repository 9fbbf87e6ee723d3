//! The login method `cert`: the client certificate of the TLS connection.
//!
//! The connections of the [`LoginContext`](super::LoginContext) present the certificate. A token of this method
//! can be renewed only on a connection with the same certificate, so it is not renewed: before it ends, another
//! login replaces it.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/cert>

use super::{AuthMount, Login, LoginMethod};

/// A login with the certificate role `role`; `None` lets Vault try all roles.
#[must_use]
pub fn login(at: AuthMount, role: Option<&str>) -> Login {
    Login::new(LoginMethod::Cert, at, role.map(|role| ("name", role.into())))
}
