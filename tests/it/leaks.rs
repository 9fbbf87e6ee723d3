//! Secrets do not appear in any output.
//!
//! A daemon and its clients run through successes and failures with known secrets. Then all output and all responses are
//! searched for parts of these secrets in every likely encoding.

use std::{
    collections::HashMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use kms_plugin::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use rand::RngExt;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use testkit::{
    Bao, BaoOptions, ConfigFile, Daemon, DaemonOptions, KEY, Kms, MOUNT,
    cli::{self, Ran},
    closed_address, config_file, eventually, policy,
    raw::{self, PREFACE, RawClient, SETTINGS},
    unix_url,
};
use tokio::task::{JoinSet, LocalSet};
use tonic::{Request, Status};
use transit_kms::session::local_kek::ANNOTATION;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The length of a part of a secret, or of an encoding of it, that counts as a leak.
const MIN_LEAK_LENGTH: usize = 16;

#[tokio::test]
async fn text_output_contains_no_secret() {
    nothing_leaks("text").await;
}

#[tokio::test]
async fn json_output_contains_no_secret() {
    nothing_leaks("json").await;
}

/// Runs one daemon through successes and every kind of failure.
async fn nothing_leaks(format: &str) {
    let options = BaoOptions { require_client_certificate: true, ..BaoOptions::default() };
    let mut bao = Bao::start_with(options).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let mut secrets = Secrets::default();
    let mut said = Output::default();

    let (chain, key) = bao.client_certificate("daemon");
    secrets.add_pem("the client's key", &fs::read_to_string(&key).unwrap());
    secrets.add("the root token", bao.root_token());
    secrets.add("the unseal key", bao.unseal_key());
    let token = bao.token().await;
    secrets.add("the first token", &token);
    let of_environment = sentinel();
    secrets.add("a token in the environment", &of_environment);
    let good = ConfigFile { client_certificate: Some((chain, key.clone())), ..ConfigFile::of(&bao, &token) };
    config_file::by_rename(&config, &good.yaml());

    let mut options = DaemonOptions::arguments(["--log-format", format, "--health-check-interval", "1s"]);
    options.environment = [("VAULT_TOKEN".to_owned(), of_environment)].into();
    let mut daemon = Daemon::start_with(&config, options).await;
    daemon.wait_ready().await;
    let mut kms = daemon.kms().await;

    // Successes: seeds of all kinds are encrypted and decrypted.
    let readable = format!("{:0<32}", sentinel());
    let random: [u8; 32] = rand::random();
    secrets.add("a readable seed", &readable);
    secrets.add("a random seed", random);
    secrets.add("a seed in base64", BASE64.encode(random));
    let mut sealed = None;
    for seed in [readable.as_bytes(), &random] {
        let answer = encrypt(&mut kms, seed).await.unwrap();
        said.add("an Encrypt", format!("{answer:?}"));
        assert_eq!(decrypt(&mut kms, &answer).await.unwrap(), seed);
        sealed = Some(answer);
    }
    let sealed = sealed.unwrap();
    query_everything(&daemon, &mut said, &random).await;
    assert_no_secret_of_process(&daemon, &secrets);

    // Secrets in wrong places: as a ciphertext, a key_id, metadata, a method, an authority, a path of the admin socket,
    // and as invalid bytes before and after a preface.
    for misplaced in [
        EncryptResponse { ciphertext: readable.clone().into_bytes().into(), ..sealed.clone() },
        EncryptResponse {
            ciphertext: format!("vault:v1:{}", BASE64.encode(&readable)).into_bytes().into(),
            ..sealed.clone()
        },
        EncryptResponse { key_id: readable.clone(), ciphertext: random.to_vec().into(), ..sealed.clone() },
        EncryptResponse {
            annotations: [("token".to_owned(), token.clone().into_bytes().into())].into(),
            ciphertext: sealed.ciphertext.slice(..20),
            ..sealed.clone()
        },
    ] {
        said.add_error("a Decrypt", &decrypt(&mut kms, &misplaced).await.unwrap_err());
    }
    let mut request = Request::new(EncryptRequest { plaintext: vec![b'x'; 5000].into(), uid: "u".into() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    said.add_error("an Encrypt", &kms.encrypt(request).await.unwrap_err());
    let too_long = readable.repeat(3000);
    said.add_error("an Encrypt", &encrypt(&mut kms, too_long.as_bytes()).await.unwrap_err());
    for head in [raw::call_headers(&token, "localhost"), raw::call_headers("Status", &token)] {
        let mut client = RawClient::greeted(daemon.socket()).await;
        client.send(&head.bytes()).await;
        client.send(&raw::call_message(token.as_bytes()).bytes()).await;
        while let Some(frame) = client.frame().await {
            said.add("a frame", frame.payload.escape_ascii().to_string());
            if frame.kind == raw::HEADERS {
                break;
            }
        }
    }
    for start in [&[][..], PREFACE, &[PREFACE, SETTINGS].concat()] {
        let mut client = RawClient::silent(daemon.socket()).await;
        client.send(&[start, too_long.as_bytes()].concat()).await;
        client.closed(WAIT_TIMEOUT).await;
    }
    let (status, body) = daemon.admin(&format!("/{token}")).await;
    assert_eq!(status, 404);
    said.add("the admin socket", body);

    // Failing reloads: in the parser, in TLS, at Vault.
    let second = bao.token().await;
    secrets.add("the second token", &second);
    bao.policy("blind", &policy(MOUNT, KEY).replace("/decrypt/", "/never/")).await;
    let blind = bao.create_token(json!({"policies": ["blind"], "ttl": "1h"})).await;
    secrets.add("a token that may not decrypt", &blind);
    let forged = format!("s.{}", sentinel());
    secrets.add("a forged token", &forged);
    let (other_chain, _) = bao.client_certificate("other");
    let with_certificate = |chain: &Path, key: &Path| ConfigFile {
        client_certificate: Some((chain.to_owned(), key.to_owned())),
        ..good.with_token(&second)
    };
    for broken in [
        good.with_token(&second).yaml().replace("  token: '", "  token: '\n broken: \""),
        good.with_token(&blind).yaml(),
        good.with_token(&forged).yaml(),
        // A key as a certificate, a certificate as a key, the key of another certificate, a key as CA.
        with_certificate(&key, &key).yaml(),
        with_certificate(&other_chain, &other_chain).yaml(),
        with_certificate(&other_chain, &key).yaml(),
        ConfigFile { ca_file: key.clone(), ..good.with_token(&second) }.yaml(),
        ConfigFile { addresses: vec![closed_address()], ..good.with_token(&second) }.yaml(),
    ] {
        let errors = |daemon: &Daemon| {
            let log = daemon.log();
            let count = |words| log.matches(words).count();
            count("config cannot be loaded") + count("the new config is not in use yet")
        };
        let before = errors(&daemon);
        config_file::by_rename(&config, &broken);
        daemon.signal(Signal::HUP);
        eventually("the error is logged", WAIT_TIMEOUT, async || errors(&daemon) > before).await;
        said.add("/readyz", daemon.admin("/readyz").await.1);
    }
    query_everything(&daemon, &mut said, &random).await;
    encrypt(&mut kms, &random).await.expect("the last good one stays");

    // The token becomes invalid while calls arrive, and is replaced.
    bao.revoke(&token).await;
    let refused =
        eventually("a call is refused", WAIT_TIMEOUT, async || encrypt(&mut kms, &random).await.err());
    said.add_error("an Encrypt", &refused.await);
    said.add_error("a Decrypt", &decrypt(&mut kms, &sealed).await.unwrap_err());
    query_everything(&daemon, &mut said, &random).await;
    config_file::by_rename(&config, &good.with_token(&second).yaml());
    daemon.wait_ready_within(WAIT_TIMEOUT).await;
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), random);

    // The policy refuses, then Vault is unreachable.
    bao.policy("transit-kms", &policy(MOUNT, KEY).replace("/encrypt/", "/never/")).await;
    let denied =
        eventually("a call is denied", WAIT_TIMEOUT, async || encrypt(&mut kms, &random).await.err());
    said.add_error("an Encrypt", &denied.await);
    query_everything(&daemon, &mut said, &random).await;
    bao.stop();
    said.add_error("a Decrypt", &decrypt(&mut kms, &sealed).await.unwrap_err());
    query_everything(&daemon, &mut said, &random).await;

    assert!(daemon.terminate().await.success());
    let log = daemon.log();
    for proof in ["answered", "answered with an error", "a connection failed", "Status is not ok", "SIGHUP"] {
        assert!(log.contains(proof), "this was to be in the log: {proof}");
    }
    said.add("the log", log);
    secrets.assert_none_in(&said);
}

/// A local KEK is as secret as the seeds that it encrypts. The test gets it from Transit.
#[tokio::test]
async fn local_keks_do_not_leak() {
    let mut bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let content = ConfigFile::with_new_token(&bao).await;
    config_file::by_rename(&config, &format!("encryption: {{mode: local-kek}}\n{}", content.yaml()));
    let mut daemon =
        Daemon::start_with(&config, DaemonOptions::arguments(["--health-check-interval", "1s"])).await;
    daemon.wait_ready().await;
    let mut kms = daemon.kms().await;
    let seed: [u8; 32] = rand::random();
    let sealed = encrypt(&mut kms, &seed).await.unwrap();
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), seed);
    let wrapped = std::str::from_utf8(&sealed.annotations[ANNOTATION]).unwrap();
    // The plaintext is a marker of 16 bytes, and the key.
    let payload = bao.decrypt(KEY, wrapped).await;
    let (mut secrets, mut said) = (Secrets::default(), Output::default());
    secrets.add("a seed", seed);
    secrets.add("the local KEK", &payload[16..]);

    // Damaged values: without annotations, swapped, and the KEK as a seed.
    let other = bao.encrypt(KEY, &payload).await;
    for misplaced in [
        EncryptResponse { annotations: [].into(), ..sealed.clone() },
        EncryptResponse {
            annotations: [(ANNOTATION.to_owned(), other.into_bytes().into())].into(),
            ..sealed.clone()
        },
        EncryptResponse {
            annotations: [].into(),
            ciphertext: wrapped.as_bytes().to_vec().into(),
            ..sealed.clone()
        },
    ] {
        said.add_error("a Decrypt", &decrypt(&mut kms, &misplaced).await.unwrap_err());
    }
    bao.stop();
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), seed, "the local KEK works without Vault");
    query_everything(&daemon, &mut said, &seed).await;
    assert_no_secret_of_process(&daemon, &secrets);
    assert!(daemon.terminate().await.success());
    said.add("the log", daemon.log());
    secrets.assert_none_in(&said);
}

