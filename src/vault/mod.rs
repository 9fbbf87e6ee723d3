//! Vault and OpenBao: connections, sessions, tokens, and the Transit engine.
//!
//! Top to bottom: the [`keeper`] turns configs into sessions, a [`session`] is one
//! token on a [`pool`] of [`node`]s, [`transit`] speaks the engine's API over it,
//! [`failover`] decides which node is asked, and [`errors`] what an answer means.

mod acceptance;
mod budget;
mod condition;
mod errors;
mod failover;
mod hedge;
pub mod keeper;
mod lenient;
mod node;
mod pool;
mod progress;
mod renewal;
mod resolver;
mod schedule;
mod session;
mod tls;
mod token;
mod transit;

pub use keeper::Keeper;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
