//! The API of the Transit engine, over a [`Session`].
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/secret/transit>

use std::{borrow::Cow, collections::BTreeMap, io::Write};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    exchange::{HttpResponse, invalid_response},
    failover::{Replay, RequestPath, classify::classify_item},
    lenient::Lenient,
    requester::Outgoing,
    session::Session,
};
use crate::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    key::{KeyNames, KeyRef, Namespace},
    key_id::KeyVersion,
    operation::VaultOperation,
    transit::{Call, Decrypted, Encrypted, KeyDescription, NodeId},
};

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
    #[serde(default)]
    request_id: Lenient,
}

impl<T> Envelope<T> {
    fn request_id(&self) -> Option<String> {
        self.request_id.text().map(str::to_owned)
    }
}

#[derive(Deserialize)]
struct EncryptData {
    ciphertext: String,
}

#[derive(Deserialize)]
struct DecryptData<'a> {
    /// Borrowed from the body, which is wiped on drop.
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Deserialize)]
struct BatchData<'a> {
    #[serde(borrow)]
    batch_results: Vec<BatchResult<'a>>,
}

#[derive(Deserialize)]
struct BatchResult<'a> {
    error: Option<String>,
    /// Borrowed, as in [`DecryptData`]. A text with escapes cannot be borrowed; it is not base64, and the whole
    /// answer is refused.
    plaintext: Option<&'a str>,
}

#[derive(Deserialize)]
struct KeyBody {
    #[serde(default)]
    derived: Lenient,
    /// A Unix time for symmetric keys, an object for asymmetric ones; absent for some types.
    keys: Option<BTreeMap<String, Lenient>>,
    latest_version: Lenient,
    #[serde(default)]
    min_decryption_version: Lenient,
    #[serde(default)]
    soft_deleted: Lenient,
    #[serde(default)]
    supports_decryption: Lenient,
    #[serde(rename = "type")]
    kind: String,
}

