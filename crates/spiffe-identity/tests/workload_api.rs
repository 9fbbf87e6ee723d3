//! SVIDs from a Workload API on a real socket.

#![allow(clippy::unwrap_used, reason = "clippy does not count helpers of a test file as tests")]

use std::{
    error::Error,
    fs,
    os::unix::net::UnixListener,
    time::{Duration, UNIX_EPOCH},
};

use secrecy::ExposeSecret;
use spiffe_identity::{
    FetchError, SpiffeId, TrustDomain, WorkloadApi, check_trust_domain, common_name,
    spiffe_id_of_certificate, spiffe_id_of_jwt,
};
use testkit::{Conduct, Identity, WorkloadApiServer, temp_dir};

const FIRST: &str = "spiffe://prod.acme.net/kms/node-1";
const SECOND: &str = "spiffe://prod.acme.net/kms/node-2";
const FOREIGN: &str = "spiffe://prod.acme.net/kms/node-3";
/// No test waits for it, except those of a Workload API that hangs.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

fn client(server: &WorkloadApiServer) -> WorkloadApi {
    WorkloadApi::new(&server.address()).unwrap().with_timeout(LONG)
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

/// Checks that a message names the socket and has these words, and returns it.
fn explained(error: &FetchError, server: &WorkloadApiServer, words: &[&str]) {
    let text = error.to_string();
    for words in words.iter().chain([&server.address().as_str()]) {
        assert!(text.contains(words), "no \"{words}\" in: {text}");
    }
}

#[tokio::test]
async fn a_jwt_svid_has_the_audience_and_the_spiffe_id() {
    let server = WorkloadApiServer::of(FIRST);
    server.register(Identity::new(SECOND));
    let api = client(&server);
    for (asked, issued) in [(None, FIRST), (Some(id(FIRST)), FIRST), (Some(id(SECOND)), SECOND)] {
        let svid = api.jwt_svid("vault", asked.as_ref()).await.unwrap();
        assert_eq!(svid.spiffe_id, id(issued));
        let token = svid.token.expose_secret();
        assert_eq!(spiffe_id_of_jwt(token).unwrap(), id(issued));
        let claims = claims(token);
        assert_eq!(claims["aud"], serde_json::json!(["vault"]));
        assert_eq!(svid.expiry, UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64().unwrap()));
        let text = format!("{svid:?}");
        assert!(!text.contains(token) && text.contains("REDACTED"), "{text}");
    }
}

#[tokio::test]
async fn an_x509_svid_has_its_chain_and_its_key() {
    let server = WorkloadApiServer::of(FIRST);
    server.register(Identity::new(SECOND).with_common_name("node-2"));
    let api = client(&server);
    for (asked, issued, name) in [(None, FIRST, None), (Some(id(SECOND)), SECOND, Some("node-2"))] {
        let svid = api.x509_svid(asked.as_ref()).await.unwrap();
        assert_eq!(svid.spiffe_id, id(issued));
        assert_eq!(spiffe_id_of_certificate(&svid.certificate).unwrap(), id(issued));
        assert_eq!(common_name(&svid.certificate).as_deref(), name);
        let key = svid.private_key.expose_secret();
        let pair = rcgen::KeyPair::from_pem(key).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(svid.certificate.as_bytes()).unwrap();
        let leaf = pem.parse_x509().unwrap();
        assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&pair));
        let expiry = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
        assert_eq!(svid.expiry, UNIX_EPOCH + Duration::from_secs(expiry));
        let text = format!("{svid:?}");
        assert!(!text.contains("PRIVATE KEY") && text.contains("REDACTED"), "{text}");
    }
}

#[tokio::test]
async fn a_spiffe_id_that_is_not_issued_is_named_with_those_that_are() {
    let server = WorkloadApiServer::of(FIRST);
    server.register(Identity::new(SECOND));
    let api = client(&server);
    let error = api.x509_svid(Some(&id(FOREIGN))).await.unwrap_err();
    explained(&error, &server, &[FOREIGN, FIRST, SECOND, "registration entry"]);
    // Of JWT-SVIDs, the Workload API lists none.
    let error = api.jwt_svid("vault", Some(&id(FOREIGN))).await.unwrap_err();
    explained(&error, &server, &[FOREIGN, "registration entry"]);
    assert!(matches!(error, FetchError::NotIssued { spiffe_id: Some(asked), .. } if asked == id(FOREIGN)));
}

