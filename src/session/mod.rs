//! Sessions with Vault: how they are verified, published, checked and replaced.
//!
//! This module uses the trait [`Transit`](transit_client::Transit) and the sessions that implement it. It does
//! not depend on the KMS API.

pub mod coalescer;
pub mod health;
pub mod health_checker;
pub mod kek_refresher;
pub mod kek_store;
pub mod keyring;
mod lease;
pub mod local_kek;
mod login;
pub mod manager;
mod older_versions;
mod progress;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod verification;

pub use health_checker::HealthChecker;
pub use kek_refresher::KekRefresher;
pub use manager::SessionManager;
pub use state::{CallReporter, Snapshot, StateStore};
