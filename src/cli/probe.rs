//! `transit-kms probe`: asks a running daemon, for people and for exec probes.
//!
//! Exit codes: 0 if all is well, 1 if the answer says that it is not, 2 if
//! there was no answer, 64 for bad input. On standard output comes what was
//! learnt, on standard error why it is not well.

use std::{
    convert::Infallible,
    fmt,
    io::{self, Read, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tonic::{Request, transport::Channel};
use zeroize::Zeroizing;

use super::{
    EXIT_USAGE,
    client::{self, NoClient},
};
use crate::{
    kms::proto::{
        DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
        key_management_service_client::KeyManagementServiceClient,
    },
    observe::root_cause,
    server::address::{ListenAddress, UnixAddress},
};

/// Seeds have 32 bytes and ciphertexts at most 1 KiB; this is for base64 and for tests of limits.
const MOST_INPUT: u64 = 1024 * 1024;
/// What kube-apiserver sends.
const SAMPLE_BYTES: usize = 32;

/// Asks a running daemon, as kube-apiserver or an exec probe would.
///
/// `status`, `encrypt`, `decrypt` and `roundtrip` speak KMS v2 to --socket; `ready` and `live` ask --admin.
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

    /// How long all of it may take
    #[arg(long, global = true, value_name = "DURATION", default_value = "3s", value_parser = patience)]
    timeout: Duration,
}

#[derive(Clone, Debug, Subcommand)]
enum Ask {
    /// Decrypts what Encrypt answered with
    Decrypt {
        /// Base64, or as etcd holds it (vault:v1:...); - reads standard input
        #[arg(long, value_name = "BASE64")]
        ciphertext: String,

        /// The key_id that came with the ciphertext
        #[arg(long, value_name = "KEY_ID")]
        key_id: String,

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

    /// Whether calls would succeed (/readyz)
    Ready,

    /// Status, then Encrypt and Decrypt of 32 random bytes
    Roundtrip,

    /// What kube-apiserver is told when it asks for the health
    Status,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// One JSON object
    Json,
    /// For people
    Text,
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

/// How it went.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    /// Answered, and the answer is not good.
    Bad(String),
    /// All is well.
    Good,
    /// The input is not usable; nobody was asked.
    Input(String),
    /// No answer.
    Silence(String),
}

impl Verdict {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Bad(_) => 1,
            Self::Silence(_) => 2,
            Self::Input(_) => EXIT_USAGE,
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Good => None,
            Self::Bad(reason) | Self::Input(reason) | Self::Silence(reason) => Some(reason),
        }
    }
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
        }
    }
}

