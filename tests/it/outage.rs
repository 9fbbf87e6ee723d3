//! Status while Vault is unreachable or refuses: each row of this table with a real server.
//!
//! | situation | test |
//! | --- | --- |
//! | last health check good and fresh | all, and `a_daemon_that_was_suspended_does_not_report_a_stale_ok` |
//! | Vault unreachable | `status_stays_ok_for_the_grace_...`, `calls_succeed_again_...`, `calls_end_at_their_deadline_while_...` |
//! | token invalid, policy refuses | `a_policy_refusal_...`; invalid tokens in `token.rs` |
//! | key missing, soft-deleted, recreated | `a_deleted_key_...`, `a_soft_deleted_key_...`, `a_recreated_key_...` |
//! | nothing known yet | `it_waits_for_...`, `the_first_calls_...`, `calls_end_at_their_deadline_when_...` |

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use testkit::{
    Bao, Caller, Daemon, KEY, Load, MOUNT, POLICY, RELOAD_TIMEOUT, TIMEOUT, TestEnv, calls, closed_address,
    daemon::samples, eventually, policy,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// The outage grace of [`TestEnv::daemon`].
const GRACE: Duration = Duration::from_secs(3);
/// The outage grace of tests in which calls wait.
const LONG_GRACE: Duration = Duration::from_secs(8);
/// The longest time of a recovery: the pause between two tries, and some slack for a busy machine.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn it_waits_for_a_vault_that_is_down_at_the_start() {
    let mut env = TestEnv::start().await;
    env.bao.stop();
    let mut daemon = env.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    caller.wait_health("cannot be reached", RELOAD_TIMEOUT).await;
    for error in [caller.status().await.unwrap_err(), caller.encrypt(b"seed").await.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("cannot be reached"), "{error}");
    }
    assert_health(&daemon, "unknown").await;
    assert_ready(&daemon, 503, "cannot be reached").await;
    assert_eq!(daemon.metric("transit_kms_config_reloads_total", &[("result", "pending")]).await, 1.0);

    env.bao.start_again().await;
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.round_trip().await;
    assert_health(&daemon, "ok").await;
    assert_ready(&daemon, 200, "ok").await;
    assert_eq!(daemon.exited(), None);
}

#[tokio::test]
async fn it_waits_for_a_file_that_does_not_exist_yet() {
    let mut env = TestEnv::without_file().await;
    let daemon = env.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    caller.wait_health("config.yaml", RELOAD_TIMEOUT).await;
    let error = caller.status().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_ready(&daemon, 503, "config.yaml").await;

    let token = env.bao.token().await;
    env.render(&token);
    caller.wait_ok(RELOAD_TIMEOUT).await;
    caller.round_trip().await;
}

#[tokio::test]
async fn the_first_calls_wait_for_the_first_session() {
    let env = TestEnv::start().await;
    for _ in 0..3 {
        let daemon = env.daemon([]).await;
        // The client does not retry, so an `Unavailable` because nothing is known yet would fail the test.
        Caller::of(&daemon).await.round_trip().await;
    }
}

#[tokio::test]
async fn calls_end_at_their_deadline_when_vault_is_silent_at_the_start() {
    let mut env = TestEnv::start().await;
    env.bao.freeze().await;
    let daemon = env.daemon([]).await;
    let caller = Caller::of(&daemon).await;
    let error = caller.status().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    env.bao.thaw();
    caller.wait_ok(RECOVERY_TIMEOUT).await;
}

