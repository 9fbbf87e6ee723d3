//! Commands that call a KMS v2 plugin as kube-apiserver does.
//!
//! The daemon's `transit-kms probe` and the operator's `transit-kmsctl plugin` share them. Exit codes: 0 if the check
//! passed, 1 if it failed, 2 if there was no answer, 64 if an argument or the input is invalid.

mod check;
mod input;
mod report;

use std::{convert::Infallible, path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum};
use secrecy::SecretString;

pub use self::{
    check::{Target, check, key_id},
    input::{KmsCall, SEED_BYTES},
    report::{CheckError, EXIT_CHECK_FAILED, EXIT_NO_ANSWER, EXIT_USAGE, Report},
};

/// The exit codes of each check, for its help.
const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   the check failed; standard error has the reason
  2   there was no answer
  64  a flag, argument or input is not valid";

/// The check to make.
#[derive(Clone, Debug, Subcommand)]
pub enum PluginCommand {
    /// Decrypts a ciphertext of `encrypt` or from etcd
    ///
    /// Prints the length and the SHA-256 hash of the plaintext. The text output of `encrypt` contains the command that
    /// decrypts its ciphertext. With `-o json`, its output can be passed to --encrypted: `... encrypt -o json | ... decrypt
    /// --encrypted -`.
    #[command(after_help = EXIT_CODES)]
    Decrypt {
        /// An annotation of the ciphertext, with its value in base64. Can be given several times. Ciphertexts of the mode
        /// `local-kek` have annotations
        #[arg(long, value_name = "NAME=BASE64", requires = "ciphertext")]
        annotation: Vec<String>,

        /// The ciphertext, in base64 or as in etcd (vault:v1:...). With -, it is read from standard input
        #[arg(long, value_name = "BASE64", requires = "key_id", required_unless_present = "encrypted")]
        ciphertext: Option<String>,

        /// The output of `encrypt -o json`, instead of the other three arguments: a file, or - for standard input
        #[arg(long, value_name = "PATH", conflicts_with_all = ["annotation", "ciphertext", "key_id"])]
        encrypted: Option<PathBuf>,

        /// The key_id of the ciphertext
        #[arg(long, value_name = "KEY_ID", required_unless_present = "encrypted")]
        key_id: Option<String>,

        /// Print the plaintext too, in base64
        #[arg(long)]
        show_plaintext: bool,
    },

    /// Encrypts 32 random bytes, or the given plaintext
    ///
    /// Prints the ciphertext, the key_id, the annotations, and the command that decrypts the ciphertext.
    #[command(after_help = EXIT_CODES)]
    Encrypt {
        /// The plaintext in base64. With -, it is read from standard input, which other processes cannot see
        #[arg(long, value_name = "BASE64", value_parser = parse_secret)]
        plaintext: Option<SecretString>,
    },

    /// Calls Status, encrypts 32 random bytes and decrypts them again
    #[command(after_help = EXIT_CODES)]
    Roundtrip,

    /// Calls Status, as kube-apiserver does every minute
    #[command(after_help = EXIT_CODES)]
    Status,
}

impl PluginCommand {
    /// Returns the name on the command line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Decrypt { .. } => "decrypt",
            Self::Encrypt { .. } => "encrypt",
            Self::Roundtrip => "roundtrip",
            Self::Status => "status",
        }
    }
}

/// The format of standard output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OutputFormat {
    /// One JSON object
    Json,
    /// One line for each value
    Text,
}

/// Parses a timeout such as `3s`.
///
/// # Errors
/// If `text` is not a duration, or 0.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".into()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{error}; write for example 3s or 500ms")),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap's parsers can fail")]
fn parse_secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}
