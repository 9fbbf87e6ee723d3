//! Tests of everything that an operator installs: the image, the chart, the manifests, the alerts and the dashboard,
//! and of the documents.
//!
//! `scripts/install-tools` gets the programs. `cfg(test)` is always true here. It is written out so that clippy treats
//! these modules as tests.

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
