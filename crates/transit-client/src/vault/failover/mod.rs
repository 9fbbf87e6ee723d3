//! Failover: which node gets a request, and what its answer means.
//!
//! [`attempts`] asks one node after the other. [`classify`](mod@classify) says what an answer means, [`acceptance`] what the
//! refusal of one node is worth, [`hedge`] when a second node is asked early, and [`budget`] how many extra
//! requests there may be. [`active`] finds the active node.

mod acceptance;
mod active;
mod attempts;
pub(super) mod budget;
pub(super) mod classify;
pub(super) mod hedge;
mod quote;
mod request_path;

pub(super) use acceptance::Acceptance;
pub(super) use active::is_active;
pub(super) use attempts::{Request, send};
pub(super) use request_path::RequestPath;
