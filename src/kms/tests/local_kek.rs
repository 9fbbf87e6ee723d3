//! Local KEKs, from Encrypt to Decrypt.

use super::*;

/// A bench with a health checker and a KEK refresher, whose session has local KEKs.
async fn local_bench(model: Model) -> Bench {
    let mut bench = Bench::with_health_checker(model.with_local_keks()).await;
    bench.start_kek_refresher().await;
    bench
}

fn wrapped_kek(sealed: &EncryptResponse) -> Ciphertext {
    Ciphertext::parse(&sealed.annotations[ANNOTATION]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_local_kek_costs_one_request_when_it_is_new_and_then_none() {
    let bench = Bench::ready(Model::new().with_local_keks(), &["kms"]).await;
    let before = bench.model.calls();
    let mut sealed = Vec::new();
    for number in 0..20_u8 {
        sealed.push(bench.encrypt(&[number; 32]).await.unwrap());
    }
    for (number, sealed) in (0..).zip(&sealed) {
        assert!(sealed.ciphertext.starts_with(b"lk1:") && sealed.ciphertext.len() == 64);
        assert_eq!(sealed.key_id, bench.status().await.unwrap().key_id);
        assert_eq!(bench.open(sealed).await.unwrap(), [number; 32][..]);
    }
    assert_eq!(bench.model.calls(), before);
    // Another node, or this one after a restart.
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let before = bench.model.calls();
    for sealed in &sealed {
        other.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls() - before, 1);
    assert_ne!(wrapped_kek(&other.encrypt(b"seed").await.unwrap()), wrapped_kek(&sealed[0]), "new at start");
}

#[tokio::test(start_paused = true)]
async fn a_stripped_swapped_or_foreign_annotation_is_refused() {
    let model = Model::new().with_local_keks();
    let bench = Bench::ready(model.clone(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(model.clone(), &["kms"]).await.encrypt(b"seed").await.unwrap();
    model.encrypt_with(Encryption::Transit);
    let bare = Bench::ready(model.clone(), &["kms"]).await.encrypt(&[7; 32]).await.unwrap();
    model.rotate("kms");
    let newer = Bench::ready(model.with_local_keks(), &["kms"]).await.encrypt(b"seed").await.unwrap();
    let with = |wrapped: &[u8]| EncryptResponse {
        annotations: [(ANNOTATION.to_owned(), Bytes::copy_from_slice(wrapped))].into(),
        ..sealed.clone()
    };
    for (what, request) in [
        ("stripped", EncryptResponse { annotations: [].into(), ..sealed.clone() }),
        ("another KEK", with(&theirs.annotations[ANNOTATION])),
        ("a KEK of another version", with(&newer.annotations[ANNOTATION])),
        ("a seed for a KEK", with(&bare.ciphertext)),
        ("nothing that Transit makes", with(b"lk1:")),
        ("nothing", with(b"")),
        (
            "beside a bare ciphertext",
            EncryptResponse { annotations: sealed.annotations.clone(), ..bare.clone() },
        ),
        ("another key_id", EncryptResponse { key_id: newer.key_id.clone(), ..sealed.clone() }),
        ("another provider's key_id", EncryptResponse { key_id: "1".into(), ..sealed.clone() }),
        ("another seed's ciphertext", EncryptResponse { ciphertext: theirs.ciphertext, ..sealed.clone() }),
        ("cut off", EncryptResponse { ciphertext: sealed.ciphertext.slice(..30), ..sealed.clone() }),
    ] {
        let error = bench.open(&request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
    }
    // A KEK is not returned as a seed either.
    for key_id in [&sealed.key_id, "1"] {
        let error = bench.decrypt(&sealed.annotations[ANNOTATION], key_id).await.unwrap_err();
        assert!(error.message().contains("not a seed"), "{error}");
    }
    assert_eq!(bench.healthz().await, "ok");
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_new_kek_comes_with_a_new_version_and_after_time_and_uses() {
    let bench = local_bench(Model::new()).await;
    let first = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    pass(900).await;
    assert_eq!(wrapped_kek(&bench.encrypt(b"seed").await.unwrap()), first);
    pass(131).await;
    let second = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    assert_ne!(second, first, "after its time");
    for _ in 0..50 {
        bench.encrypt(b"seed").await.unwrap();
    }
    pass(1).await;
    let third = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    assert_ne!(third, second, "after its uses, at once");
    bench.model.rotate("kms");
    pass(31).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    assert_eq!(sealed.key_id.parse::<KeyId>().unwrap().version.number(), 2);
    assert_eq!(wrapped_kek(&sealed).version().number(), 2, "wrapped under what is published");
}

#[tokio::test(start_paused = true)]
async fn local_keks_bridge_an_outage_up_to_the_limit() {
    let bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    // Longer than a KEK may be used without a refresh. All are refreshed, whether calls use them or not.
    pass(300).await;
    let calls = bench.model.calls();
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
    assert_eq!(bench.model.calls(), calls);

    bench.model.change(|state| {
        for what in ["decrypt", "decrypt_batch", "encrypt", "read_key"] {
            state.fails.insert(what, ErrorKind::Unreachable);
        }
    });
    for _ in 0..3 {
        pass(100).await;
        assert_eq!(bench.healthz().await, "ok");
        let during = bench.encrypt(b"during").await.unwrap();
        for (sealed, seed) in [(&sealed, "seed"), (&theirs, "theirs"), (&during, "during")] {
            assert_eq!(bench.open(sealed).await.unwrap(), seed.as_bytes());
        }
    }
    pass(110).await;
    assert!(bench.healthz().await.contains("unreachable"), "{}", bench.healthz().await);
    for error in [bench.encrypt(b"seed").await.unwrap_err(), bench.open(&theirs).await.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }

    bench.model.change(|state| state.fails.clear());
    pass(16).await;
    assert_eq!(bench.healthz().await, "ok");
    let calls = bench.model.calls();
    for sealed in [&sealed, &theirs, &bench.encrypt(b"seed").await.unwrap()] {
        bench.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls(), calls, "all of them are there again");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_an_outage_kept_from_being_unwrapped_is_usable_in_the_next() {
    let bench = local_bench(Model::new()).await;
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    let outage = |bench: &Bench| {
        bench.model.change(|state| {
            state.fails.insert("decrypt", ErrorKind::Unreachable);
        });
    };
    outage(&bench);
    assert_eq!(bench.open(&theirs).await.unwrap_err().code(), Code::Unavailable);
    bench.model.change(|state| state.fails.clear());
    pass(16).await;
    outage(&bench);
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_all_local_keks_at_once_and_a_new_session_restores_them() {
    let mut bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    for (kind, code) in
        [(ErrorKind::Denied, Code::PermissionDenied), (ErrorKind::KeyNotFound, Code::FailedPrecondition)]
    {
        bench.model.change(|state| {
            for what in ["decrypt", "decrypt_batch", "read_key"] {
                state.fails.insert(what, kind);
            }
        });
        pass(31).await;
        for error in [
            bench.encrypt(b"seed").await.unwrap_err(),
            bench.open(&sealed).await.unwrap_err(),
            bench.open(&theirs).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
        // An outage after the refusal makes no KEK usable.
        bench.model.change(|state| {
            for what in ["decrypt", "decrypt_batch", "read_key"] {
                state.fails.insert(what, ErrorKind::Unreachable);
            }
        });
        pass(10).await;
        assert!(bench.open(&sealed).await.is_err());
        bench.model.change(|state| state.fails.clear());
        pass(16).await;
        bench.open(&sealed).await.unwrap();
    }

    bench.session.kill_token();
    pass(31).await;
    assert_eq!(bench.open(&theirs).await.unwrap_err().code(), Code::PermissionDenied);
    bench.publish(&["kms"]).await.unwrap();
    pass(1).await;
    let calls = bench.model.calls();
    for sealed in [&sealed, &theirs, &bench.encrypt(b"seed").await.unwrap()] {
        bench.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_a_replaced_session_takes_no_kek_from_the_one_in_use() {
    for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied, ErrorKind::KeyNotFound] {
        let mut bench = Bench::ready(Model::new().with_local_keks(), &["kms"]).await;
        let own = bench.encrypt(b"own").await.unwrap();
        let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
        bench.model.change(|state| state.delays = [200].into());
        let late = bench.begin_open(&theirs);
        settle().await;
        let old = Arc::clone(&bench.session);
        bench.publish(&["kms"]).await.unwrap();
        old.refuse(kind);
        assert_eq!(late.await.unwrap().unwrap(), b"theirs"[..]);
        let calls = bench.model.calls();
        assert_eq!(bench.open(&own).await.unwrap(), b"own"[..]);
        bench.encrypt(b"seed").await.unwrap();
        assert_eq!(bench.model.calls(), calls, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_healthy_vault_an_encrypt_waits_for_a_kek() {
    let bench = local_bench(Model::new()).await;
    pass(1).await;
    let before = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    bench.store.keks.refused(1, None);
    assert_eq!(bench.healthz().await, "ok");
    let sealed = bench.begin_encrypt();
    pass(2).await;
    let sealed = sealed.await.unwrap().unwrap();
    assert_ne!(wrapped_kek(&sealed), before);
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);

    // Without a health checker, no KEK is created. The call ends in time, and its error says what it waited for.
    let bench = Bench::ready(Model::new().with_local_keks(), &["kms"]).await;
    bench.store.keks.refused(1, None);
    let began = Instant::now();
    let error = bench.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("did not wrap a new one"), "{error}");
    assert_eq!(began.elapsed(), Duration::from_millis(2900));
}

#[tokio::test(start_paused = true)]
async fn unanswered_requests_of_a_replaced_session_do_not_delay_the_keks_of_the_next() {
    let mut bench = local_bench(Model::new()).await;
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    // Refreshes come ten seconds after a refusal. They and a health check are sent, and get no answer.
    bench.store.keks.refused(1, None);
    pass(9).await;
    bench.model.change(|state| state.silent = true);
    bench.store.request_health_check();
    pass(3).await;
    bench.model.change(|state| state.silent = false);
    bench.publish(&["kms"]).await.unwrap();
    pass(1).await;
    let calls = bench.model.calls();
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
    assert_eq!(bench.model.calls(), calls, "the next session has unwrapped it");
    bench.store.keks.refused(2, None);
    let sealed = bench.begin_encrypt();
    pass(1).await;
    assert!(sealed.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_kek_of_an_excluded_version_is_refused() {
    let bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.model.rotate("kms");
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_decryption = 2);
    pass(31).await;
    assert_eq!(bench.open(&sealed).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn the_mode_can_be_switched_both_ways_and_all_stays_readable() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let bare = bench.encrypt(b"bare").await.unwrap();
    bench.model = bench.model.clone().with_local_keks();
    bench.publish(&["kms"]).await.unwrap();
    let sealed = bench.encrypt(b"sealed").await.unwrap();
    assert_eq!(sealed.key_id, bare.key_id);
    for _ in 0..2 {
        assert_eq!(bench.open(&bare).await.unwrap(), b"bare"[..]);
        assert_eq!(bench.open(&sealed).await.unwrap(), b"sealed"[..]);
        bench.model.encrypt_with(Encryption::Transit);
        bench.publish(&["kms"]).await.unwrap();
    }
    assert!(bench.encrypt(b"bare").await.unwrap().annotations.is_empty());
    // No KEK is kept in this mode.
    let calls = bench.model.calls();
    for _ in 0..3 {
        bench.open(&sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls() - calls, 3);
}
