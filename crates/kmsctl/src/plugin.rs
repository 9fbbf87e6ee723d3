//! `transit-kmsctl plugin`: calls a KMS v2 plugin as kube-apiserver does.

use std::{io, process::ExitCode, time::Duration};

use clap::Args;
use kms_plugin::{
    address::UnixAddress,
    cli::{self, KmsCall, OutputFormat, PluginCommand, Report, Target, parse_timeout},
};
use tokio::time::timeout;

/// Calls a KMS v2 plugin as kube-apiserver does
///
/// The plugin may be transit-kms or another one.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Exit codes:
  0   the check passed
  1   the check failed; standard error has the reason
  2   there was no answer
  64  an argument or the input is invalid

Examples:
  transit-kmsctl plugin roundtrip --socket unix:///run/transit-kms/kms.sock
  transit-kmsctl plugin encrypt -o json | transit-kmsctl plugin decrypt --encrypted -")]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    command: PluginCommand,

    /// The format of standard output
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    output: OutputFormat,

    /// The socket of the plugin: unix:///path or unix:///@name
    #[arg(
        long,
        global = true,
        env = "TRANSIT_KMS_SOCKET",
        value_name = "ADDRESS",
        default_value = "unix:///run/transit-kms/kms.sock"
    )]
    socket: UnixAddress,

    /// The maximum duration of the whole check, as in kube-apiserver
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout, default_value = "3s")]
    timeout: Duration,
}

/// Runs one check, prints its result, and returns its exit code.
pub(crate) async fn run(args: PluginArgs) -> ExitCode {
    let target = Target {
        command: "transit-kmsctl plugin",
        hint: "; does the plugin run, and does it listen there?",
        socket: &args.socket,
        timeout: args.timeout,
        uid_prefix: "transit-kmsctl-",
    };
    let mut report = Report::default();
    let result = match KmsCall::new(&args.command, &mut io::stdin(), &target) {
        Err(error) => Err(error),
        Ok(call) => timeout(args.timeout, cli::check(&target, call, &mut report))
            .await
            .unwrap_or_else(|_| Err(target.timed_out(&args.socket))),
    };
    report.finish(args.output, "plugin", args.command.name(), result)
}
