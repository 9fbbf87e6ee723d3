//! What Status answers over gRPC.

use super::*;

#[tokio::test(start_paused = true)]
async fn before_the_first_session_all_is_unavailable_with_the_reason() {
    let bench = Bench::bare(Model::new());
    bench.writers.sessions.set_config_error(Some("/etc/kms.yaml:3: vault.token is missing".into()));
    for error in [bench.status().await.unwrap_err(), bench.encrypt(b"x").await.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("vault.token is missing"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_refused_call_changes_status() {
    for (what, kind) in [("encrypt", ErrorKind::Denied), ("decrypt", ErrorKind::Denied)] {
        let bench = Bench::with_health_checker(Model::new()).await;
        let sealed = bench.encrypt(b"seed").await.unwrap();
        bench.model.change(|state| {
            state.fails.insert(what, kind);
        });
        let error = match what {
            "encrypt" => bench.encrypt(b"seed").await.unwrap_err(),
            _ => bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap_err(),
        };
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(bench.healthz().await.contains("denied"));

        // Health checks repeat every 1 to 5 s until the session is healthy.
        bench.model.change(|state| state.fails.clear());
        pass(6).await;
        assert_eq!(bench.healthz().await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_key_is_a_grpc_error_and_nothing_is_encrypted() {
    let restored = FakeKey::new(1, &[100]);
    for (what, lose) in [
        ("does not exist", None),
        ("soft-deleted", Some(FakeKey { soft_deleted: true, ..restored.clone() })),
        ("recreated", Some(FakeKey::new(2, &[999]))),
        // Recreated within the second of its creation.
        ("recreated", Some(FakeKey::new(2, &[100]))),
    ] {
        let bench = Bench::with_health_checker(Model::new()).await;
        bench.model.change(|state| {
            state.keys.remove("kms");
            if let Some(key) = lose {
                state.keys.insert("kms".into(), key);
            }
        });
        pass(31).await;
        for error in [bench.status().await.unwrap_err(), bench.encrypt(b"x").await.unwrap_err()] {
            assert_eq!(error.code(), Code::FailedPrecondition, "{what}");
            assert!(error.message().contains(what), "{error}");
        }
        bench.model.change(|state| state.keys.insert("kms".into(), restored.clone()));
        pass(6).await;
        assert_eq!(bench.healthz().await, "ok", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_replace_a_lost_key() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.writers.health.check_failed(1, &TransitError::new(ErrorKind::KeyNotFound, "the key is gone"));
    // Vault answers an Encrypt with a missing key like this.
    bench.writers.calls.call_failed(1, &TransitError::new(ErrorKind::Denied, "permission denied"));
    let error = bench.status().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "the key is gone"));
    // A failed health check does not change that: a refusal does not show that the key exists again.
    for kind in [ErrorKind::Denied, ErrorKind::TokenInvalid, ErrorKind::Unreachable] {
        bench.writers.health.check_failed(1, &TransitError::new(kind, "no"));
        assert_eq!(bench.status().await.unwrap_err().message(), "the key is gone");
        assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::FailedPrecondition);
    }
}
