//! A client of kube-apiserver without retries.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::{Certificate, Client, Identity, Method};
use serde_json::{Value, json};

use super::pki::Pki;
use crate::{daemon::samples, http::client};

/// The resources that are encrypted, as the paths of the API and of etcd name them.
pub const SECRETS: &str = "secrets";
/// See [`SECRETS`].
pub const CONFIG_MAPS: &str = "configmaps";

/// Longer than the time after which kube-apiserver gives up on a plugin.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client as an administrator; a clone shares its connections.
#[derive(Clone)]
pub struct Api {
    address: String,
    http: Client,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// 0 if there was no response.
    pub status: u16,
    pub message: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl Api {
    pub(super) fn new(pki: &Pki, address: &str) -> Self {
        let (chain, key) = pki.admin();
        let identity = [std::fs::read(key).unwrap(), std::fs::read(chain).unwrap()].concat();
        let http = client()
            .tls_certs_only([Certificate::from_pem(pki.ca_pem().as_bytes()).unwrap()])
            .identity(Identity::from_pem(&identity).unwrap())
            .retry(reqwest::retry::never())
            .timeout(WAIT_TIMEOUT);
        Self { address: address.to_owned(), http: http.build().unwrap() }
    }

    /// Creates a Secret with `value`.
    pub async fn create_secret(&self, name: &str, value: &str) -> Result<(), ApiError> {
        let object = json!({"metadata": {"name": name}, "stringData": {"value": value}});
        self.call(Method::POST, &path(SECRETS, ""), object).await.map(drop)
    }

    /// The value of a Secret.
    pub async fn secret(&self, name: &str) -> Result<String, ApiError> {
        Ok(value_of_secret(&self.call(Method::GET, &path(SECRETS, name), Value::Null).await?))
    }

    /// Writes a Secret back unchanged, as a storage migration does.
    pub async fn rewrite_secret(&self, name: &str) -> Result<(), ApiError> {
        let object = self.call(Method::GET, &path(SECRETS, name), Value::Null).await?;
        self.call(Method::PUT, &path(SECRETS, name), object).await.map(drop)
    }

    /// The names and values of all Secrets.
    pub async fn secrets(&self) -> Result<Vec<(String, String)>, ApiError> {
        let list = self.call(Method::GET, &path(SECRETS, ""), Value::Null).await?;
        let named = |item: &Value| (item["metadata"]["name"].as_str().unwrap().into(), value_of_secret(item));
        Ok(list["items"].as_array().unwrap().iter().map(named).collect())
    }

    /// Creates a ConfigMap with `value`.
    pub async fn create_config_map(&self, name: &str, value: &str) -> Result<(), ApiError> {
        let object = json!({"metadata": {"name": name}, "data": {"value": value}});
        self.call(Method::POST, &path(CONFIG_MAPS, ""), object).await.map(drop)
    }

    /// Status and body of an endpoint such as `/readyz?verbose`; status 0 and the error if there is no response.
    pub async fn text(&self, path: &str) -> (u16, String) {
        let answer = match self.http.get(format!("{}{path}", self.address)).send().await {
            Ok(answer) => answer,
            Err(error) => return (0, error.to_string()),
        };
        (answer.status().as_u16(), answer.text().await.unwrap_or_else(|error| error.to_string()))
    }

    /// The sum of the samples of the metric `name` with at least these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, text) = self.text("/metrics").await;
        assert_eq!(status, 200, "{text}");
        samples(&text, name, labels).iter().sum()
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Result<Value, ApiError> {
        let mut request = self.http.request(method, format!("{}{path}", self.address));
        if !body.is_null() {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let no_answer = |error: reqwest::Error| ApiError { status: 0, message: format!("{error:?}") };
        let answer = request.send().await.map_err(no_answer)?;
        let status = answer.status();
        let text = answer.text().await.map_err(no_answer)?;
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if status.is_success() {
            return Ok(body);
        }
        let message = body["message"].as_str().map_or_else(|| body.to_string(), str::to_owned);
        Err(ApiError { status: status.as_u16(), message })
    }
}

fn path(resource: &str, name: &str) -> String {
    let path = format!("/api/v1/namespaces/default/{resource}/{name}");
    path.trim_end_matches('/').to_owned()
}

fn value_of_secret(object: &Value) -> String {
    let encoded = object["data"]["value"].as_str().unwrap_or_else(|| panic!("{object}"));
    String::from_utf8(BASE64.decode(encoded).unwrap()).unwrap()
}
