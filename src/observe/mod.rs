//! What the daemon tells about itself: metrics and logs.

mod cause;
pub mod heartbeat;
pub mod metrics;
pub mod process;
pub mod telemetry;

pub use cause::{chain, one_line, root_cause};
