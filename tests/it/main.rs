//! Tests with a real OpenBao or Vault and the real daemon; `testkit` starts and stops them.
//!
//! `cfg(test)` always holds here. It is written out so that clippy treats these modules as tests.

#![allow(clippy::disallowed_methods, reason = "tests look at time stamps")]

#[cfg(test)]
mod activation;
#[cfg(test)]
mod admin;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod aws_auth;
#[cfg(test)]
mod candidates;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod coalescing;
#[cfg(test)]
mod exposure;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod kms_v1;
#[cfg(test)]
mod kmsctl;
#[cfg(test)]
mod leaks;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod path;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod remedies;
#[cfg(test)]
mod renewal;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod sealed_payload;
#[cfg(test)]
mod secret_id;
#[cfg(test)]
mod shutdown;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod spiffe;
#[cfg(test)]
mod start;
#[cfg(test)]
mod survive;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod testkit_selftest;
#[cfg(test)]
mod token;
#[cfg(test)]
mod vault_errors;
#[cfg(test)]
mod vault_kube_kms;
