//! The real kube-apiserver and a real etcd before the real daemon, agent and OpenBao.
//!
//! What the KMS contract says counts once the client that it is about has been seen to do it: each
//! file here is a scenario or two, and looks at what etcd holds and at what clients of the API see.
//! `testkit::cluster` starts and stops the parts; `scripts/e2e-tools` gets the binaries.
//!
//! `cfg(test)` always holds here; written out, it lets clippy know these modules for tests.

#[cfg(test)]
mod api_server_restart;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disaster;
#[cfg(test)]
mod encryption_at_rest;
#[cfg(test)]
mod encryption_config_reload;
#[cfg(test)]
mod local_kek;
#[cfg(test)]
mod lost_access;
#[cfg(test)]
mod migration;
#[cfg(test)]
mod misbehaving_clients;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod start_order;
#[cfg(test)]
mod two_nodes;
#[cfg(test)]
mod unused;
#[cfg(test)]
mod upgrades;
