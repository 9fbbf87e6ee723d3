//! Drives the state machine as a table: no runtime, no Vault, no clock.

use super::*;

/// Configs and sessions are their names. What follows a `+` in the name of a config stands for the files of its
/// login.
struct Names;

impl Payload for Names {
    type Config = &'static str;
    type Fingerprint = &'static str;
    type Published = &'static str;
    type Verified = &'static str;

    fn fingerprint(config: &&'static str) -> &'static str {
        config.split('+').next().unwrap()
    }

    fn material(config: &&'static str) -> &'static str {
        config.split('+').nth(1).unwrap_or_default()
    }

    fn logs_in(config: &&'static str) -> bool {
        config.contains('+')
    }
}

/// A machine, and the moment of its next step.
struct Bench {
    moment: Moment,
    state: ManagerState<Names>,
}

impl Bench {
    fn new() -> Self {
        let moment = Moment { jitter: 1.0, now: Instant::now(), session_is_healthy: false };
        Self { moment, state: ManagerState::default() }
    }

    /// A machine whose session is in use and healthy.
    fn with_session(config: &'static str) -> Self {
        let mut bench = Self::new();
        bench.step(Event::ConfigObserved(config));
        bench.step(Event::CandidateVerified(config));
        bench.step(Event::Published(config));
        bench.moment.session_is_healthy = true;
        bench
    }

    /// Takes a step and describes its actions.
    fn step(&mut self, event: Event<Names>) -> Vec<String> {
        let actions = self.state.step(event, self.moment);
        let describe = |action| match action {
            Action::CancelVerification => "cancel".into(),
            Action::Publish(session) => format!("publish {session}"),
            Action::ReloadConfig => "reload".into(),
            Action::ReportConfigInUse => "in use".into(),
            Action::ReportFailedCandidate { is_new, purpose, result, .. } => {
                let newly = if is_new { "newly" } else { "still" };
                let login = if purpose == CandidatePurpose::NewLogin { "login " } else { "" };
                format!("{login}{newly} {}", result.label())
            }
            Action::ReportInvalidConfig(error) => format!("invalid: {error}"),
            Action::RetryAt(at) => format!("retry in {:?}", at.duration_since(self.moment.now)),
            Action::StartLease(session) => format!("lease {session}"),
            Action::Verify { config, reports_progress, .. } => {
                format!("verify {config}{}", if reports_progress { " with progress" } else { "" })
            }
        };
        actions.into_iter().map(describe).collect()
    }

    fn fails(&mut self, kind: ErrorKind) -> Vec<String> {
        let error = TransitError::new(kind, "no");
        self.step(Event::CandidateFailed { error, older_versions: OlderVersions::default() })
    }
}

#[test]
fn a_candidate_that_is_verified_gets_published_and_its_lease_starts() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["verify a with progress"]);
    assert_eq!(bench.step(Event::CandidateVerified("a")), ["publish a"]);
    assert_eq!(bench.step(Event::Published("a")), ["lease a"]);
    assert_eq!(bench.step(Event::ConfigObserved("b")), ["verify b with progress"], "the next one");
}

#[test]
fn a_newer_config_supersedes_a_verification() {
    let mut bench = Bench::new();
    bench.step(Event::ConfigObserved("a"));
    assert_eq!(bench.step(Event::ConfigObserved("b")), ["cancel", "verify b with progress"]);
    assert_eq!(bench.step(Event::CandidateVerified("b")), ["publish b"]);
    assert_eq!(bench.step(Event::Published("b")), ["lease b"]);
    assert_eq!(bench.step(Event::ConfigObserved("b")), ["in use"]);
}

#[test]
fn a_newer_config_does_not_wait_for_the_pause_of_the_older_one() {
    let mut bench = Bench::new();
    bench.step(Event::ConfigObserved("a"));
    bench.fails(ErrorKind::Denied);
    assert_eq!(bench.step(Event::ConfigObserved("b")), ["verify b with progress"]);
    assert_eq!(bench.fails(ErrorKind::Denied), ["newly refused", "retry in 500ms"], "it starts afresh");
}

#[test]
fn an_invalid_config_ends_the_candidate_before_it() {
    let mut bench = Bench::new();
    bench.step(Event::ConfigObserved("a"));
    assert_eq!(bench.step(Event::ConfigInvalid("line 3".into())), ["cancel", "invalid: line 3"]);
    assert!(bench.step(Event::RetryDue).is_empty());
    assert!(bench.step(Event::CandidateVerified("a")).is_empty(), "it would not be what the file says");
}

#[test]
fn the_config_in_use_is_no_candidate_and_ends_the_candidate_before_it() {
    let mut bench = Bench::with_session("a");
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["in use"]);
    bench.step(Event::ConfigObserved("b"));
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["cancel", "in use"]);
    bench.step(Event::ConfigObserved("b"));
    bench.fails(ErrorKind::Denied);
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["in use"]);
    assert!(bench.step(Event::RetryDue).is_empty());
}

