use tokio::time::{advance, sleep_until};

use super::*;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn ends_in(count: u64) -> Expiry {
    Expiry::At(Instant::now() + seconds(count))
}

fn until(when: Option<Instant>) -> Duration {
    when.unwrap() - Instant::now()
}

/// Fails every renewal until the token expires. Returns the times of the attempts, and the number of lookups.
async fn fail_renewals(schedule: &mut LeaseSchedule, failure: RenewalFailure) -> (Vec<Duration>, usize) {
    let (begun, Expiry::At(end)) = (Instant::now(), schedule.expiry()) else { panic!("{schedule:?}") };
    let (mut attempts, mut lookups) = (Vec::new(), 0);
    loop {
        sleep_until(schedule.next_action_at()).await;
        if Instant::now() >= end {
            return (attempts, lookups);
        }
        match schedule.due_action().unwrap() {
            LeaseAction::LogIn => panic!("only the agent has another token"),
            LeaseAction::LookUp => {
                lookups += 1;
                schedule.looked_up(Expiry::At(end), Some(true));
            }
            LeaseAction::Renew => {
                attempts.push(begun.elapsed());
                schedule.renewal_failed(failure);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn looks_up_every_five_minutes() {
    let mut schedule = LeaseSchedule::new(Expiry::Never, Some(false));
    for _ in 0..3 {
        let next = schedule.next_action_at() - Instant::now();
        assert!((seconds(270)..=seconds(300)).contains(&next), "{next:?}");
        advance(next - Duration::from_millis(2)).await;
        assert_eq!(schedule.due_action(), None);
        advance(Duration::from_millis(4)).await;
        assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
        schedule.looked_up(Expiry::Never, Some(false));
    }
    // The right to look the token up may be granted again.
    schedule.lookup_failed(ErrorKind::Denied);
    assert!(schedule.next_action_at() - Instant::now() <= seconds(300));
}

#[tokio::test(start_paused = true)]
async fn renews_after_two_thirds_with_jitter_and_not_a_token_that_does_not_expire() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let schedule = LeaseSchedule::new(ends_in(360), Some(true));
        let next = schedule.next_action_at() - Instant::now();
        assert!((seconds(216)..=seconds(240)).contains(&next), "{next:?}");
        seen.insert(next);
    }
    assert!(seen.len() > 1, "the nodes would renew at the same time");
    assert_eq!(LeaseSchedule::new(Expiry::Never, Some(true)).next_renewal, None);
    assert_eq!(LeaseSchedule::new(ends_in(3600), Some(false)).next_renewal, None);
    assert!(
        LeaseSchedule::new(ends_in(3600), None).next_renewal.is_some(),
        "Vault has not said that it is not renewable"
    );
}

#[tokio::test(start_paused = true)]
async fn a_denied_renewal_is_repeated_until_the_end_and_not_too_often() {
    for (ttl, least, most) in [(2, 2, 8), (20, 5, 20), (3600, 30, 70)] {
        for failure in [RenewalFailure::Denied, RenewalFailure::Unreachable] {
            let mut schedule = LeaseSchedule::new(ends_in(ttl), Some(true));
            let (attempts, _) = fail_renewals(&mut schedule, failure).await;
            let most = if failure == RenewalFailure::Unreachable { most * 5 } else { most };
            assert!((least..=most).contains(&attempts.len()), "{ttl} s, {failure:?}: {attempts:?}");
            let last = seconds(ttl) - attempts[attempts.len() - 1];
            assert!(last <= seconds(1), "{ttl} s: the last attempt is {last:?} before the end");
            for pair in attempts.windows(2) {
                let pause = pair[1] - pair[0];
                assert!((MIN_PAUSE..=seconds(30)).contains(&pause), "{pause:?}");
            }
        }
    }
}

/// A periodic token of 20 s once expired because its policy was withdrawn for 5 s.
#[tokio::test(start_paused = true)]
async fn a_token_survives_a_policy_that_is_withdrawn_for_a_moment() {
    let mut schedule = LeaseSchedule::new(ends_in(20), Some(true));
    let granted = Instant::now() + seconds(18);
    loop {
        sleep_until(schedule.next_action_at()).await;
        assert_eq!(schedule.due_action(), Some(LeaseAction::Renew));
        assert!(schedule.expiry().remaining().unwrap() > Duration::ZERO, "it expired");
        if Instant::now() > granted {
            schedule.renewed(ends_in(20), Some(true));
            break;
        }
        schedule.renewal_failed(RenewalFailure::Denied);
    }
    let next = until(schedule.next_renewal);
    assert!((seconds(12)..=seconds(14)).contains(&next), "as after any renewal: {next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_needs_a_login_is_repeated_rarely_and_not_after_the_end() {
    let mut schedule = LeaseSchedule::new(ends_in(3600), Some(true));
    let (attempts, _) = fail_renewals(&mut schedule, RenewalFailure::LoginRequired).await;
    assert!((2..=6).contains(&attempts.len()), "{attempts:?}");
    let mut short = LeaseSchedule::new(ends_in(20), Some(true));
    advance(seconds(14)).await;
    assert_eq!(short.renewal_failed(RenewalFailure::LoginRequired), None);
}

#[tokio::test(start_paused = true)]
async fn without_a_lookup_the_first_renewal_shows_the_ttl() {
    let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
    assert_eq!(schedule.due_action(), Some(LeaseAction::Renew));
    schedule.renewed(ends_in(60), Some(true));
    assert!((seconds(36)..=seconds(40)).contains(&until(schedule.next_renewal)));

    // If that is denied as well, it is repeated less and less often, and never given up.
    let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
    for _ in 0..20 {
        let next = schedule.renewal_failed(RenewalFailure::Denied);
        advance(until(next)).await;
    }
    let next = until(schedule.renewal_failed(RenewalFailure::Denied));
    assert!((seconds(270)..=seconds(300)).contains(&next), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_without_a_ttl_is_followed_by_a_lookup() {
    let mut schedule = LeaseSchedule::new(ends_in(60), Some(true));
    advance(seconds(40)).await;
    schedule.renewed(Expiry::Unknown, Some(true));
    assert!(matches!(schedule.expiry(), Expiry::At(_)), "the known expiry stays");
    assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
    schedule.looked_up(ends_in(60), Some(true));
    assert!((seconds(36)..=seconds(40)).contains(&until(schedule.next_renewal)));

    // If neither shows the TTL, the renewals do not loop.
    let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
    for _ in 0..20 {
        schedule.renewed(Expiry::Unknown, Some(true));
        assert_ne!(schedule.due_action(), Some(LeaseAction::Renew));
        advance(until(schedule.next_renewal)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_the_token_is_looked_up() {
    let mut schedule = LeaseSchedule::new(ends_in(60), Some(true));
    advance(seconds(40)).await;
    let next = schedule.renewal_failed(RenewalFailure::Unreachable).unwrap();
    sleep_until(next).await;
    assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
    schedule.looked_up(ends_in(59), Some(true));
    assert_eq!(schedule.due_action(), None, "the token was renewed");
    assert!(until(schedule.next_renewal) > seconds(30));
}

#[tokio::test(start_paused = true)]
async fn at_its_end_a_token_is_looked_up_because_the_agent_may_have_renewed_it() {
    let mut schedule = LeaseSchedule::new(ends_in(20), Some(true));
    schedule.renewal_failed(RenewalFailure::LoginRequired);
    sleep_until(schedule.next_action_at()).await;
    assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
    assert_eq!(schedule.expiry().remaining(), Some(Duration::ZERO));
    schedule.looked_up(ends_in(20), Some(true));
    assert!(until(schedule.next_renewal) <= seconds(14));
    // Lookups do not loop on a token that stays in its last second.
    schedule.looked_up(ends_in(0), Some(true));
    assert_eq!(schedule.due_action(), None);
}

#[tokio::test(start_paused = true)]
async fn a_request_leaves_time_for_more_attempts() {
    for (ttl, longest) in [(1, 1), (10, 5), (3600, 10)] {
        let deadline = LeaseSchedule::new(ends_in(ttl), Some(true)).request_deadline() - Instant::now();
        assert_eq!(deadline, seconds(longest), "{ttl} s");
    }
}

/// The time until the first login is due. Renewals succeed until then, each with `renewal`.
async fn first_login(mut schedule: LeaseSchedule, renewal: impl Fn(&mut LeaseSchedule)) -> Duration {
    let begun = Instant::now();
    loop {
        sleep_until(schedule.next_action_at()).await;
        match schedule.due_action().unwrap() {
            LeaseAction::LogIn => return begun.elapsed(),
            LeaseAction::LookUp => schedule.looked_up(schedule.expiry(), None),
            LeaseAction::Renew => renewal(&mut schedule),
        }
        assert!(begun.elapsed() < Duration::from_secs(100_000), "no login is due");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_renewed_is_replaced_after_two_thirds() {
    let end = Instant::now() + Duration::from_secs(900);
    let schedule = LeaseSchedule::of_login(Expiry::At(end), Some(false));
    let due = first_login(schedule, |_| panic!("it cannot be renewed")).await;
    assert!((540..=600).contains(&due.as_secs()), "{due:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_at_its_maximum_ttl_is_replaced_while_time_is_left() {
    let max = Instant::now() + Duration::from_secs(7200);
    let schedule =
        LeaseSchedule::of_login(Expiry::At(Instant::now() + Duration::from_secs(3600)), Some(true));
    let due = first_login(schedule, |schedule| {
        let full = Instant::now() + Duration::from_secs(3600);
        schedule.renewed(Expiry::At(full.min(max)), Some(true));
        if full > max {
            schedule.renewals_end();
        }
    });
    let due = due.await;
    assert!((3600..7000).contains(&due.as_secs()), "{due:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_renewal_is_refused_is_replaced_before_it_ends() {
    for failure in [RenewalFailure::LoginRequired, RenewalFailure::Denied] {
        let end = Instant::now() + Duration::from_secs(900);
        let schedule = LeaseSchedule::of_login(Expiry::At(end), Some(true));
        let due = first_login(schedule, |schedule| {
            schedule.renewal_failed(failure);
        });
        let due = due.await;
        assert!((540..890).contains(&due.as_secs()), "{failure:?}: {due:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_requested_login_is_requested_again_if_the_token_stays_in_use() {
    let end = Instant::now() + Duration::from_secs(900);
    let mut schedule = LeaseSchedule::of_login(Expiry::At(end), Some(false));
    let mut logins = Vec::new();
    while logins.len() < 2 {
        sleep_until(schedule.next_action_at()).await;
        match schedule.due_action().unwrap() {
            LeaseAction::LogIn => {
                logins.push(Instant::now());
                schedule.login_requested();
            }
            LeaseAction::LookUp => schedule.looked_up(Expiry::At(end), Some(false)),
            LeaseAction::Renew => panic!("it cannot be renewed"),
        }
    }
    let pause = logins[1].duration_since(logins[0]);
    assert!((80..=120).contains(&pause.as_secs()), "a third of what is left: {pause:?}");
}
