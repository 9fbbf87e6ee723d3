//! Test doubles, for faults and orders of events that a real server does not produce on demand.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test doubles fail the test that misuses them"
)]

pub mod fake_transit;
#[cfg(test)]
pub mod fake_vault;
