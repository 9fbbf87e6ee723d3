//! How many calls wait for Vault, and how long.

use super::*;

#[tokio::test(start_paused = true)]
async fn too_many_calls_are_refused_at_once_and_status_is_answered_all_the_same() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let before = bench.model.calls();
    let mut calls = JoinSet::new();
    for _ in 0..768 {
        let service = bench.service.clone();
        calls.spawn(async move {
            let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
            service.encrypt(Request::new(request)).await.map(drop)
        });
    }
    settle().await;
    assert_eq!(bench.model.calls() - before, 128, "the others wait");
    let refused = Instant::now();
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(refused, Instant::now(), "at once");
    assert_eq!(bench.healthz().await, "ok");

    // Calls that are cancelled make room for others.
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    bench.model.change(|state| state.silent = false);
    assert!(bench.encrypt(b"seed").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_queued_ends_with_its_deadline() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let service = bench.service.clone();
        calls.spawn(async move {
            let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
            service.encrypt(Request::new(request)).await.map(drop)
        });
    }
    let began = Instant::now();
    let mut waited = 0;
    for outcome in calls.join_all().await {
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        waited += usize::from(error.message().contains("128 other calls are waiting for Vault"));
    }
    assert_eq!(waited, 200 - 128, "they say what they waited for");
    assert_eq!(began.elapsed(), Duration::from_millis(2900));

    // A call that leaves the queue too late fails in the same way.
    let hasty: Vec<_> = (0..128).map(|_| bench.begin_encrypt()).collect();
    settle().await;
    advance(Duration::from_secs(1)).await;
    let late = bench.begin_encrypt();
    settle().await;
    for call in hasty {
        drop(call.await);
    }
    let error = late.await.unwrap().unwrap_err();
    assert!(error.message().contains("the call was queued for 1900 ms"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_need_no_vault_do_not_wait_for_calls_that_do() {
    let bench = Bench::ready(Model::new().with_local_keks(), &["kms"]).await;
    let own = bench.encrypt(b"own").await.unwrap();
    bench.model.encrypt_with(Encryption::Transit);
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let mut bare = Vec::new();
    for number in 0..768_u32 {
        bare.push(other.encrypt(&number.to_be_bytes()).await.unwrap());
    }
    bench.model.change(|state| state.silent = true);
    for waiting in [200, 768] {
        let calls: Vec<_> = bare[..waiting].iter().map(|sealed| bench.begin_open(sealed)).collect();
        settle().await;
        let began = Instant::now();
        let sealed = bench.encrypt(b"seed").await.unwrap();
        assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);
        assert_eq!(bench.open(&own).await.unwrap(), b"own"[..]);
        // Refusals do not wait either.
        let damaged = EncryptResponse { ciphertext: own.ciphertext.slice(..30), ..own.clone() };
        assert_eq!(bench.open(&damaged).await.unwrap_err().code(), Code::InvalidArgument);
        let foreign = format!("tk1.{}.1.{}", "0".repeat(32), "0".repeat(16));
        let error = bench.decrypt(&bare[0].ciphertext, &foreign).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(began, Instant::now(), "with {waiting} calls before them");
        assert!(calls.iter().all(|call| !call.is_finished()));
        if waiting == 768 {
            let error = bench.open(&bare[0]).await.unwrap_err();
            assert_eq!(error.code(), Code::ResourceExhausted, "what needs Vault is bounded all the same");
        }
        for call in calls {
            call.abort();
            drop(call.await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_leaves_is_counted() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let calls = [bench.begin_encrypt(), bench.begin_encrypt()];
    settle().await;
    for call in calls {
        call.abort();
        drop(call.await);
    }
    assert_eq!((bench.calls("encrypt", "Canceled"), bench.calls("encrypt", "OK")), (2, 0));
    bench.model.change(|state| state.silent = false);
    bench.encrypt(b"seed").await.unwrap();
    assert_eq!((bench.calls("encrypt", "Canceled"), bench.calls("encrypt", "OK")), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn if_vault_does_not_answer_the_caller_gets_an_error_in_time() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let began = Instant::now();
    let mut request =
        Request::new(EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() });
    request.set_timeout(Duration::from_secs(1));
    let error = bench.service.encrypt(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(1));
}
