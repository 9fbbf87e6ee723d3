//! Faults that a real server does not produce on demand, with a fake server that answers with the bytes that a
//! test gives it. `failover/attempts/tests.rs` tests which node is asked, and `tests/it` the rest, against a real
//! server.

use std::{path::Path, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinSet,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{lease, pool::Pool, session::Session};
use crate::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    endpoint::{Address, Endpoint},
    key::{KeyName, KeyRef, MountPath, Namespace},
    testing::fake_vault::{
        Answer, FakeVault, GOOD, HEALTH, access, call, encrypt, encrypt_by, endpoint, json, metrics, session,
        session_in, session_on, soon,
    },
    transit::{Call, NodeId},
};

#[tokio::test]
async fn an_answer_with_another_version_is_an_error() {
    let fake = FakeVault::with(vec![json(200, &GOOD.replace("vault:v2", "vault:v3"))]).await;
    let error = encrypt_by(&session(&[&fake.address]).await, soon()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidResponse);
    assert!(error.message.contains("asked for version 2 and used 3"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_an_error() {
    let announced = b"HTTP/1.1 200 X\r\ncontent-length: 99999999\r\n\r\n".to_vec();
    let mut unannounced = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        unannounced.extend_from_slice(b"8000\r\n");
        unannounced.extend_from_slice(&[b' '; 0x8000]);
        unannounced.extend_from_slice(b"\r\n");
    }
    for bytes in [announced, unannounced] {
        let fake = FakeVault::with(vec![Answer::Bytes(bytes)]).await;
        let error = encrypt(&session(&[&fake.address]).await).await.unwrap_err();
        assert!(error.message.contains("more than 1048576 bytes"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = FakeVault::with(vec![json(200, GOOD)]).await;
    let redirect =
        format!("HTTP/1.1 307 X\r\nlocation: {}/x\r\ncontent-length: 0\r\n\r\n", elsewhere.address);
    let fake = FakeVault::with(vec![Answer::Bytes(redirect.into_bytes())]).await;
    let session = session(&[&fake.address]).await;
    assert_eq!(encrypt_by(&session, soon()).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(lease::lookup(&session, call().deadline).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(elsewhere.requests(), 0, "the token would have gone there");
}

#[tokio::test]
async fn an_answer_that_is_not_vaults_is_an_invalid_response() {
    for body in ["", "<html>", "{}", r#"{"data":{}}"#, r#"{"data":{"ciphertext":"secret:1"}}"#] {
        let fake = FakeVault::with(vec![json(200, body)]).await;
        let session = session(&[&fake.address]).await;
        assert_eq!(
            encrypt_by(&session, soon()).await.unwrap_err().kind,
            ErrorKind::InvalidResponse,
            "{body}"
        );
        assert_eq!(
            lease::lookup(&session, call().deadline).await.unwrap_err().kind,
            ErrorKind::InvalidResponse,
            "{body}"
        );
        let key = KeyRef::in_transit("kms");
        assert_eq!(
            session.read_key(&key, call()).await.unwrap_err().kind,
            ErrorKind::InvalidResponse,
            "{body}"
        );
        let ciphertext = Ciphertext::parse(b"vault:v2:QUJD").unwrap();
        assert_eq!(
            session.decrypt(&key, &ciphertext, Call { deadline: soon(), ..call() }).await.unwrap_err().kind,
            ErrorKind::InvalidResponse,
            "{body}"
        );
    }
}

#[tokio::test]
async fn optional_fields_of_an_answer_may_be_null_or_of_another_type() {
    let key = KeyRef::in_transit("kms");
    for body in [
        r#"{"data":{"latest_version":2,"type":"aes256-gcm96","keys":{"1":7,"2":8}}}"#,
        r#"{"request_id":null,"data":{"latest_version":"2","type":"aes256-gcm96","keys":{"1":"7","2":8},
            "derived":null,"soft_deleted":null,"min_decryption_version":null}}"#,
    ] {
        let fake = FakeVault::with(vec![json(200, body)]).await;
        let read = session(&[&fake.address]).await.read_key(&key, call()).await.unwrap();
        assert_eq!(read.versions.into_values().collect::<Vec<_>>(), [7, 8], "{body}");
        assert_eq!((read.latest.number(), read.derived, read.soft_deleted), (2, false, false), "{body}");
    }
    let odd =
        r#"{"data":{"latest_version":2,"type":"rsa-2048","keys":null,"soft_deleted":"true","derived":true}}"#;
    let fake = FakeVault::with(vec![json(200, odd)]).await;
    let read = session(&[&fake.address]).await.read_key(&key, call()).await.unwrap();
    assert!(read.derived && read.soft_deleted && read.versions.is_empty());

    let fake =
        FakeVault::with(vec![json(200, r#"{"request_id":null,"data":{"ciphertext":"vault:v2:QUJD"}}"#)])
            .await;
    assert_eq!(encrypt(&session(&[&fake.address]).await).await.unwrap(), "vault:v2:QUJD");
    let batch = r#"{"request_id":null,"data":{"batch_results":[{"plaintext":"QQ==","error":null}]}}"#;
    let fake = FakeVault::with(vec![json(200, batch)]).await;
    let opened = decrypt_batch(&session(&[&fake.address]).await, &["AAAA"]).await.unwrap();
    assert_eq!(opened[0].as_ref().unwrap().as_slice(), b"A");
}

#[tokio::test]
async fn a_call_to_a_silent_server_ends_at_the_deadline() {
    let fake = FakeVault::with(vec![Answer::Silence]).await;
    let session = session(&[&fake.address]).await;
    let deadline = Instant::now() + Duration::from_millis(200);
    let key = KeyRef::in_transit("kms");
    let error = session.read_key(&key, Call { deadline, uid: "uid" }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn a_request_is_sent_again_after_a_broken_connection() {
    let fake = FakeVault::with(vec![Answer::Close, json(200, GOOD)]).await;
    assert_eq!(encrypt(&session(&[&fake.address]).await).await.unwrap(), "vault:v2:QUJD");
    assert_eq!(fake.requests(), 2);
}

#[tokio::test]
async fn a_node_that_lags_is_asked_again_and_other_nodes_are_asked_too() {
    let lagging = r#"{"errors":["requested version for encryption is higher than the latest key version"]}"#;
    let alone = FakeVault::with(vec![json(400, lagging), json(200, GOOD)]).await;
    assert!(encrypt(&session(&[&alone.address]).await).await.is_ok());

    let behind = FakeVault::with(vec![json(400, lagging)]).await;
    let current = FakeVault::with(vec![json(200, GOOD)]).await;
    assert!(encrypt(&session(&[&behind.address, &current.address]).await).await.is_ok());
    assert_eq!((behind.requests(), current.requests()), (1, 1));

    // The attempts are limited.
    let error = encrypt(&session(&[&behind.address]).await).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::VersionUnavailable);
    assert_eq!(behind.requests(), 4);
}

#[tokio::test]
async fn addresses_are_tried_in_order_and_the_one_that_answers_is_kept() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = FakeVault::with(vec![json(200, GOOD)]).await;
    let third = FakeVault::with(vec![json(200, GOOD)]).await;
    let session = session(&[&format!("http://{closed}"), &good.address, &third.address]).await;
    for _ in 0..3 {
        assert!(encrypt(&session).await.is_ok());
    }
    assert_eq!((good.requests(), third.requests()), (3, 0));
}

#[tokio::test]
async fn a_standby_that_was_asked_is_not_preferred_to_the_active_node() {
    let standby = FakeVault::with(vec![json(429, HEALTH)]).await;
    let active = FakeVault::with(vec![json(200, HEALTH)]).await;
    let pair = session(&[&standby.address, &active.address]).await;
    // The question is about the node that answered before, whichever node is asked first by now.
    pair.pool.prefer(&pair.pool.nodes()[1]);
    assert!(!pair.is_active(NodeId(0), call()).await.unwrap(), "the key was read from the standby");
    assert!(pair.is_active(NodeId(1), call()).await.unwrap());
    assert!(!pair.is_active(NodeId(7), call()).await.unwrap(), "there is no such node");
    assert_eq!(pair.pool.nodes()[0].name, active.address);

    for (status, body) in [
        (400, r#"{"errors":["operation unavailable in namespaces"]}"#),
        (200, "<html>"),
        (472, HEALTH),
        (503, HEALTH),
    ] {
        let neither = FakeVault::with(vec![json(status, body)]).await;
        assert!(session(&[&neither.address]).await.is_active(NodeId(0), call()).await.is_err(), "{status}");
    }
}

#[tokio::test]
async fn a_request_names_the_call_and_a_health_check_has_no_token() {
    let fake = FakeVault::with(vec![json(200, GOOD), json(200, HEALTH), json(200, GOOD)]).await;
    let session = session_in("team-a", &[&fake.address]).await;
    encrypt(&session).await.unwrap();
    let head = fake.heads().pop().unwrap();
    for header in
        ["x-vault-token: fake", "x-vault-namespace: team-a", "x-correlation-id: uid", "x-kms-uid: uid"]
    {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    assert!(session.is_active(NodeId(0), call()).await.unwrap());
    let head = fake.heads().pop().unwrap();
    assert!(head.contains("/v1/sys/health") && !head.contains("team-a") && !head.contains("fake"), "{head}");

    // A uid that cannot be in a header is left out.
    let key = KeyRef::in_transit("kms");
    let odd = Call { uid: "a\nb", ..call() };
    drop(session.read_key(&key, odd).await);
    assert!(!fake.heads().pop().unwrap().contains("x-kms-uid"));
}

#[tokio::test]
async fn requests_for_a_key_have_its_namespace_and_mount_and_those_for_the_token_have_the_tokens() {
    let fake = FakeVault::with(vec![json(404, r#"{"errors":[]}"#)]).await;
    let session = session_in("team-a", &[&fake.address]).await;
    let key = |mount, namespace| {
        KeyRef::in_own_mount(
            KeyName::new("old").unwrap(),
            MountPath::new(mount).unwrap(),
            Namespace::new(namespace).unwrap(),
        )
    };
    for (key, path, namespace) in [
        (key("transit", "team-a/child"), "/v1/transit/keys/old ", Some("team-a/child")),
        (key("a/mount", "root"), "/v1/a/mount/keys/old ", None),
        (session.keys().primary().clone(), "/v1/transit/keys/kms ", Some("team-a")),
    ] {
        let error = session.read_key(&key, call()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::KeyNotFound);
        let names_namespace = error.message.contains("(in namespace ");
        assert_eq!(names_namespace, namespace != Some("team-a"), "{error}");
        let head = fake.heads().pop().unwrap();
        let sent = head.lines().find_map(|line| line.strip_prefix("x-vault-namespace: "));
        assert!(head.contains(path), "{head}");
        assert_eq!(sent, namespace, "{head}");
    }
    drop(lease::lookup(&session, call().deadline).await);
    assert!(fake.heads().pop().unwrap().contains("x-vault-namespace: team-a\r\n"));
}

async fn decrypt_batch(
    session: &Session,
    bodies: &[&str],
) -> Result<Vec<Result<Vec<u8>, TransitError>>, TransitError> {
    let ciphertexts: Vec<_> =
        bodies.iter().map(|body| Ciphertext::parse(format!("vault:v1:{body}").as_bytes()).unwrap()).collect();
    let ciphertexts: Vec<_> = ciphertexts.iter().collect();
    let call = Call { deadline: soon(), ..call() };
    let results = session.decrypt_batch(&KeyRef::in_transit("kms"), &ciphertexts, call).await?;
    Ok(results.into_iter().map(|result| result.map(|opened| opened.plaintext.to_vec())).collect())
}

#[tokio::test]
async fn a_batch_in_which_some_items_fail_has_a_result_for_each() {
    let results = r#"{"request_id":"r","data":{"batch_results":[{"plaintext":"QUJD","reference":""},
        {"plaintext":"","error":"cipher: message authentication failed","reference":""},
        {"error":"invalid ciphertext: version is too new"}]}}"#;
    for status in [200, 207, 400, 500] {
        let fake = FakeVault::with(vec![json(status, results)]).await;
        let opened =
            decrypt_batch(&session(&[&fake.address]).await, &["AAAA", "BBBB", "CCCC"]).await.unwrap();
        assert_eq!(opened[0].as_deref().unwrap(), b"ABC");
        let kind = |index: usize| opened[index].as_ref().unwrap_err().kind;
        assert_eq!((kind(1), kind(2)), (ErrorKind::BadCiphertext, ErrorKind::VersionUnavailable), "{status}");
        assert_eq!(fake.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_has_one_error() {
    let complex = "refused JSON input due to high complexity: exceeded maximum number of strings";
    for (status, words, kind) in [
        (400, complex, ErrorKind::BatchTooLarge),
        (413, "", ErrorKind::BatchTooLarge),
        (400, "encryption key not found", ErrorKind::KeyNotFound),
        (403, "permission denied", ErrorKind::TokenInvalid),
    ] {
        let fake = FakeVault::with(vec![json(status, &format!(r#"{{"errors":["{words}"]}}"#))]).await;
        let error = decrypt_batch(&session(&[&fake.address]).await, &["AAAA", "BBBB"]).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn a_batch_whose_results_do_not_match_its_items_is_an_invalid_response() {
    for results in [
        r#"[{"plaintext":"QUJD"}]"#,
        r#"[{"plaintext":"QUJD"},{"plaintext":"QUJD"},{"plaintext":"QUJD"}]"#,
        r#"[{"plaintext":"QUJD"},{"plaintext":"QU\u004aD"}]"#,
        r#"{"0":{"plaintext":"QUJD"}}"#,
    ] {
        let body = format!(r#"{{"data":{{"batch_results":{results}}}}}"#);
        let fake = FakeVault::with(vec![json(200, &body)]).await;
        let error = decrypt_batch(&session(&[&fake.address]).await, &["AAAA", "BBBB"]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidResponse, "{results}");
    }
    for result in ["{}", r#"{"plaintext":null}"#, r#"{"plaintext":"!"}"#, r#"{"error":""}"#] {
        let body = format!(r#"{{"data":{{"batch_results":[{{"plaintext":"QUJD"}},{result}]}}}}"#);
        let fake = FakeVault::with(vec![json(200, &body)]).await;
        let opened = decrypt_batch(&session(&[&fake.address]).await, &["AAAA", "BBBB"]).await.unwrap();
        assert!(opened[0].is_ok());
        assert_eq!(opened[1].as_ref().unwrap_err().kind, ErrorKind::InvalidResponse, "{result}");
    }
}

#[tokio::test]
async fn an_error_names_the_address_keeps_its_source_and_never_shows_the_token() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = encrypt_by(&session(&[&format!("http://{closed}/prefix")]).await, soon()).await.unwrap_err();
    assert!(error.message.contains(&format!("http://{closed}/prefix cannot be reached")), "{error}");
    assert!(error.message.contains("refused"), "{error}");
    let chain: Vec<_> = error_text::chain(&error).collect();
    let io_error = chain.iter().find_map(|error| error.downcast_ref::<std::io::Error>()).unwrap();
    assert_eq!(io_error.kind(), std::io::ErrorKind::ConnectionRefused);
    for shown in chain.iter().flat_map(|error| [error.to_string(), format!("{error:?}")]) {
        assert!(!shown.contains("fake"), "the token: {shown}");
    }
}

#[tokio::test]
async fn a_key_without_a_version_is_an_error_that_ejects_no_node() {
    let answer = r#"{"data":{"type":"managed_key","keys":null,"latest_version":0}}"#;
    let fake = FakeVault::with(vec![json(200, answer)]).await;
    let session = session(&[&fake.address]).await;
    let error = session.read_key(&KeyRef::in_transit("kms"), call()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert_eq!(session.pool.healthy().len(), 1);
}

/// Forwards the connections of a unix socket to a port, as the listener of an agent does.
fn listen(socket: &Path, port: u16) -> AbortOnDropHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut vault = TcpStream::connect(("127.0.0.1", port)).await?;
                copy_bidirectional(&mut stream, &mut vault).await
            });
        }
    }))
}

#[tokio::test]
async fn an_agent_is_reached_over_its_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let fake = FakeVault::with(vec![json(200, GOOD)]).await;
    let address = Address::unix(&format!("unix://{}", socket.display())).unwrap();
    let name = address.to_string();
    // The name in certificates concerns TLS only.
    let server_name = Some("vault.internal".to_owned());
    let endpoint = Endpoint { addresses: vec![address], server_name, ..endpoint(&[]) };
    assert_eq!(Pool::new(&endpoint).await.unwrap().health(), [(name.clone(), true)]);
    let session = session_of(&endpoint).await;

    let error = encrypt_by(&session, soon()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    for words in
        [format!("Vault at {name} cannot be reached"), "the socket does not exist: does the agent run".into()]
    {
        assert!(error.message.contains(&words), "{error}");
    }
    drop(UnixListener::bind(&socket).unwrap());
    let error = encrypt_by(&session_of(&endpoint).await, soon()).await.unwrap_err();
    assert!(error.message.contains("no process listens on the socket"), "{error}");

    // The ejected node gets calls again once a health check over the socket has succeeded.
    std::fs::remove_file(&socket).unwrap();
    let _listening = listen(&socket, fake.port);
    assert_eq!(encrypt(&session).await.unwrap(), "vault:v2:QUJD");
    assert!(fake.health_checks() > 0);
    let head = &fake.heads()[0];
    for line in ["host: localhost", "x-vault-request: true"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
    }
}

async fn session_of(endpoint: &Endpoint) -> Session {
    let names: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    session_on(&access(""), Pool::new(endpoint).await.unwrap(), metrics(&names))
}
