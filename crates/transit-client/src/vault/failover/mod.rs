//! Failover: which node gets a request, and what its answer means.

mod acceptance;
mod attempts;
pub(super) mod budget;
pub(super) mod classify;
pub(super) mod hedge;

pub(super) use acceptance::Acceptance;
pub(super) use attempts::{Question, ask, is_active};
