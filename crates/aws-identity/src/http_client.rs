//! HTTP to the services of this machine or container: short, bounded, without proxies and redirects.

use std::time::Duration;

use http::{HeaderMap, Method};
use reqwest::{Client, redirect, tls};
use url::Url;
use zeroize::Zeroizing;

/// These services are on this machine. One that needs longer does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(3);
/// The longest answer, an identity document or credentials, has about 5 KiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a service gives no usable answer. It names no URL, which could hold a credential.
#[derive(Debug, thiserror::Error)]
pub enum HttpFailure {
    /// The connection broke.
    #[error("the connection broke: {}", error_text::root_cause(.0))]
    Broken(#[source] reqwest::Error),
    /// No connection could be established.
    #[error("no connection can be established: {}", error_text::root_cause(.0))]
    Connect(#[source] reqwest::Error),
    /// The request cannot be sent.
    #[error("no request can be made: {}", error_text::root_cause(.0))]
    Request(#[source] reqwest::Error),
    /// The answer has another status than 200.
    #[error("it answered with HTTP status {0}")]
    Status(u16),
    /// It accepted the connection, and did not answer in time.
    #[error("it did not answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The answer is too long.
    #[error("its answer is longer than 64 KiB")]
    TooLong,
}

/// Sends single requests.
pub(crate) struct HttpClient {
    pub(crate) timeout: Duration,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self { timeout: TIMEOUT }
    }
}

impl HttpClient {
    /// Returns the body of an answer with status 200.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Zeroizing<Vec<u8>>, HttpFailure> {
        #[expect(clippy::disallowed_methods, reason = "the client uses no proxy: see no_proxy below")]
        let mut builder = Client::builder()
            // A redirect leads to another host, and the token would go there.
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tls_version_min(tls::Version::TLS_1_2)
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.timeout);
        if url.scheme() == "http" {
            // Otherwise the client loads the certificates of the system, which a minimal image does not have.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(HttpFailure::Request)?;
        let mut answer =
            client.request(method, url).headers(headers).send().await.map_err(|error| self.failure(error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(HttpFailure::Status(answer.status().as_u16()));
        }
        // The whole capacity at once: a buffer that grows leaves copies behind that are not wiped.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.failure(error))? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(HttpFailure::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failure(&self, error: reqwest::Error) -> HttpFailure {
        let error = error.without_url();
        if error.is_connect() {
            HttpFailure::Connect(error)
        } else if error.is_timeout() {
            HttpFailure::Timeout(self.timeout)
        } else if error.is_builder() {
            HttpFailure::Request(error)
        } else {
            HttpFailure::Broken(error)
        }
    }
}
