//! Failover: which node gets a request, and what its answer means.
//!
//! - [`attempts`] asks one node after the other, until one answers.
//! - [`classify`](mod@classify) says what an answer means, in tables; [`quote`](mod@quote) quotes it in messages.
//! - [`acceptance`] says whether the refusal of a node counts.
//! - [`hedge`] says when a second node is asked early, and [`budget`] how many extra requests there may be.
//! - [`replay`] says whether a request may be sent again.
//! - [`active`] finds the active node of a cluster.

mod acceptance;
mod active;
mod attempts;
pub(super) mod budget;
pub(super) mod classify;
pub(super) mod hedge;
mod quote;
mod replay;
mod request_path;

pub(super) use acceptance::Acceptance;
pub(super) use active::is_active;
pub(super) use attempts::{Request, send};
pub(super) use classify::TokenSource;
pub(super) use replay::Replay;
pub(super) use request_path::RequestPath;
