//! The Kubernetes KMS plugin APIs between kube-apiserver and a KMS plugin: the wire types and limits of v2 and
//! v1beta1, socket addresses, timeouts and a client.
//!
//! This crate depends neither on Vault nor on the daemon, so that the daemon, `transit-kmsctl` and the tests can
//! share it.

pub mod address;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
pub mod grpc_timeout;
pub mod v1beta1;
pub mod v2;
