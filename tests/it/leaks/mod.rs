//! Secrets do not appear in any output.
//!
//! A daemon and its clients run through successes and failures with known secrets. Then all output and all responses are
//! searched for parts of these secrets in every likely encoding.

mod configs;
mod inline;
pub(crate) mod secrets;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kms_plugin::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
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

use self::{
    configs::bad_configs,
    secrets::{Output, Secrets, sentinel},
};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

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

/// All requests to a daemon that must not reveal a secret.
pub(crate) async fn query_everything(daemon: &Daemon, said: &mut Output, seed: &[u8]) {
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

pub(crate) fn assert_no_secret_of_process(daemon: &Daemon, secrets: &Secrets) {
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
