//! The real kube-apiserver and a real etcd before the real daemon, agent and OpenBao.
//!
//! What the KMS contract says counts once the client that it is about has been seen to do it: each
//! file here is a scenario or two, and looks at what etcd holds and at what clients of the API see.
//! `testkit::cluster` starts and stops the parts; `scripts/e2e-tools` gets the binaries.
//!
//! `cfg(test)` always holds here; written out, it lets clippy know these modules for tests.

#[cfg(test)]
mod boot;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disaster;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod local_kek;
#[cfg(test)]
mod migration;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod two;
#[cfg(test)]
mod unused;
#[cfg(test)]
mod upgrades;
#[cfg(test)]
mod written;