#[tokio::test]
async fn status_stays_ok_for_the_grace_while_vault_is_sealed_and_recovers() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready(["--outage-grace", "8s"]).await;
    let key_id = caller.key_id().await;
    let sealing = Instant::now();
    env.bao.seal().await;

    eventually("readyz shows the grace", LONG_GRACE, async || {
        let (_, words) = daemon.admin("/readyz").await;
        if words.contains("during the outage grace") { Ok(()) } else { Err(words) }
    })
    .await;
    assert_eq!(caller.health().await, "ok");
    assert_health(&daemon, "ok").await;
    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("Vault is sealed"), "{error}");

    caller.wait_health("Vault is sealed", LONG_GRACE * 3).await;
    assert!(sealing.elapsed() >= LONG_GRACE, "a reason after {:?} already", sealing.elapsed());
    // With the same key_id in the answer, kube-apiserver keeps using its DEK seed.
    assert_eq!(caller.key_id().await, key_id);
    assert_health(&daemon, "unreachable").await;
    assert_ready(&daemon, 503, "Vault is sealed").await;
    assert_eq!(daemon.admin("/livez").await.0, 200);

    env.bao.unseal().await;
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.round_trip().await;
    assert_eq!(caller.key_id().await, key_id);
    assert_health(&daemon, "ok").await;
}

#[tokio::test]
async fn calls_succeed_again_once_a_killed_vault_is_back() {
    let mut env = TestEnv::start().await;
    let (mut daemon, caller) = env.ready(["--outage-grace", "8s"]).await;
    let sealed = caller.round_trip().await;
    env.bao.stop();
    // Calls wait for the server until their deadline.
    let (encrypted, decrypted) = tokio::join!(caller.encrypt(b"seed"), caller.decrypt(&sealed));
    for error in [encrypted.unwrap_err(), decrypted.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("cannot be reached"), "{error}");
    }
    assert_eq!(caller.health().await, "ok");
    caller.wait_health("cannot be reached", LONG_GRACE * 3).await;
    assert_ready(&daemon, 503, "cannot be reached").await;

    env.bao.start_again().await;
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
    assert_eq!(daemon.exited(), None);
}

#[tokio::test]
async fn calls_end_at_their_deadline_while_vault_is_frozen() {
    let mut env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let sealed = caller.round_trip().await;
    env.bao.freeze().await;
    // More calls than connections: some wait for a response, some for a handshake.
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let (caller, sealed) = (caller.clone(), sealed.clone());
        calls.spawn(async move {
            let began = Instant::now();
            let error = if number % 2 == 0 {
                caller.encrypt(b"seed").await.unwrap_err()
            } else {
                caller.decrypt(&sealed).await.unwrap_err()
            };
            (began.elapsed(), error)
        });
    }
    // Status is answered from memory meanwhile.
    let began = Instant::now();
    assert_eq!(caller.health().await, "ok");
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    for (took, error) in calls.join_all().await {
        assert!(took < TIMEOUT, "{took:?}: {error}");
        assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Unavailable), "{error}");
        // The client's own timer would fail with "Timeout expired", so the daemon has ended the call.
        assert!(error.message().contains("Vault"), "{error}");
    }
    caller.wait_health("Vault", GRACE * 3).await;
    let state = caller.health().await;
    assert_ne!(state, "ok", "an outage that is over the grace stays so");
    assert_eq!(daemon.admin("/livez").await.0, 200);

    env.bao.thaw();
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
}

/// On one connection, as kube-apiserver uses it.
#[tokio::test]
async fn a_flood_of_calls_on_a_frozen_vault_is_rejected_and_status_is_answered() {
    let mut env = TestEnv::start().await;
    let (daemon, caller) = env.ready_without_health_checks().await;
    env.bao.freeze().await;
    let mut calls = JoinSet::new();
    for _ in 0..900 {
        let caller = caller.clone();
        calls.spawn(async move { caller.encrypt(b"seed").await.unwrap_err().code() });
    }
    let shed = [("method", "encrypt"), ("code", "ResourceExhausted")];
    eventually("the other calls are rejected", TIMEOUT, async || {
        daemon.metric("transit_kms_requests_total", &shed).await >= 132.0
    })
    .await;
    assert_eq!(caller.health().await, "ok");
    let codes = calls.join_all().await;
    assert_eq!(codes.iter().filter(|code| **code == Code::ResourceExhausted).count(), 132);
    env.bao.thaw();
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.round_trip().await;
}

