//! The checks `live` and `ready`.

use std::time::Instant;

use kms_plugin::cli::{CheckError, Report};

use super::args::ProbeArgs;
use crate::cli::admin_client;

/// Requests `path` from the admin address.
pub(super) async fn check(args: &ProbeArgs, path: &str, report: &mut Report) -> Result<(), CheckError> {
    let start = Instant::now();
    let (status, text) = admin_client::get(&args.admin, path).await.map_err(|error| {
        CheckError::NoAnswer(format!(
            "cannot connect to {}: {error}; does `transit-kms serve` run with this --admin-listen?",
            args.admin
        ))
    })?;
    let text = text.trim();
    report.add("answer", text);
    report.add("status", status.as_u16());
    report.add_elapsed("latency_ms", start);
    if status.is_success() { Ok(()) } else { Err(CheckError::Failed(text.to_owned())) }
}
