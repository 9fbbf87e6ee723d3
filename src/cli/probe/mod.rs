//! `transit-kms probe`: checks a running daemon, for operators and for exec probes.
//!
//! Standard output has the result of the check, and standard error has the reason why it failed.

mod admin;
mod args;
mod cluster;
mod metrics_page;
mod unused;

use std::{
    io::{self, Read},
    process::ExitCode,
};

use kms_plugin::cli::{self, CheckError, KmsCall, Report};
use tokio::time::timeout;

pub use self::args::ProbeArgs;
use self::args::ProbeCommand;

/// Runs one check, prints its result, and returns its exit code.
pub async fn run(args: ProbeArgs) -> ExitCode {
    let (report, result) = probe(&args, &mut io::stdin()).await;
    report.finish(args.output, "probe", args.command.name(), result)
}

async fn probe(args: &ProbeArgs, input: &mut impl Read) -> (Report, Result<(), CheckError>) {
    let mut report = Report::default();
    let target = args.target();
    let check = async {
        match &args.command {
            ProbeCommand::Live => admin::check(args, "/livez", &mut report).await,
            ProbeCommand::Plugin(command) => {
                // Invalid input is found before the first request.
                let call = KmsCall::new(command, input, &target)?;
                cli::check(&target, call, &mut report).await
            }
            ProbeCommand::Ready => admin::check(args, "/readyz", &mut report).await,
            ProbeCommand::Unused(unused) => unused::check(args, unused, &mut report).await,
        }
    };
    let result = match timeout(args.timeout(), check).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(args)),
    };
    (report, result)
}

fn timed_out(args: &ProbeArgs) -> CheckError {
    let target = args.target();
    match &args.command {
        ProbeCommand::Live | ProbeCommand::Ready => target.timed_out(&args.admin),
        ProbeCommand::Plugin(_) => target.timed_out(&args.socket),
        ProbeCommand::Unused(_) => target.timed_out(&"the plugin or an API server"),
    }
}

#[cfg(test)]
mod tests;
