//! transit-kms: a Kubernetes KMS v2 provider for the Transit engine of
//! HashiCorp Vault and OpenBao.
//!
//! The way of a request, top to bottom; it turns back nowhere:
//!
//! ```text
//! server          socket -> accept loop -> peer check
//! kms             gRPC service -> limits, deadline
//! session         published state -> keyring -> local KEK or coalescer
//! transit_client  session -> pool -> one HTTP request
//! ```
//!
//! [`app`] composes the parts and is the only module that knows all of them;
//! [`config`] and [`observe`] lie below everything, and below them what modes of files give away. `ARCHITECTURE.md` has the
//! picture, the invariants and the test that guards each of them.

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
