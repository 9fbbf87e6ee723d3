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
pub fn login(method: LoginMethod, at: AuthMount, role: Option<&str>) -> Login {
    let field = match method {
        LoginMethod::Spiffe => "role",
        _ => "name",
    };
    Login::new(method, at, role.map(|role| (field, role.into())))
}
