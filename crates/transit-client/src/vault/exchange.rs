//! One HTTP exchange with a node: the request, the response, and why there is no response.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use zeroize::Zeroizing;

use super::failover::{RequestPath, TokenSource};
use crate::{ErrorKind, TransitError, operation::VaultOperation};

const X_VAULT_INLINE_AUTH_FAILED: HeaderName = HeaderName::from_static("x-vault-inline-auth-failed");
pub(super) const X_VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Vault Agent and Vault Proxy refuse requests without it if their listener sets `require_request_header`.
pub(super) const X_VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// A request to Vault. It does not say which node gets it.
pub(super) struct HttpRequest {
    pub(super) method: Method,
    /// Without `/v1/`.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Wiped when the last reference is dropped.
    pub(super) body: Bytes,
    /// Which remedy a refusal names.
    pub(super) token_source: TokenSource,
}

impl HttpRequest {
    /// Path and namespace, as messages name them.
    pub(super) fn path(&self) -> RequestPath<'_> {
        let namespace = self.headers.get(X_VAULT_NAMESPACE).and_then(|namespace| namespace.to_str().ok());
        RequestPath { namespace, path: &self.path }
    }
}

/// The response of a node, with any status.
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// The header `X-Vault-Inline-Auth-Failed`: the login of the request has failed, and not the request itself.
    pub(super) inline_auth_failed: bool,
    /// The id of the node that sent it.
    pub(super) node: usize,
    /// The header `Retry-After`, if it holds seconds.
    pub(super) retry_after: Option<Duration>,
}

/// Whether the headers of a response say that the login of the request has failed.
///
/// Source: `internal/vault/request_handling.go` (`handleInlineAuth`) of OpenBao
pub(super) fn inline_auth_failed(headers: &HeaderMap) -> bool {
    headers.get(X_VAULT_INLINE_AUTH_FAILED).is_some_and(|value| value == "true")
}

/// Why there is no response.
pub(super) enum ExchangeError {
    /// The connection broke before the whole response was read. The node may have processed the request.
    ///
    /// The HTTP client sends a request again in one case only: the server has closed an idle connection, and no
    /// byte of the request was written to it. `hyper` then returns the request (`recv_msg` in
    /// `src/proto/h1/dispatch.rs`), and `hyper-util` sends it over another connection (`retry_canceled_requests`
    /// in `src/client/legacy/client.rs`). The retries of `reqwest` (`src/retry.rs`) apply to HTTP/2 and HTTP/3,
    /// which [`Node`](super::node::Node) does not speak.
    ///
    /// If the server closes an idle connection while the request is written, the node does not see the request,
    /// and the error is this one all the same: the client cannot tell the difference. Health checks keep idle
    /// connections open, and those that were idle for too long are not used, so this is rare.
    Broken(TransitError),
    /// The connection could not be established, TLS included: nothing was sent.
    Connect(TransitError),
    /// The deadline passed.
    DeadlineExceeded(TransitError),
    /// The response is longer than any of Vault's.
    ResponseTooLong(TransitError),
    /// No HTTP request can be made of the method, path and headers.
    Unusable(TransitError),
}

impl ExchangeError {
    pub(super) fn into_error(self) -> TransitError {
        match self {
            Self::Broken(error)
            | Self::Connect(error)
            | Self::DeadlineExceeded(error)
            | Self::ResponseTooLong(error)
            | Self::Unusable(error) => error,
        }
    }
}

/// The error for a successful response to `operation` that cannot be parsed. It has no source: parse errors may
/// quote secrets from the body.
pub(super) fn invalid_response(operation: VaultOperation) -> TransitError {
    let message =
        format!("the answer to {} is not Vault's: is something else listening there?", operation.name());
    TransitError::new(ErrorKind::InvalidResponse, message)
}
