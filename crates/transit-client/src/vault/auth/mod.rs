//! Logins: how a machine proves itself to Vault and gets a token.
//!
//! A [`Login`] is one login to one mount. Each login method has a module that makes one of its settings.
//! [`Login::log_in`] sends it. [`Login::inline`] makes headers of it instead, for OpenBao's inline
//! authentication.
//!
//! [`wrapping`] and [`cubbyhole`] open what carries a secret_id to the machine: each can be opened only once.

mod answer;
pub mod approle;
pub mod aws;
pub mod cert;
pub mod cubbyhole;
mod failure;
mod inline;
pub mod jwt;
mod login;
pub mod spiffe;
pub mod userpass;
pub mod wrapping;

pub use answer::LoggedIn;
pub use failure::{LoginError, LoginFailure};
pub use inline::InlineLogin;
pub use login::{AuthMount, Login, LoginContext, LoginMethod};
