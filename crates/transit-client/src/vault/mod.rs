//! Vault and OpenBao: connections, sessions, leases, and the Transit engine.
//!
//! From the top down: a [`Session`] is one token on a [`Pool`] of nodes, `transit_api` speaks the engine's
//! API over it, `failover` decides which node gets a request, and `errors` classifies its answer.

mod acceptance;
mod budget;
mod condition;
mod errors;
mod failover;
mod hedge;
pub mod lease;
mod lenient;
mod node;
mod pool;
pub mod renewal;
mod resolver;
pub mod schedule;
mod session;
mod tls;
mod transit_api;

pub use errors::Operation;
pub use pool::Pool;
pub use session::{Access, Progress, Session};

#[cfg(test)]
mod tests;
