//! Tests of testkit itself, without the daemon.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use kms_plugin::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
    key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
};
use serde_json::{Value, json};
use testkit::{
    Agent, AgentOptions, Bao, BaoOptions, ConfigFile, KEY, Load, LoadReport, Login, POLICY, closed_address,
    config_file, eventually, http::client, policy,
};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

#[tokio::test]
async fn a_server_keeps_its_data_after_a_seal_a_crash_and_a_restart() {
    let mut bao = Bao::start().await;
    let ciphertext = bao.encrypt(KEY, b"seed").await;
    assert!(ciphertext.starts_with("vault:v1:"), "{ciphertext}");

    bao.seal().await;
    let (status, answer) = bao.api_as(bao.root_token(), "GET", "transit/keys/kms", Value::Null).await;
    assert_eq!(status, 503, "{answer}");
    bao.unseal().await;
    assert_eq!(bao.decrypt(KEY, &ciphertext).await, b"seed");

    let address = bao.address();
    bao.stop();
    bao.start_again().await;
    assert_eq!(bao.address(), address);
    assert_eq!(bao.decrypt(KEY, &ciphertext).await, b"seed");
    assert_eq!(bao.rotate_key(KEY).await, 2);
    assert!(bao.encrypt(KEY, b"seed").await.starts_with("vault:v2:"));
}

#[tokio::test]
async fn two_servers_share_no_tokens_and_no_keys() {
    let (one, other) = (Bao::start().await, Bao::start().await);
    let (status, answer) = other.api_as(one.root_token(), "GET", "transit/keys/kms", Value::Null).await;
    assert_eq!(status, 403, "{answer}");
    let ciphertext = one.encrypt(KEY, b"seed").await;
    let (status, answer) = other
        .api_as(other.root_token(), "POST", "transit/decrypt/kms", json!({"ciphertext": ciphertext}))
        .await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("message authentication failed"), "{answer}");
}

