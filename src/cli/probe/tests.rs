//! The probe against an admin listener and a KMS service in this process.

use std::{
    path::Path,
    sync::{Arc, Mutex},
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

use super::{input::*, report::*, *};
use crate::{
    cli::EXIT_USAGE,
    observe::metrics::Metrics,
    server::{
        accept::{self, Limits, Settings},
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
    ForgetsWhatItWas,
    Hangs,
    None,
    RefusesDecrypt,
    Sick,
    SpeaksTwoKeyIds,
}

/// Seals by turning every bit.
#[derive(Clone)]
struct Kms {
    fault: Fault,
    timeouts: Arc<Mutex<Vec<Option<String>>>>,
}

impl Kms {
    fn note<T>(&self, request: &Request<T>) {
        let sent = request.metadata().get("grpc-timeout");
        self.timeouts.lock().unwrap().push(sent.map(|sent| sent.to_str().unwrap().to_owned()));
    }
}

fn turned(bytes: &Bytes) -> Bytes {
    bytes.iter().map(|byte| !byte).collect()
}

#[async_trait::async_trait]
impl KeyManagementService for Kms {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.note(&request);
        if self.fault == Fault::Hangs {
            std::future::pending::<()>().await;
        }
        let healthz = if self.fault == Fault::Sick { "no token\u{1b}[2J" } else { "ok" };
        Ok(Response::new(StatusResponse {
            version: "v2".into(),
            healthz: healthz.into(),
            key_id: "tk1.a".into(),
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        self.note(&request);
        assert!(request.get_ref().uid.starts_with("transit-kms-probe-"));
        match self.fault {
            Fault::RefusesDecrypt => Err(Status::permission_denied("the policy lacks decrypt")),
            Fault::ForgetsWhatItWas => {
                Ok(Response::new(DecryptResponse { plaintext: Bytes::from_static(b"?") }))
            }
            _ => Ok(Response::new(DecryptResponse { plaintext: turned(&request.get_ref().ciphertext) })),
        }
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        self.note(&request);
        let key_id = if self.fault == Fault::SpeaksTwoKeyIds { "tk1.b" } else { "tk1.a" };
        Ok(Response::new(EncryptResponse {
            ciphertext: turned(&request.get_ref().plaintext),
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
        let settings = Settings {
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

    async fn probe(&self, line: &str, input: &str) -> (Map<String, Value>, Verdict) {
        ask(&format!("{line} --socket {} -o json", self.socket()), input).await
    }
}

fn socket_in(directory: &Path) -> String {
    format!("unix://{}/kms.sock", directory.display())
}

async fn ask(line: &str, input: &str) -> (Map<String, Value>, Verdict) {
    let args = parse(line).unwrap();
    let (report, verdict) = probe(&args, &mut input.as_bytes()).await;
    let printed = report.print(Output::Json, args.ask.name(), &verdict);
    assert_eq!(printed.lines().count(), 1);
    (serde_json::from_str(&printed).unwrap(), verdict)
}

#[test]
fn the_flags_have_the_defaults_of_serve_and_stand_anywhere() {
    let args = parse("status").unwrap();
    assert_eq!(args.socket.to_string(), "unix:///run/transit-kms/kms.sock");
    assert_eq!(args.admin.to_string(), "127.0.0.1:9797");
    assert_eq!(args.timeout(), Duration::from_secs(3));
    assert_eq!(parse("unused").unwrap().timeout(), Duration::from_secs(30));
    let args = parse("--timeout 500ms ready --admin unix:///a -o json").unwrap();
    assert_eq!(args.admin.to_string(), "unix:///a");
    assert_eq!((args.timeout(), args.output), (Duration::from_millis(500), Output::Json));
    for wrong in
        ["", "status --timeout 0s", "status --timeout soon", "status --socket 127.0.0.1:1", "decrypt"]
    {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_given_as_plaintext_is_not_printed() {
    let args = parse("encrypt --plaintext c2VudGluZWw=").unwrap();
    assert!(!format!("{args:?}").contains("c2VudGluZWw"), "{args:?}");
    let error = decoded("--plaintext", "c2VudGluZWw!").unwrap_err();
    assert_eq!(error, "--plaintext is not base64");
}

#[tokio::test]
async fn a_healthy_daemon() {
    let daemon = Daemon::start(Fault::None);
    let (status, verdict) = daemon.probe("status", "").await;
    assert_eq!(verdict, Verdict::Good);
    assert_eq!(verdict.exit_code(), 0);
    assert_eq!(status["probe"], "status");
    assert_eq!(status["ok"], true);
    assert_eq!((&status["healthz"], &status["key_id"]), (&"ok".into(), &"tk1.a".into()));
    assert!(status["latency_ms"].as_f64().unwrap() > 0.0);

    let (roundtrip, verdict) = daemon.probe("roundtrip", "").await;
    assert_eq!(verdict, Verdict::Good);
    for what in ["status_ms", "encrypt_ms", "decrypt_ms"] {
        assert!(roundtrip[what].is_f64(), "{roundtrip:?}");
    }
    // As kube-apiserver does, and never more than all of it may take.
    for sent in daemon.kms.timeouts.lock().unwrap().iter() {
        let sent = sent.as_ref().expect("grpc-timeout is sent");
        assert!(sent.ends_with('n') || sent.ends_with('u'), "{sent}");
    }
}

#[tokio::test]
async fn encrypt_and_decrypt_print_no_plaintext_unless_told() {
    let daemon = Daemon::start(Fault::None);
    let plaintext = STANDARD.encode("sentinel");
    for (flag, input) in [(plaintext.as_str(), ""), ("-", "c2VudGluZWw\n")] {
        let (sealed, verdict) = daemon.probe(&format!("encrypt --plaintext {flag}"), input).await;
        assert_eq!(verdict, Verdict::Good);
        let ciphertext = sealed["ciphertext"].as_str().unwrap().to_owned();
        assert_eq!(sealed["key_id"], "tk1.a");
        assert!(!format!("{sealed:?}").contains(&plaintext));

        let line = format!("decrypt --key-id tk1.a --ciphertext {ciphertext}");
        let (opened, verdict) = daemon.probe(&line, "").await;
        assert_eq!(verdict, Verdict::Good);
        assert_eq!(opened["length"], 8);
        assert_eq!(opened["sha256"], hex::encode(Sha256::digest("sentinel")));
        assert!(!opened.contains_key("plaintext"));
        let (opened, _) = daemon.probe(&format!("{line} --show-plaintext"), "").await;
        assert_eq!(opened["plaintext"], plaintext);
    }
    let (sample, verdict) = daemon.probe("encrypt", "").await;
    assert_eq!(verdict, Verdict::Good);
    assert_eq!(STANDARD.decode(sample["ciphertext"].as_str().unwrap()).unwrap().len(), SAMPLE_BYTES);
}

#[test]
fn ciphertexts_are_taken_as_etcd_holds_them() {
    assert_eq!(ciphertext_of("vault:v1:abc=\n").unwrap(), "vault:v1:abc=");
    assert_eq!(ciphertext_of("YWI=").unwrap(), "ab");
    assert_eq!(ciphertext_of("YWI").unwrap(), "ab");
    assert!(ciphertext_of("vault").is_err());
}

#[tokio::test]
async fn an_answer_that_is_not_good_is_1_with_the_reason() {
    for (fault, line, says) in [
        (Fault::Sick, "status", "no token"),
        (Fault::Sick, "roundtrip", "no token"),
        (Fault::SpeaksTwoKeyIds, "roundtrip", "tk1.b"),
        (Fault::ForgetsWhatItWas, "roundtrip", "other than"),
        (Fault::RefusesDecrypt, "roundtrip", "PermissionDenied: the policy lacks decrypt"),
        (Fault::RefusesDecrypt, "decrypt --key-id k --ciphertext YQ==", "PermissionDenied"),
    ] {
        let daemon = Daemon::start(fault);
        let (report, verdict) = daemon.probe(line, "").await;
        assert_eq!(verdict.exit_code(), 1, "{fault:?}: {verdict:?}");
        assert_eq!(report["ok"], false);
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(says), "{fault:?}: {reason}");
    }
}

#[tokio::test]
async fn no_answer_is_2_with_the_next_step() {
    let directory = tempfile::tempdir().unwrap();
    let line = format!("status --socket {}", socket_in(directory.path()));
    let (report, verdict) = ask(&line, "").await;
    assert_eq!(verdict.exit_code(), 2, "{verdict:?}");
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("No such file") && reason.contains("serve"), "{reason}");

    let hangs = Daemon::start(Fault::Hangs);
    let (report, verdict) = hangs.probe("status --timeout 100ms", "").await;
    assert_eq!(verdict.exit_code(), 2, "{verdict:?}");
    assert!(report["reason"].as_str().unwrap().contains("within 100ms"), "{report:?}");

    let foreign = AllowedPeers::new([rustix::process::geteuid().as_raw() + 1]);
    let refuses = Daemon::start_for(Fault::None, foreign);
    let (report, verdict) = refuses.probe("status", "").await;
    assert_eq!(verdict.exit_code(), 2, "{verdict:?}");
    assert!(report["reason"].as_str().unwrap().contains("--allow-uid"), "{report:?}");
}

#[tokio::test]
async fn bad_input_is_64_and_asks_nobody() {
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
        let (report, verdict) = ask(&format!("{line} --socket unix:///nowhere/kms.sock"), input).await;
        assert_eq!(verdict.exit_code(), EXIT_USAGE, "{line}");
        assert!(report["reason"].as_str().unwrap().contains("not base64"), "{report:?}");
    }
    let (_, verdict) = ask("encrypt --plaintext -", &"A".repeat(1024 * 1024 + 1)).await;
    assert_eq!(verdict.exit_code(), EXIT_USAGE);
}

#[tokio::test]
async fn decrypt_takes_the_parts_of_an_answer_or_the_whole_of_it() {
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
        ("decrypt --encrypted -", "sentinel", "no answer of `transit-kms probe encrypt -o json`"),
        ("decrypt --encrypted -", "{\"key_id\": \"sentinel\"}", "no answer of"),
        ("decrypt --encrypted /nowhere/answer.json", "", "/nowhere/answer.json cannot be read"),
    ] {
        let (report, verdict) = ask(&format!("{line} --socket unix:///nowhere/kms.sock"), input).await;
        assert_eq!(verdict.exit_code(), EXIT_USAGE, "{line}");
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains(says) && !reason.contains("sentinel"), "{reason}");
    }
}

/// Answers one request with what it is given; what it was asked.
async fn admin_that_says(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
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
async fn the_admin_listener_is_asked_for_live_and_ready() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
    let (address, asked) = admin_that_says(ok).await;
    let (report, verdict) = ask(&format!("live --admin {address}"), "").await;
    assert_eq!(verdict, Verdict::Good);
    assert_eq!((&report["answer"], &report["status"]), (&"ok".into(), &200.into()));
    assert!(asked.await.unwrap().starts_with("GET /livez HTTP/1.1\r\n"));

    let not_yet = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 14\r\n\r\nno config yet\n";
    let (address, asked) = admin_that_says(not_yet).await;
    let (_, verdict) = ask(&format!("ready --admin {address}"), "").await;
    assert_eq!(verdict, Verdict::Bad("no config yet".into()));
    assert!(asked.await.unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));
    // Nobody listens there any more.
    let (report, verdict) = ask(&format!("ready --admin {address}"), "").await;
    assert_eq!(verdict.exit_code(), 2);
    assert!(report["reason"].as_str().unwrap().contains("--admin-listen"), "{report:?}");
}

#[tokio::test]
async fn text_is_for_terminals_but_does_not_command_them() {
    let daemon = Daemon::start(Fault::Sick);
    let args = parse(&format!("status --socket {}", daemon.socket())).unwrap();
    let (report, verdict) = probe(&args, &mut io::empty()).await;
    let text = report.print(Output::Text, "status", &verdict);
    assert!(text.starts_with("healthz: no token\\u{1b}[2J\nkey_id: tk1.a\nversion: v2\nlatency: "), "{text}");
    assert!(text.ends_with(" ms\n"), "{text}");
}
