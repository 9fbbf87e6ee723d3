//! The whole path of a request: real server, real agent, real daemon, real calls.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{StatusCode, header};
use serde_json::{Value, json};
use testkit::{
    Agent, AgentOptions, Bao, BaoOptions, ConfigFile, Daemon, DaemonOptions, KEY, Kms, POLICY,
    calls::{decrypt, encrypt, round_trip, status},
    config_file, eventually,
    http::{Forwarder, HttpServer, Proxy, answer},
    policy,
};
use tonic::Code;

const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";
const WAIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// A daemon with its own config.
struct Setup {
    daemon: Daemon,
    dir: tempfile::TempDir,
    kms: Kms,
}

impl Setup {
    async fn start(content: &ConfigFile) -> Self {
        Self::start_with(content, DaemonOptions::default()).await
    }

    async fn start_with(content: &ConfigFile, options: DaemonOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        config_file::by_rename(&config, &content.yaml());
        let daemon = Daemon::start_with(&config, options).await;
        let kms = daemon.kms().await;
        Self { daemon, dir, kms }
    }

    async fn ready(content: &ConfigFile, options: DaemonOptions) -> Self {
        let setup = Self::start_with(content, options).await;
        setup.daemon.wait_ready().await;
        setup
    }

    /// Waits until Status is `Unavailable` with all of these words.
    async fn wait_unavailable(&self, words: &[&str]) {
        eventually("Status names the cause", WAIT_TIMEOUT, async || match status(&self.kms).await {
            Ok(known) => Err(format!("{known:?}")),
            Err(e) if e.code() != Code::Unavailable => Err(e.to_string()),
            Err(e) if words.iter().all(|word| e.message().contains(word)) => Ok(()),
            Err(e) => Err(e.message().to_owned()),
        })
        .await;
    }
}

fn allow_http() -> DaemonOptions {
    DaemonOptions::arguments(["--allow-http"])
}

#[tokio::test]
async fn a_seed_is_encrypted_and_decrypted_with_tokens_from_an_agent() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(&bao, &dir.path().join("config.yaml"), AgentOptions::default()).await;
    let first_token = agent.token();
    let mut daemon = Daemon::start(agent.config()).await;
    daemon.wait_ready().await;
    let kms = daemon.kms().await;

    let known = status(&kms).await.unwrap();
    assert_eq!((known.version.as_str(), known.healthz.as_str()), ("v2", "ok"));
    assert!(known.key_id.starts_with("tk1.") && known.key_id.contains(".1."), "{}", known.key_id);

    let sealed = encrypt(&kms, SEED, "uid-1").await.unwrap();
    assert_eq!(sealed.key_id, known.key_id);
    assert!(sealed.annotations.is_empty());
    assert!(sealed.ciphertext.len() <= 1024);
    // A migration away stays easy: Vault can decrypt the ciphertext without transit-kms.
    let text = String::from_utf8(sealed.ciphertext.to_vec()).unwrap();
    assert!(text.starts_with("vault:v1:"), "{text}");
    assert_eq!(bao.decrypt(KEY, &text).await, SEED);
    assert_eq!(decrypt(&kms, sealed.ciphertext.clone(), &sealed.key_id, "uid-2").await.unwrap(), SEED);

    let second_token = agent.log_in_again().await;
    daemon.wait_generation(2).await;
    bao.revoke(&first_token).await;
    assert_eq!(status(&kms).await.unwrap(), known);
    assert_eq!(decrypt(&kms, sealed.ciphertext, &sealed.key_id, "uid-3").await.unwrap(), SEED);
    round_trip(&kms, "uid-4").await;

    assert!(daemon.terminate().await.success());
    let encoded = BASE64.encode(SEED);
    daemon.assert_never_printed(&[&first_token, &second_token, "0123456789abcdef", &encoded]);
}

#[tokio::test]
async fn ciphertexts_of_other_providers_are_decrypted_and_foreign_key_ids_are_refused() {
    let bao = Bao::start().await;
    bao.enable_uid_audit().await;
    let setup = Setup::ready(&ConfigFile::with_new_token(&bao).await, DaemonOptions::default()).await;
    let kms = &setup.kms;

    // Encrypted without transit-kms, as by Trousseau and other providers with plain Vault ciphertexts.
    let theirs = bao.encrypt(KEY, SEED).await;
    assert_eq!(decrypt(kms, theirs.clone(), "1", "migration").await.unwrap(), SEED);
    assert!(!bao.audited("migration").is_empty());

    let own = encrypt(kms, SEED, "own").await.unwrap();
    let scope = own.key_id.split('.').nth(1).unwrap();
    let other: String = scope.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect();
    let foreign = own.key_id.replacen(scope, &other, 1);
    let refused = decrypt(kms, own.ciphertext.clone(), &foreign, "foreign").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("vault.keynames"), "{refused:?}");

    let newer = own.key_id.replacen(".1.", ".2.", 1);
    let refused = decrypt(kms, own.ciphertext.clone(), &newer, "mismatch").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");

    let mut damaged = own.ciphertext.to_vec();
    damaged[20] = if damaged[20] == b'A' { b'B' } else { b'A' };
    let refused = decrypt(kms, damaged, &own.key_id, "damaged").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");

    // The last call has reached Vault, so the audit log is complete: the refused calls were not sent.
    assert!(!bao.audited("damaged").is_empty());
    for uid in ["foreign", "mismatch"] {
        assert!(bao.audited(uid).is_empty(), "{uid} was sent to Vault");
    }
}

