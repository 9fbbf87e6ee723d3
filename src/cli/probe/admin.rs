//! The checks `live` and `ready`.

use std::time::Instant;

use super::{
    args::ProbeArgs,
    report::{ProbeError, Report},
};
use crate::cli::admin_client;

/// Requests `path` from the admin address.
pub(super) async fn check(args: &ProbeArgs, path: &str, report: &mut Report) -> Result<(), ProbeError> {
    let start = Instant::now();
    let (status, text) = admin_client::get(&args.admin, path).await.map_err(|error| {
        ProbeError::NoAnswer(format!(
            "cannot connect to {}: {error}; does `transit-kms serve` run with this --admin-listen?",
            args.admin
        ))
    })?;
    let text = text.trim();
    report.add("answer", text);
    report.add("status", status.as_u16());
    report.add_elapsed("latency_ms", start);
    if status.is_success() { Ok(()) } else { Err(ProbeError::Failed(text.to_owned())) }
}
