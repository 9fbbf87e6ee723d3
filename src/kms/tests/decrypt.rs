//! Which key decrypts a ciphertext, and what a failure is.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_ciphertext_of_another_provider_is_decrypted_with_any_of_the_keys() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["old"]).await;
    let theirs = old.encrypt(b"seed").await.unwrap().ciphertext;
    let bench = Bench::ready(model, &["kms", "old"]).await;
    for key_id in ["1", "1719830400", "kleidi-kms-plugin_1_1719830400"] {
        assert_eq!(bench.decrypt(&theirs, key_id).await.unwrap(), &b"seed"[..]);
    }
    let foreign = b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA";
    let error = bench.decrypt(foreign, "1").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("none of the keys"), "{error}");
    assert_eq!(bench.healthz().await, "ok", "one bad ciphertext does not change health");
}

/// A model with the key `old`, and a value that it has wrapped.
async fn with_an_old_key() -> (Model, EncryptResponse) {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let sealed = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    (model, sealed)
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_used_does_not_hide_the_keys_behind_it() {
    let (model, theirs) = with_an_old_key().await;
    let good = FakeKey::new(5, &[60]);
    let broken = |kind| FakeKey { fails: Some(kind), ..good.clone() };
    let middle = [
        ("hmac", FakeKey { kind: "hmac", ..good.clone() }),
        ("derived", FakeKey { derived: true, ..good.clone() }),
        ("forbidden", broken(ErrorKind::Denied)),
        ("gone", broken(ErrorKind::KeyNotFound)),
        ("broken", broken(ErrorKind::Unreachable)),
        ("silent", broken(ErrorKind::DeadlineExceeded)),
        ("foreign", broken(ErrorKind::InvalidResponse)),
        ("version_unavailable", broken(ErrorKind::VersionUnavailable)),
        ("limited", broken(ErrorKind::Throttled)),
    ];
    for (name, key) in middle {
        let ends_all = matches!(name, "silent" | "limited");
        model.change(|state| state.keys.insert(name.into(), key));
        // This key does not prevent the first session or a later one.
        let mut bench = Bench::ready(model.clone(), &["kms", name, "old"]).await;
        bench.publish(&["kms", name, "old"]).await.unwrap();
        assert_eq!(bench.decrypt(&theirs.ciphertext, "1").await.is_ok(), !ends_all, "{name}");
        assert_eq!(bench.open(&theirs).await.unwrap(), b"seed"[..], "{name}");
        bench.encrypt(b"seed").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_failures_the_most_useful_one_is_returned() {
    let (model, theirs) = with_an_old_key().await;
    let garbage = Bytes::from_static(b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA");
    let with = |name: &str, key: FakeKey| model.change(|state| state.keys.insert(name.into(), key));
    with("hmac", FakeKey { kind: "hmac", ..FakeKey::new(5, &[60]) });
    with("old", FakeKey { min_decryption: 2, ..FakeKey::new(9, &[50, 51]) });
    with("forbidden", FakeKey { fails: Some(ErrorKind::Denied), ..FakeKey::new(5, &[60]) });
    with("broken", FakeKey { fails: Some(ErrorKind::Unreachable), ..FakeKey::new(5, &[60]) });
    for (keys, code, words) in [
        (&["kms", "hmac"][..], Code::InvalidArgument, "none of the keys"),
        (&["kms", "old"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "old", "forbidden", "hmac"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "forbidden", "old"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "forbidden", "hmac"], Code::PermissionDenied, "key `forbidden`: denied; no other key"),
        (&["kms", "broken", "old"], Code::Unavailable, "key `broken`: unreachable; no other key"),
    ] {
        let bench = Bench::ready(model.clone(), keys).await;
        for (ciphertext, key_id) in [(&theirs.ciphertext, "1"), (&garbage, "")] {
            let error = bench.decrypt(ciphertext, key_id).await.unwrap_err();
            assert_eq!(error.code(), code, "{keys:?}: {error}");
            assert!(error.message().contains(words), "{keys:?}: {error}");
            let named =
                error.message().contains("key `hmac` is of type hmac, which cannot decrypt: take it out");
            assert_eq!(named, keys.contains(&"hmac"), "{error}");
        }
        assert_eq!(bench.healthz().await, "ok", "{keys:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_and_malformed_ciphertexts_are_refused_without_vault() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let id: KeyId = sealed.key_id.parse().unwrap();
    let calls = bench.model.calls();
    let foreign = format!("tk1.{}.1.{}", "0".repeat(32), "0".repeat(16));
    let reborn = KeyId::new(id.scope, id.version, 101).to_string();
    let v2 =
        sealed.ciphertext.to_vec().iter().map(|b| if *b == b'1' { b'2' } else { *b }).collect::<Vec<_>>();
    for (ciphertext, key_id, code) in [
        (&sealed.ciphertext[..], foreign.as_str(), Code::FailedPrecondition),
        (&sealed.ciphertext, &reborn, Code::InvalidArgument),
        (&v2, &sealed.key_id, Code::InvalidArgument),
        (b"another provider's", "1", Code::InvalidArgument),
        (b"", &sealed.key_id, Code::InvalidArgument),
        (&[b'A'; 1025], "1", Code::InvalidArgument),
        (&sealed.ciphertext, &"k".repeat(1025), Code::InvalidArgument),
    ] {
        let error = bench.decrypt(ciphertext, key_id).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    for plaintext in [&b""[..], &[0; 701]] {
        assert_eq!(bench.encrypt(plaintext).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_refused_additional_key_does_not_change_health() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    let bench = Bench::ready(model, &["kms", "old"]).await;
    bench.model.change(|state| {
        state.fails.insert("decrypt", ErrorKind::Denied);
    });
    assert_eq!(bench.decrypt(&old.ciphertext, &old.key_id).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn concurrent_decrypts_are_one_request_and_a_damaged_one_fails_alone() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let mut sealed = Vec::new();
    for number in 0..100_u8 {
        sealed.push(bench.encrypt(&[number; 32]).await.unwrap());
    }
    let before = bench.model.calls();
    let decrypt = |ciphertext: Bytes, key_id: &str| {
        let request =
            DecryptRequest { ciphertext, uid: "uid".into(), key_id: key_id.into(), annotations: [].into() };
        let service = bench.service.clone();
        tokio::spawn(async move { Ok(service.decrypt(Request::new(request)).await?.into_inner().plaintext) })
    };
    let calls: Vec<_> =
        sealed.iter().map(|sealed| decrypt(sealed.ciphertext.clone(), &sealed.key_id)).collect();
    let damaged = decrypt(Bytes::from_static(b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA"), &sealed[0].key_id);
    for (number, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), [number; 32][..]);
    }
    let error: Status = damaged.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert_eq!(bench.model.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_additional_key_does_not_stop_the_first() {
    let bench = Bench::ready(Model::new(), &["kms", "long-gone"]).await;
    assert!(bench.encrypt(b"seed").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_recreated_additional_key_stops_only_its_own_key_ids() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let theirs = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    let mut bench = Bench::ready(model, &["kms", "old"]).await;
    bench.model.change(|state| state.keys.insert("old".into(), FakeKey::new(10, &[60])));
    bench.publish(&["kms", "old"]).await.unwrap();
    assert!(bench.encrypt(b"seed").await.is_ok());
    assert_eq!(bench.healthz().await, "ok");
    assert_eq!(
        bench.decrypt(&theirs.ciphertext, &theirs.key_id).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_that_only_decrypts_now_must_be_the_same() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.model.change(|state| state.keys.insert("new".into(), FakeKey::new(7, &[500])));
    bench.publish(&["new", "kms"]).await.unwrap();
    assert_eq!(bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap(), &b"seed"[..]);
    let moved = bench.encrypt(b"seed").await.unwrap();
    assert_ne!(moved.key_id, sealed.key_id);

    bench.model.change(|state| state.keys.insert("new".into(), FakeKey::new(8, &[500])));
    assert!(bench.publish(&["kms", "new"]).await.is_err());
}
