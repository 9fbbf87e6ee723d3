use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use super::{
    super::{Acceptance, Request, attempts::SILENCE_TIMEOUT, send},
    *,
};
use crate::{
    ErrorKind, TransitError,
    operation::VaultOperation,
    testing::fake_vault::{Answer, FakeVault, call, json, session},
    vault::{
        exchange::{HttpRequest, invalid_response},
        failover::TokenSource,
        session::Session,
    },
};

const SEALED: &str = r#"{"errors":["Vault is sealed"]}"#;

fn token() -> Answer {
    json(200, r#"{"auth":{"client_token":"s.x"}}"#)
}

async fn ask(
    session: &Session,
    operation: VaultOperation,
    replay: Replay,
    deadline: Instant,
) -> Result<(), TransitError> {
    let http = HttpRequest {
        method: operation.method(),
        path: "auth/approle/login".into(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"{}"),
        token_source: TokenSource::Rendered,
    };
    let request = Request {
        acceptance: &Acceptance::default(),
        affects_node_health: !operation.is_about_token(),
        deadline,
        http: &http,
        observer: None,
        operation,
        replay,
        token_is_fresh: false,
    };
    let parse = |response: &crate::vault::exchange::HttpResponse| {
        let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
        body.get("auth").map(drop).ok_or_else(|| invalid_response(operation))
    };
    send(&session.pool, &session.requester.metrics, request, &parse).await
}

async fn log_in(session: &Session, replay: Replay) -> Result<(), TransitError> {
    ask(session, VaultOperation::Login, replay, call().deadline).await
}

/// The outcome of a login at two nodes, the first of which gives `answer`, and how many requests each gets.
async fn log_in_after(answer: Answer, replay: Replay) -> (Result<(), TransitError>, usize, usize) {
    let first = FakeVault::with(vec![answer]).await;
    let other = FakeVault::with(vec![token()]).await;
    let outcome = log_in(&session(&[&first.address, &other.address]).await, replay).await;
    (outcome, first.requests(), other.requests())
}

async fn refuses_connections() -> String {
    FakeVault::with(vec![]).await.address
}

#[tokio::test]
async fn a_node_that_refuses_the_connection_is_followed_by_the_next() {
    let (gone, other) = (refuses_connections().await, FakeVault::with(vec![token()]).await);
    log_in(&session(&[&gone, &other.address]).await, Replay::IfUnsent).await.unwrap();
    assert_eq!(other.requests(), 1);

    let error = log_in(&session(&[&gone]).await, Replay::IfUnsent).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_been_processed()), (ErrorKind::Unreachable, false), "{error}");
}