/// Configs with a secret in every valid place and in many invalid ones. A new daemon starts with each.
#[tokio::test]
async fn errors_about_a_bad_config_contain_none_of_its_values() {
    let dir = tempfile::tempdir().unwrap();
    let mut secrets = Secrets::default();
    let configs = bad_configs(&mut secrets, &dir);
    let secrets = Arc::new(secrets);
    LocalSet::new().run_until(start_with_each(configs, secrets, &dir)).await;
}

async fn start_with_each(configs: Vec<Vec<u8>>, secrets: Arc<Secrets>, dir: &TempDir) {
    let mut running = JoinSet::new();
    for (number, text) in configs.into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.yaml"));
        fs::write(&path, &text).unwrap();
        let secrets = Arc::clone(&secrets);
        running.spawn_local(async move {
            let said = said_about(&path, ["json", "text"][number % 2]).await;
            if let Some(found) = secrets.found_in(&said) {
                panic!("config {number}: {found}\n{}", String::from_utf8_lossy(&text));
            }
        });
        // Several at a time, because they mostly wait.
        if running.len() >= 4 {
            running.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(one) = running.join_next().await {
        one.unwrap();
    }
}

/// All output of a daemon that starts with this config.
async fn said_about(config: &Path, format: &str) -> Output {
    let mut daemon = Daemon::start_with(config, DaemonOptions::arguments(["--log-format", format])).await;
    let mut said = Output::default();
    let mut kms = daemon.kms().await;
    let status = eventually("a reason", WAIT_TIMEOUT, async || {
        let status = kms.status(StatusRequest {}).await.unwrap_err();
        // The answer before the config is read.
        (!status.message().contains("starting")).then_some(status)
    })
    .await;
    said.add_error("Status", &status);
    said.add_error("Encrypt", &encrypt(&mut kms, b"x").await.unwrap_err());
    for path in ["/metrics", "/readyz"] {
        said.add(path, daemon.admin(path).await.1);
    }
    assert!(daemon.terminate().await.success());
    said.add("the log", daemon.log());
    said
}

#[tokio::test]
async fn memory_stays_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    // As another user if possible, because the files of a root process always belong to root.
    let other_uid = rustix::process::geteuid().is_root().then_some(65_534);
    let options = DaemonOptions { uid: other_uid, ..DaemonOptions::default() };
    let daemon = Daemon::start_with(&dir.path().join("absent.yaml"), options).await;
    let proc_file = |name: &str| format!("/proc/{}/{name}", daemon.pid());
    let limits = fs::read_to_string(proc_file("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{limits}");
    // In /proc, the files of a process without core dumps belong to root, so that its user can neither dump nor trace it.
    assert_eq!(fs::metadata(proc_file("environ")).unwrap().uid(), 0);

    let daemon = Daemon::start(&dir.path().join("absent.yaml")).await;
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(locked > 0 || daemon.log().contains("memory is not locked"), "{status}");
}

/// Checks the search itself.
#[test]
fn the_search_finds_every_encoding_of_a_secret() {
    let secret: [u8; 32] = rand::random();
    let mut secrets = Secrets::default();
    secrets.add("it", secret);
    secrets.add("a word", "a \"secret\" of %&/ words and nothing else");
    let found = |text: String| {
        let mut said = Output::default();
        said.add("a line", format!("what stands before it {text} and after"));
        secrets.found_in(&said).is_some()
    };
    let part = &secret[5..29];
    for text in [
        BASE64.encode(secret),
        BASE64.encode([b"x", part].concat()),
        BASE64.encode([b"xy", part].concat()),
        URL_SAFE_NO_PAD.encode([b"xyz", part].concat()),
        hex::encode(part),
        hex::encode(part).to_uppercase(),
        format!("{part:?}"),
        format!("{:?}", bytes::Bytes::copy_from_slice(part)),
        part.escape_ascii().to_string(),
        "\"secret\" of %&/ words".to_owned(),
        json!({"x": "\"secret\" of %&/ words"}).to_string(),
        "%22secret%22+of+%25%26%2F".to_owned(),
        "%22secret%22%20of%20%25%26%2F".to_owned(),
    ] {
        assert!(found(text.clone()), "{text}");
    }
    assert!(!found("[12, 34, 56, 78, 90, 12, 34] 0123456789abcdef".to_owned()));
}

/// All requests to a daemon that must not reveal a secret.
async fn query_everything(daemon: &Daemon, said: &mut Output, seed: &[u8]) {
    for path in ["/", "/livez", "/metrics", "/readyz"] {
        said.add(path, daemon.admin(path).await.1);
    }
    let socket = unix_url(daemon.socket()).into_string().unwrap();
    let admin = unix_url(&daemon.admin_socket()).into_string().unwrap();
    let probe = async |arguments: &[&str], input: &str| -> Ran {
        // While Vault fails, calls wait until their deadline.
        let fixed = ["--socket", &socket, "--admin", &admin, "--timeout", "1s"];
        cli::run_with(&[&["probe"], arguments, &fixed].concat(), &[], input).await
    };
    let sealed = probe(&["encrypt", "--plaintext", "-", "-o", "json"], &BASE64.encode(seed)).await;
    if sealed.code == Some(0) {
        let answer = sealed.json();
        let field = |name: &str| answer[name].as_str().unwrap();
        let arguments = ["decrypt", "--ciphertext", field("ciphertext"), "--key-id", field("key_id")];
        said.add_run("probe decrypt", &probe(&arguments, "").await);
    }
    said.add_run("probe encrypt", &sealed);
    said.add_run("probe roundtrip", &probe(&["roundtrip"], "").await);
    said.add_run("probe status", &probe(&["status", "-o", "json"], "").await);
    // The refusal of an invalid key_id must not quote it.
    let text = String::from_utf8_lossy(seed).into_owned() + "!";
    said.add_run("probe encrypt", &probe(&["encrypt", "--plaintext", "-"], &text).await);
}

fn assert_no_secret_of_process(daemon: &Daemon, secrets: &Secrets) {
    let mut said = Output::default();
    for name in ["cmdline", "environ", "comm", "status"] {
        let path = PathBuf::from(format!("/proc/{}/{name}", daemon.pid()));
        // Only root may read the environment of a process without core dumps.
        let content = fs::read(&path).unwrap_or_default();
        let content = String::from_utf8_lossy(&content).into_owned();
        // The test itself has set this variable.
        let own = |variable: &&str| !variable.starts_with("VAULT_TOKEN=");
        said.add(name, content.split('\0').filter(own).collect::<Vec<_>>().join("\n"));
    }
    secrets.assert_none_in(&said);
}

async fn encrypt(kms: &mut Kms, seed: &[u8]) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: seed.to_vec().into(), uid: "leaks".into() };
    Ok(kms.encrypt(request).await?.into_inner())
}