#[tokio::test]
async fn a_token_has_only_the_test_policy_until_it_is_revoked() {
    let bao = Bao::start().await;
    let token = bao.token().await;
    let (status, answer) = bao.api_as(&token, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!((status, &answer["data"]["policies"]), (200, &json!([POLICY])));
    let (status, _) = bao.api_as(&token, "POST", "transit/encrypt/kms", json!({"plaintext": ""})).await;
    assert_eq!(status, 200);
    let (status, _) = bao.api_as(&token, "POST", "transit/keys/kms/rotate", json!({})).await;
    assert_eq!(status, 403);
    bao.revoke(&token).await;
    let (status, _) = bao.api_as(&token, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!(status, 403);

    let limited = bao.create_token(json!({"num_uses": 1, "ttl": "1m"})).await;
    let (status, answer) = bao.api_as(&limited, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!((status, &answer["data"]["num_uses"]), (200, &json!(-1)), "{answer}");

    let operations: Vec<_> = bao.audit_log().iter().map(|entry| entry["request"]["path"].clone()).collect();
    assert!(operations.contains(&json!("transit/encrypt/kms")), "{operations:?}");
}

#[tokio::test]
async fn a_server_can_require_client_certificates() {
    let options = BaoOptions { require_client_certificate: true, ..BaoOptions::default() };
    let bao = Bao::start_with(options).await;
    let ca = reqwest::Certificate::from_pem(&std::fs::read(bao.ca_file()).unwrap()).unwrap();
    let client = || client().tls_certs_only([ca.clone()]);
    let address = format!("{}/v1/sys/health", bao.address());
    let stranger = client().build().unwrap();
    assert!(stranger.get(&address).send().await.is_err());

    let (chain, key) = bao.client_certificate("daemon");
    let identity = [std::fs::read(key).unwrap(), std::fs::read(chain).unwrap()].concat();
    let known = client().identity(reqwest::Identity::from_pem(&identity).unwrap()).build().unwrap();
    assert_eq!(known.get(&address).send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn a_frozen_server_does_not_answer_and_a_closed_address_refuses() {
    let mut bao = Bao::start().await;
    let impatient =
        client().tls_danger_accept_invalid_certs(true).timeout(Duration::from_millis(200)).build().unwrap();
    let ask = async |address: String| impatient.get(format!("{address}/v1/sys/health")).send().await;
    assert!(ask(bao.address()).await.is_ok());
    bao.freeze().await;
    assert!(ask(bao.address()).await.unwrap_err().is_timeout());
    bao.thaw();
    assert!(ask(bao.address()).await.is_ok());
    assert!(ask(closed_address()).await.unwrap_err().is_connect());
}

#[tokio::test]
async fn an_agent_logs_in_again_on_request_and_its_old_token_stays_valid() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let mut agent = Agent::start(&bao, &config, AgentOptions::default()).await;
    let mode = std::fs::metadata(&config).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let text = std::fs::read_to_string(&config).unwrap();
    assert_eq!(text, ConfigFile::of(&bao, &agent.token()).yaml());
    for _ in 0..3 {
        let old = agent.token();
        let new = agent.log_in_again().await;
        for token in [old, new] {
            let (status, answer) =
                bao.api_as(&token, "POST", "transit/encrypt/kms", json!({"plaintext": ""})).await;
            assert_eq!(status, 200, "{answer}");
        }
    }
}

#[tokio::test]
async fn an_agent_renders_a_new_token_after_a_revocation() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let options = AgentOptions {
        login: Login::AppRole,
        role: json!({"token_period": "2s"}),
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(&bao, &dir.path().join("config.yaml"), options).await;
    let old = agent.token();
    bao.revoke(&old).await;
    let new = agent.wait_for_another_token(&old, Duration::from_secs(20)).await;
    let (status, answer) = bao.api_as(&new, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_config_file_can_be_replaced_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let read = || std::fs::read_to_string(&path).unwrap();
    config_file::by_rename(&path, "one");
    assert_eq!(read(), "one");
    config_file::in_place(&path, "two");
    assert_eq!(read(), "two");
    let half = config_file::in_place_first_half(&path, "three!");
    assert_eq!(read(), "thr");
    half.finish();
    assert_eq!(read(), "three!");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let volume = config_file::KubeletVolume::new(&dir.path().join("volume"), "config.yaml", "one");
    assert_eq!(std::fs::read_to_string(volume.path()).unwrap(), "one");
    volume.swap("two");
    assert_eq!(std::fs::read_to_string(volume.path()).unwrap(), "two");
    // The link of the file, `..data`, and the folder that it links to.
    assert_eq!(std::fs::read_dir(dir.path().join("volume")).unwrap().count(), 3);
}

#[tokio::test]
#[should_panic(expected = "not within 50ms: the condition holds (the last error)")]
async fn eventually_panics_with_the_last_error() {
    eventually("the condition holds", Duration::from_millis(50), async || Err::<(), _>("the last error"))
        .await;
}

#[tokio::test]
#[should_panic(expected = "not within 50ms: an answer (no answer)")]
async fn eventually_panics_when_the_condition_never_returns() {
    eventually("an answer", Duration::from_millis(50), std::future::pending::<bool>).await;
}

#[tokio::test]
async fn load_reports_every_kind_of_failure() {
    let report = load_on_provider_with(Fault::None).await;
    report.assert_nothing_failed();
    assert!(report.longest > Duration::ZERO);
    for (fault, words) in [
        (Fault::Error, "Encrypt: Unavailable: an injected error"),
        (Fault::KeyId, "Encrypt: key_id two, Status one and then one"),
        (Fault::Plaintext, "Decrypt: another plaintext"),
        (Fault::Reason, "Status: an injected reason"),
    ] {
        let report = load_on_provider_with(fault).await;
        // One fault among many successful calls must be reported.
        assert_eq!(report.failed, 1, "{fault:?}: {report:?}");
        assert!(report.failures.iter().any(|failure| failure.ends_with(words)), "{fault:?}: {report:?}");
    }
}

/// A fault of the in-process provider. It occurs once, after successful calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    Error,
    KeyId,
    None,
    Plaintext,
    Reason,
}

async fn load_on_provider_with(fault: Fault) -> LoadReport {
    let dir = tempfile::tempdir().unwrap();
    let (socket, at) = (dir.path().join("kms.sock"), Arc::new(Mutex::new(Fault::None)));
    let serving = tokio::spawn(serve(socket.clone(), Provider { fault: at.clone() }));
    eventually("the provider listens", Duration::from_secs(5), async || socket.exists()).await;
    let load = Load::start_on(&socket, 3, Duration::ZERO).await;
    eventually("load", Duration::from_secs(5), async || load.calls() > 100).await;
    *at.lock().unwrap() = fault;
    eventually("the fault has occurred", Duration::from_secs(5), async || *at.lock().unwrap() == Fault::None)
        .await;
    let report = load.stop().await;
    serving.abort();
    report
}

async fn serve(socket: PathBuf, provider: Provider) {
    let listener = UnixListener::bind(socket).unwrap();
    let service = KeyManagementServiceServer::new(provider);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
    }
}

/// A provider whose ciphertext is the plaintext.
struct Provider {
    fault: Arc<Mutex<Fault>>,
}

impl Provider {
    /// Whether this fault is set; resets it.
    fn take(&self, fault: Fault) -> bool {
        let mut set = self.fault.lock().unwrap();
        let is_set = *set == fault;
        if is_set {
            *set = Fault::None;
        }
        is_set
    }
}

#[tonic::async_trait]
impl KeyManagementService for Provider {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let healthz = if self.take(Fault::Reason) { "an injected reason" } else { "ok" };
        Ok(Response::new(StatusResponse {
            version: "v2".into(),
            healthz: healthz.into(),
            key_id: "one".into(),
        }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        if self.take(Fault::Error) {
            return Err(Status::unavailable("an injected error"));
        }
        Ok(Response::new(EncryptResponse {
            ciphertext: request.into_inner().plaintext,
            key_id: if self.take(Fault::KeyId) { "two".into() } else { "one".into() },
            annotations: [].into(),
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let wrong = self.take(Fault::Plaintext);
        let plaintext = if wrong { vec![0; 32].into() } else { request.into_inner().ciphertext };
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

/// The tests run with exactly the rights that docs/install.md tells operators to grant.
#[test]
fn the_policy_of_the_tests_is_the_documented_one() {
    let install = include_str!("../../docs/install.md");
    let block = install.split("<<POLICY").nth(1).and_then(|rest| rest.split("POLICY").next()).unwrap();
    let block = block.replace("kms-$CLUSTER", "kms");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&block), words(&policy("transit", "kms")));
}
