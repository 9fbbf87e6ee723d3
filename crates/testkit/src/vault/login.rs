//! Sets up logins: a role on the server, and the files with the credentials.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{KeyPair, PKCS_ED25519, SigningKey};
use serde_json::{Value, json};

use crate::{
    daemon::config_file,
    vault::server::{Bao, POLICY},
};

/// The name of the role, for every method.
pub const ROLE: &str = "transit-kms";
const AUDIENCE: &str = "transit-kms-test";
/// The common name of the client certificate.
const NODE: &str = "node-1";

/// The token settings of a role. Defaults: a TTL of one hour, [`POLICY`], and no `default` policy; `settings`
/// replaces them.
pub fn role(settings: &Value) -> Value {
    let mut role = json!({
        "token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": "1h",
    });
    for (name, value) in settings.as_object().unwrap() {
        role[name] = value.clone();
    }
    role
}

/// Creates an AppRole, and writes `role_id` and `secret_id` to this folder.
pub async fn approle(bao: &Bao, dir: &Path, settings: &Value) {
    let path = format!("auth/approle/role/{ROLE}");
    bao.api("POST", &path, role(settings)).await;
    let answer = bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
    fs::write(dir.join("role_id"), answer["data"]["role_id"].as_str().unwrap()).unwrap();
    let answer = bao.api("POST", &format!("{path}/secret-id"), json!({})).await;
    fs::write(dir.join("secret_id"), answer["data"]["secret_id"].as_str().unwrap()).unwrap();
}

/// Creates the AppRole, and writes `role_id` to this folder. [`deliver_wrapped`] brings the secret_id.
pub async fn approle_without_secret_id(bao: &Bao, dir: &Path, settings: &Value) {
    let path = format!("auth/approle/role/{ROLE}");
    bao.api("POST", &path, role(settings)).await;
    let answer = bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
    config_file::by_rename(&dir.join("role_id"), answer["data"]["role_id"].as_str().unwrap());
}

/// Writes a new wrapped secret_id to `wrapped_secret_id` in this folder, as a courier does.
pub async fn deliver_wrapped(bao: &Bao, dir: &Path) {
    let path = format!("auth/approle/role/{ROLE}/secret-id");
    let answer = bao.api_wrapped("POST", &path, json!({}), "10m").await;
    let token = answer["wrap_info"]["token"].as_str().unwrap();
    config_file::by_rename(&dir.join("wrapped_secret_id"), token);
}

/// Enables the method `cert` for the client certificates of the server's authority, and writes `client.pem` and
/// `client-key.pem` to this folder. The role has these token settings.
pub async fn certificate(bao: &Bao, dir: &Path, settings: &Value) {
    bao.api("POST", "sys/auth/cert", json!({"type": "cert"})).await;
    certificate_role(bao, settings).await;
    let (chain, key) = bao.client_certificate(NODE);
    for (from, name) in [(key, "client-key.pem"), (chain, "client.pem")] {
        config_file::by_rename(&dir.join(name), &fs::read_to_string(from).unwrap());
    }
}

/// Replaces the role of the method `cert`.
pub async fn certificate_role(bao: &Bao, settings: &Value) {
    let mut role = role(settings);
    role["certificate"] = json!(fs::read_to_string(bao.ca_file()).unwrap());
    role["allowed_common_names"] = json!([NODE]);
    bao.api("POST", &format!("auth/cert/certs/{ROLE}"), role).await;
}

/// Replaces the role of the method `jwt`.
pub async fn jwt_role(bao: &Bao, settings: &Value) {
    let mut role = role(settings);
    role["bound_audiences"] = json!([AUDIENCE]);
    role["bound_subject"] = json!(ROLE);
    role["role_type"] = json!("jwt");
    role["user_claim"] = json!("sub");
    bao.api("POST", &format!("auth/jwt/role/{ROLE}"), role).await;
}

/// A file with a JWT of an issuer that the server trusts.
pub struct Jwt {
    key: KeyPair,
    number: u64,
    path: PathBuf,
}

impl Jwt {
    /// Creates the role, and writes the first JWT to this file.
    pub async fn issued(bao: &Bao, path: &Path, settings: &Value) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let keys = json!({"jwt_validation_pubkeys": [key.public_key_pem()]});
        bao.api("POST", "auth/jwt/config", keys).await;
        jwt_role(bao, settings).await;
        let mut jwt = Self { key, number: 0, path: path.to_owned() };
        jwt.renew();
        jwt
    }

    /// Replaces the JWT in the file with a new one.
    pub fn renew(&mut self) {
        self.number += 1;
        #[expect(clippy::disallowed_methods, reason = "a JWT holds the wall-clock time of its validity")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "aud": AUDIENCE,
            "exp": now + 3600,
            "iat": now,
            "jti": self.number.to_string(),
            "nbf": now - 60,
            "sub": ROLE,
        });
        let part = |value: Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({"alg": "EdDSA", "typ": "JWT"})), part(claims));
        let signature = BASE64URL.encode(self.key.sign(signed.as_bytes()).unwrap());
        config_file::by_rename(&self.path, &format!("{signed}.{signature}"));
    }
}
