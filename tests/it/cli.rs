//! The command line of the real program: flags, variables, help, `probe` and logs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kms_plugin::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use testkit::{
    self, Bao, ConfigFile, Daemon, DaemonOptions,
    cli::{Ran, run, run_with},
    closed_address, config_file, eventually, temp_dir, unix_url,
};
use tonic::Code;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// `EX_USAGE`.
const USAGE: Option<i32> = Some(64);
/// `EX_CANTCREAT`.
const CANNOT_CREATE: Option<i32> = Some(73);

/// Every flag of `serve` with an invalid value and words of the error. Every path is valid.
const BAD_VALUES: &[(&str, &str, &str)] = &[
    ("admin-listen", "9797", "neither an IP address with a port"),
    ("admin-listen", "unix://admin.sock", "relative path"),
    ("allow-http", "maybe", "possible values"),
    ("allow-uid", "root", "invalid digit"),
    ("config", "", "a value is required"),
    ("kms-v1-listen", "unix:///run/kms-v1.sock", "write unix:///@name, or a path that has an @"),
    ("kms-v1-listen", "unix://@", "names no socket"),
    ("listen", "/run/kms.sock", "write unix:///path/to/kms.sock"),
    ("listen", "tcp://127.0.0.1:80", "is not a unix socket"),
    ("listen", "unix:///", "names no socket"),
    ("listen", "unix://run/kms.sock", "write unix:///run/kms.sock with three slashes"),
    ("log-format", "xml", "json, text"),
    ("log-level", "loud", "debug, error, info, trace, warn"),
    ("no-coalescing", "maybe", "possible values"),
    ("outage-grace", "a while", "expected number"),
    ("health-check-interval", "500ms", "between 1s and 10m"),
    ("health-check-interval", "11m", "between 1s and 10m"),
    ("shutdown-grace", "10", "time unit needed"),
    ("socket-group", "no-such-group-anywhere", "no group \"no-such-group-anywhere\""),
    ("socket-mode", "0o888", "permission bits in octal"),
    ("socket-mode", "4755", "permission bits in octal"),
    ("socket-mode", "rw-------", "permission bits in octal"),
    ("takeover", "maybe", "possible values"),
];

#[tokio::test]
async fn a_bad_flag_ends_with_64_and_says_what_to_write() {
    for (flag, value, words) in BAD_VALUES {
        let mut arguments = vec!["serve".to_owned(), format!("--{flag}={value}")];
        if *flag != "config" {
            arguments.push("--config=/absent.yaml".to_owned());
        }
        let ran = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_refused(&ran, &format!("--{flag}"), words);
    }
    for (arguments, words) in [
        (&["serve"][..], "--config <PATH>"),
        (&["serve", "--config"], "a value is required"),
        (&["serve", "--config=/x", "--confg=/y"], "'--config'"),
        (&["serve", "--config=/x", "stray"], "unexpected argument 'stray'"),
        (&["serve", "--config=/x", "--log-level=info", "--log-level=debug"], "cannot be used multiple times"),
        (&["sevre"], "'serve'"),
        (&[], "Usage:"),
        (&["probe"], "Usage:"),
        (&["probe", "all"], "unrecognized subcommand"),
        (&["probe", "decrypt"], "--ciphertext"),
        (&["probe", "decrypt", "--ciphertext", "!", "--key-id", "k"], "not base64"),
        (&["probe", "encrypt", "--plaintext", "!"], "not base64"),
        (&["probe", "live", "--admin", "nowhere"], "neither an IP address with a port"),
        (&["probe", "status", "--socket", "/run/kms.sock"], "write unix:///path/to/kms.sock"),
        (&["probe", "status", "--timeout", "0s"], "must be more than 0"),
        (&["probe", "status", "-o", "yaml"], "json, text"),
    ] {
        assert_refused(&run(arguments).await, "", words);
    }
}

fn assert_refused(ran: &Ran, flag: &str, words: &str) {
    assert_eq!(ran.code, USAGE, "{ran:?}");
    assert_eq!(ran.stdout, "", "{ran:?}");
    assert!(ran.stderr.contains(flag) && ran.stderr.contains(words), "{flag} {words}: {ran:?}");
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
}

