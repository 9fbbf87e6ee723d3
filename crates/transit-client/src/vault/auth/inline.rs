//! OpenBao's inline authentication: the login travels in the headers of each request.
//!
//! There is no token to renew, to expire or to revoke. OpenBao 2.6.2 and later are supported.
//!
//! Source: `api/client.go` (`InlineAuthPathHeaderName`) and `internal/vault/request_handling.go`
//! (`handleInlineAuth`) of OpenBao

use std::sync::{Arc, Mutex, PoisonError};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Login, LoginError, LoginFailure, LoginMethod, login::unusable};
use crate::{ErrorKind, TransitError, vault::requester::sensitive};

/// A login that OpenBao has refused this often is not sent again.
const MAX_REFUSALS: u32 = 2;

const PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-inline-auth-namespace");
const PARAMETER: &str = "x-vault-inline-auth-parameter-";

#[derive(Serialize)]
struct Parameter<'a> {
    key: &'a str,
    value: &'a str,
}

/// A login that travels in the headers of each request. Clones share what is known about its refusals.
///
/// The values of the headers are marked sensitive, and wiped on drop.
#[derive(Clone)]
pub struct InlineLogin {
    headers: HeaderMap,
    method: LoginMethod,
    refusals: Arc<Mutex<Refusals>>,
    waits_for: String,
}

#[derive(Default)]
struct Refusals {
    count: u32,
    /// Set when the login must not be sent any more.
    last: Option<TransitError>,
}

impl InlineLogin {
    pub(in crate::vault) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The error of a login that OpenBao has refused too often. OpenBao locks a user or a role after some refusals, and
    /// each request would be one more.
    pub(in crate::vault) fn exhausted(&self) -> Option<TransitError> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).last.clone()
    }

    /// Gives the refusal of the login in `answer` its meaning, and counts it.
    pub(in crate::vault) fn outcome<T>(&self, answer: Result<T, TransitError>) -> Result<T, TransitError> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match answer {
            Ok(answer) => {
                *refusals = Refusals::default();
                return Ok(answer);
            }
            // No other answer says that the login has failed.
            Err(error) if error.kind == ErrorKind::TokenInvalid => error,
            Err(error) => return Err(error),
        };
        let LoginError { mut error, failure } = LoginError::of_refusal(self.method, error);
        if failure == LoginFailure::Refused {
            // The config is read again, because it may name another credential already.
            error.kind = ErrorKind::TokenInvalid;
            refusals.count += 1;
            if refusals.count >= MAX_REFUSALS {
                error.message.push_str(&format!(
                    "; OpenBao has refused this credential twice, and locks its user or role after a few more: \
                     transit-kms sends no request until {} changes",
                    self.waits_for
                ));
                refusals.last = Some(error.clone());
            }
        }
        Err(error)
    }
}

impl Login {
    /// The headers that perform this login with each request. `waits_for` names what has to change after a refusal.
    ///
    /// # Errors
    /// If a credential cannot be sent in a header.
    pub fn inline(&self, waits_for: &str) -> Result<InlineLogin, TransitError> {
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
        Ok(InlineLogin {
            headers,
            method: self.method(),
            refusals: Arc::default(),
            waits_for: waits_for.to_owned(),
        })
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
        testing::fake_vault::{
            Answer, FakeVault, access, encrypt, endpoint, good, json, json_with, metrics, session_on,
        },
        vault::{
            Access, Pool, RequestAuth, Session,
            auth::{AuthMount, userpass},
        },
    };

    fn at(mount: &str, namespace: &str) -> AuthMount {
        AuthMount { mount: MountPath::new(mount).unwrap(), namespace: Namespace::new(namespace).unwrap() }
    }

    fn password(password: &str) -> InlineLogin {
        let login = userpass::login(at("userpass", ""), "node-1", password.into()).unwrap();
        login.inline("vault.auth.password_file (/p)").unwrap()
    }

    async fn session(fake: &FakeVault, login: &InlineLogin) -> Session {
        let access = Access { auth: RequestAuth::Inline(login.clone()), ..access("") };
        let addresses = [fake.address.as_str()];
        session_on(&access, Pool::new(&endpoint(&addresses)).await.unwrap(), metrics(&addresses))
    }

    fn refused() -> Answer {
        let body = r#"{"errors":["invalid username or password"]}"#;
        json_with(400, "x-vault-inline-auth-failed: true\r\n", body)
    }

    #[test]
    fn each_field_becomes_a_sensitive_header() {
        let fields = [("role", "r".into()), ("jwt", "a.b.c".into())];
        let login = Login::new(LoginMethod::Jwt, at("jwt", "team"), fields);
        let headers = login.inline("the file").unwrap().headers;
        assert_eq!(headers[PATH], "auth/jwt/login");
        assert_eq!(headers[NAMESPACE], "team");
        let jwt = &headers["x-vault-inline-auth-parameter-jwt"];
        assert!(jwt.is_sensitive());
        let json: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "key": "jwt", "value": "a.b.c" }));
    }

    #[tokio::test]
    async fn the_login_travels_with_each_request_and_there_is_no_token() {
        let fake = FakeVault::with(vec![good()]).await;
        let session = session(&fake, &password("secret")).await;
        encrypt(&session).await.unwrap();
        let heads = fake.heads();
        assert!(heads[0].contains("x-vault-inline-auth-path: auth/userpass/login/node-1"), "{heads:?}");
        assert!(!heads[0].contains("x-vault-token"), "{heads:?}");
    }

    /// The answers of Vault, and of OpenBao without this feature, to a request without a token.
    #[tokio::test]
    async fn a_server_without_inline_authentication_is_named() {
        for (status, words) in [(400, "missing client token"), (403, "permission denied")] {
            let body = serde_json::json!({ "errors": [words] }).to_string();
            let fake = FakeVault::with(vec![json(status, &body)]).await;
            let error = encrypt(&session(&fake, &password("secret")).await).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Denied);
            assert!(error.message.contains("inline authentication needs OpenBao 2.6.2 or newer"), "{error}");
            assert_eq!(fake.requests(), 1, "it is not taken for a token that a node does not know yet");
        }
    }

    #[tokio::test]
    async fn a_refused_login_is_not_sent_a_third_time_by_any_session() {
        let fake = FakeVault::with(vec![refused(), refused(), good()]).await;
        let login = password("wrong");
        let error = encrypt(&session(&fake, &login).await).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::TokenInvalid);
        assert!(error.message.contains("does not accept the user name or the password"), "{error}");
        assert!(!error.message.contains("twice"), "{error}");
        for _ in 0..3 {
            let error = encrypt(&session(&fake, &login).await).await.unwrap_err();
            assert!(error.message.contains("until vault.auth.password_file (/p) changes"), "{error}");
        }
        assert_eq!(fake.requests(), 2);
        encrypt(&session(&fake, &password("right")).await).await.unwrap();
    }

    #[tokio::test]
    async fn only_refusals_in_a_row_count() {
        let answers = vec![refused(), good(), refused(), good()];
        let fake = FakeVault::with(answers).await;
        let session = session(&fake, &password("changing")).await;
        for is_good in [false, true, false, true] {
            assert_eq!(encrypt(&session).await.is_ok(), is_good);
        }
    }
}
