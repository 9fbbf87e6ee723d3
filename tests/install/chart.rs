//! The Helm chart: lint, golden files, what its schema refuses, what an API server takes.

mod api_server;
mod golden;
mod helm;
mod invalid_values;
pub(crate) mod objects;
mod readme;
pub(crate) mod rules;
pub(crate) mod tools;

pub(crate) use api_server::ControlPlane;

/// The chart's folder.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/transit-kms");
/// Value sets, each rendered into a golden file of its name.
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install/chart/values");
