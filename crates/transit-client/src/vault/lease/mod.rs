//! The lease of a token: its lookup, its renewal, and the schedule of both.

mod renewal;
mod requests;
mod schedule;

pub use renewal::{RenewalError, RenewalFailure};
pub use requests::{Renewal, TokenInfo, lookup, renew};
pub use schedule::{Expiry, LeaseAction, LeaseSchedule, jittered};
