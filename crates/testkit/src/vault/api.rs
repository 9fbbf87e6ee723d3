//! Calls of the API of a server, as root unless stated otherwise.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::server::{Bao, MOUNT, POLICY};

impl Bao {
    /// Sends a request as root: `api("POST", "transit/keys/other", json!({}))`. `Null` means no body.
    ///
    /// # Panics
    /// If the status is not 2xx.
    pub async fn api(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.api_as(&self.root_token, method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Sends a request with this token, and returns the status and body, also of an error.
    pub async fn api_as(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        match self.call(token, method, path, body).await {
            Ok(answered) => answered,
            Err(e) => panic!("{method} {path}: {e:?}"),
        }
    }

    /// Creates a token with these options of `auth/token/create`, such as
    /// `json!({"ttl": "1h", "renewable": false})`. By default it is an orphan with [`POLICY`] and without the `default`
    /// policy.
    pub async fn create_token(&self, options: Value) -> String {
        let mut request = json!({"policies": [POLICY], "no_default_policy": true, "no_parent": true});
        for (name, value) in options.as_object().unwrap() {
            request[name] = value.clone();
        }
        let answer = self.api("POST", "auth/token/create", request).await;
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Creates a renewable token with [`POLICY`] for one hour.
    pub async fn token(&self) -> String {
        self.create_token(json!({"ttl": "1h"})).await
    }

    /// Revokes this token.
    pub async fn revoke(&self, token: &str) {
        self.api("POST", "auth/token/revoke", json!({"token": token})).await;
    }

    /// Writes a policy.
    pub async fn policy(&self, name: &str, rules: &str) {
        self.api("PUT", &format!("sys/policies/acl/{name}"), json!({"policy": rules})).await;
    }

    /// Rotates this key, and returns its new version.
    pub async fn rotate_key(&self, key: &str) -> u64 {
        self.api("POST", &format!("{MOUNT}/keys/{key}/rotate"), json!({})).await;
        self.key_version(key).await
    }

    /// The latest version of this key.
    pub async fn key_version(&self, key: &str) -> u64 {
        let answer = self.api("GET", &format!("{MOUNT}/keys/{key}"), Value::Null).await;
        answer["data"]["latest_version"].as_u64().unwrap()
    }

    /// Encrypts with the latest version of the key, without the daemon.
    pub async fn encrypt(&self, key: &str, plaintext: &[u8]) -> String {
        let request = json!({"plaintext": BASE64.encode(plaintext)});
        let answer = self.api("POST", &format!("{MOUNT}/encrypt/{key}"), request).await;
        answer["data"]["ciphertext"].as_str().unwrap().to_owned()
    }

    /// Decrypts without the daemon.
    pub async fn decrypt(&self, key: &str, ciphertext: &str) -> Vec<u8> {
        let request = json!({"ciphertext": ciphertext});
        let answer = self.api("POST", &format!("{MOUNT}/decrypt/{key}"), request).await;
        BASE64.decode(answer["data"]["plaintext"].as_str().unwrap()).unwrap()
    }

    /// Enables the KMS uid in the audit log, as `docs/audit.md` describes.
    pub async fn enable_uid_audit(&self) {
        self.api("POST", "sys/config/auditing/request-headers/x-kms-uid", json!({"hmac": false})).await;
    }

    /// The entries of the audit log for requests with this KMS uid. Needs [`Bao::enable_uid_audit`].
    pub fn audited(&self, uid: &str) -> Vec<Value> {
        let of_uid = |entry: &Value| entry["request"]["headers"]["x-kms-uid"] == json!([uid]);
        self.audit_log().into_iter().filter(of_uid).collect()
    }

    /// All entries of the audit log, requests and responses.
    pub fn audit_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.audit_file()).unwrap();
        // The server may still write the last line.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A snapshot of its storage, as of `bao operator raft snapshot save`.
    pub async fn snapshot(&self) -> Bytes {
        let answer = self.snapshots(Method::GET).send().await.unwrap();
        answer.error_for_status().unwrap().bytes().await.unwrap()
    }

    /// Restores a snapshot, as `bao operator raft snapshot restore` does.
    pub async fn restore(&self, snapshot: &Bytes) {
        let answer = self.snapshots(Method::POST).body(snapshot.clone()).send().await.unwrap();
        answer.error_for_status().unwrap();
        self.health_is(200).await;
    }

    fn snapshots(&self, method: Method) -> RequestBuilder {
        let url = format!("{}/v1/sys/storage/raft/snapshot", self.address());
        self.http.request(method, url).header("X-Vault-Token", &self.root_token)
    }

    pub(super) async fn call(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<(u16, Value), reqwest::Error> {
        self.exchange(self.request(token, method, path), body).await
    }

    /// Sends a request as root, and returns the answer with a wrapping token that lives for `ttl`.
    pub async fn api_wrapped(&self, method: &str, path: &str, body: Value, ttl: &str) -> Value {
        let (status, answer) = self.api_wrapped_as(&self.root_token, method, path, body, ttl).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Like [`Bao::api_wrapped`], with this token. Returns the status and body, also of an error.
    pub async fn api_wrapped_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
        ttl: &str,
    ) -> (u16, Value) {
        let request = self.request(token, method, path).header("X-Vault-Wrap-TTL", ttl);
        self.exchange(request, body).await.unwrap()
    }

    fn request(&self, token: &str, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = self
            .http
            .request(method, format!("{}/v1/{path}", self.address()))
            .header("X-Vault-Request", "true");
        // A login is refused if it has an empty token.
        if token.is_empty() { request } else { request.header("X-Vault-Token", token) }
    }

    async fn exchange(
        &self,
        mut request: RequestBuilder,
        body: Value,
    ) -> Result<(u16, Value), reqwest::Error> {
        if !body.is_null() {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}
