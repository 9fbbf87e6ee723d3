//! A SPIFFE server.
//!
//! - [`authority`]: issues SVIDs of one trust domain.
//! - [`workload_api`]: serves them to workloads on a unix socket.

pub mod authority;
pub mod workload_api;