/// 140 calls are more than the limit of concurrent calls of Vault.
#[tokio::test]
async fn local_keks_serve_while_calls_wait_for_a_frozen_vault_and_cancelled_calls_are_counted() {
    let mut env = TestEnv::start().await;
    env.rendered.local_kek = true;
    let token = env.token().to_owned();
    env.render(&token);
    let (daemon, caller) = env.ready_without_health_checks().await;
    let own = caller.encrypt(b"own").await.unwrap();
    let mut bare = Vec::new();
    for number in 0..140_u8 {
        bare.push(env.bao.encrypt(KEY, &[number; 32]).await);
    }
    env.bao.freeze().await;
    let mut waiting = JoinSet::new();
    for ciphertext in bare {
        let kms = daemon.kms().await;
        waiting.spawn(async move { calls::decrypt(&kms, ciphertext, "1", "waits").await.unwrap_err() });
    }
    eventually("the limit of calls of Vault is reached", TIMEOUT, async || {
        daemon.metric("transit_kms_decrypt_batch_size_sum", &[]).await >= 128.0
    })
    .await;
    // All of these calls must be answered before any of the waiting ones.
    for _ in 0..5 {
        let sealed = caller.encrypt(b"seed").await.unwrap();
        assert_eq!(caller.decrypt(&sealed).await.unwrap(), b"seed");
        assert_eq!(caller.decrypt(&own).await.unwrap(), b"own");
    }
    assert!(waiting.try_join_next().is_none(), "a call that needs Vault has ended before those that do not");
    let errors = waiting.join_all().await;
    let unreachable = [Code::DeadlineExceeded, Code::Unavailable];
    assert!(errors.iter().all(|error| unreachable.contains(&error.code())), "{errors:?}");
    let queued = errors.iter().filter(|error| error.message().contains("the call was queued")).count();
    assert!(queued >= 12, "{queued} errors say that the call was queued");

    let asked = daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await;
    let kms = daemon.kms().await;
    let cancelled =
        tokio::spawn(async move { calls::decrypt(&kms, "vault:v1:QUJD", "1", "cancelled").await });
    eventually("the call has arrived", TIMEOUT, async || {
        daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await > asked
    })
    .await;
    cancelled.abort();
    let left = [("method", "decrypt"), ("code", "Canceled")];
    eventually("the cancelled call is counted", TIMEOUT, async || {
        daemon.metric("transit_kms_requests_total", &left).await == 1.0
    })
    .await;
    daemon.wait_printed("the caller cancelled the call").await;
    env.bao.thaw();
}

#[tokio::test]
async fn a_daemon_that_was_suspended_does_not_report_a_stale_ok() {
    let mut env = TestEnv::start().await;
    let (mut daemon, caller) = env.ready([]).await;
    assert_eq!(caller.health().await, "ok");
    // Both are stopped for more than three intervals. Then the daemon continues, while Vault is still stopped.
    daemon.signal(Signal::STOP);
    env.bao.freeze().await;
    let suspended = Instant::now();
    eventually("more than three intervals", GRACE * 3, async || {
        suspended.elapsed() > GRACE + Duration::from_secs(1)
    })
    .await;
    daemon.signal(Signal::CONT);
    let status = caller.status().await.unwrap();
    assert!(status.healthz.contains("more than three intervals"), "{}", status.healthz);
    env.bao.thaw();
    caller.wait_ok(RECOVERY_TIMEOUT).await;
}

#[tokio::test]
async fn a_deleted_key_stays_an_error_whatever_calls_arrive() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let sealed = caller.round_trip().await;
    delete_key(&env.bao).await;
    let error = wait_for_key_error(&caller, "not found: transit/keys/kms").await;
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_health(&daemon, "lost").await;
    assert_ready(&daemon, 503, "not found").await;

    // Vault answers Encrypt like a refusal by policy. If Status gave that as a reason instead of an error, kube-apiserver
    // would continue to write.
    let load = Load::start(&daemon, 4, Duration::from_millis(5)).await;
    let began = Instant::now();
    let mut asked = 0;
    while began.elapsed() < Duration::from_secs(2) {
        let error = caller.status().await.expect_err("it is lost");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = caller.encrypt(b"seed").await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = caller.decrypt(&sealed).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        asked += 1;
    }
    assert!(asked > 10);
    let report = load.stop().await;
    assert_eq!(report.failed, report.calls, "{:?}", report.failures);
}