#[tokio::test]
async fn concurrent_clients_get_their_own_answers() {
    let bao = Bao::start().await;
    let setup = Setup::ready(&ConfigFile::with_new_token(&bao).await, DaemonOptions::default()).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let kms = setup.daemon.kms().await;
        clients.spawn(async move {
            for call in 0..10 {
                round_trip(&kms, &format!("client-{client}-{call}")).await;
            }
            // Keeps its connection until all clients are done.
            kms
        });
    }
    let open = clients.join_all().await;
    let counted = setup.daemon.metric("transit_kms_connections_open", &[]).await as usize;
    assert_eq!(counted, open.len() + 1);
}

#[tokio::test]
async fn the_audit_log_names_the_api_request() {
    let bao = Bao::start().await;
    let options = DaemonOptions::arguments(["--log-format", "json", "--log-level", "debug"]);
    let setup = Setup::ready(&ConfigFile::with_new_token(&bao).await, options).await;

    encrypt(&setup.kms, SEED, "before").await.unwrap();
    assert!(bao.audited("before").is_empty());
    bao.enable_uid_audit().await;
    let sealed = encrypt(&setup.kms, SEED, "uid-of-encrypt").await.unwrap();
    decrypt(&setup.kms, sealed.ciphertext, &sealed.key_id, "uid-of-decrypt").await.unwrap();

    for (uid, method) in [("uid-of-encrypt", "encrypt"), ("uid-of-decrypt", "decrypt")] {
        let line = eventually("a log line of the call", WAIT_TIMEOUT, async || {
            let log = setup.daemon.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.into_iter().find(|line| line["uid"] == json!(uid))
        })
        .await;
        assert_eq!((&line["level"], &line["method"]), (&json!("DEBUG"), &json!(method)), "{line}");
        assert!(line["key_id_hash"].as_str().unwrap().starts_with("sha256:"), "{line}");
        let entries = bao.audited(uid);
        assert!(!entries.is_empty(), "{uid}");
        for entry in entries {
            assert_eq!(entry["request"]["id"], line["vault_request_id"], "{entry}");
            let path = format!("transit/{method}/{KEY}");
            assert_eq!(entry["request"]["path"], json!(path), "{entry}");
        }
    }
}

#[tokio::test]
async fn a_path_prefix_in_the_address_is_kept() {
    let bao = Bao::start().await;
    let proxy = Proxy::start(&bao, "/behind/a-proxy").await;
    let content = ConfigFile::with_new_token(&bao).await;
    let content = ConfigFile { addresses: vec![proxy.address()], ..content };
    let setup = Setup::ready(&content, allow_http()).await;
    round_trip(&setup.kms, "prefixed").await;
    let paths: Vec<_> = proxy.seen().into_iter().map(|seen| seen.path).collect();
    assert!(paths.contains(&"/behind/a-proxy/v1/transit/encrypt/kms".to_owned()), "{paths:?}");
    assert!(paths.contains(&"/behind/a-proxy/v1/auth/token/lookup-self".to_owned()), "{paths:?}");
    assert!(paths.iter().all(|path| path.starts_with("/behind/a-proxy/v1/")), "{paths:?}");
}

