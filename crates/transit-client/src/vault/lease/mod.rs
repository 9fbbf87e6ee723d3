//! The lease of a token: its lookup, its renewal, its revocation, and their schedule.

mod renewal;
mod requests;
mod revocation;
mod schedule;

pub use renewal::{RenewalError, RenewalFailure};
pub(in crate::vault) use requests::expiry_of;
pub use requests::{Renewal, TokenInfo, lookup, renew};
pub use revocation::{Revocations, Revoker, TokenGuard, revocations};
pub use schedule::{Expiry, LeaseAction, LeaseSchedule, TokenOrigin, jittered};