#[async_trait]
impl Transit for Session {
    async fn decrypt(
        &self,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> Result<Decrypted, TransitError> {
        // The characters of a checked ciphertext need no escapes in JSON.
        let body = format!(r#"{{"ciphertext":"{}"}}"#, ciphertext.as_str());
        let path = path("decrypt", key);
        let body = Zeroizing::new(body.into_bytes());
        self.requester
            .send_in(key.namespace(), outgoing(VaultOperation::Decrypt, path, body), call, |answer| {
                let envelope: Envelope<DecryptData<'_>> = serde_json::from_slice(&answer.body)
                    .map_err(|_| invalid_response(VaultOperation::Decrypt))?;
                let text = match envelope.data.plaintext {
                    Cow::Borrowed(text) => text,
                    // Base64 needs no escapes. For a text with escapes, serde makes a copy that is not wiped.
                    Cow::Owned(_) => return Err(invalid_response(VaultOperation::Decrypt)),
                };
                Ok(Decrypted { plaintext: decoded(text)?, request_id: envelope.request_id() })
            })
            .await
    }

    async fn decrypt_batch(
        &self,
        key: &KeyRef,
        ciphertexts: &[&Ciphertext],
        call: Call<'_>,
    ) -> Result<Vec<Result<Decrypted, TransitError>>, TransitError> {
        let path = path("decrypt", key);
        let body = Zeroizing::new(batch_body(ciphertexts).into_bytes());
        self.requester
            .send_in(key.namespace(), outgoing(VaultOperation::Decrypt, path.clone(), body), call, |answer| {
                let envelope: Envelope<BatchData<'_>> = serde_json::from_slice(&answer.body)
                    .map_err(|_| invalid_response(VaultOperation::Decrypt))?;
                let request_id = envelope.request_id();
                let results = envelope.data.batch_results;
                if results.len() != ciphertexts.len() {
                    return Err(invalid_response(VaultOperation::Decrypt));
                }
                let namespace = Some(key.namespace()).filter(|it| !it.is_root()).map(Namespace::as_str);
                let request_path = RequestPath { namespace, path: &path };
                let opened = |result: BatchResult<'_>| {
                    if let Some(error) = result.error.filter(|error| !error.is_empty()) {
                        return Err(classify_item(VaultOperation::Decrypt, request_path, error));
                    }
                    let text = result.plaintext.ok_or_else(|| invalid_response(VaultOperation::Decrypt))?;
                    Ok(Decrypted { plaintext: decoded(text)?, request_id: request_id.clone() })
                };
                Ok(results.into_iter().map(opened).collect())
            })
            .await
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        version: KeyVersion,
        plaintext: &[u8],
        call: Call<'_>,
    ) -> Result<Encrypted, TransitError> {
        let path = path("encrypt", key);
        let body =
            encrypt_body(plaintext, version).ok_or_else(|| invalid_response(VaultOperation::Encrypt))?;
        self.requester
            .send_in(key.namespace(), outgoing(VaultOperation::Encrypt, path, body), call, |answer| {
                let envelope: Envelope<EncryptData> = parse(VaultOperation::Encrypt, answer)?;
                let ciphertext = Ciphertext::parse(envelope.data.ciphertext.as_bytes()).map_err(|error| {
                    TransitError::new(
                        ErrorKind::InvalidResponse,
                        format!("Transit's answer cannot be used: {error}"),
                    )
                })?;
                if ciphertext.version() != version {
                    let message =
                        format!("Transit was asked for version {version} and used {}", ciphertext.version());
                    return Err(TransitError::new(ErrorKind::InvalidResponse, message));
                }
                Ok(Encrypted { ciphertext, request_id: envelope.request_id() })
            })
            .await
    }

    async fn is_active(&self, node: NodeId, call: Call<'_>) -> Result<bool, TransitError> {
        self.requester.node_is_active(node.0, call.deadline).await
    }

    fn keys(&self) -> &KeyNames {
        &self.keys
    }

    async fn read_key(&self, key: &KeyRef, call: Call<'_>) -> Result<KeyDescription, TransitError> {
        let path = path("keys", key);
        let body = Zeroizing::default();
        let described = self.requester.send_in(
            key.namespace(),
            outgoing(VaultOperation::ReadKey, path, body),
            call,
            |answer| {
                let data = parse::<Envelope<KeyBody>>(VaultOperation::ReadKey, answer)?.data;
                let Some(latest) = number(&data.latest_version).and_then(KeyVersion::new) else {
                    // The answer is Vault's: the key is unusable, and the node is healthy.
                    return Ok(None);
                };
                let versions = data
                    .keys
                    .iter()
                    .flatten()
                    .filter_map(|(version, created)| Some((KeyVersion::parse(version)?, created.number()?)))
                    .collect();
                Ok(Some(KeyDescription {
                    reported_by: NodeId(answer.node),
                    decrypts: data.supports_decryption.bool().unwrap_or(true),
                    derived: data.derived.bool().unwrap_or(false),
                    latest,
                    min_decryption: number(&data.min_decryption_version).unwrap_or(0),
                    soft_deleted: data.soft_deleted.bool().unwrap_or(false),
                    kind: data.kind,
                    versions,
                }))
            },
        );
        described.await?.ok_or_else(|| {
            let message =
                format!("key `{key}` has no version: name a key of type aes256-gcm96 in vault.keynames");
            TransitError::new(ErrorKind::Denied, message)
        })
    }
}

/// Encrypt and Decrypt may be sent twice without harm.
fn outgoing(operation: VaultOperation, path: String, body: Zeroizing<Vec<u8>>) -> Outgoing {
    Outgoing { body, operation, path, replay: Replay::Safe }
}

/// The path, in the namespace of the key, on which the engine does `what` with it.
fn path(what: &str, key: &KeyRef) -> String {
    format!("{}/{what}/{}", key.mount().as_str(), key.name())
}

fn number(value: &Lenient) -> Option<u32> {
    value.number().and_then(|number| u32::try_from(number).ok())
}

fn batch_body(ciphertexts: &[&Ciphertext]) -> String {
    let items = ciphertexts.iter().map(|ciphertext| format!(r#"{{"ciphertext":"{}"}}"#, ciphertext.as_str()));
    format!(r#"{{"batch_input":[{}]}}"#, items.collect::<Vec<_>>().join(","))
}

fn decoded(text: &str) -> Result<Zeroizing<Vec<u8>>, TransitError> {
    let mut plaintext = Zeroizing::new(Vec::with_capacity(base64::decoded_len_estimate(text.len())));
    STANDARD.decode_vec(text, &mut plaintext).map_err(|_| invalid_response(VaultOperation::Decrypt))?;
    Ok(plaintext)
}

/// The body of an Encrypt, in one buffer that is wiped. The buffer is large enough: one that grows leaves
/// copies of the plaintext in memory. Returns `None` if the length overflows.
fn encrypt_body(plaintext: &[u8], version: KeyVersion) -> Option<Zeroizing<Vec<u8>>> {
    let encoded = base64::encoded_len(plaintext.len(), true)?;
    let mut body = Zeroizing::new(Vec::with_capacity(encoded + 64));
    body.extend_from_slice(br#"{"plaintext":""#);
    let start = body.len();
    body.resize(start + encoded, 0);
    STANDARD.encode_slice(plaintext, body.get_mut(start..)?).ok()?;
    write!(&mut *body, r#"","key_version":{version}}}"#).ok()?;
    Some(body)
}

fn parse<T: DeserializeOwned>(operation: VaultOperation, answer: &HttpResponse) -> Result<T, TransitError> {
    serde_json::from_slice(&answer.body).map_err(|_| invalid_response(operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_an_encrypt_is_json_and_names_the_version() {
        let body = encrypt_body(b"\x00\xffseed", KeyVersion::new(42).unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json, serde_json::json!({ "plaintext": "AP9zZWVk", "key_version": 42 }));
    }
}