#[test]
fn a_refused_candidate_keeps_the_session() {
    let mut bench = Bench::with_session("a");
    bench.step(Event::ConfigObserved("b"));
    assert_eq!(bench.fails(ErrorKind::KeyNotFound), ["newly refused", "retry in 500ms"]);
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["in use"]);
}

#[test]
fn pauses_double_and_are_capped() {
    use ErrorKind::{Denied, TokenInvalid, Unreachable};
    for (kind, healthy, pauses) in [
        (Unreachable, true, "500ms 1s 2s 4s 5s 5s"),
        (Unreachable, false, "500ms 1s 2s 4s 5s 5s"),
        // While no session is healthy, calls fail: the candidate is tried as often as in an outage.
        (Denied, false, "500ms 1s 2s 4s 5s 5s"),
        (Denied, true, "500ms 1s 2s 4s 8s 16s 30s 30s"),
        (TokenInvalid, true, "500ms 1s 2s 4s 8s 16s 30s 30s"),
    ] {
        let mut bench = Bench::with_session("a");
        bench.moment.session_is_healthy = healthy;
        bench.step(Event::ConfigObserved("b"));
        let mut seen = Vec::new();
        for _ in pauses.split(' ') {
            let actions = bench.fails(kind);
            seen.push(actions.last().unwrap().strip_prefix("retry in ").unwrap().to_owned());
            assert_eq!(bench.step(Event::RetryDue), ["verify b"]);
        }
        assert_eq!(seen.join(" "), pauses, "{kind:?}, healthy: {healthy}");
    }
}

#[test]
fn pauses_are_jittered() {
    let mut bench = Bench::new();
    bench.moment.jitter = 0.9;
    bench.step(Event::ConfigObserved("a"));
    assert_eq!(bench.fails(ErrorKind::Denied), ["newly refused", "retry in 450ms"]);
}

#[test]
fn a_result_is_new_only_once() {
    let mut bench = Bench::new();
    bench.step(Event::ConfigObserved("a"));
    for (kind, report) in [
        (ErrorKind::Unreachable, "newly pending"),
        (ErrorKind::DeadlineExceeded, "still pending"),
        (ErrorKind::Denied, "newly refused"),
        (ErrorKind::TokenInvalid, "still refused"),
        (ErrorKind::Throttled, "newly pending"),
    ] {
        assert_eq!(bench.fails(kind)[0], report, "{kind:?}");
        bench.step(Event::RetryDue);
    }
}

#[test]
fn an_invalid_token_hurries_a_candidate_that_waits() {
    let mut bench = Bench::with_session("a");
    bench.step(Event::ConfigObserved("b"));
    for _ in 0..3 {
        bench.fails(ErrorKind::Denied);
        bench.step(Event::RetryDue);
    }
    bench.fails(ErrorKind::Denied);
    assert_eq!(bench.step(Event::TokenInvalid), ["reload", "verify b"]);
    assert!(bench.step(Event::RetryDue).is_empty(), "it is being verified already");
    assert_eq!(bench.fails(ErrorKind::Denied), ["still refused", "retry in 500ms"], "its pauses start again");
}

#[test]
fn an_invalid_token_hurries_a_candidate_that_is_being_verified() {
    let mut bench = Bench::with_session("a");
    bench.step(Event::ConfigObserved("b"));
    assert_eq!(bench.step(Event::TokenInvalid), ["reload"], "its verification continues");
    assert_eq!(bench.fails(ErrorKind::Denied), ["newly refused", "verify b"], "without a pause");
    assert_eq!(bench.fails(ErrorKind::Denied), ["still refused", "retry in 500ms"], "only once");
}

#[test]
fn an_invalid_token_without_a_candidate_only_reloads_the_config() {
    let mut bench = Bench::with_session("a");
    assert_eq!(bench.step(Event::TokenInvalid), ["reload"]);
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["in use"]);
}

#[test]
fn an_outdated_verification_is_repeated() {
    let mut bench = Bench::with_session("a");
    bench.step(Event::ConfigObserved("b"));
    assert_eq!(bench.step(Event::CandidateVerified("b")), ["publish b"]);
    let outdated = TransitError::new(ErrorKind::VersionUnavailable, "another key version was published");
    let actions = bench.step(Event::VerificationOutdated(outdated));
    assert_eq!(actions, ["newly pending", "retry in 500ms"]);
    assert_eq!(bench.step(Event::ConfigObserved("a")), ["in use"], "it is not the config in use");
    bench.step(Event::ConfigObserved("b"));
    bench.fails(ErrorKind::Unreachable);
    assert_eq!(bench.step(Event::RetryDue), ["verify b"]);
}

