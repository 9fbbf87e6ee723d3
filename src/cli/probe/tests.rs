//! Probes an admin listener and a KMS service in this process.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Parser;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use kms_plugin::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
    key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
};

use kms_plugin::cli::{EXIT_USAGE, OutputFormat, SEED_BYTES};

use super::*;
use crate::{
    observe::metrics::Metrics,
    server::{
        accept::{self, ServeOptions},
        limits::Limits,
        peer::AllowedPeers,
    },
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ProbeArgs,
}

fn parse(line: &str) -> Result<ProbeArgs, clap::Error> {
    Line::try_parse_from(format!("probe {line}").split_whitespace()).map(|line| line.args)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    WrongPlaintext,
    Hangs,
    None,
    RefusesDecrypt,
    Unhealthy,
    TwoKeyIds,
}

/// Encrypts by inverting every bit.
#[derive(Clone)]
struct Kms {
    fault: Fault,
    timeouts: Arc<Mutex<Vec<Option<String>>>>,
}

impl Kms {
    fn record_timeout<T>(&self, request: &Request<T>) {
        let sent = request.metadata().get("grpc-timeout");
        self.timeouts.lock().unwrap().push(sent.map(|sent| sent.to_str().unwrap().to_owned()));
    }
}

fn inverted(bytes: &Bytes) -> Bytes {
    bytes.iter().map(|byte| !byte).collect()
}

