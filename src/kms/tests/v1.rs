//! The KMS v1 API.

use kms_plugin::v1beta1::{self, key_management_service_server::KeyManagementService as ServesV1};

use super::*;

/// The KMS v1 service of `bench`.
fn v1(bench: &Bench) -> KmsV1 {
    KmsV1::new(bench.writers.calls.clone(), Arc::new(Metrics::new().unwrap()))
}

async fn v1_decrypt(service: &KmsV1, cipher: &[u8]) -> Result<Bytes, Status> {
    let request =
        v1beta1::DecryptRequest { version: "v1beta1".into(), cipher: Bytes::copy_from_slice(cipher) };
    Ok(ServesV1::decrypt(service, Request::new(request)).await?.into_inner().plain)
}

async fn v1_encrypt(service: &KmsV1, plain: &[u8]) -> Result<Bytes, Status> {
    let request = v1beta1::EncryptRequest { version: "v1beta1".into(), plain: Bytes::copy_from_slice(plain) };
    Ok(ServesV1::encrypt(service, Request::new(request)).await?.into_inner().cipher)
}

#[tokio::test(start_paused = true)]
async fn kms_v1_and_kms_v2_decrypt_what_the_other_has_encrypted() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let service = v1(&bench);
    // A DEK, and the health check of kube-apiserver.
    for plain in [&[7; 32][..], b"ping"] {
        let cipher = v1_encrypt(&service, plain).await.unwrap();
        assert!(cipher.starts_with(b"vault:v1:"), "{cipher:?}");
        assert_eq!(v1_decrypt(&service, &cipher).await.unwrap(), plain);
        assert_eq!(bench.decrypt(&cipher, "1").await.unwrap(), plain);
        let sealed = bench.encrypt(plain).await.unwrap();
        assert_eq!(v1_decrypt(&service, &sealed.ciphertext).await.unwrap(), plain);
    }
}

#[tokio::test(start_paused = true)]
async fn kms_v1_tries_every_key_because_it_has_no_key_id() {
    let model = Model::new();
    model.change(|state| state.keys.insert("kms-old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["kms-old"]).await;
    let cipher = v1_encrypt(&v1(&old), b"DEK").await.unwrap();
    let bench = Bench::ready(model, &["kms", "kms-old"]).await;
    assert_eq!(v1_decrypt(&v1(&bench), &cipher).await.unwrap(), b"DEK"[..]);
}

#[tokio::test(start_paused = true)]
async fn kms_v1_answers_version_before_the_first_session() {
    let service = v1(&Bench::bare(Model::new()));
    let request = v1beta1::VersionRequest { version: "v1beta1".into() };
    let answer = service.version(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((answer.version.as_str(), answer.runtime_name.as_str()), ("v1beta1", "transit-kms"));
    assert_eq!(v1_encrypt(&service, b"ping").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(v1_decrypt(&service, b"vault:v1:QUJD").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn kms_v1_refuses_malformed_requests() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let service = v1(&bench);
    for cipher in [&b""[..], b"vault:v0:QUJD", b"vault:-:!", b"\xff", &[b'x'; 2000]] {
        let code = v1_decrypt(&service, cipher).await.unwrap_err().code();
        assert_eq!(code, Code::InvalidArgument, "{}", cipher.escape_ascii());
    }
    for plain in [&b""[..], &[0; 701]] {
        assert_eq!(v1_encrypt(&service, plain).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test(start_paused = true)]
async fn kms_v1_has_no_annotations_and_so_no_local_kek() {
    let bench = Bench::ready(Model::new().with_local_keks(), &["kms"]).await;
    let service = v1(&bench);
    let cipher = v1_encrypt(&service, b"DEK").await.unwrap();
    assert!(cipher.starts_with(b"vault:v1:"), "{cipher:?}");
    assert_eq!(v1_decrypt(&service, &cipher).await.unwrap(), b"DEK"[..]);
}
