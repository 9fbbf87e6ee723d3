//! Sets up logins of agents: a role on the server, and the files with the credentials.

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
        let mut role = role(settings);
        role["bound_audiences"] = json!([AUDIENCE]);
        role["bound_subject"] = json!(ROLE);
        role["role_type"] = json!("jwt");
        role["user_claim"] = json!("sub");
        bao.api("POST", &format!("auth/jwt/role/{ROLE}"), role).await;
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
