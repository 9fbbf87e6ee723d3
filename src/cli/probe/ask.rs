//! The asking itself, within one deadline.

use std::{fmt, time::Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use kms_plugin::{
    client::{self, ConnectError},
    v2::{
        DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
        key_management_service_client::KeyManagementServiceClient,
    },
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tonic::{Request, transport::Channel};
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

/// What kube-apiserver demands of a Status.
pub(super) fn healthy(status: &StatusResponse) -> Result<(), Verdict> {
    if status.healthz != "ok" {
        return Err(Verdict::Bad(status.healthz.clone()));
    }
    if status.version != "v2" {
        return Err(Verdict::Bad(format!("the version is \"{}\", not \"v2\"", status.version)));
    }
    if !(1..=1024).contains(&status.key_id.len()) {
        return Err(Verdict::Bad(format!("the key_id has {} bytes, not 1 to 1024", status.key_id.len())));
    }
    Ok(())
}

/// One client that asks one thing after the other, within one deadline.
pub(super) struct Asking<'a> {
    args: &'a ProbeArgs,
    client: KeyManagementServiceClient<Channel>,
    deadline: Instant,
    uid: String,
}

impl<'a> Asking<'a> {
    async fn new(args: &'a ProbeArgs) -> Result<Self, Verdict> {
        let deadline = Instant::now() + args.timeout();
        let client = client::connect(&args.socket).await.map_err(|error| match error {
            ConnectError::Closed(error) => closed(args, &root_cause(&error)),
            ConnectError::Unreachable(cause) => Verdict::Silence(format!(
                "cannot ask {}: {cause}; is `transit-kms serve` running, with this --listen?",
                args.socket
            )),
        })?;
        Ok(Self { args, client, deadline, uid: uid() })
    }

    async fn decrypt(&mut self, sealed: &EncryptResponse) -> Result<Plaintext, Verdict> {
        let EncryptResponse { annotations, ciphertext, key_id } = sealed.clone();
        let request = self.timed(DecryptRequest { ciphertext, uid: self.uid.clone(), key_id, annotations });
        let answer = self.client.decrypt(request).await.map_err(|status| fault(self.args, &status))?;
        Ok(Plaintext(answer.into_inner().plaintext))
    }

    async fn encrypt(&mut self, plaintext: Plaintext) -> Result<EncryptResponse, Verdict> {
        let request = self.timed(EncryptRequest { plaintext: plaintext.0, uid: self.uid.clone() });
        let answer = self.client.encrypt(request).await.map_err(|status| fault(self.args, &status))?;
        Ok(answer.into_inner())
    }

    async fn status(&mut self) -> Result<StatusResponse, Verdict> {
        let request = self.timed(StatusRequest {});
        let answer = self.client.status(request).await.map_err(|status| fault(self.args, &status))?;
        Ok(answer.into_inner())
    }

    /// With `grpc-timeout`, as kube-apiserver sends it.
    fn timed<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        request
    }
}

pub(super) fn fault(args: &ProbeArgs, status: &tonic::Status) -> Verdict {
    use std::error::Error;
    // What the server answered has no source; what went wrong on the way has one.
    match status.source() {
        None => Verdict::Bad(format!("{:?}: {}", status.code(), status.message())),
        Some(error) if is_timeout(error) => late(args),
        Some(error) => closed(args, &root_cause(error)),
    }
}

pub(super) fn closed(args: &ProbeArgs, cause: &str) -> Verdict {
    Verdict::Silence(format!(
        "{} closed the connection ({cause}); does it allow uid {} (--allow-uid)?",
        args.socket,
        rustix::process::geteuid().as_raw()
    ))
}

pub(super) fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        next = error.source();
    }
    false
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