/// What was learnt, in the order in which it was.
#[derive(Debug, Default)]
struct Report(Vec<(&'static str, Value)>);

impl Report {
    fn learn(&mut self, what: &'static str, value: impl Into<Value>) {
        self.0.push((what, value.into()));
    }

    /// Milliseconds, with three digits after the point.
    fn took(&mut self, what: &'static str, since: Instant) {
        let micros = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.learn(what, f64::from(micros) / 1000.0);
    }

    fn print(&self, output: Output, name: &str, verdict: &Verdict) -> String {
        match output {
            Output::Json => {
                let mut object: Map<String, Value> =
                    self.0.iter().map(|(what, value)| ((*what).to_owned(), value.clone())).collect();
                object.insert("probe".into(), name.into());
                object.insert("ok".into(), (*verdict == Verdict::Good).into());
                if let Some(reason) = verdict.reason() {
                    object.insert("reason".into(), reason.into());
                }
                format!("{}\n", Value::Object(object))
            }
            Output::Text => self.0.iter().map(|(what, value)| line(what, value)).collect(),
        }
    }
}

fn line(what: &str, value: &Value) -> String {
    match (what.strip_suffix("_ms"), value) {
        (Some(what), value) => format!("{what}: {value} ms\n"),
        (None, Value::String(text)) => format!("{what}: {}\n", visible(text)),
        (None, value) => format!("{what}: {value}\n"),
    }
}

/// Text from the other side, without what a terminal would obey.
fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect()
}

async fn probe(args: &ProbeArgs, input: &mut impl Read) -> (Report, Verdict) {
    let mut report = Report::default();
    let prepared = match Prepared::new(&args.ask, input) {
        Ok(prepared) => prepared,
        Err(reason) => return (report, Verdict::Input(reason)),
    };
    let asked = async {
        match prepared {
            Prepared::Admin(path) => admin(args, path, &mut report).await,
            Prepared::Kms(call) => kms(args, call, &mut report).await,
        }
    };
    let verdict = match timeout(args.timeout, asked).await {
        Ok(Ok(())) => Verdict::Good,
        Ok(Err(verdict)) => verdict,
        Err(_) => late(args),
    };
    (report, verdict)
}

/// The input, read and decoded before anybody is asked.
enum Prepared {
    Admin(&'static str),
    Kms(Call),
}

enum Call {
    Decrypt { ciphertext: Bytes, key_id: String, show_plaintext: bool },
    Encrypt(Plaintext),
    Roundtrip,
    Status,
}

impl Prepared {
    fn new(ask: &Ask, input: &mut impl Read) -> Result<Self, String> {
        Ok(match ask {
            Ask::Decrypt { ciphertext, key_id, show_plaintext } => Self::Kms(Call::Decrypt {
                ciphertext: ciphertext_of(&given("--ciphertext", ciphertext, input)?)?,
                key_id: key_id.clone(),
                show_plaintext: *show_plaintext,
            }),
            Ask::Encrypt { plaintext: None } => Self::Kms(Call::Encrypt(Plaintext::random())),
            Ask::Encrypt { plaintext: Some(plaintext) } => {
                let text = given("--plaintext", plaintext.expose_secret(), input)?;
                Self::Kms(Call::Encrypt(Plaintext::new(decoded("--plaintext", text.trim())?)))
            }
            Ask::Live => Self::Admin("/livez"),
            Ask::Ready => Self::Admin("/readyz"),
            Ask::Roundtrip => Self::Kms(Call::Roundtrip),
            Ask::Status => Self::Kms(Call::Status),
        })
    }
}

/// Bytes that are wiped when the last who holds them lets go.
#[derive(Clone)]
struct Plaintext(Bytes);

impl Plaintext {
    fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Bytes::from_owner(bytes))
    }

    fn random() -> Self {
        let mut bytes = Zeroizing::new(vec![0; SAMPLE_BYTES]);
        rand::fill(bytes.as_mut_slice());
        Self::new(bytes)
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

fn given(flag: &str, value: &str, input: &mut impl Read) -> Result<Zeroizing<String>, String> {
    if value != "-" {
        return Ok(Zeroizing::new(value.to_owned()));
    }
    // Room for all of it at once: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    let read = input
        .take(MOST_INPUT + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("{flag} -: cannot read standard input: {error}"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MOST_INPUT {
        return Err(format!("{flag} -: standard input is longer than {MOST_INPUT} bytes"));
    }
    Ok(text)
}

fn ciphertext_of(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    // Base64 has no colon, so this cannot be meant otherwise.
    if text.starts_with("vault:v") {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    decoded("--ciphertext", text).map(|bytes| Bytes::copy_from_slice(&bytes))
}

/// Padding may be left out.
fn decoded(flag: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    // The error of the decoder names a byte of what may be a secret.
    LENIENT.decode(text).map(Zeroizing::new).map_err(|_| format!("{flag} is not base64"))
}

async fn admin(args: &ProbeArgs, path: &str, report: &mut Report) -> Result<(), Verdict> {
    let start = Instant::now();
    let (status, text) = client::admin(&args.admin, path).await.map_err(|error| {
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

async fn kms(args: &ProbeArgs, call: Call, report: &mut Report) -> Result<(), Verdict> {
    let deadline = Instant::now() + args.timeout;
    let client = client::kms(&args.socket).await.map_err(|error| match error {
        NoClient::Closed(cause) => closed(args, &cause),
        NoClient::Unreachable(cause) => Verdict::Silence(format!(
            "cannot ask {}: {cause}; is `transit-kms serve` running, with this --listen?",
            args.socket
        )),
    })?;
    let mut asking = Asking { args, client, deadline, uid: uid() };
    match call {
        Call::Decrypt { ciphertext, key_id, show_plaintext } => {
            let start = Instant::now();
            let plaintext = asking.decrypt(ciphertext, key_id, &EncryptResponse::default()).await?;
            report.learn("length", plaintext.0.len());
            report.learn("sha256", hex(&Sha256::digest(&plaintext.0)));
            if show_plaintext {
                report.learn("plaintext", STANDARD.encode(&plaintext.0));
            }
            report.took("latency_ms", start);
        }
        Call::Encrypt(plaintext) => {
            let start = Instant::now();
            let answer = asking.encrypt(plaintext).await?;
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

async fn roundtrip(asking: &mut Asking<'_>, report: &mut Report) -> Result<(), Verdict> {
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
    let opened = asking.decrypt(sealed.ciphertext.clone(), sealed.key_id.clone(), &sealed).await?;
    report.took("decrypt_ms", start);
    if opened.0 == sample.0 {
        Ok(())
    } else {
        Err(Verdict::Bad("Decrypt answers with something other than what was encrypted".into()))
    }
}

fn learn_status(status: &StatusResponse, report: &mut Report) {
    report.learn("healthz", status.healthz.as_str());
    report.learn("key_id", status.key_id.as_str());
    report.learn("version", status.version.as_str());
}

/// What kube-apiserver demands of a Status.
fn healthy(status: &StatusResponse) -> Result<(), Verdict> {
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
struct Asking<'a> {
    args: &'a ProbeArgs,
    client: KeyManagementServiceClient<Channel>,
    deadline: Instant,
    uid: String,
}

impl Asking<'_> {
    async fn decrypt(
        &mut self,
        ciphertext: Bytes,
        key_id: String,
        sealed: &EncryptResponse,
    ) -> Result<Plaintext, Verdict> {
        let annotations = sealed.annotations.clone();
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

fn fault(args: &ProbeArgs, status: &tonic::Status) -> Verdict {
    use std::error::Error;
    // What the server answered has no source; what went wrong on the way has one.
    match status.source() {
        None => Verdict::Bad(format!("{:?}: {}", status.code(), status.message())),
        Some(error) if is_timeout(error) => late(args),
        Some(error) => closed(args, &root_cause(error)),
    }
}

fn closed(args: &ProbeArgs, cause: &str) -> Verdict {
    Verdict::Silence(format!(
        "{} closed the connection ({cause}); does it allow uid {} (--allow-uid)?",
        args.socket,
        rustix::process::geteuid().as_raw()
    ))
}

fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn late(args: &ProbeArgs) -> Verdict {
    let asked: &dyn fmt::Display = match args.ask {
        Ask::Live | Ask::Ready => &args.admin,
        _ => &args.socket,
    };
    Verdict::Silence(format!(
        "no answer from {asked} within {} (--timeout)",
        humantime::format_duration(args.timeout)
    ))
}

/// Names this probe in the logs of the daemon and of Vault.
fn uid() -> String {
    format!("transit-kms-probe-{:016x}", rand::random::<u64>())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };

    use clap::Parser;
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, UnixListener},
    };
    use tokio_util::sync::CancellationToken;
    use tonic::{Response, Status};

    use super::*;
    use crate::{
        kms::proto::{
            DecryptResponse,
            key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
        },
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

        async fn decrypt(
            &self,
            request: Request<DecryptRequest>,
        ) -> Result<Response<DecryptResponse>, Status> {
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

        async fn encrypt(
            &self,
            request: Request<EncryptRequest>,
        ) -> Result<Response<EncryptResponse>, Status> {
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
        assert_eq!(args.timeout, Duration::from_secs(3));
        let args = parse("--timeout 500ms ready --admin unix:///a -o json").unwrap();
        assert_eq!(args.admin.to_string(), "unix:///a");
        assert_eq!((args.timeout, args.output), (Duration::from_millis(500), Output::Json));
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
            assert_eq!(opened["sha256"], hex(&Sha256::digest("sentinel")));
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
        ] {
            let (report, verdict) = ask(&format!("{line} --socket unix:///nowhere/kms.sock"), input).await;
            assert_eq!(verdict.exit_code(), EXIT_USAGE, "{line}");
            assert!(report["reason"].as_str().unwrap().contains("not base64"), "{report:?}");
        }
        let (_, verdict) = ask("encrypt --plaintext -", &"A".repeat(1024 * 1024 + 1)).await;
        assert_eq!(verdict.exit_code(), EXIT_USAGE);
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
        assert!(
            text.starts_with("healthz: no token\\u{1b}[2J\nkey_id: tk1.a\nversion: v2\nlatency: "),
            "{text}"
        );
        assert!(text.ends_with(" ms\n"), "{text}");
    }
}
