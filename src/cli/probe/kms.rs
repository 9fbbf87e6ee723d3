//! The checks `status`, `encrypt`, `decrypt` and `roundtrip`.

use std::time::Instant;

use base64::{Engine, engine::general_purpose::STANDARD};
use kms_plugin::{
    client::{CallError, Client, ConnectError},
    v2::{EncryptResponse, StatusResponse},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use transit_client::text::root_cause;

use super::{
    args::ProbeArgs,
    input::{KmsCall, Plaintext},
    report::{ProbeError, Report},
    timed_out,
};

/// Makes one or more KMS calls.
pub(super) async fn check(args: &ProbeArgs, call: KmsCall, report: &mut Report) -> Result<(), ProbeError> {
    let mut plugin = Plugin::connect(args).await?;
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
            report.set_decrypt_command(decrypt_command(args, &encrypted));
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
pub(super) async fn key_id(args: &ProbeArgs) -> Result<String, ProbeError> {
    let mut plugin = Plugin::connect(args).await?;
    plugin.status().await.map(|status| status.key_id)
}

async fn roundtrip(plugin: &mut Plugin<'_>, report: &mut Report) -> Result<(), ProbeError> {
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
            return Err(ProbeError::Failed(format!(
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
        Err(ProbeError::Failed("Decrypt returned another plaintext than the one that was encrypted".into()))
    }
}

fn add_status(status: &StatusResponse, report: &mut Report) {
    report.add("healthz", status.healthz.as_str());
    report.add("key_id", status.key_id.as_str());
    report.add("version", status.version.as_str());
}

/// Checks what kube-apiserver requires of a Status.
fn check_status(status: &StatusResponse) -> Result<(), ProbeError> {
    status.check().map_err(|error| ProbeError::Failed(error.to_string()))
}

/// A connection to the plugin, with errors for the operator.
struct Plugin<'a> {
    args: &'a ProbeArgs,
    client: Client,
}

impl<'a> Plugin<'a> {
    async fn connect(args: &'a ProbeArgs) -> Result<Self, ProbeError> {
        let client =
            Client::connect(&args.socket, args.timeout(), uid()).await.map_err(|error| match error {
                ConnectError::Closed(error) => disconnected(args, &root_cause(&error)),
                ConnectError::Unreachable(error) => ProbeError::NoAnswer(format!(
                    "cannot connect to {}: {error}; does `transit-kms serve` run with this --listen?",
                    args.socket
                )),
            })?;
        Ok(Self { args, client })
    }

    async fn decrypt(&mut self, encrypted: &EncryptResponse) -> Result<Plaintext, ProbeError> {
        self.client.decrypt(encrypted).await.map(Plaintext).map_err(|error| call_failed(self.args, error))
    }

    async fn encrypt(&mut self, plaintext: Plaintext) -> Result<EncryptResponse, ProbeError> {
        self.client.encrypt(plaintext.0).await.map_err(|error| call_failed(self.args, error))
    }

    async fn status(&mut self) -> Result<StatusResponse, ProbeError> {
        self.client.status().await.map_err(|error| call_failed(self.args, error))
    }
}

fn call_failed(args: &ProbeArgs, error: CallError) -> ProbeError {
    match error {
        CallError::Disconnected(status) => disconnected(args, &root_cause(&status)),
        CallError::Rejected(_) => ProbeError::Failed(error.to_string()),
        CallError::TimedOut => timed_out(args),
    }
}

fn disconnected(args: &ProbeArgs, cause: &str) -> ProbeError {
    ProbeError::NoAnswer(format!(
        "{} closed the connection ({cause}); does it allow uid {} (--allow-uid)?",
        args.socket,
        rustix::process::geteuid().as_raw()
    ))
}

/// Returns the command that decrypts the answer of an Encrypt.
fn decrypt_command(args: &ProbeArgs, encrypted: &EncryptResponse) -> String {
    let mut words = vec!["transit-kms".to_owned(), "probe".into(), "decrypt".into()];
    words.push(format!("--socket={}", args.socket));
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

/// Returns a uid that identifies this probe in the logs of the daemon and of Vault.
fn uid() -> String {
    format!("transit-kms-probe-{:016x}", rand::random::<u64>())
}
