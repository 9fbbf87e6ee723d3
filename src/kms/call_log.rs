//! The metrics and the log line of one call.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::debug;
use transit_client::key_id::key_id_hash;

use super::status_code::code_label;
use crate::observe::metrics::Metrics;

/// More characters of a uid are not logged. kube-apiserver sends a UUID of 36.
const MAX_LOGGED_UID_CHARS: usize = 64;

/// The methods of both APIs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Method {
    Decrypt,
    Encrypt,
    Status,
    V1Decrypt,
    V1Encrypt,
    V1Version,
}

impl Method {
    /// The value of the label `method` in metrics and of the field in logs.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
            Self::Status => "status",
            Self::V1Decrypt => "v1_decrypt",
            Self::V1Encrypt => "v1_encrypt",
            Self::V1Version => "v1_version",
        }
    }
}

/// What the log says about a request.
#[derive(Clone, Copy, Default)]
pub(super) struct RequestIds<'a> {
    /// Only Decrypt of KMS v2 has one.
    pub(super) key_id: Option<&'a str>,
    pub(super) uid: Option<&'a str>,
}

/// What the log says about a successful answer.
#[derive(Default)]
pub(super) struct AnswerIds {
    pub(super) key_id_hash: Option<String>,
    /// The `request.id` of the entry in Vault's audit log. `None` if no request was sent to Vault.
    pub(super) vault_request_id: Option<String>,
}

/// Records how one call ends. A log that is dropped before its call ends records that the caller left.
pub(super) struct CallLog<'a> {
    ended: bool,
    method: Method,
    metrics: &'a Metrics,
    request: RequestIds<'a>,
    started: Instant,
}

impl<'a> CallLog<'a> {
    pub(super) fn start(method: Method, request: RequestIds<'a>, metrics: &'a Metrics) -> Self {
        Self { ended: false, method, metrics, request, started: Instant::now() }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn succeeded(mut self, ids: &AnswerIds) {
        let took = self.end(Code::Ok);
        debug!(
            method = self.method.label(),
            uid = self.request.uid.map(printable),
            key_id_hash = ids.key_id_hash,
            vault_request_id = ids.vault_request_id,
            ?took,
            "answered"
        );
    }

    pub(super) fn failed(mut self, status: &Status) {
        let took = self.end(status.code());
        self.log_failure(status.code(), status.message(), took, "answered with an error");
    }

    fn end(&mut self, code: Code) -> Duration {
        self.ended = true;
        let took = self.started.elapsed();
        self.metrics.requests.call(self.method.label(), code_label(code), took);
        took
    }

    fn log_failure(&self, code: Code, reason: &str, took: Duration, message: &'static str) {
        debug!(
            method = self.method.label(),
            uid = self.request.uid.map(printable),
            key_id_hash = self.request.key_id.map(key_id_hash),
            code = code_label(code),
            reason,
            ?took,
            "{message}"
        );
    }
}

impl Drop for CallLog<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let took = self.end(Code::Cancelled);
            let reason = "the caller cancelled the call, or transit-kms is stopping";
            self.log_failure(Code::Cancelled, reason, took, "not answered");
        }
    }
}

/// The part of a uid that is safe to log.
fn printable(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_graphic).take(MAX_LOGGED_UID_CHARS).collect()
}
