//! The command line, with one file for each subcommand.

mod admin_client;
pub mod convert;
mod exit;
pub mod keygen;
pub mod probe;
pub mod serve;
mod vault_kube_kms;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use tokio::runtime;

pub use self::exit::Exit;
use crate::{config::ConfigSource, observe::build};

/// Encrypts the Secrets of a Kubernetes cluster with a Transit key in HashiCorp Vault or OpenBao.
///
/// transit-kms is a KMS v2 plugin. It runs beside kube-apiserver and forwards Encrypt and Decrypt calls:
///
/// kube-apiserver --(KMS v2, unix socket)--> transit-kms --(HTTPS)--> Transit
#[derive(Debug, Parser)]
#[command(name = "transit-kms", version = VERSION.as_str(), max_term_width = 110)]
#[command(after_help = exit::after_help(
    &[Exit::Success, Exit::CheckFailed, Exit::NoAnswer, Exit::Usage, Exit::System, Exit::CannotCreate],
    "`transit-kms serve --help`, `transit-kms probe --help` and `transit-kms keygen --help` have the details.\n\
     `transit-kms -vault-address=...` starts with the flags of vault-kube-kms; see `transit-kms convert --help`.",
))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::ConvertArgs),
    Keygen(keygen::KeygenArgs),
    Probe(probe::ProbeArgs),
    Serve(Box<serve::ServeArgs>),
    /// Prints the version of transit-kms and its optional features
    Version,
}

/// What follows the name of the program in the answer to `version` and `--version`.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}\nfeatures: {}", build::VERSION, build::features(", ")));

/// Runs the subcommand that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if vault_kube_kms::is_called(&arguments) {
        return match vault_kube_kms::translate_to_serve(&arguments) {
            Ok(translation) => {
                let serve = ["transit-kms", "serve"].into_iter().map(str::to_owned);
                run(serve.chain(translation.serve_flags.iter().cloned()), Some(translation.config()))
            }
            Err(error) => convert::refuse(&error),
        };
    }
    run(env::args_os(), None)
}

/// Runs a command line. `config` replaces the config file of `serve`.
fn run(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    config: Option<ConfigSource>,
) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
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
        Command::Convert(args) => convert::main(&args),
        Command::Keygen(args) => keygen::main(&args),
        Command::Probe(args) => run_on_one_thread(probe::run(args)),
        Command::Serve(args) => serve::main(*args, config),
        Command::Version => {
            drop(writeln!(io::stdout(), "transit-kms {}", *VERSION));
            Exit::Success.into()
        }
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