#[tokio::test]
async fn a_node_that_certainly_has_not_processed_the_request_is_followed_by_the_next() {
    for (status, body) in [
        (503, SEALED),
        (503, r#"{"errors":["Vault is not initialized"]}"#),
        (500, r#"{"errors":["local node not active but active cluster node not found"]}"#),
        (400, r#"{"errors":["path disabled in replication DR secondary mode"]}"#),
        (412, "{}"),
    ] {
        for replay in [Replay::IfUnsent, Replay::Safe] {
            let (outcome, first, other) = log_in_after(json(status, body), replay).await;
            assert_eq!((outcome.is_ok(), first, other), (true, 1, 1), "{status} {body} {replay:?}");
        }
    }

    let sealed = FakeVault::with(vec![json(503, SEALED)]).await;
    let error = log_in(&session(&[&sealed.address]).await, Replay::IfUnsent).await.unwrap_err();
    assert!(error.message.contains("unseal it"), "{error}");
    assert_eq!((sealed.requests(), error.may_have_been_processed()), (1, false));
}

#[tokio::test]
async fn an_answer_that_does_not_prove_that_nothing_happened_ends_the_call() {
    let too_long = b"HTTP/1.1 200 X\r\ncontent-length: 9999999\r\n\r\n".to_vec();
    for (what, answer) in [
        ("redirect", json(307, "")),
        ("500", json(500, r#"{"errors":["internal error"]}"#)),
        ("no leader any more", json(503, r#"{"errors":["no active Vault instance found"]}"#)),
        ("page of a proxy", json(502, "<html>Bad Gateway</html>")),
        ("timeout of a proxy", json(504, "<html>")),
        ("web filter", json(403, "<html>")),
        ("success that is not Vault's", json(200, "<html>")),
        ("success without a body", json(204, "")),
        ("too long", Answer::Bytes(too_long)),
        ("no HTTP", Answer::Bytes(b"nonsense\r\n\r\n".to_vec())),
        ("broken connection", Answer::Close),
    ] {
        let (outcome, first, other) = log_in_after(answer.clone(), Replay::IfUnsent).await;
        let error = outcome.unwrap_err();
        assert_eq!((first, other), (1, 0), "{what}");
        assert!(error.may_have_been_processed(), "{what}: {error}");
        assert!(error.message.contains("Vault may have processed the request"), "{what}: {error}");

        let (outcome, first, other) = log_in_after(answer, Replay::Safe).await;
        assert_eq!((outcome.is_ok(), first, other), (true, 1, 1), "{what}: it is asked again if it is safe");
    }
}

#[tokio::test]
async fn a_refusal_is_a_result() {
    for (status, body, may_be_used_up) in [
        (400, r#"{"errors":["invalid role or secret ID"]}"#, false),
        (403, r#"{"errors":["permission denied"]}"#, false),
        (404, r#"{"errors":["no handler for route"]}"#, false),
        (429, r#"{"errors":["rate limit quota exceeded"]}"#, false),
        (429, r#"{"errors":["request path \"auth/approle/login\": lease count quota exceeded"]}"#, true),
    ] {
        let (outcome, first, other) = log_in_after(json(status, body), Replay::IfUnsent).await;
        let error = outcome.unwrap_err();
        assert_eq!((first, other), (1, 0), "{status} {body}");
        assert_eq!(error.may_have_been_processed(), may_be_used_up, "{error}");
    }
}

#[tokio::test]
async fn the_only_node_is_not_asked_again_after_a_broken_connection() {
    let alone = FakeVault::with(vec![Answer::Close, token()]).await;
    let error = log_in(&session(&[&alone.address]).await, Replay::IfUnsent).await.unwrap_err();
    assert_eq!((alone.requests(), error.may_have_been_processed()), (1, true), "{error}");

    let alone = FakeVault::with(vec![Answer::Close, token()]).await;
    log_in(&session(&[&alone.address]).await, Replay::Safe).await.unwrap();
    assert_eq!(alone.requests(), 2);
}

#[tokio::test]
async fn a_silent_node_keeps_its_time_until_the_deadline() {
    let late = Answer::Late(SILENCE_TIMEOUT + Duration::from_millis(300), Box::new(token()));
    let (outcome, first, other) = log_in_after(late.clone(), Replay::IfUnsent).await;
    outcome.unwrap();
    assert_eq!((first, other), (1, 0));
    let (outcome, first, other) = log_in_after(late, Replay::Safe).await;
    outcome.unwrap();
    assert_eq!((first, other), (1, 1), "another node is asked if it is safe");

    // A sealed node before it does not hide that the request may have been processed.
    let sealed = FakeVault::with(vec![json(503, SEALED)]).await;
    let silent = FakeVault::with(vec![Answer::Silence]).await;
    let other = FakeVault::with(vec![token()]).await;
    let session = session(&[&sealed.address, &silent.address, &other.address]).await;
    let deadline = Instant::now() + SILENCE_TIMEOUT + Duration::from_millis(300);
    let error = ask(&session, VaultOperation::Login, Replay::IfUnsent, deadline).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_been_processed()), (ErrorKind::DeadlineExceeded, true), "{error}");
    assert_eq!((sealed.requests(), silent.requests(), other.requests()), (1, 1, 0));
}

#[tokio::test]
async fn a_request_that_works_only_once_is_never_hedged() {
    for (replay, hedges) in [(Replay::IfUnsent, 0), (Replay::Safe, 1)] {
        let slow = FakeVault::with(vec![Answer::Late(Duration::from_millis(500), Box::new(token()))]).await;
        let other = FakeVault::with(vec![Answer::Silence]).await;
        let session = session(&[&slow.address, &other.address]).await;
        ask(&session, VaultOperation::Encrypt, replay, call().deadline).await.unwrap();
        assert_eq!((slow.requests(), other.requests()), (1, hedges), "{replay:?}");
    }
}
