//! Sockets and connections: everything between the kernel and a service.
//!
//! [`socket`] binds, [`inherited`] takes what systemd has bound, [`takeover`]
//! succeeds a predecessor, [`accept`] serves a `tower` service over HTTP/2 to
//! the peers that [`peer`] allows and drains at shutdown, [`admin`] answers
//! probes and scrapes on a thread of its own. Nothing here knows what a call
//! means.

pub mod accept;
pub mod admin;
mod backoff;
mod connection;
mod connection_tracker;
pub mod group;
pub mod inherited;
mod malformed_requests;
pub mod peer;
pub mod socket;
pub mod takeover;

#[cfg(test)]
mod tests;