#[tokio::test]
async fn every_flag_of_serve_has_an_environment_variable() {
    let flags: BTreeSet<_> = flags_of(&run(&["serve", "--help"]).await.stdout);
    let tested: BTreeSet<_> = BAD_VALUES.iter().map(|(flag, ..)| (*flag).to_owned()).collect();
    assert_eq!(flags, tested, "the table has exactly the flags of `serve`");
    for (flag, value, words) in BAD_VALUES {
        let ran =
            run_with(&["serve"], &[("TRANSIT_KMS_CONFIG", "/absent.yaml"), (&variable(flag), value)], "")
                .await;
        // An empty path counts as missing, not as invalid.
        let words = if *flag == "config" { "--config" } else { words };
        assert_refused(&ran, &format!("--{flag}"), words);
    }
}

#[tokio::test]
async fn flags_override_variables() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let listen = unix_url(&file).into_string().unwrap();
    let variables = [
        ("TRANSIT_KMS_ADMIN_LISTEN", "127.0.0.1:0,unix:///nowhere/admin.sock"),
        ("TRANSIT_KMS_CONFIG", "/absent.yaml"),
        ("TRANSIT_KMS_LISTEN", &listen),
        ("TRANSIT_KMS_LOG_FORMAT", "json"),
        ("TRANSIT_KMS_LOG_LEVEL", "error"),
    ];
    let ran = run_with(&["serve"], &variables, "").await;
    assert_eq!(ran.code, CANNOT_CREATE, "{ran:?}");
    // One JSON line about that file, because lines below `error` are not logged.
    let said: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert!(said["error"].as_str().unwrap().contains(file.to_str().unwrap()), "{said}");
    let ran = run_with(&["serve", "--log-format=text"], &variables, "").await;
    assert!(ran.stderr.contains(" ERROR "), "{ran:?}");

    let uid = rustix::process::geteuid().as_raw();
    let options = DaemonOptions {
        environment: BTreeMap::from(
            [
                ("TRANSIT_KMS_ALLOW_HTTP", "true"),
                ("TRANSIT_KMS_ALLOW_UID", "4242,4243"),
                ("TRANSIT_KMS_LOG_LEVEL", "error"),
                ("TRANSIT_KMS_OUTAGE_GRACE", "1m 5s"),
                ("TRANSIT_KMS_HEALTH_CHECK_INTERVAL", "1s"),
                ("TRANSIT_KMS_SHUTDOWN_GRACE", "1s"),
                ("TRANSIT_KMS_SOCKET_GROUP", &rustix::process::getegid().as_raw().to_string()),
                ("TRANSIT_KMS_SOCKET_MODE", "0640"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        ),
        ..DaemonOptions::default()
    };
    let config = dir.path().join("config.yaml");
    fs::write(&config, "address: http://127.0.0.1:1\nkeynames: kms\ntoken: t\n").unwrap();
    let daemon = Daemon::start_with(&config, options).await;
    let made = fs::symlink_metadata(daemon.socket()).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o640);
    let ran = probe(&daemon, &["status"]).await;
    assert!(ran.stderr.contains(&format!("uid {uid}")), "{ran:?}");
    // `http://` is allowed, so the reason is that Vault is unreachable.
    eventually("the address is tried", WAIT_TIMEOUT, async || {
        let (_, why) = daemon.admin("/readyz").await;
        if why.contains("cannot be reached") { Ok(()) } else { Err(why) }
    })
    .await;
    // The flag sets the level to trace.
    assert!(daemon.log().contains(" INFO "), "{}", daemon.log());

    let admin = unix_url(&daemon.admin_socket()).into_string().unwrap();
    let ran = run_with(&["probe", "live"], &[("TRANSIT_KMS_ADMIN", &admin)], "").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let nowhere = [("TRANSIT_KMS_SOCKET", "unix:///nowhere/kms.sock")];
    let ran = run_with(&["probe", "status"], &nowhere, "").await;
    assert!(ran.stderr.contains("unix:///nowhere/kms.sock"), "{ran:?}");
}

#[tokio::test]
async fn help_names_every_flag_and_variable() {
    let expected = [
        "admin-listen",
        "allow-http",
        "allow-uid",
        "config",
        "kms-v1-listen",
        "listen",
        "log-format",
        "log-level",
        "no-coalescing",
        "outage-grace",
        "health-check-interval",
        "shutdown-grace",
        "socket-group",
        "socket-mode",
        "takeover",
    ];
    for help in [&["serve", "--help"][..], &["serve", "-h"], &["help", "serve"]] {
        let ran = run(help).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
        assert_eq!(flags_of(&ran.stdout), expected.map(str::to_owned).into());
        for flag in expected {
            assert!(ran.stdout.contains(&format!("{}=]", variable(flag))), "{flag}: {}", ran.stdout);
        }
        assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
    }
    let ran = run(&["--help"]).await;
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("serve") && ran.stdout.contains("probe"), "{ran:?}");
    let ran = run(&["probe", "--help"]).await;
    assert_eq!(ran.code, Some(0));
    let named =
        ["status", "encrypt", "decrypt", "roundtrip", "ready", "live", "--socket", "--admin", "--output"];
    assert!(named.iter().all(|word| ran.stdout.contains(word)), "{ran:?}");
}

