//! Vault and OpenBao: connections, sessions, leases, and the Transit engine.
//!
//! From the top down: a [`Session`] is one token on a [`Pool`] of nodes, `transit_api` speaks the engine's
//! API over it, `failover` decides which node gets a request, and `failover::classify` what its answer means.

mod failover;
pub mod lease;
mod lenient;
mod node;
mod node_health;
mod pool;
mod resolver;
mod session;
mod tls;
mod transit_api;

pub use failover::classify::Operation;
pub use pool::Pool;
pub use session::{Access, RequestObserver, Session};

#[cfg(test)]
mod tests;