async fn decrypt(kms: &mut Kms, sealed: &EncryptResponse) -> Result<Vec<u8>, Status> {
    let request = DecryptRequest {
        annotations: sealed.annotations.clone(),
        ciphertext: sealed.ciphertext.clone(),
        key_id: sealed.key_id.clone(),
        uid: "leaks".into(),
    };
    Ok(kms.decrypt(request).await?.into_inner().plaintext.to_vec())
}

/// A random text that cannot occur by chance.
fn sentinel() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzACDEFGHJKLMNPQRTUVWXY34679";
    let mut rng = rand::rng();
    (0..28).map(|_| char::from(LETTERS[rng.random_range(..LETTERS.len())])).collect()
}

/// All output and responses, with their sources.
#[derive(Default)]
struct Output(Vec<(String, String)>);

impl Output {
    fn add(&mut self, who: &str, what: String) {
        self.0.push((who.to_owned(), what));
    }

    fn add_error(&mut self, who: &str, status: &Status) {
        self.add(who, format!("{status:?} {status} {}", status.message()));
    }

    fn add_run(&mut self, who: &str, ran: &Ran) {
        self.add(who, format!("{}{}", ran.stdout, ran.stderr));
    }
}

/// The parts of all encodings of all secrets, with the names of the secrets.
#[derive(Default)]
struct Secrets(HashMap<Vec<u8>, &'static str>);

impl Secrets {
    fn add(&mut self, name: &'static str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        assert!(secret.len() > MIN_LEAK_LENGTH, "{name} is too short, so it could occur by chance");
        for encoding in encodings(secret) {
            for piece in encoding.windows(MIN_LEAK_LENGTH) {
                self.0.insert(piece.to_vec(), name);
            }
        }
    }

    /// Adds the body of a PEM key and its decoded bytes. The common prefix of all keys of a kind is no secret, but does not
    /// occur by chance either.
    fn add_pem(&mut self, name: &'static str, pem: &str) {
        let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        for line in &lines {
            self.add(name, line);
        }
        self.add(name, BASE64.decode(lines.concat()).unwrap());
    }

    fn found_in(&self, said: &Output) -> Option<String> {
        said.0.iter().find_map(|(who, text)| {
            let bytes = text.as_bytes();
            let at = bytes.windows(MIN_LEAK_LENGTH).position(|piece| self.0.contains_key(piece))?;
            let line = text.lines().find(|line| {
                line.as_bytes().windows(MIN_LEAK_LENGTH).any(|piece| self.0.contains_key(piece))
            });
            let name = self.0[&bytes[at..at + MIN_LEAK_LENGTH]];
            Some(format!("{who} tells {name}: {}", line.unwrap_or(text)))
        })
    }

    #[track_caller]
    fn assert_none_in(&self, said: &Output) {
        if let Some(found) = self.found_in(said) {
            panic!("{found}");
        }
    }
}

/// The encodings in which a secret could be printed.
fn encodings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![
        secret.to_vec(),
        hex::encode(secret).into_bytes(),
        hex::encode(secret).to_uppercase().into_bytes(),
        format!("{secret:?}").trim_matches(['[', ']']).as_bytes().to_vec(),
        format!("{:?}", bytes::Bytes::copy_from_slice(secret)).into_bytes(),
        secret.escape_ascii().to_string().into_bytes(),
    ];
    // Base64 depends on the offset modulo 3. All three variants are searched, without the letters at the ends, which
    // depend on the neighbouring bytes.
    for (before, own) in [(0, 0), (1, 2), (2, 3)] {
        let bytes = [&vec![0; before][..], secret].concat();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = engine.encode(&bytes);
            all.push(text.as_bytes()[own..text.len() - 1].to_vec());
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        all.push(json!(text).to_string().trim_matches('"').as_bytes().to_vec());
        let space_as = |space: &str| {
            let of = |byte: u8| match byte {
                b' ' => space.to_owned(),
                _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            };
            secret.iter().copied().map(of).collect::<String>().into_bytes()
        };
        all.extend([space_as("+"), space_as("%20")]);
    }
    all
}

