//! transit-kmsctl: the operator's program of transit-kms.
//!
//! It may have rights that the daemon must not have, so it is a package of its own.

mod command_error;
mod files;
mod plugin;
mod seal;
mod secret_id;
mod vault;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use kms_plugin::cli::EXIT_USAGE;
use tokio::runtime;

use self::command_error::{CommandError, EXIT_SYSTEM};

/// Operates transit-kms: checks a KMS plugin, and issues and seals the secret_ids of nodes.
///
/// The daemon itself is `transit-kms serve`.
#[derive(Debug, Parser)]
#[command(name = "transit-kmsctl", version, max_term_width = 110)]
#[command(after_help = "\
Exit codes: 0 done, 64 an argument cannot be used; each subcommand's help names its own.\n\n\
Examples:\n  transit-kmsctl plugin roundtrip\n  transit-kmsctl plugin status --socket unix:///@kms -o json\n  \
transit-kmsctl seal --to node.pub --in secret-id --out secret-id.pem\n  \
transit-kmsctl secret-id issue --role transit-kms --node cp-1 --seal node.pub --out secret-id.pem")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plugin(plugin::PluginArgs),
    Seal(seal::SealArgs),
    SecretId(secret_id::SecretIdArgs),
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
        Command::Plugin(args) => on_runtime(plugin::run(args)),
        Command::Seal(args) => finish(seal::run(&args)),
        Command::SecretId(args) => on_runtime(async { finish(secret_id::run(args).await) }),
        Command::Version => {
            drop(writeln!(io::stdout(), concat!("transit-kmsctl ", env!("CARGO_PKG_VERSION"))));
            ExitCode::SUCCESS
        }
    }
}

/// Runs a command that makes requests.
fn on_runtime(command: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            drop(writeln!(io::stderr(), "error: the runtime cannot be set up: {error}"));
            ExitCode::from(EXIT_SYSTEM)
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
