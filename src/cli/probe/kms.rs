//! The asking itself, within one deadline.

use std::{fmt, time::Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use kms_plugin::{
    client::{CallError, Client, ConnectError},
    v2::{EncryptResponse, StatusResponse},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use transit_client::text::root_cause;

use super::{
    Ask, ProbeArgs,
    input::{Call, Plaintext},
    report::{Report, Verdict},
};
use crate::cli::admin_client;

pub(super) async fn admin(args: &ProbeArgs, path: &str, report: &mut Report) -> Result<(), Verdict> {
    let start = Instant::now();
    let (status, text) = admin_client::get(&args.admin, path).await.map_err(|error| {
        Verdict::Silence(format!(
            "cannot ask {}: {error}; is `transit-kms serve` running, with this --admin-listen?",
            args.admin
        ))
    })?;
    let text = text.trim();
    report.learn("answer", text);
    report.learn("status", status.as_u16());
    report.took("latency_ms", start);
    if status.is_success() { Ok(()) } else { Err(Verdict::Bad(text.to_owned())) }
}

/// The key_id that Status has, well or not.
pub(super) async fn key_id(args: &ProbeArgs) -> Result<String, Verdict> {
    let mut asking = Asking::new(args).await?;
    asking.status().await.map(|status| status.key_id)
}

pub(super) async fn kms(args: &ProbeArgs, call: Call, report: &mut Report) -> Result<(), Verdict> {
    let mut asking = Asking::new(args).await?;
    match call {
        Call::Decrypt { encrypted, show_plaintext } => {
            let start = Instant::now();
            let plaintext = asking.decrypt(&encrypted).await?;
            report.learn("length", plaintext.0.len());
            report.learn("sha256", hex::encode(Sha256::digest(&plaintext.0)));
            if show_plaintext {
                report.learn("plaintext", STANDARD.encode(&plaintext.0));
            }
            report.took("latency_ms", start);
        }
        Call::Encrypt(plaintext) => {
            let start = Instant::now();
            let answer = asking.encrypt(plaintext).await?;
            report.next_step(decrypt_line(args, &answer));
            report.learn("ciphertext", STANDARD.encode(&answer.ciphertext));
            report.learn("key_id", answer.key_id);
            let annotations: Map<String, Value> = answer
                .annotations
                .iter()
                .map(|(name, value)| (name.clone(), STANDARD.encode(value).into()))
                .collect();
            if !annotations.is_empty() {
                report.learn("annotations", annotations);
            }
            report.took("latency_ms", start);
        }
        Call::Roundtrip => roundtrip(&mut asking, report).await?,
        Call::Status => {
            let start = Instant::now();
            let status = asking.status().await?;
            learn_status(&status, report);
            report.took("latency_ms", start);
            healthy(&status)?;
        }
    }
    Ok(())
}

pub(super) async fn roundtrip(asking: &mut Asking<'_>, report: &mut Report) -> Result<(), Verdict> {
    let sample = Plaintext::random();
    let start = Instant::now();
    let status = asking.status().await?;
    learn_status(&status, report);
    report.took("status_ms", start);
    healthy(&status)?;

    let start = Instant::now();
    let sealed = asking.encrypt(sample.clone()).await?;
    report.took("encrypt_ms", start);
    if sealed.key_id != status.key_id {
        // A rotation may lie between the two; then they agree when asked again.
        let again = asking.status().await?;
        if sealed.key_id != again.key_id {
            return Err(Verdict::Bad(format!(
                "Encrypt answers with key_id {} and Status with {}: kube-apiserver would throw the answer away",
                sealed.key_id, again.key_id
            )));
        }
    }

    let start = Instant::now();
    let opened = asking.decrypt(&sealed).await?;
    report.took("decrypt_ms", start);
    if opened.0 == sample.0 {
        Ok(())
    } else {
        Err(Verdict::Bad("Decrypt answers with something other than what was encrypted".into()))
    }
}

pub(super) fn learn_status(status: &StatusResponse, report: &mut Report) {
    report.learn("healthz", status.healthz.as_str());
    report.learn("key_id", status.key_id.as_str());
    report.learn("version", status.version.as_str());
}

/// What kube-apiserver requires of a Status.
pub(super) fn healthy(status: &StatusResponse) -> Result<(), Verdict> {
    status.check().map_err(|error| Verdict::Bad(error.to_string()))
}

/// A client whose errors are verdicts.
pub(super) struct Asking<'a> {
    args: &'a ProbeArgs,
    client: Client,
}

impl<'a> Asking<'a> {
    async fn new(args: &'a ProbeArgs) -> Result<Self, Verdict> {
        let client =
            Client::connect(&args.socket, args.timeout(), uid()).await.map_err(|error| match error {
                ConnectError::Closed(error) => closed(args, &root_cause(&error)),
                ConnectError::Unreachable(cause) => Verdict::Silence(format!(
                    "cannot ask {}: {cause}; is `transit-kms serve` running, with this --listen?",
                    args.socket
                )),
            })?;
        Ok(Self { args, client })
    }

    async fn decrypt(&mut self, sealed: &EncryptResponse) -> Result<Plaintext, Verdict> {
        self.client.decrypt(sealed).await.map(Plaintext).map_err(|error| verdict(self.args, error))
    }

    async fn encrypt(&mut self, plaintext: Plaintext) -> Result<EncryptResponse, Verdict> {
        self.client.encrypt(plaintext.0).await.map_err(|error| verdict(self.args, error))
    }

    async fn status(&mut self) -> Result<StatusResponse, Verdict> {
        self.client.status().await.map_err(|error| verdict(self.args, error))
    }
}

fn verdict(args: &ProbeArgs, error: CallError) -> Verdict {
    match error {
        CallError::Disconnected(status) => closed(args, &root_cause(&status)),
        CallError::Rejected(_) => Verdict::Bad(error.to_string()),
        CallError::TimedOut => late(args),
    }
}

pub(super) fn closed(args: &ProbeArgs, cause: &str) -> Verdict {
    Verdict::Silence(format!(
        "{} closed the connection ({cause}); does it allow uid {} (--allow-uid)?",
        args.socket,
        rustix::process::geteuid().as_raw()
    ))
}

pub(super) fn late(args: &ProbeArgs) -> Verdict {
    let asked: &dyn fmt::Display = match args.ask {
        Ask::Live | Ask::Ready => &args.admin,
        Ask::Unused(_) => &"the plugin or an API server",
        _ => &args.socket,
    };
    Verdict::Silence(format!(
        "no answer from {asked} within {} (--timeout)",
        humantime::format_duration(args.timeout())
    ))
}

/// The command line that decrypts this.
fn decrypt_line(args: &ProbeArgs, sealed: &EncryptResponse) -> String {
    let mut words = vec!["transit-kms".to_owned(), "probe".into(), "decrypt".into()];
    words.push(format!("--socket={}", args.socket));
    words.push(format!("--key-id={}", sealed.key_id));
    words.push(format!("--ciphertext={}", STANDARD.encode(&sealed.ciphertext)));
    let mut annotations: Vec<_> = sealed.annotations.iter().collect();
    annotations.sort();
    words.extend(
        annotations.iter().map(|(name, value)| format!("--annotation={name}={}", STANDARD.encode(value))),
    );
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// As a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_=+/.:@".contains(char);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Names this probe in the logs of the daemon and of Vault.
pub(super) fn uid() -> String {
    format!("transit-kms-probe-{:016x}", rand::random::<u64>())
}
