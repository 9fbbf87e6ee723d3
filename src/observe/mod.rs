//! Metrics, logs and heartbeats. This module imports no other module of the daemon.

pub mod build;
pub mod heartbeat;
pub mod labels;
pub mod metrics;
pub mod telemetry;
