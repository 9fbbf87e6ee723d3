//! Starts and stops OpenBao (or Vault): one server, three of a cluster, an agent, and a proxy that injects faults.

pub mod agent;
pub mod fault_proxy;
mod initialized_storage;
pub mod login;
pub mod server;
pub mod three_nodes;
