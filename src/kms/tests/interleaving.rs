//! Random interleavings of rotations, health checks, new sessions, lagging nodes and calls.

use proptest::prelude::*;
use tokio::task::yield_now;

use super::*;

/// One step of an interleaving.
#[derive(Clone, Debug)]
enum Step {
    Encrypt,
    Lag(u32),
    MinEncryption,
    HealthCheck,
    Rotate,
    Session,
    Turn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Encrypt),
        1 => (0..3_u32).prop_map(Step::Lag),
        1 => Just(Step::MinEncryption),
        4 => Just(Step::HealthCheck),
        2 => Just(Step::Rotate),
        2 => Just(Step::Session),
        8 => Just(Step::Turn),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// On every interleaving of rotations, health checks, new sessions, lagging nodes and calls, the ciphertext of each
    /// Encrypt belongs to its key_id, that key_id was published while the call ran, and the published version never
    /// moves back.
    #[test]
    fn no_interleaving_separates_ciphertext_and_key_id(
        steps in steps(),
        delays in proptest::collection::vec(0..6_u8, 0..200),
        with_local_kek in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(interleave(steps, delays, with_local_kek))?;
    }
}

async fn interleave(steps: Vec<Step>, delays: Vec<u8>, with_local_kek: bool) -> Result<(), TestCaseError> {
    let model = if with_local_kek { Model::new().with_local_keks() } else { Model::new() };
    let bench = Bench::ready(model, &["kms"]).await;
    bench.model.change(|state| state.delays = delays.into());
    // Every key_id that was ever published, in order.
    let mut published = vec![bench.status().await.unwrap().key_id];
    let mut calls: Vec<(usize, JoinHandle<Result<EncryptResponse, Status>>)> = Vec::new();
    let mut others: Vec<JoinHandle<()>> = Vec::new();
    let mut done = Vec::new();
    for step in steps.into_iter().chain(std::iter::repeat_n(Step::Turn, 100)) {
        match step {
            Step::Encrypt => {
                let service = bench.service.clone();
                let from = published.len() - 1;
                let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
                let call = async move { Ok(service.encrypt(Request::new(request)).await?.into_inner()) };
                calls.push((from, tokio::spawn(call)));
            }
            Step::Lag(versions) => bench.model.change(|state| state.lag = versions),
            Step::MinEncryption => bench.model.change(|state| {
                let key = state.keys.get_mut("kms").unwrap();
                key.min_encryption = u32::try_from(key.versions.len()).unwrap();
            }),
            Step::HealthCheck => {
                let store = Arc::clone(&bench.store);
                others.push(tokio::spawn(async move {
                    let snapshot = store.snapshot().unwrap();
                    let before = PreviousState { same_session: true, ..snapshot.as_previous_state() };
                    let deadline = Instant::now() + Duration::from_secs(10);
                    match verify(snapshot.transit.as_ref(), Some(before), false, deadline).await {
                        Ok(verification) => {
                            store.writers().health.check_passed(snapshot.generation, verification)
                        }
                        Err(failure) => {
                            store.writers().health.check_failed(snapshot.generation, &failure.into())
                        }
                    }
                }));
            }
            Step::Rotate => bench.model.rotate("kms"),
            Step::Session => {
                let (store, session) = (Arc::clone(&bench.store), bench.model.session(&["kms"]));
                let offer = bench.model.offer(&session);
                others.push(tokio::spawn(async move {
                    let before = store.snapshot().unwrap();
                    let against = before.as_previous_state();
                    let deadline = Instant::now() + Duration::from_secs(10);
                    if let Ok(verification) = verify(session.as_ref(), Some(against), false, deadline).await {
                        drop(store.writers().sessions.publish(offer, verification));
                    }
                }));
            }
            Step::Turn => {}
        }
        yield_now().await;
        let now = bench.store.snapshot().unwrap().keyring.current().key_id.clone();
        if published.last() != Some(&now) {
            published.push(now);
        }
        for (from, call) in std::mem::take(&mut calls) {
            if call.is_finished() {
                done.push((from, published.len(), call.await.unwrap()));
            } else {
                calls.push((from, call));
            }
        }
    }
    let versions: Vec<u32> =
        published.iter().map(|id| id.parse::<KeyId>().unwrap().version.number()).collect();
    prop_assert!(versions.is_sorted(), "went back: {versions:?}");
    for (from, to, response) in done {
        let Ok(sealed) = response else { continue };
        let id: KeyId = sealed.key_id.parse().unwrap();
        let transits = sealed.annotations.get(ANNOTATION).unwrap_or(&sealed.ciphertext);
        prop_assert_eq!(Ciphertext::parse(transits).unwrap().version(), id.version);
        prop_assert_eq!(sealed.annotations.len(), usize::from(with_local_kek));
        prop_assert!(
            published[from..to].contains(&sealed.key_id),
            "published meanwhile: {:?}",
            &published[from..to]
        );
    }
    bench.session.kill_token();
    Ok(())
}
