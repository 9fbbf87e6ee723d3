use std::{io, net::IpAddr, sync::Mutex};

use async_trait::async_trait;
use tokio::time::{advance, pause, resume, sleep, timeout};

use super::*;
use crate::{
    Transit,
    key::KeyRef,
    testing::fake_vault::{
        Answer, FakeVault, access, call, encrypt, encrypt_by, endpoint, good, json, json_with, metrics,
        session, session_on, soon,
    },
    vault::{
        lease,
        node_health::Timings,
        resolver::{Resolver, SystemResolver},
        session::Session,
    },
};

const SEALED: &str = r#"{"errors":["Vault is sealed"]}"#;
/// The longest that a test waits for anything: a busy machine is slow.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Short intervals, so that the tests are fast.
const FAST: Timings = Timings {
    awaited_check_interval: Duration::from_millis(20),
    check_interval: Duration::from_millis(50),
    idle_timeout: Duration::from_secs(55),
    max_awaited_check_interval: Duration::from_millis(50),
    max_check_interval: Duration::from_millis(50),
    resolve_interval: Duration::from_millis(20),
    keep_alive_interval: Duration::from_secs(3600),
};

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TEST_TIMEOUT, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn session_at(timings: Timings, addresses: &[&str]) -> Session {
    let pool = Pool::with(&endpoint(addresses), timings, Arc::new(Names::default())).await.unwrap();
    session_on(&access(""), pool, metrics(addresses))
}

async fn read_key(session: &Session) -> Result<(), TransitError> {
    session.read_key(&KeyRef::in_transit("kms"), call()).await.map(drop)
}

/// Advances the clock of the client, while the fake server stands still.
async fn pass(time: Duration) {
    pause();
    advance(time).await;
    resume();
}

