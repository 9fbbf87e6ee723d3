//! The checks `status`, `encrypt`, `decrypt` and `roundtrip`.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use error_text::root_cause;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    input::{KmsCall, Plaintext},
    report::{CheckError, Report},
};
use crate::{
    address::UnixAddress,
    client::{CallError, Client, ConnectError},
    v2::{EncryptResponse, StatusResponse},
};

/// The plugin to call, and how the caller names itself.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The command that the operator runs, such as `transit-kms probe`.
    pub command: &'static str,
    /// The end of the error if no process accepts connections: a semicolon and a question.
    pub hint: &'static str,
    /// The socket of the plugin.
    pub socket: &'a UnixAddress,
    /// The maximum duration of all calls together.
    pub timeout: Duration,
    /// The beginning of the uid in the logs of the plugin and of Vault.
    pub uid_prefix: &'static str,
}

impl Target<'_> {
    /// Returns the error of a check of `asked` that takes too long.
    #[must_use]
    pub fn timed_out(&self, asked: &dyn Display) -> CheckError {
        let limit = humantime::format_duration(self.timeout);
        CheckError::NoAnswer(format!("no answer from {asked} within {limit} (--timeout)"))
    }

    fn uid(&self) -> String {
        format!("{}{:016x}", self.uid_prefix, rand::random::<u64>())
    }
}

/// Makes the calls of a check.
///
/// # Errors
/// See [`CheckError`].
pub async fn check(target: &Target<'_>, call: KmsCall, report: &mut Report) -> Result<(), CheckError> {
    let mut plugin = Plugin::connect(target).await?;
    match call {
        KmsCall::Decrypt { encrypted, show_plaintext } => {
            let start = Instant::now();
            let plaintext = plugin.decrypt(&encrypted).await?;
            report.add("length", plaintext.0.len());
            report.add("sha256", hex::encode(Sha256::digest(&plaintext.0)));
            if show_plaintext {
                report.add("plaintext", STANDARD.encode(&plaintext.0));
            }
            report.add_elapsed("latency_ms", start);
        }
        KmsCall::Encrypt(plaintext) => {
            let start = Instant::now();
            let encrypted = plugin.encrypt(plaintext).await?;
            report.set_decrypt_command(decrypt_command(target, &encrypted));
            report.add("ciphertext", STANDARD.encode(&encrypted.ciphertext));
            report.add("key_id", encrypted.key_id);
            let annotations: Map<String, Value> = encrypted
                .annotations
                .iter()
                .map(|(name, value)| (name.clone(), STANDARD.encode(value).into()))
                .collect();
            if !annotations.is_empty() {
                report.add("annotations", annotations);
            }
            report.add_elapsed("latency_ms", start);
        }
        KmsCall::Roundtrip => roundtrip(&mut plugin, report).await?,
        KmsCall::Status => {
            let start = Instant::now();
            let status = plugin.status().await?;
            add_status(&status, report);
            report.add_elapsed("latency_ms", start);
            check_status(&status)?;
        }
    }
    Ok(())
}

/// Returns the key_id of Status, also if the plugin is unhealthy.
///
/// # Errors
/// See [`CheckError`].
pub async fn key_id(target: &Target<'_>) -> Result<String, CheckError> {
    let mut plugin = Plugin::connect(target).await?;
    plugin.status().await.map(|status| status.key_id)
}

