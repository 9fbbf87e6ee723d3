//! The Kubernetes KMS plugin APIs: what kube-apiserver and a KMS plugin say to each other.
//!
//! The crate knows neither Vault nor the daemon, so that the daemon, the operator's program and the tests
//! can share it.

pub mod address;
pub mod client;
pub mod grpc_timeout;
pub mod v1beta1;
pub mod v2;
