//! The Helm chart: lint, golden files, values that the schema rejects, and objects that an API server accepts.

mod api_server;
mod golden;
mod helm;
mod invalid_values;
pub(crate) mod objects;
mod readme;
pub(crate) mod rules;
pub(crate) mod tools;

pub(crate) use api_server::ChartControlPlane;

/// The directory of the chart.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/transit-kms");
/// The value sets. Each has a golden file of the same name.
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install/chart/values");
