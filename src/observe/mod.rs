//! What the daemon tells about itself: metrics and logs.

pub mod heartbeat;
pub mod labels;
pub mod metrics;
pub mod process;
pub mod telemetry;
