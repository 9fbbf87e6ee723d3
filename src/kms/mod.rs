//! The KMS APIs and the rules behind them.
//!
//! This module knows the trait [`Transit`], not HTTP: what implements it is
//! decided elsewhere, and tests put a model in its place.

pub mod board;
mod calls;
pub mod ciphertext;
pub mod coalescer;
pub mod deadline;
mod gate;
pub mod health;
pub mod kek_store;
pub mod key_id;
pub mod keyring;
pub mod local_kek;
pub mod probe;
pub mod prober;
pub mod proto;
pub mod transit;
pub mod v1;
pub mod v2;

pub use board::{Board, Snapshot};
pub use transit::{Fault, Transit, TransitError};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