#[tokio::test]
async fn the_version_comes_with_the_features_of_the_build() {
    let ran = run(&["--version"]).await;
    let features =
        ran.stdout.strip_prefix(concat!("transit-kms ", env!("CARGO_PKG_VERSION"), "\nfeatures: "));
    let features = features.unwrap_or_else(|| panic!("{ran:?}")).trim_end();
    assert!(["none", "aws", "spiffe", "aws, spiffe"].contains(&features), "{ran:?}");
    for arguments in [&["version"][..], &["-V"]] {
        let same = run(arguments).await;
        assert_eq!((same.code, &same.stdout), (Some(0), &ran.stdout), "{arguments:?}");
    }
    assert!(run(&["--help"]).await.stdout.contains("optional features"), "the help names the command");

    let dir = temp_dir("version-");
    let daemon = Daemon::start(&dir.path().join("absent.yaml")).await;
    let (_, metrics) = daemon.admin("/metrics").await;
    let build = format!(
        "transit_kms_build_info{{features=\"{}\",version=\"{}\"}} 1",
        features.replace(", ", ","),
        env!("CARGO_PKG_VERSION")
    );
    assert!(metrics.contains(&build), "{build}: {metrics}");
}

#[tokio::test]
async fn vault_variables_are_ignored_with_a_warning() {
    let env = Setup::start().await;
    let wrong = closed_address();
    let theirs = [
        ("BAO_ADDR", wrong.as_str()),
        ("BAO_TOKEN", "bao-token-value"),
        ("VAULT_ADDR", &wrong),
        ("VAULT_CACERT", "/nowhere/ca.pem"),
        ("VAULT_NAMESPACE", "somebody-elses"),
        ("VAULT_SKIP_VERIFY", "true-value"),
        ("VAULT_TOKEN", "vault-token-value"),
    ];
    let environment = theirs.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter();
    // Proxy variables are ignored, too: the token would go to the proxy in clear.
    let proxies = ["ALL_PROXY", "HTTPS_PROXY", "https_proxy"].map(|name| (name.to_owned(), wrong.clone()));
    let environment = environment.chain(proxies).collect();
    let daemon =
        Daemon::start_with(&env.config, DaemonOptions { environment, ..DaemonOptions::default() }).await;
    daemon.wait_ready().await;
    assert_eq!(probe(&daemon, &["roundtrip"]).await.code, Some(0));
    let log = daemon.log();
    for (name, value) in theirs {
        let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(name)).count();
        assert_eq!(warnings, 1, "{name}: {log}");
        assert!(!log.contains(value), "{name}: {log}");
    }
    assert_eq!(log.matches("from its config file only").count(), theirs.len(), "{log}");
}

