//! End-to-end tests with a real kube-apiserver, etcd, daemon, agent and OpenBao.
//!
//! The KMS contract describes how kube-apiserver uses a plugin. These tests show that it does so. Each file has one
//! or a few scenarios, and checks what etcd stores and what clients of the API see.
//! `testkit::cluster` starts and stops the components; `scripts/e2e-tools` gets the binaries.
//!
//! `cfg(test)` is always true here. It is written out so that clippy treats these modules as tests.

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
mod fake_plugin;
#[cfg(test)]
mod kubernetes_login;
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
mod start_order;
#[cfg(test)]
mod two_nodes;
#[cfg(test)]
mod unused;
#[cfg(test)]
mod upgrades;
