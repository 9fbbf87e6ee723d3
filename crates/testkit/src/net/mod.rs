//! What connects programs on the loopback.
//!
//! - [`port`]: reserves ports and abstract socket names for this process.
//! - [`authority`]: issues certificates.
//! - [`http`]: HTTP servers and proxies inside the test.
//! - [`link`]: a TCP connection that a test can break.

pub mod authority;
pub mod http;
pub mod link;
pub mod port;