#[async_trait::async_trait]
impl KeyManagementService for Kms {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.record_timeout(&request);
        if self.fault == Fault::Hangs {
            std::future::pending::<()>().await;
        }
        let healthz = if self.fault == Fault::Unhealthy { "no token\u{1b}[2J" } else { "ok" };
        Ok(Response::new(StatusResponse {
            version: "v2".into(),
            healthz: healthz.into(),
            key_id: "tk1.a".into(),
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        self.record_timeout(&request);
        assert!(request.get_ref().uid.starts_with("transit-kms-probe-"));
        match self.fault {
            Fault::RefusesDecrypt => Err(Status::permission_denied("the policy lacks decrypt")),
            Fault::WrongPlaintext => {
                Ok(Response::new(DecryptResponse { plaintext: Bytes::from_static(b"?") }))
            }
            _ => Ok(Response::new(DecryptResponse { plaintext: inverted(&request.get_ref().ciphertext) })),
        }
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        self.record_timeout(&request);
        let key_id = if self.fault == Fault::TwoKeyIds { "tk1.b" } else { "tk1.a" };
        Ok(Response::new(EncryptResponse {
            ciphertext: inverted(&request.get_ref().plaintext),
            key_id: key_id.into(),
            ..EncryptResponse::default()
        }))
    }
}

struct Daemon {
    directory: TempDir,
    kms: Kms,
}

impl Daemon {
    fn start(fault: Fault) -> Self {
        Self::start_for(fault, AllowedPeers::default())
    }

    fn start_for(fault: Fault, peers: AllowedPeers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("kms.sock")).unwrap();
        let kms = Kms { fault, timeouts: Arc::default() };
        let settings = ServeOptions {
            grace: Duration::ZERO,
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
            peers,
        };
        let service = KeyManagementServiceServer::new(kms.clone());
        tokio::spawn(accept::serve(listener, service, settings, CancellationToken::new()));
        Self { directory, kms }
    }

    fn socket(&self) -> String {
        socket_in(self.directory.path())
    }

    async fn probe(&self, line: &str, input: &str) -> (Map<String, Value>, Result<(), CheckError>) {
        run_probe(&format!("{line} --socket {} -o json", self.socket()), input).await
    }
}

fn socket_in(directory: &Path) -> String {
    format!("unix://{}/kms.sock", directory.display())
}

async fn run_probe(line: &str, input: &str) -> (Map<String, Value>, Result<(), CheckError>) {
    let args = parse(line).unwrap();
    let (report, result) = probe(&args, &mut input.as_bytes()).await;
    let printed = report.print(OutputFormat::Json, "probe", args.command.name(), &result);
    assert_eq!(printed.lines().count(), 1);
    (serde_json::from_str(&printed).unwrap(), result)
}

#[test]
fn flags_have_the_defaults_of_serve_and_any_position() {
    let args = parse("status").unwrap();
    assert_eq!(args.socket.to_string(), "unix:///run/transit-kms/kms.sock");
    assert_eq!(args.admin.to_string(), "127.0.0.1:9797");
    assert_eq!(args.timeout(), Duration::from_secs(3));
    assert_eq!(parse("unused").unwrap().timeout(), Duration::from_secs(30));
    let args = parse("--timeout 500ms ready --admin unix:///a -o json").unwrap();
    assert_eq!(args.admin.to_string(), "unix:///a");
    assert_eq!((args.timeout(), args.output), (Duration::from_millis(500), OutputFormat::Json));
    for wrong in
        ["", "status --timeout 0s", "status --timeout soon", "status --socket 127.0.0.1:1", "decrypt"]
    {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_plaintext_is_not_printed() {
    let args = parse("encrypt --plaintext c2VudGluZWw=").unwrap();
    assert!(!format!("{args:?}").contains("c2VudGluZWw"), "{args:?}");
}

#[tokio::test]
async fn a_healthy_daemon() {
    let daemon = Daemon::start(Fault::None);
    let (status, result) = daemon.probe("status", "").await;
    assert_eq!(result, Ok(()));
    assert_eq!(status["probe"], "status");
    assert_eq!(status["ok"], true);
    assert_eq!((&status["healthz"], &status["key_id"]), (&"ok".into(), &"tk1.a".into()));
    assert!(status["latency_ms"].as_f64().unwrap() > 0.0);

    let (roundtrip, result) = daemon.probe("roundtrip", "").await;
    assert_eq!(result, Ok(()));
    for what in ["status_ms", "encrypt_ms", "decrypt_ms"] {
        assert!(roundtrip[what].is_f64(), "{roundtrip:?}");
    }
    // Each call sends the remaining time, as kube-apiserver does.
    for sent in daemon.kms.timeouts.lock().unwrap().iter() {
        let sent = sent.as_ref().expect("grpc-timeout is sent");
        assert!(sent.ends_with('n') || sent.ends_with('u'), "{sent}");
    }
}

#[tokio::test]
async fn encrypt_and_decrypt_print_no_plaintext_by_default() {
    let daemon = Daemon::start(Fault::None);
    let plaintext = STANDARD.encode("sentinel");
    for (flag, input) in [(plaintext.as_str(), ""), ("-", "c2VudGluZWw\n")] {
        let (encrypted, result) = daemon.probe(&format!("encrypt --plaintext {flag}"), input).await;
        assert_eq!(result, Ok(()));
        let ciphertext = encrypted["ciphertext"].as_str().unwrap().to_owned();
        assert_eq!(encrypted["key_id"], "tk1.a");
        assert!(!format!("{encrypted:?}").contains(&plaintext));

        let line = format!("decrypt --key-id tk1.a --ciphertext {ciphertext}");
        let (decrypted, result) = daemon.probe(&line, "").await;
        assert_eq!(result, Ok(()));
        assert_eq!(decrypted["length"], 8);
        assert_eq!(decrypted["sha256"], hex::encode(Sha256::digest("sentinel")));
        assert!(!decrypted.contains_key("plaintext"));
        let (decrypted, _) = daemon.probe(&format!("{line} --show-plaintext"), "").await;
        assert_eq!(decrypted["plaintext"], plaintext);
    }
    let (sample, result) = daemon.probe("encrypt", "").await;
    assert_eq!(result, Ok(()));
    assert_eq!(STANDARD.decode(sample["ciphertext"].as_str().unwrap()).unwrap().len(), SEED_BYTES);
}

#[tokio::test]
async fn a_failed_check_exits_with_1_and_the_reason() {
    for (fault, line, says) in [
        (Fault::Unhealthy, "status", "no token"),
        (Fault::Unhealthy, "roundtrip", "no token"),
        (Fault::TwoKeyIds, "roundtrip", "tk1.b"),
        (Fault::WrongPlaintext, "roundtrip", "another plaintext than"),
        (Fault::RefusesDecrypt, "roundtrip", "PermissionDenied: the policy lacks decrypt"),
        (Fault::RefusesDecrypt, "decrypt --key-id k --ciphertext YQ==", "PermissionDenied"),
    ] {
        let daemon = Daemon::start(fault);
        let (report, result) = daemon.probe(line, "").await;
        assert_eq!(result.unwrap_err().exit_code(), 1, "{fault:?}");
        assert_eq!(report["ok"], false);
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(says), "{fault:?}: {reason}");
    }
}

#[tokio::test]
async fn no_answer_exits_with_2_and_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let line = format!("status --socket {}", socket_in(directory.path()));
    let (report, result) = run_probe(&line, "").await;
    assert_eq!(result.unwrap_err().exit_code(), 2);
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("No such file") && reason.contains("serve"), "{reason}");

    let hangs = Daemon::start(Fault::Hangs);
    let (report, result) = hangs.probe("status --timeout 100ms", "").await;
    assert_eq!(result.unwrap_err().exit_code(), 2);
    assert!(report["reason"].as_str().unwrap().contains("within 100ms"), "{report:?}");

