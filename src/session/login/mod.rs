//! Logs in to Vault: from the settings of `vault.auth` and the files that they name to a token.
//!
//! The [`Authenticator`] decides whether a login may be sent. It sends one at a time, and remembers what must not be
//! sent again: a credential that was used up, forged, or refused twice. `credential_source` makes the login of the
//! settings, and `aws` that of an AWS identity; `delivery` opens what carries a secret_id; `svid` gets JWTs and
//! certificates. The session manager decides when a login is needed.

mod authenticator;
#[cfg(feature = "aws")]
mod aws;
mod credential;
mod credential_source;
mod delivery;
mod ledger;
mod svid;

pub(super) use authenticator::{Authenticator, IssuedToken, LoginTarget};