#[tokio::test]
async fn after_every_answer_that_is_not_vaults_last_word_the_next_node_is_asked() {
    let lagging = r#"{"errors":["requested version for encryption is higher than the latest key version"]}"#;
    let unknown = r#"{"errors":["invalid ciphertext: version is too new"]}"#;
    for (status, body) in [
        (307, ""),
        (400, lagging),
        (400, unknown),
        (412, "{}"),
        (401, ""),
        (403, "<html>"),
        (407, "<html>"),
        (400, r#"{"errors":["path disabled in replication DR secondary mode"]}"#),
        (472, "{}"),
        (473, "{}"),
        (200, "<html>"),
        (200, "{}"),
        (204, ""),
        (500, r#"{"errors":["local node not active but active cluster node not found"]}"#),
        (500, r#"{"errors":["internal error"]}"#),
        (502, "<html>"),
        (503, SEALED),
    ] {
        let bad = FakeVault::with(vec![json(status, body)]).await;
        let other = FakeVault::with(vec![good()]).await;
        let session = session(&[&bad.address, &other.address]).await;
        encrypt(&session).await.unwrap_or_else(|error| panic!("{status} {body}: {error}"));
        assert_eq!((bad.requests(), other.requests()), (1, 1), "{status} {body}");
    }
    for answer in [Answer::Close, Answer::Bytes(b"nonsense\r\n\r\n".to_vec())] {
        let bad = FakeVault::with(vec![answer]).await;
        let other = FakeVault::with(vec![good()]).await;
        assert!(encrypt(&session(&[&bad.address, &other.address]).await).await.is_ok());
    }
}

#[tokio::test]
async fn a_refusal_is_final_except_for_a_fresh_token() {
    let refused = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;
    let unknown = r#"{"errors":["permission denied"]}"#;
    let asked = async |body: &str, age: u64| {
        let bad = FakeVault::with(vec![json(403, body)]).await;
        let other = FakeVault::with(vec![good()]).await;
        let session = session(&[&bad.address, &other.address]).await;
        pass(Duration::from_secs(age)).await;
        let outcome = encrypt(&session).await.map_err(|error| error.kind).map(drop);
        (outcome, bad.requests(), other.requests())
    };
    assert_eq!(asked(refused, 0).await, (Err(ErrorKind::Denied), 1, 0), "nothing loops on 403");
    assert_eq!(asked(unknown, 3).await, (Err(ErrorKind::TokenInvalid), 1, 0), "nothing loops on 403");
    assert_eq!(asked(unknown, 0).await, (Ok(()), 1, 1), "the second node knows it already");

    let alone = FakeVault::with(vec![json(403, unknown)]).await;
    let error = encrypt(&session(&[&alone.address]).await).await.unwrap_err();
    assert_eq!((error.kind, alone.requests()), (ErrorKind::TokenInvalid, 1));
}

#[tokio::test]
async fn a_silent_node_is_ejected_before_the_deadline_of_the_call() {
    let silent = FakeVault::with(vec![Answer::Silence]).await;
    silent.set_health(0);
    let key = r#"{"data":{"keys":{"1":1},"latest_version":1,"type":"aes256-gcm96"}}"#;
    let other = FakeVault::with(vec![json(200, key)]).await;
    let session = session(&[&silent.address, &other.address]).await;
    for _ in 0..5 {
        read_key(&session).await.unwrap();
    }
    assert_eq!((silent.requests(), other.requests()), (1, 5));
    // It was ejected, and is not only behind the other one.
    let healthy: Vec<_> = session.pool.healthy().iter().map(|node| node.name.clone()).collect();
    assert_eq!(healthy, std::slice::from_ref(&other.address));
}

#[tokio::test]
async fn a_slow_call_is_hedged_and_the_slower_request_is_cancelled() {
    let silent = FakeVault::with(vec![Answer::Silence]).await;
    let other = FakeVault::with(vec![good()]).await;
    let hedged = session(&[&silent.address, &other.address]).await;
    for _ in 0..3 {
        encrypt(&hedged).await.unwrap();
    }
    assert_eq!((silent.requests(), other.requests()), (1, 3), "the faster node is asked first");
    eventually("the connection of the slower request is closed", async || silent.abandoned() == 1).await;
    let text = hedged.requester.metrics.render();
    for line in [
        "hedges_total{result=\"won\"} 1",
        "vault_requests_total{operation=\"encrypt\",outcome=\"cancelled\"} 1",
        "retries_total{reason=\"silent\"} 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }

    // A hedge that loses does not cancel the first request.
    let slow = FakeVault::with(vec![Answer::Late(Duration::from_millis(400), Box::new(good()))]).await;
    let hedged = session(&[&slow.address, &silent.address]).await;
    encrypt(&hedged).await.unwrap();
    assert_eq!((slow.requests(), silent.requests()), (1, 2));
    assert!(hedged.requester.metrics.render().contains("hedges_total{result=\"lost\"} 1"));
}

#[tokio::test]
async fn after_two_silent_nodes_the_third_is_asked() {
    let silent = (FakeVault::with(vec![Answer::Silence]).await, FakeVault::with(vec![Answer::Silence]).await);
    let other = FakeVault::with(vec![good()]).await;
    let session = session(&[&silent.0.address, &silent.1.address, &other.address]).await;
    encrypt(&session).await.unwrap();
    assert_eq!((silent.0.requests(), silent.1.requests(), other.requests()), (1, 1, 1));
}

#[tokio::test]
async fn an_answer_that_comes_late_still_counts() {
    let late = Answer::Late(SILENCE_TIMEOUT + Duration::from_millis(300), Box::new(good()));
    let one = FakeVault::with(vec![late, Answer::Silence]).await;
    let other = FakeVault::with(vec![Answer::Silence]).await;
    assert!(encrypt(&session(&[&one.address, &other.address]).await).await.is_ok());
}

#[tokio::test]
async fn the_only_node_is_asked_again_on_another_connection_if_it_is_silent() {
    let alone = FakeVault::with(vec![Answer::Silence, good()]).await;
    assert!(encrypt(&session(&[&alone.address]).await).await.is_ok());
    assert_eq!((alone.requests(), alone.connections()), (2, 2));
}

#[tokio::test]
async fn an_ejected_node_gets_no_calls_until_it_passes_a_health_check() {
    let failed = FakeVault::with(vec![json(503, SEALED), good()]).await;
    failed.set_health(503);
    let other = FakeVault::with(vec![good()]).await;
    let session = session_at(FAST, &[&failed.address, &other.address]).await;
    for _ in 0..5 {
        encrypt(&session).await.unwrap();
    }
    eventually("its health is checked", async || failed.health_checks() > 2).await;
    assert_eq!((failed.requests(), other.requests()), (1, 5), "health checks are not calls");

    failed.set_health(429);
    let health_checks = failed.health_checks();
    eventually("it passes a health check", async || failed.health_checks() > health_checks).await;
    drop(other);
    encrypt(&session).await.unwrap();
    assert_eq!(failed.requests(), 2);
}

#[tokio::test]
async fn a_call_waits_for_the_only_node_and_tries_again() {
    let alone = FakeVault::with(vec![json(503, SEALED), good()]).await;
    assert!(encrypt(&session_at(FAST, &[&alone.address]).await).await.is_ok());
    assert_eq!(alone.requests(), 2);

    // Connections are refused until the server listens.
    let port = {
        let gone = FakeVault::with(vec![]).await;
        gone.port
    };
    let address = format!("http://127.0.0.1:{port}");
    let session = session_at(FAST, &[&address]).await;
    let (outcome, _late) = tokio::join!(encrypt(&session), async {
        sleep(Duration::from_millis(100)).await;
        FakeVault::at([127, 0, 0, 1].into(), port, vec![good()]).await
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test]
async fn calls_that_wait_for_the_end_of_an_outage_send_no_requests() {
    let alone = FakeVault::with(vec![json(503, SEALED)]).await;
    alone.set_health(503);
    let session = Arc::new(session_at(FAST, &[&alone.address]).await);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let session = Arc::clone(&session);
        calls.spawn(async move { encrypt_by(&session, deadline).await });
    }
    eventually("the node is ejected", async || alone.health_checks() > 0).await;
    for _ in 0..50 {
        let session = Arc::clone(&session);
        calls.spawn(async move { encrypt_by(&session, deadline).await });
    }
    for error in calls.join_all().await {
        // The error of the node, and not that the deadline passed.
        assert_eq!(error.unwrap_err().kind, ErrorKind::Unreachable);
    }
    assert!(alone.requests() <= 50, "{}: a call that came later has sent a request", alone.requests());
}

#[tokio::test]
async fn in_a_long_outage_a_call_fails_after_one_attempt() {
    let alone = FakeVault::with(vec![json(503, SEALED)]).await;
    alone.set_health(503);
    let session = session_at(FAST, &[&alone.address]).await;
    assert!(read_key(&session).await.is_err());
    pass(MAX_OUTAGE_TO_WAIT).await;
    let hour = Instant::now() + Duration::from_secs(3600);
    let error =
        timeout(TEST_TIMEOUT, encrypt_by(&session, hour)).await.expect("the call need not wait").unwrap_err();
    assert!(error.message.contains("sealed"), "{error}");
    assert_eq!(alone.requests(), 2);
}

#[tokio::test]
async fn a_node_gets_the_pause_that_it_asks_for() {
    let busy = json_with(503, "retry-after: 1\r\n", "{}");
    let alone = FakeVault::with(vec![busy.clone(), good()]).await;
    let began = std::time::Instant::now();
    assert!(encrypt(&session_at(FAST, &[&alone.address]).await).await.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(alone.requests(), 2);

    // A pause that ends after the deadline is not waited for.
    let alone = FakeVault::with(vec![json_with(429, "retry-after: 3600\r\n", "{}")]).await;
    let session = session_at(FAST, &[&alone.address]).await;
    let deadline = Instant::now() + Duration::from_secs(55);
    let error = timeout(TEST_TIMEOUT, encrypt_by(&session, deadline)).await.expect("at once").unwrap_err();
    assert!(error.message.contains("429"), "{error}");
    assert_eq!(alone.health_checks(), 0, "health checks are requests too");
}

#[tokio::test]
async fn the_requests_of_a_caller_that_leaves_are_cancelled() {
    let silent = FakeVault::with(vec![Answer::Silence]).await;
    let session = Arc::new(session(&[&silent.address]).await);
    let calling = tokio::spawn({
        let session = Arc::clone(&session);
        async move { encrypt(&session).await }
    });
    eventually("the node is asked", async || silent.requests() == 1).await;
    calling.abort();
    eventually("the connection is closed", async || silent.abandoned() == 1).await;
    let text = session.requester.metrics.render();
    assert!(text.contains("vault_requests_total{operation=\"encrypt\",outcome=\"cancelled\"} 1"), "{text}");
}

#[tokio::test]
async fn without_a_budget_there_is_one_attempt() {
    let bad = FakeVault::with(vec![json(500, r#"{"errors":["internal error"]}"#)]).await;
    let other = FakeVault::with(vec![good()]).await;
    let session = session(&[&bad.address, &other.address]).await;
    while session.pool.budget.take() {}
    let error = encrypt(&session).await.unwrap_err();
    assert!(error.message.contains("internal error"), "{error}");
    assert_eq!((bad.requests(), other.requests()), (1, 0));
}

#[tokio::test]
async fn a_request_that_no_node_can_serve_ejects_none() {
    let bad = r#"{"errors":["internal error"]}"#;
    let (one, other) =
        (FakeVault::with(vec![json(500, bad)]).await, FakeVault::with(vec![json(500, bad), good()]).await);
    let session = session(&[&one.address, &other.address]).await;
    encrypt(&session).await.unwrap();
    assert_eq!((one.requests(), other.requests()), (2, 2), "both are asked again");
    assert_eq!(session.pool.healthy().len(), 2, "a 500 says nothing about the node");
}

#[tokio::test]
async fn health_checks_keep_the_connection_to_an_idle_node_open() {
    let (one, other) = (FakeVault::with(vec![good()]).await, FakeVault::with(vec![good()]).await);
    let timings = Timings { keep_alive_interval: Duration::from_millis(30), ..FAST };
    let session = session_at(timings, &[&one.address, &other.address]).await;
    encrypt(&session).await.unwrap();
    eventually("both are checked", async || one.health_checks() > 3 && other.health_checks() > 3).await;
    assert_eq!((one.connections(), other.connections()), (1, 1));
    let token = other.heads().iter().any(|head| head.contains("x-vault-token"));
    assert!(!token, "a health check needs no token");
}

#[tokio::test]
async fn an_idle_connection_is_replaced_before_the_server_may_have_closed_it() {
    let alone = FakeVault::with(vec![good()]).await;
    let timings = Timings { idle_timeout: Duration::from_millis(50), ..FAST };
    let session = session_at(timings, &[&alone.address]).await;
    encrypt(&session).await.unwrap();
    let used = std::time::Instant::now();
    eventually("the connection is idle for too long", async || used.elapsed() > Duration::from_millis(100))
        .await;
    encrypt(&session).await.unwrap();
    assert_eq!((alone.requests(), alone.connections()), (2, 2));
}

/// A resolver that tests control.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<(Answers, usize)>>);

#[derive(Clone, Default)]
enum Answers {
    #[default]
    Fails,
    Found(Vec<u8>),
    Hangs,
}

impl Names {
    /// The last bytes of loopback addresses 127.0.0.x.
    fn are(&self, answers: Answers) {
        self.0.lock().unwrap().0 = answers;
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }

    async fn session(&self, port: u16) -> Result<Session, TransitError> {
        let address = format!("http://vault.invalid:{port}");
        let pool = Pool::with(&endpoint(&[&address]), FAST, Arc::new(self.clone())).await?;
        Ok(session_on(&access(""), pool, metrics(&[&address])))
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        assert_eq!(host, "vault.invalid");
        let answers = {
            let mut it = self.0.lock().unwrap();
            it.1 += 1;
            it.0.clone()
        };
        match answers {
            Answers::Fails => Err(io::Error::other("no such name")),
            Answers::Found(last) => Ok(last.iter().map(|last| [127, 0, 0, *last].into()).collect()),
            Answers::Hangs => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn a_name_with_two_addresses_is_two_nodes_under_one_name() {
    let one = FakeVault::with(vec![json(503, SEALED)]).await;
    let other = FakeVault::at([127, 0, 0, 2].into(), one.port, vec![good()]).await;
    let names = Names::default();
    names.are(Answers::Found(vec![1, 2]));
    let session = names.session(one.port).await.unwrap();
    for _ in 0..3 {
        encrypt(&session).await.unwrap();
    }
    assert_eq!((one.requests(), other.requests()), (1, 3));
    let host = format!("host: vault.invalid:{}", one.port);
    assert!(other.heads().iter().all(|head| head.contains(&host)), "{:?}", other.heads());
    let text = session.requester.metrics.render();
    let ok = format!("node=\"http://vault.invalid:{}\",outcome=\"ok\"}} 3", one.port);
    assert!(text.contains(&ok), "{text}");
}

#[tokio::test]
async fn the_last_addresses_stay_in_use_until_the_resolver_returns_others() {
    let one = FakeVault::with(vec![good()]).await;
    let other = FakeVault::at([127, 0, 0, 2].into(), one.port, vec![good()]).await;
    let names = Names::default();
    names.are(Answers::Found(vec![1]));
    let session = names.session(one.port).await.unwrap();
    names.are(Answers::Fails);
    let asked = names.asked();
    eventually("the name is resolved again", async || names.asked() > asked + 2).await;
    encrypt(&session).await.unwrap();

    names.are(Answers::Found(vec![2]));
    eventually("the new address is asked", async || {
        encrypt(&session).await.unwrap();
        other.requests() > 0
    })
    .await;
    let before = one.requests();
    names.are(Answers::Hangs);
    let asked = names.asked();
    eventually("the resolver hangs", async || names.asked() > asked).await;
    for _ in 0..5 {
        timeout(TEST_TIMEOUT, encrypt(&session)).await.expect("no call waits for a resolver").unwrap();
    }
    assert_eq!(one.requests(), before, "the old address is still in use");
}

#[tokio::test]
async fn the_error_names_a_name_that_cannot_be_resolved() {
    let Err(error) = Names::default().session(1).await else { panic!("the name was resolved") };
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.message.contains("`vault.invalid` cannot be resolved: no such name"), "{error}");
}

/// The answer of a Vault to a token that another Vault issued.
const TOKEN_REFUSED: &str = r#"{"errors":["permission denied"]}"#;
const POLICY_REFUSED: &str = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;

fn late(pause: Duration, answer: Answer) -> Answer {
    Answer::Late(pause, Box::new(answer))
}

#[tokio::test]
async fn a_node_whose_answers_are_not_recognised_is_not_preferred() {
    for (status, body, health) in [
        (200, "<html>Welcome</html>", 404),
        (401, "", 401),
        (400, r#"{"errors":["path disabled in replication DR secondary mode"]}"#, 472),
    ] {
        let node = FakeVault::with(vec![good(), json(503, SEALED), good()]).await;
        let wrong = FakeVault::with(vec![json(status, body)]).await;
        wrong.set_health(health);
        let session = session_at(FAST, &[&node.address, &wrong.address]).await;
        encrypt(&session).await.unwrap();
        for _ in 0..20 {
            encrypt(&session).await.unwrap_or_else(|error| panic!("{status} {body}: {error}"));
        }
        assert!(wrong.requests() <= 1, "{status}: it is ejected");
    }
}

#[tokio::test]
async fn a_refusal_is_confirmed_by_the_node_that_accepted_the_session() {
    for refusal in [
        (403, TOKEN_REFUSED),
        (403, POLICY_REFUSED),
        (404, r#"{"errors":["no handler for route"]}"#),
        (400, r#"{"errors":["encryption key not found"]}"#),
    ] {
        let own = FakeVault::with(vec![good()]).await;
        let foreign = FakeVault::with(vec![json(refusal.0, refusal.1)]).await;
        let session = session(&[&own.address, &foreign.address]).await;
        pass(Duration::from_secs(3)).await;
        encrypt(&session).await.unwrap();
        // The other node may have become the first one after a failure that is over.
        session.pool.prefer(&session.pool.nodes()[1]);
        encrypt(&session).await.unwrap_or_else(|error| panic!("{refusal:?}: {error}"));
        assert_eq!((own.requests(), foreign.requests()), (2, 1), "{refusal:?}");
        encrypt(&session).await.unwrap();
        assert_eq!(foreign.requests(), 1, "the node that answered is asked first from now on");
    }
}

#[tokio::test]
async fn a_hedge_that_is_refused_does_not_end_the_call() {
    let slow = FakeVault::with(vec![good(), late(Duration::from_millis(700), good())]).await;
    let foreign = FakeVault::with(vec![json(403, TOKEN_REFUSED)]).await;
    let session = session(&[&slow.address, &foreign.address]).await;
    pass(Duration::from_secs(3)).await;
    for _ in 0..3 {
        encrypt(&session).await.unwrap();
    }
    assert!(foreign.requests() > 0, "the call was hedged");
}

#[tokio::test]
async fn a_refusal_that_no_node_can_confirm_says_nothing_about_the_token() {
    let own = FakeVault::with(vec![good(), json(503, SEALED)]).await;
    own.set_health(503);
    let foreign = FakeVault::with(vec![json(403, TOKEN_REFUSED)]).await;
    let session = session_at(FAST, &[&own.address, &foreign.address]).await;
    pass(Duration::from_secs(3)).await;
    encrypt(&session).await.unwrap();
    let error = encrypt_by(&session, soon()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");

    // A node that has worked for the session may refuse it.
    let one = FakeVault::with(vec![good(), json(503, SEALED)]).await;
    one.set_health(503);
    let other = FakeVault::with(vec![good(), json(403, TOKEN_REFUSED)]).await;
    let session = session_at(FAST, &[&one.address, &other.address]).await;
    pass(Duration::from_secs(3)).await;
    encrypt(&session).await.unwrap();
    encrypt(&session).await.unwrap();
    assert_eq!(encrypt(&session).await.unwrap_err().kind, ErrorKind::TokenInvalid);
}

#[tokio::test]
async fn a_key_is_missing_only_after_a_second_404() {
    let key = r#"{"data":{"keys":{"1":1},"latest_version":1,"type":"aes256-gcm96"}}"#;
    let absent = json(404, r#"{"errors":[]}"#);
    let alone = FakeVault::with(vec![absent.clone(), json(200, key)]).await;
    read_key(&session(&[&alone.address]).await).await.unwrap();
    assert_eq!(alone.requests(), 2);

    let alone = FakeVault::with(vec![absent]).await;
    let error = read_key(&session(&[&alone.address]).await).await.unwrap_err();
    assert_eq!((error.kind, alone.requests()), (ErrorKind::KeyNotFound, 2));
}

#[tokio::test]
async fn failures_of_a_candidate_or_a_renewal_do_not_change_the_health_of_nodes() {
    let node = FakeVault::with(vec![good(), json(503, SEALED)]).await;
    let addresses = [&*node.address, &node.address.replace("127.0.0.1", "localhost")];
    let pool = Pool::with(&endpoint(&addresses), FAST, Arc::new(SystemResolver)).await.unwrap();
    let in_use = session_on(&access(""), pool, metrics(&addresses));
    encrypt(&in_use).await.unwrap();
    in_use.mark_in_use();
    let metrics = Arc::clone(&in_use.requester.metrics);
    let candidate = Session::new(&access(""), Arc::clone(&in_use.pool), metrics).unwrap();
    assert!(encrypt_by(&candidate, soon()).await.is_err());
    assert!(lease::lookup(&in_use, soon()).await.is_err());
    assert!(lease::renew(&in_use, soon()).await.is_err());
    assert!(
        in_use.pool.health_by_id().iter().all(|(_, healthy)| *healthy),
        "{:?}",
        in_use.pool.health_by_id()
    );
    // A call of the session in use changes the health.
    assert!(encrypt_by(&in_use, soon()).await.is_err());
    assert!(in_use.pool.health_by_id().iter().any(|(_, healthy)| !*healthy));
}

#[tokio::test]
async fn after_an_outage_one_call_tries_the_node_before_the_others() {
    let slowly = late(Duration::from_millis(700), good());
    let alone = FakeVault::with(vec![json(503, SEALED), slowly, good()]).await;
    alone.set_health(503);
    let session = Arc::new(session_at(FAST, &[&alone.address]).await);
    assert!(encrypt_by(&session, soon()).await.is_err());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let session = Arc::clone(&session);
        calls.spawn(async move { encrypt(&session).await });
    }
    let health_checks = alone.health_checks();
    eventually("all calls wait", async || alone.health_checks() > health_checks).await;
    assert_eq!(alone.requests(), 1);
    alone.set_health(200);
    eventually("one call tries the node", async || alone.requests() == 2).await;
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alone.requests(), 2, "the other calls wait for the answer to the first");
    for outcome in calls.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(alone.requests(), 51);
}

#[tokio::test]
async fn a_trial_whose_call_is_dropped_goes_to_the_next_call() {
    let alone = FakeVault::with(vec![json(503, SEALED), Answer::Silence, good()]).await;
    alone.set_health(503);
    let session = Arc::new(session_at(FAST, &[&alone.address]).await);
    assert!(encrypt_by(&session, soon()).await.is_err());
    alone.set_health(200);
    let trying = tokio::spawn({
        let session = Arc::clone(&session);
        async move { encrypt(&session).await }
    });
    eventually("the call tries the node", async || alone.requests() == 2).await;
    let next = tokio::spawn({
        let session = Arc::clone(&session);
        async move { encrypt(&session).await }
    });
    trying.abort();
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_that_has_waited_pays_for_each_further_request() {
    let alone = FakeVault::with(vec![json(503, SEALED)]).await;
    let session = session_at(FAST, &[&alone.address]).await;
    while session.pool.budget.take() {}
    let error = encrypt(&session).await.unwrap_err();
    assert!(error.message.contains("sealed"), "{error}");
    assert_eq!(
        alone.requests(),
        1,
        "the call waited for the node, and the budget did not allow another request"
    );
    assert!(session.requester.metrics.render().contains("retry_budget_exhausted_total 1"));
}

#[tokio::test]
async fn a_rate_limit_ends_the_call_and_ejects_no_node() {
    let limited = json_with(429, "retry-after: 7\r\n", r#"{"errors":["rate limit quota exceeded"]}"#);
    let (one, other) =
        (FakeVault::with(vec![limited.clone(), good()]).await, FakeVault::with(vec![good()]).await);
    let session = session(&[&one.address, &other.address]).await;
    let error = encrypt(&session).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Throttled, "{error}");
    assert_eq!((one.requests(), other.requests()), (1, 0));
    encrypt(&session).await.unwrap();
    assert_eq!((one.requests(), other.requests()), (2, 0), "the next call is asked of the same node");
}

#[tokio::test]
async fn hedging_pauses_when_all_nodes_are_slow_and_does_not_use_the_retry_budget() {
    let pause = Duration::from_millis(600);
    let one = FakeVault::with(vec![late(pause, good())]).await;
    let other = FakeVault::with(vec![late(pause, good())]).await;
    let session = Arc::new(session(&[&one.address, &other.address]).await);
    for _ in 0..3 {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let session = Arc::clone(&session);
            calls.spawn(async move { encrypt(&session).await });
        }
        for outcome in calls.join_all().await {
            outcome.unwrap();
        }
    }
    let hedges = one.requests() + other.requests() - 180;
    assert!(hedges <= 60, "{hedges} hedges of 180 calls");
    assert!(session.pool.hedge.is_paused());
    let text = session.requester.metrics.render();
    assert!(text.contains("retry_budget_exhausted_total 0"), "{text}");
    assert!(session.pool.budget.take());
}

#[tokio::test]
async fn if_two_nodes_become_silent_at_once_one_is_not_ejected() {
    let one = FakeVault::with(vec![Answer::Silence]).await;
    let other = FakeVault::with(vec![Answer::Silence]).await;
    one.set_health(0);
    other.set_health(0);
    let session = session(&[&one.address, &other.address]).await;
    let deadline = Instant::now() + SILENCE_TIMEOUT * 2 + Duration::from_millis(500);
    assert!(encrypt_by(&session, deadline).await.is_err());
    assert_eq!(session.pool.healthy().len(), 1);
}

#[tokio::test]
async fn a_hedge_that_the_budget_denies_uses_up_no_retry() {
    let slow = FakeVault::with(vec![late(Duration::from_millis(300), json(503, SEALED))]).await;
    let other = FakeVault::with(vec![good()]).await;
    let session = session(&[&slow.address, &other.address]).await;
    while session.pool.hedge.take() {}
    encrypt(&session).await.unwrap();
    assert_eq!((slow.requests(), other.requests()), (1, 1));
    let text = session.requester.metrics.render();
    assert!(text.contains("hedges_total{result=\"denied\"} 1"), "{text}");
}

#[tokio::test]
async fn a_node_that_was_ejected_is_asked_before_a_call_fails_on_the_last_one() {
    for last in [Answer::Silence, json(500, r#"{"errors":["internal error"]}"#)] {
        let back = FakeVault::with(vec![json(503, SEALED), good()]).await;
        // Its next health check is not due during the test.
        back.set_health(503);
        let other = FakeVault::with(vec![good(), last]).await;
        let timings = Timings {
            check_interval: Duration::from_secs(3600),
            max_check_interval: Duration::from_secs(3600),
            ..FAST
        };
        let session = session_at(timings, &[&back.address, &other.address]).await;
        encrypt(&session).await.unwrap();
        encrypt(&session).await.unwrap();
        assert_eq!(back.requests(), 2);
        assert_eq!(session.pool.nodes()[0].name, back.address, "it is healthy again");
    }
}
