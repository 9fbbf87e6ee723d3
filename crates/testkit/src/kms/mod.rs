//! Clients of the KMS socket: single calls, load, and bytes that no real client sends.

pub mod caller;
pub mod calls;
pub mod gaps;
pub mod load;
pub mod raw;
pub mod reconnect;
pub mod report;