async fn roundtrip(plugin: &mut Plugin<'_>, report: &mut Report) -> Result<(), CheckError> {
    let plaintext = Plaintext::random();
    let start = Instant::now();
    let status = plugin.status().await?;
    add_status(&status, report);
    report.add_elapsed("status_ms", start);
    check_status(&status)?;

    let start = Instant::now();
    let encrypted = plugin.encrypt(plaintext.clone()).await?;
    report.add_elapsed("encrypt_ms", start);
    if encrypted.key_id != status.key_id {
        // The key may have been rotated between the two calls. A second Status then returns the same key_id.
        let again = plugin.status().await?;
        if encrypted.key_id != again.key_id {
            return Err(CheckError::Failed(format!(
                "Encrypt returned the key_id {} and Status returned {}: kube-apiserver rejects such an answer",
                encrypted.key_id, again.key_id
            )));
        }
    }

    let start = Instant::now();
    let decrypted = plugin.decrypt(&encrypted).await?;
    report.add_elapsed("decrypt_ms", start);
    if decrypted.0 == plaintext.0 {
        Ok(())
    } else {
        Err(CheckError::Failed("Decrypt returned another plaintext than the one that was encrypted".into()))
    }
}

fn add_status(status: &StatusResponse, report: &mut Report) {
    report.add("healthz", status.healthz.as_str());
    report.add("key_id", status.key_id.as_str());
    report.add("version", status.version.as_str());
}

/// Checks what kube-apiserver requires of a Status.
fn check_status(status: &StatusResponse) -> Result<(), CheckError> {
    status.check().map_err(|error| CheckError::Failed(error.to_string()))
}

/// A connection to the plugin, with errors for the operator.
struct Plugin<'a> {
    target: &'a Target<'a>,
    client: Client,
}

impl<'a> Plugin<'a> {
    async fn connect(target: &'a Target<'a>) -> Result<Self, CheckError> {
        let client =
            Client::connect(target.socket, target.timeout, target.uid()).await.map_err(
                |error| match error {
                    ConnectError::Closed(error) => disconnected(target, &root_cause(&error)),
                    ConnectError::Unreachable(error) => CheckError::NoAnswer(format!(
                        "cannot connect to {}: {error}{}",
                        target.socket, target.hint
                    )),
                },
            )?;
        Ok(Self { target, client })
    }

    async fn decrypt(&mut self, encrypted: &EncryptResponse) -> Result<Plaintext, CheckError> {
        self.client.decrypt(encrypted).await.map(Plaintext).map_err(|error| call_failed(self.target, error))
    }

    async fn encrypt(&mut self, plaintext: Plaintext) -> Result<EncryptResponse, CheckError> {
        self.client.encrypt(plaintext.0).await.map_err(|error| call_failed(self.target, error))
    }

    async fn status(&mut self) -> Result<StatusResponse, CheckError> {
        self.client.status().await.map_err(|error| call_failed(self.target, error))
    }
}

fn call_failed(target: &Target<'_>, error: CallError) -> CheckError {
    match error {
        CallError::Disconnected(status) => disconnected(target, &root_cause(&status)),
        CallError::Rejected(_) => CheckError::Failed(error.to_string()),
        CallError::TimedOut => target.timed_out(target.socket),
    }
}

fn disconnected(target: &Target<'_>, cause: &str) -> CheckError {
    CheckError::NoAnswer(format!(
        "{} closed the connection ({cause}); does it allow uid {} (--allow-uid)?",
        target.socket,
        rustix::process::geteuid().as_raw()
    ))
}

/// Returns the command that decrypts the answer of an Encrypt.
fn decrypt_command(target: &Target<'_>, encrypted: &EncryptResponse) -> String {
    let mut words: Vec<String> = target.command.split(' ').map(str::to_owned).collect();
    words.push("decrypt".into());
    words.push(format!("--socket={}", target.socket));
    words.push(format!("--key-id={}", encrypted.key_id));
    words.push(format!("--ciphertext={}", STANDARD.encode(&encrypted.ciphertext)));
    let mut annotations: Vec<_> = encrypted.annotations.iter().collect();
    annotations.sort();
    words.extend(
        annotations.iter().map(|(name, value)| format!("--annotation={name}={}", STANDARD.encode(value))),
    );
    words.iter().map(|word| shell_quoted(word)).collect::<Vec<_>>().join(" ")
}

fn shell_quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_=+/.:@".contains(char);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
