//! Which sessions may replace the one in use.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_session_without_the_published_key_is_refused_unless_the_key_is_lost_or_has_moved() {
    let model = Model::new();
    model.change(|state| {
        state.keys.insert("new".into(), FakeKey::new(7, &[500]));
        // The same key under another path, as after `vault secrets move`.
        state.keys.insert("moved".into(), FakeKey::new(1, &[100]));
    });
    let bench = SessionBench::ready(model, &["kms"]).await;
    let before = bench.store.snapshot().unwrap();
    let try_session = async |keys: &[&str], is_healthy, key_lost| {
        let session = bench.model.session(keys);
        let against = PreviousState { is_healthy, key_lost, ..before.as_previous_state() };
        let outcome = verify_candidate(&session, Some(against), false).await;
        outcome.map(drop).map_err(TransitError::from)
    };
    let remedy = "add { name: kms, mount: transit, namespace: root } behind the new key, or restart";
    for (keys, is_healthy) in [(["new"], true), (["moved"], true), (["new"], false)] {
        let error = try_session(&keys, is_healthy, false).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::KeyNotFound, "{keys:?}");
        assert!(error.message.contains(remedy), "{error}");
    }
    try_session(&["new", "kms"], true, false).await.unwrap();
    try_session(&["moved"], false, false).await.unwrap();
    try_session(&["new"], false, true).await.unwrap();
    // The key must not only be configured, but decrypt.
    bench.model.change(|state| state.keys.insert("kms".into(), FakeKey::new(9, &[100])));
    assert!(try_session(&["new", "kms"], true, false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_the_canary_the_creation_time_of_a_common_version_decides_if_the_session_is_not_healthy() {
    let mut bench = SessionBench::ready(Model::new(), &["kms"]).await;
    let first = bench.store.snapshot().unwrap();
    bench.model.rotate("kms");
    bench.publish(&["kms"]).await.unwrap();
    // Versions 1 and 2 are known, and version 1, which encrypted the canary, gets excluded.
    let second = bench.store.snapshot().unwrap();
    let minimum =
        |version| bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_decryption = version);
    let try_session = async |is_healthy| {
        let session = bench.model.session(&["kms"]);
        let against = PreviousState { canary: &first.canary, is_healthy, ..second.as_previous_state() };
        verify_candidate(&session, Some(against), false).await
    };
    assert!(try_session(true).await.is_ok());
    minimum(2);
    assert!(
        matches!(try_session(true).await, Err(VerificationError::Failed(error)) if error.kind == ErrorKind::VersionTooOld)
    );
    assert!(try_session(false).await.is_ok());
    bench.model.rotate("kms");
    minimum(3);
    assert!(try_session(false).await.is_err(), "there is no common version any more");
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_used_are_refused_with_the_remedy() {
    let good = FakeKey::new(1, &[100]);
    for (key, words) in [
        (FakeKey { derived: true, ..good.clone() }, "derived"),
        (FakeKey { kind: "rsa-4096", ..good.clone() }, "authenticated symmetric"),
        (FakeKey { soft_deleted: true, ..good.clone() }, "soft-delete-restore"),
    ] {
        let mut bench = SessionBench::bare(Model::new());
        bench.model.change(|state| state.keys.insert("kms".into(), key));
        let error = bench.publish(&["kms"]).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_with_another_key_of_the_same_name_is_refused() {
    let mut bench = SessionBench::ready(Model::new(), &["kms"]).await;
    let wrapped = bench.wrap(b"seed").await.unwrap();
    let model = bench.model.clone();
    // The first was created in the same second, so that only the canary detects it.
    for versions in [&[100][..], &[200][..]] {
        bench.model = Model::new();
        bench.model.change(|state| state.keys.insert("kms".into(), FakeKey::new(2, versions)));
        let Err(VerificationError::Failed(error)) = bench.publish(&["kms"]).await else { panic!("accepted") };
        assert_eq!(error.kind, ErrorKind::KeyNotFound);
        assert!(error.message.contains("not the one that was in use"), "{error}");
    }
    assert_eq!(bench.unwrap(&wrapped).await.unwrap(), b"seed");
    bench.model = model;
    bench.publish(&["kms"]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_with_a_restored_vault_is_accepted_but_not_one_with_another_key() {
    let model = Model::new();
    model.rotate("kms");
    let mut bench = SessionBench::ready(model, &["kms"]).await;
    bench.session.kill_token();
    let try_session = async |bench: &SessionBench, accept_older| {
        let (session, before) = (bench.model.session(&["kms"]), bench.store.snapshot().unwrap());
        let against = before.as_previous_state();
        verify_candidate(&session, Some(against), accept_older).await
    };
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    assert!(matches!(try_session(&bench, false).await, Err(VerificationError::Older(_))));
    assert!(try_session(&bench, true).await.is_ok());

    bench.model = Model::new();
    for other in [FakeKey::new(2, &[999]), FakeKey { min_decryption: 2, ..FakeKey::new(2, &[100]) }] {
        bench.model.change(|state| state.keys.insert("kms".into(), other));
        let error = TransitError::from(try_session(&bench, true).await.unwrap_err());
        assert_ne!(error.kind, ErrorKind::VersionUnavailable, "{error}");
    }
}
