//! What an operator installs: the image, the chart, the manifests, the dashboards, and what the
//! documents say of them.
//!
//! `scripts/install-tools` gets the programs. `cfg(test)` always holds here; written out, it lets clippy
//! know these modules for tests.

#[cfg(test)]
mod agents;
#[cfg(test)]
mod chart;
#[cfg(test)]
#[path = "../e2e/cluster/mod.rs"]
mod cluster;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod image;
#[cfg(test)]
mod manifests;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
#[cfg(test)]
mod units;
#[cfg(test)]
mod watching;