#[test]
fn older_versions_are_counted_over_the_attempts_of_one_candidate() {
    use transit_client::key_id::KeyVersion;

    use crate::session::verification::VerificationError;

    let accepts = |actions: Vec<Action<Names>>| match actions.last() {
        Some(Action::Verify { older_versions, .. }) => older_versions.next_is_accepted(),
        _ => panic!("no verification"),
    };
    let mut bench = Bench::new();
    let mut older_versions = OlderVersions::default();
    assert!(!accepts(bench.state.step(Event::ConfigObserved("a"), bench.moment)));
    for is_accepted in [false, true] {
        older_versions.count(&Err(VerificationError::Older(KeyVersion::new(1).unwrap())));
        let error = TransitError::new(ErrorKind::VersionUnavailable, "older");
        bench.step(Event::CandidateFailed { error, older_versions });
        assert_eq!(accepts(bench.state.step(Event::RetryDue, bench.moment)), is_accepted);
    }
    assert!(!accepts(bench.state.step(Event::ConfigObserved("b"), bench.moment)), "its Vault may be another");
}

#[test]
fn a_login_that_is_due_replaces_the_token_and_keeps_the_session() {
    let mut bench = Bench::with_session("a+1");
    assert_eq!(bench.step(Event::LoginDue), ["verify a+1"]);
    assert!(bench.step(Event::LoginDue).is_empty(), "one login at a time");
    assert_eq!(bench.fails(ErrorKind::Unreachable), ["login newly pending", "retry in 500ms"]);
    assert_eq!(bench.step(Event::RetryDue), ["verify a+1"]);
    assert_eq!(bench.step(Event::CandidateVerified("a+1")), ["publish a+1"]);
    assert_eq!(bench.step(Event::Published("a+1")), ["lease a+1"]);
    assert!(
        Bench::with_session("rendered").step(Event::LoginDue).is_empty(),
        "only the agent has another token"
    );
}

#[test]
fn an_invalid_token_of_a_login_is_replaced_at_once() {
    let mut bench = Bench::with_session("a+1");
    assert_eq!(bench.step(Event::TokenInvalid), ["reload", "verify a+1"]);
    assert_eq!(bench.step(Event::ConfigObserved("a+1")), ["in use"], "the reload does not cancel the login");
    bench.fails(ErrorKind::Denied);
    assert_eq!(bench.step(Event::TokenInvalid), ["reload", "verify a+1"], "it does not wait");
}

#[test]
fn changed_files_of_a_login_are_used_at_the_next_login() {
    let mut bench = Bench::with_session("a+1");
    assert_eq!(bench.step(Event::ConfigObserved("a+2")), ["in use"], "the session is healthy");
    assert_eq!(bench.step(Event::LoginDue), ["verify a+2"]);
    bench.fails(ErrorKind::Denied);
    assert_eq!(bench.step(Event::ConfigObserved("a+3")), ["in use", "verify a+3"], "the login was refused");
    bench.step(Event::CandidateVerified("a+3"));
    bench.step(Event::Published("a+3"));

    bench.moment.session_is_healthy = false;
    assert_eq!(bench.step(Event::ConfigObserved("a+4")), ["in use", "verify a+4"], "it is needed now");
    assert_eq!(bench.step(Event::ConfigObserved("b+4")), ["cancel", "verify b+4 with progress"]);
}

#[test]
fn a_bad_config_does_not_prevent_the_login_of_the_session_in_use() {
    let mut bench = Bench::with_session("a+1");
    bench.step(Event::ConfigObserved("bad+1"));
    assert!(bench.step(Event::LoginDue).is_empty(), "the new config is being verified");
    assert_eq!(bench.fails(ErrorKind::Denied), ["newly refused", "retry in 500ms"]);
    assert_eq!(bench.step(Event::RetryDue), ["verify a+1"], "the login has its turn");
    assert_eq!(bench.fails(ErrorKind::Unreachable), ["login newly pending", "retry in 500ms"]);
    assert_eq!(bench.step(Event::RetryDue), ["verify bad+1"]);
    assert_eq!(bench.fails(ErrorKind::Denied), ["still refused", "retry in 1s"]);
    bench.step(Event::RetryDue);
    bench.step(Event::CandidateVerified("a+1"));
    assert_eq!(bench.step(Event::Published("a+1")), ["lease a+1", "verify bad+1"]);

    assert!(bench.step(Event::LoginDue).is_empty());
    assert_eq!(bench.step(Event::ConfigInvalid("half".into())), ["cancel", "invalid: half", "verify a+1"]);
    assert_eq!(bench.step(Event::ConfigObserved("good")), ["cancel", "verify good with progress"]);
    bench.step(Event::CandidateVerified("good"));
    assert_eq!(bench.step(Event::Published("good")), ["lease good"], "the old login is not needed any more");
}
