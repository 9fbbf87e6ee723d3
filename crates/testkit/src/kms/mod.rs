//! Clients of the KMS socket.
//!
//! - [`calls`]: single calls; [`caller`]: a client that also waits for a Status.
//! - [`load`]: constant load, whose failures are counted in [`report`]; [`gaps`]: how long no call was answered.
//! - [`reconnect`]: a connection that is replaced after GOAWAY, as grpc-go does.
//! - [`raw`]: single HTTP/2 frames, for requests that no real client sends.

pub mod caller;
pub mod calls;
pub mod gaps;
pub mod load;
pub mod raw;
pub mod reconnect;
pub mod report;