    let foreign = AllowedPeers::new([rustix::process::geteuid().as_raw() + 1]);
    let refuses = Daemon::start_for(Fault::None, foreign);
    let (report, result) = refuses.probe("status", "").await;
    assert_eq!(result.unwrap_err().exit_code(), 2);
    assert!(report["reason"].as_str().unwrap().contains("--allow-uid"), "{report:?}");
}

#[tokio::test]
async fn invalid_input_exits_with_64_without_a_request() {
    for (line, input) in [
        ("encrypt --plaintext !", ""),
        ("encrypt --plaintext -", "!"),
        ("decrypt --key-id k --ciphertext !", ""),
        ("decrypt --key-id k --ciphertext YQ== --annotation a.b=!", ""),
        ("decrypt --encrypted -", "{\"ciphertext\": \"!\", \"key_id\": \"k\"}"),
        (
            "decrypt --encrypted -",
            "{\"ciphertext\": \"YQ==\", \"key_id\": \"k\", \"annotations\": {\"a.b\": \"!\"}}",
        ),
    ] {
        let (report, result) = run_probe(&format!("{line} --socket unix:///nowhere/kms.sock"), input).await;
        assert_eq!(result.unwrap_err().exit_code(), EXIT_USAGE, "{line}");
        assert!(report["reason"].as_str().unwrap().contains("not base64"), "{report:?}");
    }
    let (_, result) = run_probe("encrypt --plaintext -", &"A".repeat(1024 * 1024 + 1)).await;
    assert_eq!(result.unwrap_err().exit_code(), EXIT_USAGE);
}

#[tokio::test]
async fn decrypt_accepts_single_values_or_the_output_of_encrypt() {
    for line in [
        "decrypt --key-id k",
        "decrypt --ciphertext YQ==",
        "decrypt --encrypted - --key-id k",
        "decrypt --encrypted - --annotation a.b=YQ==",
        "decrypt --annotation a.b=YQ==",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    for (line, input, says) in [
        ("decrypt --key-id k --ciphertext YQ== --annotation a.b", "", "NAME=BASE64"),
        ("decrypt --key-id k --ciphertext YQ== --annotation =YQ==", "", "NAME=BASE64"),
        ("decrypt --encrypted -", "sentinel", "not the output of `transit-kms probe encrypt -o json`"),
        ("decrypt --encrypted -", "{\"key_id\": \"sentinel\"}", "not the output of"),
        ("decrypt --encrypted /nowhere/answer.json", "", "/nowhere/answer.json cannot be read"),
    ] {
        let (report, result) = run_probe(&format!("{line} --socket unix:///nowhere/kms.sock"), input).await;
        assert_eq!(result.unwrap_err().exit_code(), EXIT_USAGE, "{line}");
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(says) && !reason.contains("sentinel"), "{reason}");
    }
}

/// Answers one request with `answer`, and returns the request.
async fn admin_that_answers(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    (address, asked)
}

#[tokio::test]
async fn live_and_ready_request_the_admin_listener() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
    let (address, asked) = admin_that_answers(ok).await;
    let (report, result) = run_probe(&format!("live --admin {address}"), "").await;
    assert_eq!(result, Ok(()));
    assert_eq!((&report["answer"], &report["status"]), (&"ok".into(), &200.into()));
    assert!(asked.await.unwrap().starts_with("GET /livez HTTP/1.1\r\n"));

    let not_yet = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 14\r\n\r\nno config yet\n";
    let (address, asked) = admin_that_answers(not_yet).await;
    let (_, result) = run_probe(&format!("ready --admin {address}"), "").await;
    assert_eq!(result, Err(CheckError::Failed("no config yet".into())));
    assert!(asked.await.unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));
    // The listener is closed now.
    let (report, result) = run_probe(&format!("ready --admin {address}"), "").await;
    assert_eq!(result.unwrap_err().exit_code(), 2);
    assert!(report["reason"].as_str().unwrap().contains("--admin-listen"), "{report:?}");
}

#[tokio::test]
async fn text_output_escapes_control_characters() {
    let daemon = Daemon::start(Fault::Unhealthy);
    let args = parse(&format!("status --socket {}", daemon.socket())).unwrap();
    let (report, result) = probe(&args, &mut io::empty()).await;
    let text = report.print(OutputFormat::Text, "probe", "status", &result);
    assert!(text.starts_with("healthz: no token\\u{1b}[2J\nkey_id: tk1.a\nversion: v2\nlatency: "), "{text}");
    assert!(text.ends_with(" ms\n"), "{text}");
}