#[tokio::test]
async fn a_key_deleted_under_load_is_never_reported_as_a_policy_refusal() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let load = Load::start(&daemon, 4, Duration::ZERO).await;
    delete_key(&env.bao).await;
    wait_for_key_error(&caller, "not found").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        let error = caller.status().await.expect_err("it is lost");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    load.stop().await;
}

#[tokio::test]
async fn a_soft_deleted_key_is_an_error_until_it_is_restored() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let sealed = caller.round_trip().await;
    let path = format!("{MOUNT}/keys/{KEY}/soft-delete");
    let (status, answer) =
        env.bao.api_as(env.bao.root_token(), "DELETE", &path, serde_json::Value::Null).await;
    if status == 404 || status == 405 {
        println!("this server knows no soft-deletion: {status} {answer}");
        return;
    }
    assert!((200..300).contains(&status), "{status} {answer}");
    // A call or a health check notices it.
    let error = caller.decrypt(&sealed).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = wait_for_key_error(&caller, "soft-deleted: restore it").await;
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_health(&daemon, "lost").await;

    env.bao.api("POST", &format!("{path}-restore"), json!({})).await;
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.decrypt(&sealed).await.unwrap();
    assert_eq!(caller.key_id().await, sealed.key_id);
}

/// Vault reports the creation time of a key in seconds. Here the old and the new key can have the same one, as when a
/// script recreates the key.
#[tokio::test]
async fn a_key_recreated_within_the_same_second_is_another_key() {
    let env = TestEnv::start().await;
    // The key is created here, so that it can be recreated within the same second.
    delete_key(&env.bao).await;
    eventually("the start of a second", Duration::from_secs(2), async || {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_millis() < 50
    })
    .await;
    create_key(&env.bao).await;
    let born = creation_time(&env.bao).await;
    let (daemon, caller) = env.ready([]).await;
    let sealed = caller.round_trip().await;
    delete_key(&env.bao).await;
    create_key(&env.bao).await;
    println!("recreated within the same second: {}", creation_time(&env.bao).await == born);
    another_key_is_refused(&daemon, &caller, &sealed).await;
}

#[tokio::test]
async fn a_recreated_key_is_another_key_and_is_not_used_to_encrypt() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let sealed = caller.round_trip().await;
    let born = creation_time(&env.bao).await;
    delete_key(&env.bao).await;
    eventually("a key with another creation time", Duration::from_secs(3), async || {
        create_key(&env.bao).await;
        let another = creation_time(&env.bao).await != born;
        if !another {
            delete_key(&env.bao).await;
        }
        another
    })
    .await;
    another_key_is_refused(&daemon, &caller, &sealed).await;
}

#[tokio::test]
async fn a_policy_refusal_is_reported_at_the_first_call_until_the_policy_is_fixed() {
    let env = TestEnv::start().await;
    // The first call notices it.
    let (daemon, caller) = env.ready_without_health_checks().await;
    let sealed = caller.round_trip().await;
    let rules = policy(MOUNT, KEY);
    let rules: Vec<_> = rules.lines().filter(|line| !line.contains("/encrypt/")).collect();
    env.bao.policy(POLICY, &rules.join("\n")).await;
    assert_eq!(caller.health().await, "ok", "Vault has not been called since");

    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("grant `update` on transit/encrypt/kms"), "{error}");
    let status = caller.status().await.unwrap();
    assert!(status.healthz.contains("does not allow encrypt"), "{}", status.healthz);
    assert_eq!(status.key_id, sealed.key_id, "a reason, not an error: the key is not lost");
    assert_health(&daemon, "refused").await;
    assert_ready(&daemon, 503, "does not allow encrypt").await;
    caller.decrypt(&sealed).await.unwrap();

    env.bao.policy(POLICY, &policy(MOUNT, KEY)).await;
    caller.wait_ok(RECOVERY_TIMEOUT).await;
    caller.round_trip().await;
}

