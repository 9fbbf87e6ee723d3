//! What Status says, and what changes it: health checks, failed calls, and the time.

use super::*;

#[tokio::test(start_paused = true)]
async fn status_is_ok_while_health_checks_pass_and_costs_no_request() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    pass(300).await;
    let calls = bench.model.calls();
    for _ in 0..1000 {
        assert_eq!(bench.healthz(), "ok");
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn status_stays_ok_for_the_outage_grace_and_then_has_a_reason() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    pass(35).await;
    bench.model.change(|state| {
        state.fails.insert("read_key", ErrorKind::Unreachable);
    });
    pass(30).await;
    // A health check noticed the outage within the last 30 s.
    assert_eq!(bench.healthz(), "ok");
    pass(25).await;
    assert_eq!(bench.healthz(), "ok");
    pass(40).await;
    assert!(bench.healthz().contains("unreachable"), "{}", bench.healthz());
    assert!(!bench.key_id().is_empty(), "a reason comes with the key_id");

    bench.model.change(|state| state.fails.clear());
    pass(6).await;
    assert_eq!(bench.healthz(), "ok");
}

#[tokio::test(start_paused = true)]
async fn status_is_not_ok_if_the_health_checker_is_stuck() {
    let bench = SessionBench::ready(Model::new(), &["kms"]).await;
    pass(90).await;
    assert_eq!(bench.healthz(), "ok");
    pass(1).await;
    assert!(bench.healthz().contains("more than three intervals"));
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_does_not_answer_is_an_outage_and_no_stuck_health_checker() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    bench.model.change(|state| state.silent = true);
    pass(80).await;
    assert_eq!(bench.healthz(), "ok");
    pass(60).await;
    assert!(bench.healthz().contains("did not answer a health check"), "{}", bench.healthz());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_found_by_the_health_check() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    bench.session.kill_token();
    pass(31).await;
    assert!(bench.healthz().contains("token is invalid"));
}

#[tokio::test(start_paused = true)]
async fn the_reason_also_says_why_the_newest_config_is_not_in_use() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    bench.session.kill_token();
    bench.writers.sessions.set_config_error(Some("line 3: vault.token must not be empty".into()));
    pass(31).await;
    let reason = bench.healthz();
    assert!(reason.contains("token is invalid") && reason.contains("line 3"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn the_reason_also_says_why_the_next_login_fails() {
    let mut bench = SessionBench::with_health_checker(Model::new()).await;
    bench.writers.sessions.set_login_error("the wrapping token was used by another hand".into());
    assert_eq!(bench.healthz(), "ok", "the session in use still works");
    bench.session.kill_token();
    pass(31).await;
    let reason = bench.healthz();
    assert!(reason.contains("token is invalid"), "{reason}");
    assert!(
        reason.ends_with("; the next login fails: the wrapping token was used by another hand"),
        "{reason}"
    );

    bench.writers.sessions.set_config_error(Some("line 3".into()));
    assert!(
        bench.healthz().ends_with("hand; the newest config is not in use: line 3"),
        "{}",
        bench.healthz()
    );
    bench.writers.sessions.set_config_error(None);
    assert!(bench.healthz().ends_with("by another hand"), "a good config does not end the login");
    bench.publish(&["kms"]).await.unwrap();
    assert_eq!(bench.healthz(), "ok");
    bench.session.kill_token();
    pass(31).await;
    assert!(!bench.healthz().contains("login"), "the login succeeded: {}", bench.healthz());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_invalid_token_does_not_include_a_refusal_before_it() {
    let bench = SessionBench::ready(Model::new(), &["kms"]).await;
    bench.writers.calls.call_failed(1, &TransitError::new(ErrorKind::Denied, "the policy refuses"));
    advance(Duration::from_secs(60)).await;
    assert_eq!(bench.store.read().token_invalid_for, None);
    let invalid = TransitError::new(ErrorKind::TokenInvalid, "the token is invalid");
    bench.writers.calls.call_failed(1, &invalid);
    assert_eq!(bench.store.read().token_invalid_for, Some(Duration::ZERO), "calls wait for the next token");
    advance(Duration::from_secs(5)).await;
    bench.writers.calls.call_failed(1, &invalid);
    assert_eq!(bench.store.read().token_invalid_for, Some(Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn a_report_about_a_replaced_session_changes_nothing() {
    let mut bench = SessionBench::ready(Model::new(), &["kms"]).await;
    bench.publish(&["kms"]).await.unwrap();
    let invalid = TransitError::new(ErrorKind::TokenInvalid, "the old token is invalid");
    bench.writers.calls.call_failed(1, &invalid);
    bench.writers.health.check_failed(1, &invalid);
    assert_eq!(bench.healthz(), "ok");
    bench.writers.calls.call_failed(2, &invalid);
    assert_ne!(bench.healthz(), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_another_namespace_does_not_accept_is_not_invalid() {
    let bench = SessionBench::ready(Model::new(), &["kms"]).await;
    let snapshot = bench.store.snapshot().unwrap();
    let invalid = || TransitError::new(ErrorKind::TokenInvalid, "permission denied");
    let elsewhere = KeyRef::in_own_mount(
        KeyName::new("old").unwrap(),
        MountPath::default(),
        Namespace::new("team-b").unwrap(),
    );
    let entry = KeyEntry::unread(elsewhere, None, "permission denied");
    assert_eq!(bench.writers.calls.decrypt_failed(&snapshot, &entry, invalid()).kind, ErrorKind::Denied);
    assert_eq!(bench.healthz(), "ok");
    let entry = KeyEntry::unread(KeyRef::in_transit("old"), None, "permission denied");
    assert_eq!(
        bench.writers.calls.decrypt_failed(&snapshot, &entry, invalid()).kind,
        ErrorKind::TokenInvalid
    );
    assert_ne!(bench.healthz(), "ok");
}

#[tokio::test(start_paused = true)]
async fn many_requests_for_a_health_check_cause_few_checks() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    let before = bench.model.calls();
    for _ in 0..1000 {
        bench.store.request_health_check();
        settle().await;
    }
    assert!(bench.model.calls() - before <= 3, "one check has three requests");
}

#[tokio::test(start_paused = true)]
async fn calls_that_keep_failing_cause_ever_fewer_health_checks() {
    let bench = SessionBench::with_health_checker(Model::new()).await;
    pass(1).await;
    let before = bench.model.calls();
    for _ in 0..120 {
        bench.store.request_health_check();
        pass(1).await;
    }
    let checks = (bench.model.calls() - before) / 4;
    assert!(checks < 40, "{checks} in two minutes");
}

#[tokio::test(start_paused = true)]
async fn before_the_first_session_status_is_unknown_with_the_config_error() {
    let bench = SessionBench::bare(Model::new());
    bench.writers.sessions.set_config_error(Some("/etc/kms.yaml:3: vault.token is missing".into()));
    assert_eq!(bench.answer(), StatusAnswer::Unknown("/etc/kms.yaml:3: vault.token is missing".into()));
}
