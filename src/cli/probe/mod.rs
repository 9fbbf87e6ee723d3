//! `transit-kms probe`: asks a running daemon, for people and for exec probes.
//!
//! Exit codes: 0 if all is well, 1 if the answer says that it is not, 2 if
//! there was no answer, 64 for bad input. On standard output comes what was
//! learnt, on standard error why it is not well.

mod cluster;
mod input;
mod kms;
mod metrics_page;
mod report;
mod unused;

use std::{
    convert::Infallible,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use secrecy::SecretString;
use tokio::time::timeout;

use self::{
    input::Prepared,
    report::{Output, Report, Verdict, visible},
    unused::UnusedArgs,
};
use kms_plugin::address::{ListenAddress, UnixAddress};

/// Asks a running daemon, as kube-apiserver or an exec probe would.
///
/// `status`, `encrypt`, `decrypt` and `roundtrip` speak KMS v2 to --socket; `ready` and `live` ask --admin; `unused`
/// asks the API servers themselves.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Exit codes: 0 all is well, 1 the answer says that it is not, 2 there was no answer, 64 bad input.\n\n\
Examples:\n  transit-kms probe roundtrip\n  transit-kms probe ready --admin unix:///run/transit-kms/admin.sock -o json")]
pub struct ProbeArgs {
    #[command(subcommand)]
    ask: Ask,

    /// The admin listener that `ready` and `live` ask: host:port or unix:///path
    #[arg(
        long,
        global = true,
        env = "TRANSIT_KMS_ADMIN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9797"
    )]
    admin: ListenAddress,

    /// How the answer is printed
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,

    /// The KMS socket that the others ask: unix:///path or unix:///@name
    #[arg(
        long,
        global = true,
        env = "TRANSIT_KMS_SOCKET",
        value_name = "ADDRESS",
        default_value = "unix:///run/transit-kms/kms.sock"
    )]
    socket: UnixAddress,

    /// How long all of it may take [default: 3s, as kube-apiserver waits; 30s for `unused`]
    #[arg(long, global = true, value_name = "DURATION", value_parser = patience)]
    timeout: Option<Duration>,
}

impl ProbeArgs {
    fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(match self.ask {
            // The metrics of several API servers, which may be large.
            Ask::Unused(_) => Duration::from_secs(30),
            _ => Duration::from_secs(3),
        })
    }
}

#[derive(Clone, Debug, Subcommand)]
enum Ask {
    /// Decrypts what Encrypt answered with
    ///
    /// `probe encrypt` prints the whole command line that decrypts its answer, or with `-o json` what --encrypted takes:
    /// `transit-kms probe encrypt -o json | transit-kms probe decrypt --encrypted -`
    Decrypt {
        /// An annotation that came with the ciphertext, its value in base64; once for each. Values of mode `local-kek` have
        /// them
        #[arg(long, value_name = "NAME=BASE64", requires = "ciphertext")]
        annotation: Vec<String>,

        /// Base64, or as etcd holds it (vault:v1:...); - reads standard input
        #[arg(long, value_name = "BASE64", requires = "key_id", required_unless_present = "encrypted")]
        ciphertext: Option<String>,

        /// What `probe encrypt -o json` printed, instead of the other three: a file, or - for standard input
        #[arg(long, value_name = "PATH", conflicts_with_all = ["annotation", "ciphertext", "key_id"])]
        encrypted: Option<PathBuf>,

        /// The key_id that came with the ciphertext
        #[arg(long, value_name = "KEY_ID", required_unless_present = "encrypted")]
        key_id: Option<String>,

        /// Prints the plaintext in base64, not only its length and hash
        #[arg(long)]
        show_plaintext: bool,
    },

    /// Encrypts 32 random bytes, or what is given
    Encrypt {
        /// Base64; other processes can read it here, so prefer -, which reads standard input
        #[arg(long, value_name = "BASE64", value_parser = secret)]
        plaintext: Option<SecretString>,
    },

    /// Whether the process works (/livez)
    Live,

    /// Whether Status is ok, and if not, why (/readyz)
    Ready,

    /// Status, then Encrypt and Decrypt of 32 random bytes
    Roundtrip,

    /// What kube-apiserver is told when it asks for the health
    Status,

    /// Whether no kube-apiserver asks this plugin any more; for a pod that is about to take it away
    ///
    /// Looks on /metrics of each API server for when it last had Status from a KMS v2 plugin. Needs a service account
    /// that may `get` the nonResourceURL /metrics and, to find all API servers, `list` the EndpointSlices of
    /// the namespace `default`. What cannot be told is "no" (exit code 1 or 2): a list that is refused or not complete, a
    /// server that does not answer, a provider that may be this plugin. KMS v1 leaves no such trace: it is not
    /// looked for. An API server that is stopped is not listed: see yourself that its configuration does not name this
    /// plugin.
    Unused(UnusedArgs),
}

fn patience(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than nothing".into()),
        Ok(patience) => Ok(patience),
        Err(error) => Err(format!("{error}; write for example 3s or 500ms")),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap's parsers can fail")]
fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(SecretString::from(text))
}

/// Asks, prints, and says by its exit code how it went.
pub async fn run(args: ProbeArgs) -> ExitCode {
    let (report, verdict) = probe(&args, &mut io::stdin()).await;
    let printed = report.print(args.output, args.ask.name(), &verdict);
    // Whoever closed the pipe does not want to read; the exit code still counts.
    drop(io::stdout().lock().write_all(printed.as_bytes()));
    if let Some(reason) = verdict.reason() {
        drop(writeln!(io::stderr().lock(), "{}", visible(reason)));
    }
    verdict.exit_code().into()
}

impl Ask {
    const fn name(&self) -> &'static str {
        match self {
            Self::Decrypt { .. } => "decrypt",
            Self::Encrypt { .. } => "encrypt",
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Roundtrip => "roundtrip",
            Self::Status => "status",
            Self::Unused(_) => "unused",
        }
    }
}

async fn probe(args: &ProbeArgs, input: &mut impl Read) -> (Report, Verdict) {
    let mut report = Report::default();
    let prepared = match Prepared::new(&args.ask, input) {
        Ok(prepared) => prepared,
        Err(reason) => return (report, Verdict::Input(reason)),
    };
    let asked = async {
        match prepared {
            Prepared::Admin(path) => kms::admin(args, path, &mut report).await,
            Prepared::Kms(call) => kms::kms(args, call, &mut report).await,
            Prepared::Unused(unused) => unused::unused(args, &unused, &mut report).await,
        }
    };
    let verdict = match timeout(args.timeout(), asked).await {
        Ok(Ok(())) => Verdict::Good,
        Ok(Err(verdict)) => verdict,
        Err(_) => kms::late(args),
    };
    (report, verdict)
}

#[cfg(test)]
mod tests;