#[tokio::test]
async fn a_workload_without_a_registration_entry_gets_no_svid() {
    let server = WorkloadApiServer::start("prod.acme.net");
    let api = client(&server);
    let jwt = api.jwt_svid("vault", None).await.unwrap_err();
    let x509 = api.x509_svid(None).await.unwrap_err();
    for error in [&jwt, &x509] {
        explained(error, &server, &["issues no SVID at all to this process", "registration entry"]);
    }
    server.register(Identity::new(FIRST));
    api.x509_svid(None).await.unwrap();
}

#[tokio::test]
async fn a_refusal_quotes_the_workload_api() {
    let server = WorkloadApiServer::of(FIRST);
    server.conduct(Conduct::Refuse("peer\n not allowed"));
    let error = client(&server).jwt_svid("vault", None).await.unwrap_err();
    assert!(matches!(error, FetchError::Refused { .. }));
    explained(&error, &server, &["peer not allowed"]);
    // Every other error of gRPC.
    server.conduct(Conduct::Serve);
    let error = client(&server).jwt_svid("", None).await.unwrap_err();
    explained(&error, &server, &["fails", "audience must be specified", "log of the SPIRE agent"]);
    assert!(matches!(error, FetchError::Failed { .. }) && error.source().is_some());
}

#[tokio::test]
async fn a_workload_api_that_hangs_is_given_up_at_the_deadline() {
    let server = WorkloadApiServer::of(FIRST);
    server.conduct(Conduct::Hang);
    let api = client(&server).with_timeout(SHORT);
    let jwt = api.jwt_svid("vault", None).await.unwrap_err();
    let x509 = api.x509_svid(None).await.unwrap_err();
    for error in [jwt, x509] {
        assert!(matches!(error, FetchError::TimedOut { after: SHORT, .. }), "{error}");
        explained(&error, &server, &["within 0.2 s", "SPIRE agent runs"]);
    }
    assert_eq!(server.fetches(), 2);
}

#[tokio::test]
async fn a_socket_that_accepts_no_connection_or_never_speaks_is_reported() {
    let dir = temp_dir("spiffe-");
    let path = dir.path().join("api.sock");
    let api = WorkloadApi::new(&format!("unix://{}", path.display())).unwrap().with_timeout(SHORT);
    let error = api.jwt_svid("vault", None).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }) && error.source().is_some());
    let text = error.to_string();
    assert!(text.contains("No such file") && text.contains("mounted at this path"), "{text}");
    // The agent is dead, and its socket is left.
    drop(UnixListener::bind(&path).unwrap());
    let text = api.x509_svid(None).await.unwrap_err().to_string();
    assert!(text.contains("Connection refused"), "{text}");
    // A process that accepts in the kernel only.
    fs::remove_file(&path).unwrap();
    let _silent = UnixListener::bind(&path).unwrap();
    let error = api.x509_svid(None).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn each_fetch_uses_the_agent_that_listens_now() {
    let mut server = WorkloadApiServer::of(FIRST);
    let api = client(&server);
    api.jwt_svid("vault", None).await.unwrap();
    server.stop();
    let error = api.jwt_svid("vault", None).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    server.restart();
    api.jwt_svid("vault", None).await.unwrap();
    api.x509_svid(None).await.unwrap();
}

#[tokio::test]
async fn each_fetch_returns_the_svid_that_is_current() {
    let server = WorkloadApiServer::of(FIRST);
    let api = client(&server);
    let first = api.x509_svid(None).await.unwrap();
    assert_eq!(first.certificate, api.x509_svid(None).await.unwrap().certificate);
    server.rotate();
    assert_ne!(first.certificate, api.x509_svid(None).await.unwrap().certificate);
}

#[tokio::test]
async fn an_svid_of_a_foreign_trust_domain_is_found_before_it_leaves() {
    let server = WorkloadApiServer::of("spiffe://staging.acme.net/kms/node-1");
    let svid = client(&server).jwt_svid("vault", None).await.unwrap();
    let allowed = [TrustDomain::new("prod.acme.net").unwrap()];
    let error = check_trust_domain(&svid.spiffe_id, &allowed).unwrap_err();
    assert!(error.to_string().contains("staging.acme.net"), "{error}");
    check_trust_domain(&svid.spiffe_id, [&TrustDomain::new("staging.acme.net").unwrap()]).unwrap();
}

/// The claims of a JWT.
fn claims(token: &str) -> serde_json::Value {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64URL.decode(claims).unwrap()).unwrap()
}