#[tokio::test]
async fn an_unreachable_first_address_is_skipped() {
    let mut env = TestEnv::without_file().await;
    env.rendered.addresses.insert(0, closed_address());
    let token = env.bao.token().await;
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    caller.round_trip().await;
    let retries = async || daemon.metric("transit_kms_retries_total", &[("reason", "connect")]).await;
    let first = retries().await;
    assert!(first >= 1.0);
    // The address that answers is used first from then on.
    for _ in 0..20 {
        caller.round_trip().await;
    }
    assert_eq!(retries().await, first);
    assert_eq!(caller.health().await, "ok");
    for (address, up) in env.rendered.addresses.iter().zip([0.0, 1.0]) {
        let (_, text) = daemon.admin("/metrics").await;
        let node = [("node", address.as_str())];
        assert_eq!(samples(&text, "transit_kms_vault_node_up", &node), [up], "{address}");
    }
}

async fn delete_key(bao: &Bao) {
    bao.api("POST", &format!("{MOUNT}/keys/{KEY}/config"), json!({"deletion_allowed": true})).await;
    bao.api("DELETE", &format!("{MOUNT}/keys/{KEY}"), serde_json::Value::Null).await;
}

async fn create_key(bao: &Bao) {
    bao.api("POST", &format!("{MOUNT}/keys/{KEY}"), json!({})).await;
}

/// The creation time of version 1, in Unix seconds.
async fn creation_time(bao: &Bao) -> i64 {
    let answer = bao.api("GET", &format!("{MOUNT}/keys/{KEY}"), serde_json::Value::Null).await;
    answer["data"]["keys"]["1"].as_i64().unwrap()
}

async fn another_key_is_refused(daemon: &Daemon, caller: &Caller, sealed: &kms_plugin::v2::EncryptResponse) {
    let error = wait_for_key_error(caller, "recreated").await;
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("recreated"), "{error}");
    let error = caller.decrypt(sealed).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert_health(daemon, "lost").await;
    assert_ready(daemon, 503, "recreated").await;
    assert_eq!(daemon.admin("/livez").await.0, 200);
}

/// Waits until Status is a gRPC error that contains `part`.
async fn wait_for_key_error(caller: &Caller, part: &str) -> Status {
    eventually(&format!("Status fails with {part:?}"), Duration::from_secs(8), async || {
        match caller.status().await {
            Err(error) if error.message().contains(part) => Ok(error),
            Err(error) => Err(format!("{:?}: {}", error.code(), error.message())),
            Ok(status) => Err(status.healthz),
        }
    })
    .await
}

async fn assert_health(daemon: &Daemon, state: &str) {
    assert_eq!(daemon.metric("transit_kms_health", &[("state", state)]).await, 1.0, "{state}");
    assert_eq!(daemon.metric("transit_kms_health", &[]).await, 1.0, "one state holds");
}

async fn assert_ready(daemon: &Daemon, status: u16, words: &str) {
    let (found, said) = daemon.admin("/readyz").await;
    assert!(found == status && said.contains(words), "{found} {said}");
}

/// The log has each change once, with its reason, and no other warnings of the daemon or of a library.
#[tokio::test]
async fn an_outage_and_its_end_are_logged_once() {
    let mut env = TestEnv::without_file().await;
    let token = env.bao.create_token(json!({ "period": "6s" })).await;
    env.render(&token);
    let (daemon, caller) = env.ready([]).await;
    env.bao.stop();
    caller.wait_health("has not been usable", Duration::from_secs(20)).await;
    eventually("several failed renewals", Duration::from_secs(40), async || {
        daemon.metric("transit_kms_token_renewals_total", &[("result", "failed")]).await >= 2.0
    })
    .await;
    let log = daemon.log();
    for once in [
        "Status stays ok for the outage grace",
        "Status is not ok",
        "the token could not be renewed; trying again",
    ] {
        assert_eq!(log.matches(once).count(), 1, "{once}: {log}");
    }
    assert!(!log.contains("ERROR"), "{log}");

    env.bao.start_again().await;
    let token = env.bao.token().await;
    env.render(&token);
    caller.wait_ok(Duration::from_secs(20)).await;
    eventually("the end of the outage is logged", Duration::from_secs(20), async || {
        daemon.log().matches(" healthy before=").count() == 2
    })
    .await;
}
