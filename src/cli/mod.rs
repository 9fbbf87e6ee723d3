//! The command line: one file a subcommand.

mod admin_client;
pub mod probe;
pub mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use tokio::runtime;

/// A flag or argument that cannot be used; `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// Keeps a Kubernetes cluster's Secrets encrypted under a key in HashiCorp Vault or OpenBao.
///
/// kube-apiserver --(KMS v2, unix socket)--> transit-kms --(HTTPS)--> Transit
#[derive(Debug, Parser)]
#[command(name = "transit-kms", version, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 done, 64 a flag cannot be used; each subcommand's help names its own.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Probe(probe::ProbeArgs),
    Serve(Box<serve::ServeArgs>),
}

/// Runs the program that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only if nobody listens, and then nobody misses it.
            drop(error.print());
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    // One library for all cryptography; it is already in place only if a test put it there.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match cli.command {
        Command::Probe(args) => on_one_thread(probe::run(args)),
        Command::Serve(args) => serve::main(*args),
    }
}

/// Runs a short-lived command.
fn on_one_thread(command: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            drop(writeln!(io::stderr(), "error: no runtime can be set up: {error}"));
            ExitCode::from(serve::EXIT_SYSTEM)
        }
    }
}
