//! transit-kmsctl: the operator's program of transit-kms.
//!
//! It may have rights that the daemon must not have, so it is a package of its own.

mod command_error;
mod files;
mod plugin;
mod seal;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use kms_plugin::cli::EXIT_USAGE;
use tokio::runtime;

use self::command_error::{CommandError, EXIT_SYSTEM};

/// Operates transit-kms: checks a KMS plugin, and seals payloads for nodes.
///
/// The daemon itself is `transit-kms serve`.
#[derive(Debug, Parser)]
#[command(name = "transit-kmsctl", version, max_term_width = 110)]
#[command(after_help = "\
Exit codes: 0 done, 64 an argument cannot be used; each subcommand's help names its own.\n\n\
Examples:\n  transit-kmsctl plugin roundtrip\n  transit-kmsctl plugin status --socket unix:///@kms -o json\n  \
transit-kmsctl seal --to node.pub --in secret-id --out secret-id.pem")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plugin(plugin::PluginArgs),
    Seal(seal::SealArgs),
    /// Prints the version of this program
    Version,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If the output is closed, the exit code still shows the result.
            drop(error.print());
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    match cli.command {
        Command::Plugin(args) => match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(plugin::run(args)),
            Err(error) => {
                drop(writeln!(io::stderr(), "error: the runtime cannot be set up: {error}"));
                ExitCode::from(EXIT_SYSTEM)
            }
        },
        Command::Seal(args) => finish(seal::run(&args)),
        Command::Version => {
            drop(writeln!(io::stdout(), concat!("transit-kmsctl ", env!("CARGO_PKG_VERSION"))));
            ExitCode::SUCCESS
        }
    }
}

/// Prints the error of a command, and returns its exit code.
fn finish(result: Result<(), CommandError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
