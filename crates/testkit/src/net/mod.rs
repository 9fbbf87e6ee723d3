//! Ports, certificates, and what stands between two programs: proxies and a link that a test can cut.

pub mod authority;
pub mod http;
pub mod link;
pub mod port;
