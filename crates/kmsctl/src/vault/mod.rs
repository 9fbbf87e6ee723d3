//! A small client of Vault's API, for an operator's own token.
//!
//! It sends plain requests: the types of `vaultrs` have no TTL and no number of uses for a secret_id, and its client
//! follows redirects with the token.

mod connection;
mod secret_text;

use std::time::Duration;

use error_text::{one_line, root_cause};
use reqwest::{
    Client, Method, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

pub(crate) use self::{connection::VaultArgs, secret_text::SecretText};

const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const X_VAULT_WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");
/// A list of 10,000 accessors has about 400 KiB.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why a request to Vault has no result. No variant contains a token or a body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error(
        "{address} does not answer: {cause}. Does Vault listen there (VAULT_ADDR, --address), and has its certificate \
         been issued by an authority that this machine or --ca-cert (VAULT_CACERT) knows?"
    )]
    Away { address: Url, cause: String },
    #[error("the answer of {address} to {path} is not Vault's: does another program listen there?")]
    Foreign { address: Url, path: String },
    #[error(
        "Vault refuses {method} {path}: {words}. The token needs a policy with this path, as in \
         manifests/vault/trusted-introduction/requestor.hcl, and it must be valid in this namespace"
    )]
    Forbidden { method: Method, path: String, words: String },
    #[error(
        "{path} is redirected to {to}, which would send the token there. Set VAULT_ADDR to the right address"
    )]
    Redirect { path: String, to: String },
    #[error("Vault answers {status} to {method} {path}: {words}")]
    Refused { method: Method, path: String, status: StatusCode, words: String },
}

impl VaultError {
    /// Whether Vault says that there is nothing at the path.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// Whether Vault found nothing and gives no reason. Lists without entries are answered like this.
    fn is_empty_list(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, words, .. } if words == NO_WORDS)
    }
}

/// The words of an error without a message.
const NO_WORDS: &str = "no message";

/// A path below `/v1/`, as segments. It cannot lead elsewhere, whatever a name contains.
#[derive(Clone, Debug)]
pub(crate) struct ApiPath(Vec<String>);

impl ApiPath {
    /// Creates a path of these parts. A part may have several segments, such as a mount.
    pub(crate) fn new(parts: &[&str]) -> Self {
        Self(parts.iter().flat_map(|part| part.split('/')).map(str::to_owned).collect())
    }
}

/// A request to Vault.
pub(crate) struct VaultRequest {
    body: Option<Zeroizing<Vec<u8>>>,
    method: Method,
    path: ApiPath,
    token: Option<HeaderValue>,
    wrap_ttl: Option<Duration>,
}

impl VaultRequest {
    pub(crate) fn list(path: ApiPath) -> Self {
        // A method of Vault's own.
        let method = Method::from_bytes(b"LIST").unwrap_or(Method::GET);
        Self { body: None, method, path, token: None, wrap_ttl: None }
    }

    pub(crate) fn post(path: ApiPath, body: &Value) -> Self {
        Self::post_secret(path, Zeroizing::new(body.to_string().into_bytes()))
    }

    /// A POST with a body in JSON that contains a secret.
    pub(crate) fn post_secret(path: ApiPath, body: Zeroizing<Vec<u8>>) -> Self {
        Self { body: Some(body), method: Method::POST, path, token: None, wrap_ttl: None }
    }

    /// Sends it with another token than the operator's.
    pub(crate) fn with_token(self, token: HeaderValue) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Asks Vault to wrap the response.
    pub(crate) fn wrapped(self, ttl: Option<Duration>) -> Self {
        Self { wrap_ttl: ttl, ..self }
    }
}

/// A connection to Vault with the token of an operator.
pub(crate) struct Vault {
    address: Url,
    client: Client,
    headers: HeaderMap,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<String>,
}

impl Vault {
    /// Sends a request, and returns the parsed answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, request: VaultRequest) -> Result<T, VaultError> {
        let path = request.path.0.join("/");
        let body = self.send(request).await?;
        // The parser's error may contain a value, so it is not shown.
        serde_json::from_slice(&body).map_err(|_| VaultError::Foreign { address: self.address.clone(), path })
    }

    /// Sends a request whose answer has no body.
    pub(crate) async fn change(&self, request: VaultRequest) -> Result<(), VaultError> {
        self.send(request).await.map(drop)
    }

    /// Returns the keys of a list, which may be empty.
    pub(crate) async fn keys(&self, path: ApiPath) -> Result<Vec<String>, VaultError> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<String>,
        }
        #[derive(Deserialize)]
        struct Answer {
            data: Keys,
        }
        match self.call::<Answer>(VaultRequest::list(path)).await {
            Ok(answer) => Ok(answer.data.keys),
            Err(error) if error.is_empty_list() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, request: VaultRequest) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let VaultRequest { body, method, path: ApiPath(segments), token, wrap_ttl } = request;
        let path = segments.join("/");
        let mut url = self.address.clone();
        if let Ok(mut of_url) = url.path_segments_mut() {
            of_url.pop_if_empty().push("v1").extend(&segments);
        }
        let mut headers = self.headers.clone();
        if let Some(token) = token {
            headers.insert(X_VAULT_TOKEN, token);
        }
        if let Some(ttl) = wrap_ttl {
            headers.insert(X_VAULT_WRAP_TTL, HeaderValue::from(ttl.as_secs()));
        }
        let mut builder = self.client.request(method.clone(), url).headers(headers);
        if let Some(body) = body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body.to_vec());
        }
        let away = |error: &reqwest::Error| VaultError::Away {
            address: self.address.clone(),
            cause: root_cause(error),
        };
        let mut answer = builder.send().await.map_err(|error| away(&error))?;
        let status = answer.status();
        let to = answer.headers().get(LOCATION).map(|to| one_line(&String::from_utf8_lossy(to.as_bytes())));
        let mut body = Zeroizing::new(Vec::with_capacity(64 * 1024));
        while let Some(chunk) = answer.chunk().await.map_err(|error| away(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(VaultError::Foreign { address: self.address.clone(), path });
            }
        }
        if status.is_success() {
            return Ok(body);
        }
        if status.is_redirection() {
            return Err(VaultError::Redirect {
                path,
                to: to.unwrap_or_else(|| "another address".to_owned()),
            });
        }
        let words = serde_json::from_slice(&body).map(|ErrorBody { errors }| one_line(&errors.join("; ")));
        let words = words.ok().filter(|words| !words.is_empty()).unwrap_or_else(|| NO_WORDS.to_owned());
        Err(match status {
            StatusCode::FORBIDDEN => VaultError::Forbidden { method, path, words },
            _ => VaultError::Refused { method, path, status, words },
        })
    }
}
