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
mod documents;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod image;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod monitoring;
#[cfg(test)]
mod units;
