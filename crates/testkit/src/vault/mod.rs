//! Starts and stops OpenBao (or Vault) and its agent.
//!
//! - [`server`]: one server with its own storage.
//! - [`three_nodes`]: a raft cluster of three servers.
//! - [`agent`]: an agent that logs in and renders the config of the daemon; [`login`] sets up what it logs in with.
//! - [`fault_proxy`]: a proxy in front of a server that answers wrongly, late or not at all.

pub mod agent;
mod api;
pub mod binary;
pub mod fault_proxy;
mod initialized_storage;
pub mod login;
pub mod server;
pub mod three_nodes;
