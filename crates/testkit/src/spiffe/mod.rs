//! A SPIFFE server, and a Vault that accepts its SVIDs.
//!
//! - [`authority`]: issues SVIDs of one trust domain.
//! - [`vault_enterprise`]: a stand-in for the auth method `spiffe` of Vault Enterprise.
//! - [`workload_api`]: serves them to workloads on a unix socket.

pub mod authority;
pub mod vault_enterprise;
pub mod workload_api;
