//! transit-kms: a Kubernetes KMS v2 plugin for the Transit engine of HashiCorp Vault and OpenBao.
//!
//! A request passes these modules, from top to bottom:
//!
//! ```text
//! server          socket -> accept loop -> peer check
//! kms             gRPC service -> limits, deadline
//! session         published state -> keyring -> local KEK or coalescer
//! transit_client  session -> pool -> one HTTP request
//! ```
//!
//! [`app`] composes the parts and is the only module that knows all of them. [`config`], [`observe`] and the checks of
//! file modes are below all others. `ARCHITECTURE.md` describes the layers, the invariants and the tests of each
//! invariant.

pub mod app;
pub mod cli;
pub mod config;
mod exposure;
mod hardening;
pub mod kms;
pub mod observe;
pub mod server;
pub mod session;
mod supervisor;
