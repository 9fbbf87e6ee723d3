//! What calls do while the token is invalid or the session is replaced.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_call_with_an_invalid_token_waits_for_the_next_session() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.kill_token();
    let service = bench.service.clone();
    let call = tokio::spawn(async move {
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        service.encrypt(Request::new(request)).await
    });
    settle().await;
    assert!(!call.is_finished());
    let mut invalidated = None;
    bench.store.token_invalidated(&mut invalidated).await;
    assert_eq!(invalidated, Some(1));
    bench.publish(&["kms"]).await.unwrap();
    assert!(call.await.unwrap().is_ok());
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn calls_do_not_use_a_token_that_stays_invalid() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.kill_token();
    let began = Instant::now();
    let error = bench.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(began.elapsed() < Duration::from_secs(3), "the caller's deadline holds");

    let calls = bench.model.calls();
    pass(10).await;
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(began.elapsed(), Duration::ZERO, "calls do not wait any more");
    }
    assert_eq!(bench.model.calls(), calls, "no call was sent to Vault");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_replaced_session_refused_is_repeated_on_the_one_in_use() {
    for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied, ErrorKind::KeyNotFound] {
        let mut bench = Bench::ready(Model::new(), &["kms"]).await;
        let sealed = bench.encrypt(b"seed").await.unwrap();
        bench.model.change(|state| state.delays = [200, 200].into());
        let (encrypt, decrypt) = (bench.begin_encrypt(), bench.begin_open(&sealed));
        settle().await;
        let old = Arc::clone(&bench.session);
        bench.publish(&["kms"]).await.unwrap();
        old.refuse(kind);
        assert_eq!(encrypt.await.unwrap().unwrap().key_id, sealed.key_id);
        assert_eq!(decrypt.await.unwrap().unwrap(), b"seed"[..]);
        assert_eq!(bench.healthz().await, "ok");
    }
    // A refusal of the session in use is returned to the caller.
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.refuse(ErrorKind::Denied);
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn callers_stop_waiting_when_the_token_is_found_valid() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.fails.insert("encrypt", ErrorKind::TokenInvalid));
    let service = bench.service.clone();
    let call = tokio::spawn(async move {
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        service.encrypt(Request::new(request)).await
    });
    settle().await;
    bench.model.change(|state| state.fails.clear());
    let snapshot = bench.store.snapshot().unwrap();
    let against = PreviousState { same_session: true, ..snapshot.as_previous_state() };
    let verification =
        verify(bench.session.as_ref(), Some(against), false, Instant::now() + Duration::from_secs(10)).await;
    bench.writers.health.check_passed(1, verification.unwrap());
    assert!(call.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn concurrent_decrypts_with_an_invalid_token_wait_for_the_next_session() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.session.kill_token();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let request = DecryptRequest {
                ciphertext: sealed.ciphertext.clone(),
                uid: "uid".into(),
                key_id: sealed.key_id.clone(),
                annotations: [].into(),
            };
            let service = bench.service.clone();
            tokio::spawn(async move { service.decrypt(Request::new(request)).await })
        })
        .collect();
    settle().await;
    assert!(calls.iter().all(|call| !call.is_finished()));
    bench.publish(&["kms"]).await.unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().into_inner().plaintext, b"seed"[..]);
    }
}
