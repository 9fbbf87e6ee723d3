//! The error texts of a real server in each case that `vault/failover/classify.rs` distinguishes by them.

use serde_json::{Value, json};
use testkit::{Bao, KEY, MOUNT};

/// A request that provokes a case: method, path, body.
type Request = (&'static str, String, Value);

#[tokio::test]
async fn the_server_answers_with_the_expected_error_texts() {
    let bao = Bao::start().await;
    let token = bao.token().await;
    let old = bao.encrypt(KEY, b"seed").await;
    bao.rotate_key(KEY).await;
    bao.api("POST", &format!("{MOUNT}/keys/derived"), json!({ "derived": true })).await;
    bao.api("POST", &format!("{MOUNT}/keys/rsa"), json!({ "type": "rsa-2048" })).await;
    bao.api("POST", &format!("{MOUNT}/keys/ecdsa"), json!({ "type": "ecdsa-p256" })).await;
    bao.api("POST", &format!("{MOUNT}/keys/gone"), json!({})).await;
    bao.api("DELETE", &format!("{MOUNT}/keys/gone/soft-delete"), Value::Null).await;
    let limits = json!({ "min_decryption_version": 2, "min_encryption_version": 2 });
    bao.api("POST", &format!("{MOUNT}/keys/{KEY}/config"), limits).await;

    let noise = "A".repeat(64);
    let decrypt = |key: &str, text: &str| -> Request {
        ("POST", format!("{MOUNT}/decrypt/{key}"), json!({ "ciphertext": text }))
    };
    let encrypt = |key: &str, version: u32| -> Request {
        ("POST", format!("{MOUNT}/encrypt/{key}"), json!({ "plaintext": "QUJD", "key_version": version }))
    };
    let login = |path: &str| -> Request {
        ("POST", path.into(), json!({ "role_id": "absent", "secret_id": "absent" }))
    };
    let root = bao.root_token();
    let mut provoked = 0;
    for row in include_str!("../golden/vault_errors.tsv").lines().filter(|row| !row.starts_with('#')) {
        let fields: Vec<&str> = row.split('\t').collect();
        let [case, _, status, words, _] = fields[..] else { panic!("five fields: {row}") };
        let (with, (method, path, body)) = match case {
            "damaged" => (root, decrypt(KEY, &format!("vault:v2:{noise}"))),
            "short" => (root, decrypt(KEY, "vault:v2:QUJD")),
            "not-base64" => (root, decrypt(KEY, "vault:v2:!!!")),
            "too-new" => (root, decrypt(KEY, &format!("vault:v9:{noise}"))),
            "too-old" => (root, decrypt(KEY, &old)),
            "no-key" => (root, decrypt("absent", &old)),
            "complex" => {
                let items = vec![json!({ "ciphertext": old }); 600];
                (root, ("POST", format!("{MOUNT}/decrypt/{KEY}"), json!({ "batch_input": items })))
            }
            "above-latest" => (root, encrypt(KEY, 9)),
            "below-min" => (root, encrypt(KEY, 1)),
            "soft-deleted" => (root, encrypt("gone", 1)),
            "rsa" => (root, decrypt("rsa", &old)),
            "no-decryption" => (root, decrypt("ecdsa", &old)),
            "derived" => (root, encrypt("derived", 1)),
            "dead-token" => ("s.bogus", encrypt(KEY, 2)),
            "policy" => (token.as_str(), encrypt("derived", 1)),
            "login-refused" => ("", login("auth/approle/login")),
            "login-no-mount" => ("", login("auth/nowhere/login")),
            "wrapping-token" => ("", ("POST", "sys/wrapping/unwrap".into(), json!({ "token": "s.bogus" }))),
            "no-mount" => (root, ("GET", "nowhere/keys/kms".into(), Value::Null)),
            "sealed" => {
                bao.seal().await;
                (root, encrypt(KEY, 2))
            }
            "bad-token"
            | "dr-secondary"
            | "internal"
            | "invalid-token"
            | "lease-quota"
            | "no-namespace"
            | "no-path"
            | "no-token"
            | "not-active"
            | "not-initialized"
            | "not-yet-initialized"
            | "quota"
            | "renewal-policies" => continue,
            other => panic!("a case without a request: {other}"),
        };
        let (answered, body) = bao.api_as(with, method, &path, body).await;
        let said =
            body["errors"][0].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(answered.to_string(), status, "{case}: {said}");
        assert!(said.contains(words), "{case}: {said}");
        provoked += 1;
    }
    assert_eq!(provoked, 20);
}
