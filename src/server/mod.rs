//! Sockets and connections: everything between the kernel and a service.
//!
//! [`socket`] binds, [`inherited`] takes the listeners of socket activation, and [`takeover`] decides
//! which process has the path. [`accept`] serves a `tower` service over HTTP/2 to the peers that
//! [`peer`] allows, and drains at shutdown. [`admin`] answers probes and scrapes on a thread of its own.
//!
//! This module does not depend on the meaning of a call.

pub mod accept;
pub mod admin;
mod backoff;
mod connection;
mod connection_tracker;
pub mod group;
pub mod inherited;
pub mod limits;
pub mod listener;
mod malformed_requests;
pub mod peer;
pub mod socket;
pub mod takeover;

#[cfg(test)]
mod tests;
