//! OpenBao's inline authentication: the login travels in the headers of each request.
//!
//! There is no token to renew, to expire or to revoke. OpenBao 2.6.2 and later are supported.
//!
//! Source: `api/client.go` (`InlineAuthPathHeaderName`) and `internal/vault/request_handling.go`
//! (`handleInlineAuth`) of OpenBao

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Login, login::unusable};
use crate::{
    TransitError,
    vault::requester::{InlineLogin, sensitive},
};

const PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-inline-auth-namespace");
const PARAMETER: &str = "x-vault-inline-auth-parameter-";

#[derive(Serialize)]
struct Parameter<'a> {
    key: &'a str,
    value: &'a str,
}

impl Login {
    /// The headers that perform this login with each request.
    ///
    /// # Errors
    /// If a credential cannot be sent in a header.
    pub fn inline(&self) -> Result<InlineLogin, TransitError> {
        let unsendable = || unusable("the login cannot be sent in headers, as inline authentication does it");
        let mut headers = HeaderMap::new();
        headers.insert(PATH, HeaderValue::from_str(&self.path()).map_err(|_| unsendable())?);
        // Always sent: without it, OpenBao takes the namespace of the request, which is that of the key.
        let namespace = HeaderValue::from_str(self.at.namespace.as_str()).map_err(|_| unsendable())?;
        headers.insert(NAMESPACE, namespace);
        for (key, value) in &self.fields {
            let name = HeaderName::try_from(format!("{PARAMETER}{key}")).map_err(|_| unsendable())?;
            headers.insert(name, parameter(key, value).ok_or_else(unsendable)?);
        }
        Ok(InlineLogin(headers))
    }
}

fn parameter(key: &str, value: &SecretString) -> Option<HeaderValue> {
    let value = value.expose_secret();
    // An escaped byte has six characters. The buffer must not grow, because that leaves a copy in memory.
    let mut json = Zeroizing::new(Vec::with_capacity(value.len() * 6 + key.len() * 6 + 32));
    serde_json::to_writer(&mut *json, &Parameter { key, value }).ok()?;
    let mut encoded = Zeroizing::new(vec![0; base64::encoded_len(json.len(), false)?]);
    let length = URL_SAFE_NO_PAD.encode_slice(&*json, &mut encoded).ok()?;
    sensitive(encoded.get(..length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::{MountPath, Namespace},
        vault::auth::{AuthMount, LoginMethod},
    };

    #[test]
    fn each_field_becomes_a_sensitive_header() {
        let at =
            AuthMount { mount: MountPath::new("jwt").unwrap(), namespace: Namespace::new("team").unwrap() };
        let login = Login::new(LoginMethod::Jwt, at, [("role", "r".into()), ("jwt", "a.b.c".into())]);
        let headers = login.inline().unwrap().0;
        assert_eq!(headers[PATH], "auth/jwt/login");
        assert_eq!(headers[NAMESPACE], "team");
        let jwt = &headers["x-vault-inline-auth-parameter-jwt"];
        assert!(jwt.is_sensitive());
        let json: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "key": "jwt", "value": "a.b.c" }));
    }
}