#[tokio::test]
async fn probe_succeeds_with_a_healthy_daemon() {
    let env = Setup::start().await;
    let daemon = Daemon::start(&env.config).await;
    daemon.wait_ready().await;
    let key_id = daemon.kms().await.status(StatusRequest {}).await.unwrap().into_inner().key_id;

    let fields: [(&str, &[&str]); 5] = [
        ("encrypt", &["ciphertext", "key_id", "latency_ms"]),
        ("live", &["answer", "latency_ms", "status"]),
        ("ready", &["answer", "latency_ms", "status"]),
        ("roundtrip", &["decrypt_ms", "encrypt_ms", "healthz", "key_id", "status_ms", "version"]),
        ("status", &["healthz", "key_id", "latency_ms", "version"]),
    ];
    for (name, fields) in fields {
        let text = probe(&daemon, &[name]).await;
        assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
        let ran = probe(&daemon, &[name, "-o", "json"]).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
        let json = ran.json();
        assert_eq!((&json["ok"], &json["probe"]), (&true.into(), &name.into()), "{json}");
        let value: BTreeSet<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(value, fields.iter().copied().chain(["ok", "probe"]).collect(), "{json}");
        for field in fields {
            let label = format!("{}: ", field.trim_end_matches("_ms"));
            assert!(text.stdout.lines().any(|line| line.starts_with(&label)), "{label}{text:?}");
        }
        if let Some(value) = json.get("key_id") {
            assert_eq!(value, &key_id, "{json}");
        }
    }

    // It decrypts its own output, whichever way it gets it.
    let seed: [u8; 32] = rand::random();
    let given = BASE64.encode(seed);
    let (socket, _) = urls(&daemon);
    let encrypt = ["probe", "encrypt", "-o", "json", "--socket", &socket, "--plaintext", "-"];
    let sealed = run_with(&encrypt, &[], &format!("{given}\n")).await.json();
    let ciphertext = sealed["ciphertext"].as_str().unwrap();
    let in_etcd = String::from_utf8(BASE64.decode(ciphertext).unwrap()).unwrap();
    assert!(in_etcd.starts_with("vault:v1:"), "{in_etcd}");
    assert_eq!(env.bao.decrypt("kms", &in_etcd).await, seed);
    let hash = hex::encode(Sha256::digest(seed));
    for (ciphertext, input) in [(ciphertext, ""), (&in_etcd, ""), ("-", ciphertext), ("-", &in_etcd)] {
        let decrypt =
            ["probe", "decrypt", "--socket", &socket, "--key-id", &key_id, "--ciphertext", ciphertext];
        let ran = run_with(&decrypt, &[], input).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains("length: 32\n"), "{ran:?}");
        assert!(ran.stdout.contains(&format!("sha256: {hash}\n")), "{ran:?}");
        assert!(!ran.stdout.contains(&given), "{ran:?}");
        let ran = run_with(&[&decrypt[..], &["--show-plaintext", "-o", "json"]].concat(), &[], input).await;
        assert_eq!(ran.json()["plaintext"], given, "{ran:?}");
    }
    // A ciphertext of another key.
    let arguments = ["decrypt", "--key-id", &key_id, "--ciphertext", "vault:v1:AAAA", "-o", "json"];
    let ran = probe(&daemon, &arguments).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.json()["reason"].as_str().unwrap().starts_with("InvalidArgument: "), "{ran:?}");
}

