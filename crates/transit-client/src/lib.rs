//! A client of the Transit engine of HashiCorp Vault and OpenBao.
//!
//! [`Transit`] is what callers need of an engine. [`vault::Session`] implements it: one token on a
//! [`vault::Pool`] of nodes, with failover, hedging and health checks. The other modules hold the types
//! that both sides share: keys, key_ids, ciphertexts, endpoints, tokens and errors.
//!
//! The crate knows neither the KMS API nor the daemon's configuration, so that the daemon and the
//! operator's program can share it.

pub mod ciphertext;
pub mod endpoint;
pub mod error;
pub mod key;
pub mod key_id;
pub mod metrics;
pub mod rule;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod token;
pub mod transit;
pub mod vault;

pub use error::{ErrorKind, TransitError};
pub use transit::Transit;