/// Bad configs, each with its own secrets.
fn bad_configs(secrets: &mut Secrets, dir: &TempDir) -> Vec<Vec<u8>> {
    let mut secret = || {
        let secret = sentinel();
        secrets.add("a value of the config", &secret);
        // Keys are compared in lower case, so they could be printed in lower case.
        secrets.add("a value of the config", secret.to_lowercase());
        secret
    };
    let around = |settings: &str| format!("provider: vault\nvault:\n{settings}");
    let rest = "  address: https://127.0.0.1:1\n  keynames: [kms]\n";
    let mut all: Vec<String> = Vec::new();

    // Invalid YAML, or YAML with the wrong structure.
    for broken in [
        "  token: \"%\n",
        "  token: '%\n",
        "\ttoken: %\n",
        "  token: %\n bad: %\n",
        "  token: %: %\n",
        "  token: [%\n",
        "  token: {%: %\n",
        "  token: *%\n",
        "  token: !% %\n",
        "  token: !!binary %\n",
        "  token: &% %\n  secretid: [*%]\n",
        "  token: @%\n",
        "  token: `%\n",
        "  token: %%\n  %\n",
        "  - %\n",
        "  ? {%: %}\n  : %\n",
        "  ? [%]\n  : %\n",
        "  token: %\n---\ntoken: %\n",
        "  token: %\n...\n%\n",
        "  token: |\n   %\n  %\n",
        "  token: \"\\%\"\n",
        "  token: %\u{1}\n",
        "  token: {{ with secret \"%\" }}{{ .Data.% }}{{ end }}\n",
        "  <<: %\n",
        "  <<: {token: [%]}\n",
    ] {
        all.push(around(&(rest.to_owned() + broken)));
    }
    all.extend(
        ["%\n", "- %\n", "{%: %}\n", "%YAML %\n---\n%\n", "vault: %\n", "vault: [%]\n"].map(str::to_owned),
    );

    // Unknown, misplaced and duplicate keys, and values that break a rule.
    for settings in [
        "  %: %\n",
        "  token: %\n  %: x\n",
        "  tokenn: %\n",
        "  tok: %\n",
        "  provider: %\n",
        "  token: %\n  Token: %\n",
        "  token: [%]\n",
        "  token: {%: %}\n",
        "  token: {token: %}\n",
        "  token: % %\n",
        "  token: \"%\\n%\"\n",
        "  token: %\u{e9}\n",
        "  token: %\n  namespace: % %\n",
        "  token: %\n  namespace: [%]\n",
        "  token: %\n  transitpath: %?%\n",
        "  token: %\n  transitpath: {%: x}\n",
        "  token: %\n  tls: %\n",
        "  token: %\n  tls: [%]\n",
        "  token: %\n  tls: {%: %}\n",
        "  token: %\n  tls: {ca_fil: %}\n",
        "  token: %\n  tls: {ca_file: %}\n",
        "  token: %\n  tls: {ca_file: [%]}\n",
        "  token: %\n  tls: {server_name: % %}\n",
        "  token: %\n  tls: {client_cert_file: /%}\n",
        "  token: %\n  tls: {client_key_file: %, client_cert_file: %}\n",
        "  token: %\n  tls: {ca_file: /x}\n  vaultcacert: %\n",
        "  token: %\n  tlsservername: %/%\n",
        "  token: %\n  authpath: [%]\n",
        "  auth: %\n",
        "  auth: [%]\n",
        "  auth: {method: %}\n",
        "  auth: {method: [%]}\n",
        "  auth: {method: approle, role_id: {%: %}}\n",
        "  auth: {%: %}\n",
        "  auth: {method: approle, role_id: r, secret_id: [%]}\n",
        "  auth: {method: approle, role_id: r, secret_id: %, secret_id_file: %}\n",
        "  auth: {method: approle, role_id: r, secret_id: s, delivery: %}\n",
        "  auth: {method: token_file, token: %}\n",
        "  auth: {method: jwt, role: r, jwt_file: %}\n",
        "  auth: {method: jwt, role: r, workload_api: {address: %, audience: %}}\n",
        "  auth: {method: cert, cert_file: /c, key_file: /k, trust_domains: {%/: %}}\n",
        "  auth: {method: inline, login: {method: userpass, username: u, password: {%: %}}}\n",
        "  auth: {method: inline, login: %}\n",
        // Logins.
        "  auth: {method: approle, role_id: %, secret_id: %}\n",
        "  auth: {method: userpass, username: u, password: %}\n",
        "  auth: {method: approle, %: %}\n",
        "  roleid: %\n  secretid: %\n",
        "  clientcert: %\n  clientkey: %\n",
        "  roleid: [%]\n",
        "  secretid: {%: %}\n",
    ] {
        all.push(around(&(rest.to_owned() + settings)));
    }
    for settings in [
        "  address: %\n",
        "  address: [%\n",
        "  address: {%: %}\n",
        "  address: http://%\n",
        "  address: ftp://%\n",
        "  address: https://%:%@127.0.0.1:1\n",
        "  address: https://127.0.0.1:1/?token=%\n",
        "  address: https://127.0.0.1:1/#%\n",
        "  address: https://127.0.0.1:%\n",
        "  address: \"https://127.0.0.1:1/% %\"\n",
        "  addresses: [%]\n",
        "  addresses: [[%]]\n",
        "  addresses: {%: %}\n",
        "  addresses: []\n  address: %\n",
    ] {
        all.push(around(&format!("  keynames: kms\n  token: %\n{settings}")));
    }
    for settings in
        ["% %", "[%!]", "[-%]", "[[%]]", "{%: %}", "[]\n  keyname: %", "\n  - kms\n  - kms\n  - \"%/%\""]
    {
        all.push(around(&format!("  address: https://127.0.0.1:1\n  token: %\n  keynames: {settings}\n")));
    }
    all.push(format!("provider: %\n{}", around(rest)));
    all.push("provider: %\nvault: {token: %}\n".to_owned());
    all.push("provider: vault\ntoken: %\nvault:\n  token: %\n".to_owned());

    let mut all: Vec<Vec<u8>> = all
        .into_iter()
        .map(|template| {
            let mut pieces = template.split('%');
            let mut text = pieces.next().unwrap().to_owned();
            for piece in pieces {
                text += &secret();
                text += piece;
            }
            text.into_bytes()
        })
        .collect();

    // Configs that need the paths of files.
    let token = secret();
    all.push(around(&format!("{rest}  token: {}\n", token.repeat(200))).into_bytes());
    all.push(around(&format!("{rest}  token: {token}\n#{}\n", token.repeat(4000))).into_bytes());
    all.push([around(rest).as_bytes(), b"  token: ", token.as_bytes(), b"\xff\xfe\n"].concat());
    all.push([b"\xff\xfe", token.as_bytes()].concat());
    let digits: String = (0..30).map(|_| char::from(rand::rng().random_range(b'1'..=b'9'))).collect();
    secrets.add("a number", &digits);
    all.push(around(&format!("{rest}  token: {digits}\n")).into_bytes());
    all.push(around(&format!("{rest}  token: {digits}.5\n")).into_bytes());
    all.push(around(&format!("{rest}  {digits}: x\n")).into_bytes());

    // A key instead of its path, and a file with other content.
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    secrets.add_pem("a key", &pem);
    let block = pem.replace('\n', "\n      ");
    for (key, other) in [("client_key_file", "client_cert_file: /x\n"), ("ca_file", "server_name: x\n")] {
        let tls = format!("  tls:\n    {other}    {key}: |\n      {block}\n");
        all.push(around(&format!("{rest}  token: x\n{tls}")).into_bytes());
    }
    all.push(pem.clone().into_bytes());
    let file = dir.path().join("a.pem");
    fs::write(&file, &pem).unwrap();
    let path = std::str::from_utf8(file.as_os_str().as_bytes()).unwrap();
    for tls in [format!("ca_file: {path}"), format!("client_cert_file: {path}\n    client_key_file: {path}")]
    {
        all.push(around(&format!("{rest}  token: x\n  tls:\n    {tls}\n")).into_bytes());
    }
    all
}