#[tokio::test]
async fn probe_fails_with_an_unhealthy_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("absent.yaml")).await;
    eventually("readyz names the missing file", WAIT_TIMEOUT, async || {
        daemon.admin("/readyz").await.1.contains("absent.yaml")
    })
    .await;
    for name in ["decrypt", "encrypt", "ready", "roundtrip", "status"] {
        let mut arguments = vec![name];
        if name == "decrypt" {
            arguments.extend(["--key-id", "k", "--ciphertext", "vault:v1:AAAA"]);
        }
        let ran = probe(&daemon, &arguments).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("absent.yaml: does not exist (yet)"), "{ran:?}");
        arguments.extend(["-o", "json"]);
        let json = probe(&daemon, &arguments).await.json();
        assert_eq!(json["ok"], false, "{json}");
        assert!(json["reason"].as_str().unwrap().contains("absent.yaml"), "{json}");
    }
    // The process itself is alive.
    assert_eq!(probe(&daemon, &["live"]).await.code, Some(0));

    // Status is answered with a reason instead of `ok`.
    let env = Setup::start().await;
    let daemon = Daemon::start(&env.config).await;
    daemon.wait_ready().await;
    env.bao.revoke(&env.token).await;
    probe(&daemon, &["encrypt"]).await;
    let ran = probe(&daemon, &["status", "-o", "json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let json = ran.json();
    assert_eq!((&json["ok"], &json["version"]), (&false.into(), &"v2".into()), "{json}");
    assert!(json["reason"].as_str().unwrap().contains("the agent has to render a new one"), "{json}");
    assert_eq!(json["reason"], json["healthz"]);
}

#[tokio::test]
async fn probe_fails_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let socket = unix_url(&dir.path().join("kms.sock")).into_string().unwrap();
    let admin = closed_address().replace("https://", "");
    for name in ["decrypt", "encrypt", "live", "ready", "roundtrip", "status"] {
        let mut arguments = vec!["probe", name, "--socket", &socket, "--admin", &admin];
        if name == "decrypt" {
            arguments.extend(["--key-id", "k", "--ciphertext", "vault:v1:AAAA"]);
        }
        let ran = run(&arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains("does `transit-kms serve` run with"), "{ran:?}");
        arguments.extend(["-o", "json"]);
        let ran = run(&arguments).await;
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert_eq!(ran.json()["ok"], false, "{ran:?}");
    }
    // A listener that accepts the connection and never answers.
    let silent = std::os::unix::net::UnixListener::bind(dir.path().join("kms.sock")).unwrap();
    let ran = run(&["probe", "status", "--socket", &socket, "--timeout", "300ms"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("within 300ms (--timeout)"), "{ran:?}");
    drop(silent);
}

#[tokio::test]
async fn logs_are_text_or_json_lines() {
    let env = Setup::start().await;
    for format in ["json", "text"] {
        // Logs have no colours, also with the variables that force colours in terminals.
        let options = DaemonOptions {
            environment: [("CLICOLOR_FORCE".to_owned(), "1".to_owned())].into(),
            ..DaemonOptions::arguments(["--log-format", format, "--log-level=debug"])
        };
        config_file::by_rename(&env.config, &ConfigFile::of(&env.bao, &env.token).yaml());
        let mut daemon = Daemon::start_with(&env.config, options).await;
        daemon.wait_ready().await;
        let before = daemon.log().lines().count();
        let sealed = calls(&daemon).await;
        config_file::by_rename(&env.config, "token: \"\u{e9}\n\n\"{");
        eventually("a bad config is reported", WAIT_TIMEOUT, async || {
            daemon.log().contains("config cannot be loaded")
        })
        .await;
        daemon.terminate().await;
        let log = daemon.log();
        assert!(!log.contains('\u{1b}'), "{log}");
        assert!(log.lines().all(|line| !line.is_empty()), "{log}");
        if format == "text" {
            for line in log.lines() {
                let (time, rest) = line.split_once("Z ").unwrap_or_else(|| panic!("{line}"));
                assert_eq!(time.find('T'), Some("2026-01-01".len()), "{line}");
                let level = rest.split_whitespace().next().unwrap();
                assert!(["DEBUG", "ERROR", "INFO", "WARN"].contains(&level), "{line}");
            }
        } else {
            for line in log.lines() {
                let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                for field in ["level", "message", "target", "timestamp"] {
                    assert!(line[field].is_string(), "{line}");
                }
            }
            assert_one_line_per_call(&env.bao, &log.lines().skip(before).collect::<Vec<_>>(), &sealed);
        }
    }
}

/// One successful and one failing call of each method.
async fn calls(daemon: &Daemon) -> EncryptResponse {
    let mut kms = daemon.kms().await;
    kms.status(StatusRequest {}).await.unwrap();
    // A uid must not be able to add lines or colours to the log.
    let uid = |name: &str| format!("uid-of-{name}\n\u{1b}[31m2026-01-01T00:00:00Z ERROR forged");
    let request = EncryptRequest { plaintext: vec![1; 32].into(), uid: uid("encrypt") };
    let sealed = kms.encrypt(request).await.unwrap().into_inner();
    let decrypt = DecryptRequest {
        annotations: [].into(),
        ciphertext: sealed.ciphertext.clone(),
        key_id: sealed.key_id.clone(),
        uid: uid("decrypt"),
    };
    kms.decrypt(decrypt.clone()).await.unwrap();
    let damaged = DecryptRequest { ciphertext: "vault:v1:AAAA".into(), uid: uid("damaged"), ..decrypt };
    assert_eq!(kms.decrypt(damaged).await.unwrap_err().code(), Code::InvalidArgument);
    sealed
}

fn assert_one_line_per_call(bao: &Bao, lines: &[&str], sealed: &EncryptResponse) {
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_calls: Vec<_> = lines.iter().filter(|line| line.get("method").is_some()).collect();
    let methods: Vec<_> = of_calls.iter().map(|line| line["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["status", "encrypt", "decrypt", "decrypt"]);
    assert!(of_calls.iter().all(|line| line["level"] == "DEBUG" && line["took"].is_string()), "{of_calls:?}");

    let audited: Vec<_> = bao.audit_log();
    let hash = hex::encode(Sha256::digest(&sealed.key_id));
    for (line, uid, path) in [
        (of_calls[1], "uid-of-encrypt", "transit/encrypt/kms"),
        (of_calls[2], "uid-of-decrypt", "transit/decrypt/kms"),
    ] {
        let value = line["uid"].as_str().unwrap();
        assert!(value.starts_with(uid) && !value.contains(char::is_control), "{line}");
        assert_eq!(line["key_id_hash"], format!("sha256:{hash}"), "{line}");
        // This id links the line to Vault's audit log.
        let entry = audited.iter().find(|entry| entry["request"]["id"] == line["vault_request_id"]);
        assert_eq!(entry.expect("the call in the audit log")["request"]["path"], path);
    }
    assert_eq!(of_calls[0]["key_id_hash"], of_calls[1]["key_id_hash"]);
    let failed = of_calls[3];
    assert_eq!(failed["code"], "InvalidArgument", "{failed}");
    assert!(failed["reason"].as_str().unwrap().contains("ciphertext"), "{failed}");
    assert!(failed["uid"].as_str().unwrap().starts_with("uid-of-damaged"), "{failed}");
}

/// A server and a config that uses it.
struct Setup {
    bao: Bao,
    config: PathBuf,
    token: String,
    _dir: TempDir,
}

impl Setup {
    async fn start() -> Self {
        let bao = Bao::start().await;
        let dir = tempfile::tempdir().unwrap();
        let config = Path::join(dir.path(), "config.yaml");
        let token = bao.token().await;
        config_file::by_rename(&config, &ConfigFile::of(&bao, &token).yaml());
        Self { bao, config, token, _dir: dir }
    }
}

/// The values of `--socket` and `--admin`.
fn urls(daemon: &Daemon) -> (String, String) {
    let url = |path: &Path| unix_url(path).into_string().unwrap();
    (url(daemon.socket()), url(&daemon.admin_socket()))
}

/// `probe decrypt` reads the output of `probe encrypt`, in both modes and both formats.
#[tokio::test]
async fn probe_decrypt_reads_the_output_of_probe_encrypt() {
    for local_kek in [false, true] {
        let mut env = testkit::TestEnv::without_file().await;
        env.rendered.local_kek = local_kek;
        let token = env.bao.token().await;
        env.render(&token);
        let (daemon, _) = env.ready([]).await;
        let seed = BASE64.encode("sentinel");
        let encrypt = ["encrypt", "--plaintext", &seed];
        let opened = |ran: &Ran| {
            assert_eq!(ran.code, Some(0), "{ran:?}");
            ran.json()["plaintext"] == seed.as_str()
        };

        // The printed command works in a shell.
        let text = probe(&daemon, &encrypt).await.stdout;
        assert_eq!(text.contains("--annotation="), local_kek, "{text}");
        let line = text.lines().find_map(|line| line.strip_prefix("decrypt it: transit-kms ")).unwrap();
        let script = format!("exec \"$0\" {line} --show-plaintext -o json");
        let shell =
            testkit::command("sh").args(["-c", &script, testkit::repository::daemon()]).output().unwrap();
        let said: Value = serde_json::from_slice(&shell.stdout).unwrap();
        assert_eq!(said["plaintext"], seed.as_str(), "{said}");

        let json = probe(&daemon, &[&encrypt[..], &["-o", "json"]].concat()).await.stdout;
        let file = temp_dir("answer-");
        let path = file.path().join("answer.json");
        fs::write(&path, &json).unwrap();
        let from = ["decrypt", "--encrypted", path.to_str().unwrap(), "--show-plaintext", "-o", "json"];
        assert!(opened(&probe(&daemon, &from).await));

        // Without its annotations a value of mode local-kek cannot be decrypted.
        let said: Value = serde_json::from_str(&json).unwrap();
        let [key_id, ciphertext] = ["key_id", "ciphertext"].map(|name| said[name].as_str().unwrap());
        let bare = ["decrypt", "--key-id", key_id, "--ciphertext", ciphertext];
        assert_eq!(probe(&daemon, &bare).await.code, Some(i32::from(local_kek)));
    }
}

async fn probe(daemon: &Daemon, arguments: &[&str]) -> Ran {
    let (socket, admin) = urls(daemon);
    run(&[&["probe"], arguments, &["--socket", &socket, "--admin", &admin]].concat()).await
}

fn variable(flag: &str) -> String {
    format!("TRANSIT_KMS_{}", flag.replace('-', "_").to_uppercase())
}

/// The long flags in a help text, except `--help`.
fn flags_of(help: &str) -> BTreeSet<String> {
    let options = help.split_once("Options:").unwrap().1;
    let flag = |line: &str| {
        let (_, flag) = line.trim_start().split_once("--").filter(|(before, _)| before.len() <= 4)?;
        Some(flag.split([' ', '=', '[', '<']).next().unwrap().to_owned())
    };
    let of_line = |line: &str| line.starts_with("  ").then(|| flag(line)).flatten();
    options.lines().filter_map(of_line).filter(|flag| flag != "help").collect()
}
