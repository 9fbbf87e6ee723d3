//! `transit-kms probe`: checks a running daemon, for operators and for exec probes.
//!
//! Standard output has the result of the check, and standard error has the reason why it failed.

mod admin;
mod args;
mod cluster;
mod input;
mod kms;
mod metrics_page;
mod report;
mod unused;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use tokio::time::timeout;

pub use self::args::ProbeArgs;
use self::{
    args::ProbeCommand,
    input::Prepared,
    report::{ProbeError, Report, printable},
};

/// Runs one check, prints its result, and returns its exit code.
pub async fn run(args: ProbeArgs) -> ExitCode {
    let (report, result) = probe(&args, &mut io::stdin()).await;
    let printed = report.print(args.output, args.command.name(), &result);
    // The reader may have closed the pipe. The exit code is still useful then.
    drop(io::stdout().lock().write_all(printed.as_bytes()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr().lock(), "{}", printable(&error.to_string())));
            error.exit_code().into()
        }
    }
}

async fn probe(args: &ProbeArgs, input: &mut impl Read) -> (Report, Result<(), ProbeError>) {
    let mut report = Report::default();
    let prepared = match Prepared::new(&args.command, input) {
        Ok(prepared) => prepared,
        Err(error) => return (report, Err(error)),
    };
    let check = async {
        match prepared {
            Prepared::Admin(path) => admin::check(args, path, &mut report).await,
            Prepared::Kms(call) => kms::check(args, call, &mut report).await,
            Prepared::Unused(unused) => unused::check(args, &unused, &mut report).await,
        }
    };
    let result = match timeout(args.timeout(), check).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(args)),
    };
    (report, result)
}

fn timed_out(args: &ProbeArgs) -> ProbeError {
    let asked = match args.command {
        ProbeCommand::Live | ProbeCommand::Ready => args.admin.to_string(),
        ProbeCommand::Unused(_) => "the plugin or an API server".to_owned(),
        _ => args.socket.to_string(),
    };
    let limit = humantime::format_duration(args.timeout());
    ProbeError::NoAnswer(format!("no answer from {asked} within {limit} (--timeout)"))
}

#[cfg(test)]
mod tests;