#[tokio::test]
async fn the_namespace_is_used_and_is_part_of_the_key_id() {
    let bao = Bao::start().await;
    if Bao::is_vault() {
        eprintln!("not tested: Vault has namespaces in its Enterprise edition only");
        return;
    }
    bao.api("POST", "sys/namespaces/team-a", json!({})).await;
    bao.api("POST", "team-a/sys/mounts/transit", json!({"type": "transit"})).await;
    bao.api("POST", &format!("team-a/transit/keys/{KEY}"), json!({})).await;
    let rules = policy("transit", KEY);
    bao.api("PUT", &format!("team-a/sys/policies/acl/{POLICY}"), json!({"policy": rules})).await;
    let request = json!({"policies": [POLICY], "no_default_policy": true, "ttl": "1h"});
    let answer = bao.api("POST", "team-a/auth/token/create", request).await;
    let token = answer["auth"]["client_token"].as_str().unwrap();

    let content = ConfigFile::of(&bao, token);
    let here = Setup::ready(
        &ConfigFile { namespace: Some("team-a/".into()), ..content.clone() },
        DaemonOptions::default(),
    )
    .await;
    let sealed = encrypt(&here.kms, SEED, "here").await.unwrap();
    let text = String::from_utf8(sealed.ciphertext.to_vec()).unwrap();
    let answer = bao.api("POST", "team-a/transit/decrypt/kms", json!({"ciphertext": text})).await;
    assert_eq!(answer["data"]["plaintext"], json!(BASE64.encode(SEED)));

    let root = Setup::ready(&ConfigFile::with_new_token(&bao).await, DaemonOptions::default()).await;
    assert_ne!(status(&root.kms).await.unwrap().key_id, sealed.key_id);

    let nowhere = ConfigFile { namespace: Some("team-b".into()), ..content };
    let nowhere = Setup::start(&nowhere).await;
    nowhere.wait_unavailable(&["namespace"]).await;
}

#[tokio::test]
async fn the_configured_server_name_is_checked_instead_of_the_address() {
    let bao = Bao::start().await;
    let forwarder = Forwarder::start(&bao).await;
    let content = ConfigFile::with_new_token(&bao).await;
    let content = ConfigFile { addresses: vec![forwarder.address()], ..content };
    let setup = Setup::start(&content).await;
    setup
        .wait_unavailable(&[&forwarder.address(), "certificate", "127.0.0.2", "vault.tls.server_name"])
        .await;

    let content = ConfigFile { server_name: Some("localhost".into()), ..content };
    config_file::by_rename(&setup.dir.path().join("config.yaml"), &content.yaml());
    setup.daemon.wait_ready().await;
    round_trip(&setup.kms, "named").await;

    // The configured name is checked.
    let content = ConfigFile { server_name: Some("elsewhere.test".into()), ..content };
    let wrong = Setup::start(&content).await;
    wrong.wait_unavailable(&["certificate", "elsewhere.test", "vault.tls.server_name"]).await;
}

#[tokio::test]
async fn a_client_certificate_is_sent_to_a_server_that_requires_one() {
    let options = BaoOptions { require_client_certificate: true, ..BaoOptions::default() };
    let bao = Bao::start_with(options).await;
    let content = ConfigFile::with_new_token(&bao).await;
    let setup = Setup::start(&content).await;
    setup.wait_unavailable(&["CertificateRequired", "vault.tls.client_cert_file"]).await;

    let content = ConfigFile { client_certificate: Some(bao.client_certificate("daemon")), ..content };
    config_file::by_rename(&setup.dir.path().join("config.yaml"), &content.yaml());
    setup.daemon.wait_ready().await;
    round_trip(&setup.kms, "certified").await;
}

#[tokio::test]
async fn a_wrong_ca_file_is_named_and_can_be_replaced() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    let stranger = rcgen::generate_simple_self_signed(["stranger".to_owned()]).unwrap();
    std::fs::write(&ca_file, stranger.cert.pem()).unwrap();
    let content = ConfigFile::with_new_token(&bao).await;
    let content = ConfigFile { ca_file: ca_file.clone(), ..content };
    let setup = Setup::start(&content).await;
    setup.wait_unavailable(&[&bao.address(), "UnknownIssuer", "vault.tls.ca_file"]).await;

    // A change of the CA file alone also reloads the config.
    config_file::by_rename(&ca_file, &std::fs::read_to_string(bao.ca_file()).unwrap());
    setup.daemon.wait_ready().await;
    round_trip(&setup.kms, "trusted").await;
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_token() {
    let bao = Bao::start().await;
    let other = HttpServer::start(async |_| answer(StatusCode::OK, "{}")).await;
    let to = other.address();
    // A standby that cannot forward responds like this. A single real server cannot be made to.
    let redirecting = HttpServer::start(move |request| {
        let location = format!("{to}{}", request.uri().path());
        async move {
            let mut redirect = answer(StatusCode::TEMPORARY_REDIRECT, "");
            redirect.headers_mut().insert(header::LOCATION, location.parse().unwrap());
            redirect
        }
    })
    .await;
    let content = ConfigFile::with_new_token(&bao).await;
    let setup =
        Setup::start_with(&ConfigFile { addresses: vec![redirecting.address()], ..content }, allow_http())
            .await;
    setup.wait_unavailable(&["redirect", "307"]).await;
    let seen = eventually("a second request", WAIT_TIMEOUT, async || {
        let seen = redirecting.seen();
        (seen.len() >= 2).then_some(seen)
    })
    .await;
    // The requests carried the token, which a followed redirect would have leaked.
    assert!(seen.iter().all(|seen| seen.headers.contains_key("x-vault-token")), "{seen:?}");
    assert!(other.seen().is_empty(), "{:?}", other.seen());
}
