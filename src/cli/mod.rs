//! The command line, with one file for each subcommand.

mod admin_client;
mod exit;
pub mod keygen;
pub mod probe;
pub mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use tokio::runtime;

pub use self::exit::Exit;

/// Encrypts the Secrets of a Kubernetes cluster with a Transit key in HashiCorp Vault or OpenBao.
///
/// transit-kms is a KMS v2 plugin. It runs beside kube-apiserver and forwards Encrypt and Decrypt calls:
///
/// kube-apiserver --(KMS v2, unix socket)--> transit-kms --(HTTPS)--> Transit
#[derive(Debug, Parser)]
#[command(name = "transit-kms", version, max_term_width = 110)]
#[command(after_help = exit::after_help(
    &[Exit::Success, Exit::CheckFailed, Exit::NoAnswer, Exit::Usage, Exit::System, Exit::CannotCreate],
    "`transit-kms serve --help`, `transit-kms probe --help` and `transit-kms keygen --help` have the details.",
))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keygen(keygen::KeygenArgs),
    Probe(probe::ProbeArgs),
    Serve(Box<serve::ServeArgs>),
}

/// Runs the subcommand that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only if the output is closed; the exit code is still right.
            drop(error.print());
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    // aws-lc-rs does all cryptography. Installing it fails only if a test has done so before.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match cli.command {
        Command::Keygen(args) => keygen::main(&args),
        Command::Probe(args) => run_on_one_thread(probe::run(args)),
        Command::Serve(args) => serve::main(*args),
    }
}

/// Runs a command that ends soon.
fn run_on_one_thread(command: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            drop(writeln!(io::stderr(), "error: cannot set up the async runtime: {error}"));
            Exit::System.into()
        }
    }
}
