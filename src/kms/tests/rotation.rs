//! Rotations of the key.

use super::*;

#[tokio::test(start_paused = true)]
async fn encrypt_uses_the_key_id_of_status_and_decrypt_returns_the_plaintext() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let status = bench.status().await.unwrap();
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    assert_eq!(sealed.key_id, status.key_id);
    assert!(sealed.annotations.is_empty());
    assert!(sealed.ciphertext.starts_with(b"vault:v1:"));
    assert_eq!(bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap(), &b"seed"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_moves_status_and_encrypt_together() {
    let bench = Bench::with_health_checker(Model::new()).await;
    let first = bench.encrypt(b"seed").await.unwrap();
    bench.model.rotate("kms");
    assert_eq!(bench.encrypt(b"seed").await.unwrap().key_id, first.key_id, "not before it is proven");
    pass(31).await;
    let second = bench.encrypt(b"seed").await.unwrap();
    assert_ne!(second.key_id, first.key_id);
    assert_eq!(bench.status().await.unwrap().key_id, second.key_id);
    assert!(second.ciphertext.starts_with(b"vault:v2:"));
    assert_eq!(bench.decrypt(&first.ciphertext, &first.key_id).await.unwrap(), &b"seed"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_another_node_published_first_is_decrypted_and_then_published() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(1).await;
    bench.model.rotate("kms");
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let newer = other.encrypt(b"seed").await.unwrap();
    assert_eq!(bench.decrypt(&newer.ciphertext, &newer.key_id).await.unwrap(), &b"seed"[..]);
    pass(1).await;
    assert_eq!(bench.status().await.unwrap().key_id, newer.key_id, "checked at once, not after an interval");
}

#[tokio::test(start_paused = true)]
async fn a_raised_min_encryption_version_fails_one_call_and_is_refreshed_at_once() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(1).await;
    bench.model.rotate("kms");
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_encryption = 2);
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::FailedPrecondition);
    pass(1).await;
    assert!(bench.encrypt(b"seed").await.unwrap().ciphertext.starts_with(b"vault:v2:"));
}
