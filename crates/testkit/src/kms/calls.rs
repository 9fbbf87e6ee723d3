//! Single KMS calls, as kube-apiserver makes them.

use std::time::Duration;

use bytes::Bytes;
use kms_plugin::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use tonic::{Request, Status};

use crate::daemon::process::Kms;

/// kube-apiserver's timeout for each call.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Status.
pub async fn status(kms: &Kms) -> Result<StatusResponse, Status> {
    Ok(kms.clone().status(timed(StatusRequest {})).await?.into_inner())
}

/// Encrypt.
pub async fn encrypt(kms: &Kms, plaintext: &[u8], uid: &str) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: Bytes::copy_from_slice(plaintext), uid: uid.into() };
    Ok(kms.clone().encrypt(timed(request)).await?.into_inner())
}

/// Decrypt of a value without annotations.
pub async fn decrypt(
    kms: &Kms,
    ciphertext: impl Into<Bytes>,
    key_id: &str,
    uid: &str,
) -> Result<Vec<u8>, Status> {
    let request = DecryptRequest {
        annotations: [].into(),
        ciphertext: ciphertext.into(),
        key_id: key_id.into(),
        uid: uid.into(),
    };
    Ok(kms.clone().decrypt(timed(request)).await?.into_inner().plaintext.to_vec())
}

/// Decrypt of the response of an Encrypt.
pub async fn open(kms: &Kms, sealed: &EncryptResponse, uid: &str) -> Result<Vec<u8>, Status> {
    let request = DecryptRequest {
        annotations: sealed.annotations.clone(),
        ciphertext: sealed.ciphertext.clone(),
        key_id: sealed.key_id.clone(),
        uid: uid.into(),
    };
    Ok(kms.clone().decrypt(timed(request)).await?.into_inner().plaintext.to_vec())
}

/// Status, Encrypt and Decrypt of a new seed.
///
/// # Panics
/// If a call fails, or if Status is not `ok`.
pub async fn round_trip(kms: &Kms, uid: &str) {
    let known = status(kms).await.unwrap_or_else(|e| panic!("{uid}: Status: {e}"));
    assert_eq!(known.healthz, "ok", "{uid}");
    let seed: [u8; 32] = rand::random();
    let sealed = encrypt(kms, &seed, uid).await.unwrap_or_else(|e| panic!("{uid}: Encrypt: {e}"));
    assert_eq!(sealed.key_id, known.key_id, "{uid}");
    let opened = decrypt(kms, sealed.ciphertext, &sealed.key_id, uid).await;
    assert_eq!(opened.unwrap_or_else(|e| panic!("{uid}: Decrypt: {e}")), seed, "{uid}");
}

/// A request with the timeout of kube-apiserver.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}
