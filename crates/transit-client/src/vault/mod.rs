//! Vault and OpenBao: sessions, leases, nodes, and the API of the Transit engine.
//!
//! From the top down:
//!
//! - [`Session`] is one token on a [`Pool`]; `transit_api` implements [`Transit`](crate::Transit) for it.
//! - [`auth`] logs in: it turns the credentials of a machine into a token.
//! - [`lease`] looks the token up, renews it and revokes it.
//! - `failover` decides which node gets a request, and what its answer means.
//! - [`Pool`] knows the order of the nodes; `members` resolves names and creates the nodes.
//! - `node` sends one HTTP request (`exchange`) and checks the health of one node (`node_health`), over
//!   connections that `tls` configures.

pub mod auth;
mod exchange;
mod failover;
pub mod lease;
mod lenient;
mod members;
mod node;
mod node_health;
mod pool;
mod requester;
mod resolver;
mod session;
mod tls;
mod transit_api;

pub use pool::Pool;
pub use requester::{RequestAuth, RequestObserver};
pub use session::{Access, Session};

#[cfg(test)]
mod tests;
