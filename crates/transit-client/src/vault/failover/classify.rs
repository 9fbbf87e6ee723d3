//! What Vault's answers mean: from operation, status and words to an error kind with cause and remedy.
//!
//! [`classify`] is pure. The answers that it knows are rows of the tables in [`table`], [`login`], [`tokenless`] and
//! [`foreign`].

mod foreign;
mod login;
mod row;
mod table;
mod tokenless;

use serde::{Deserialize, de::IgnoredAny};

use super::{quote::quote, request_path::RequestPath};
use crate::{
    TransitError,
    operation::VaultOperation,
    vault::exchange::{HttpRequest, HttpResponse},
};
use foreign::{FOREIGN_ANSWERS, OTHER_FOREIGN_ANSWER};
use login::LOGIN_ANSWERS;
use row::{Row, Words};
use table::{OTHER_VAULT_ANSWER, VAULT_ANSWERS};
use tokenless::{AGENT_ANSWERS, INLINE_ANSWERS, INLINE_LOGIN_FAILED};

/// Where the token of a request comes from. It decides which remedy a refusal names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TokenSource {
    /// An agent or a proxy adds it.
    Agent,
    /// There is none: the login travels with the request.
    Inline,
    /// A login of this process.
    Login,
    /// Another program has rendered it.
    Rendered,
}

impl TokenSource {
    /// The rows that come before those of the other tables.
    const fn answers(self) -> &'static [Row] {
        match self {
            Self::Agent => AGENT_ANSWERS,
            Self::Inline => INLINE_ANSWERS,
            Self::Login | Self::Rendered => &[],
        }
    }

    /// What brings another token.
    const fn next_token(self) -> &'static str {
        match self {
            Self::Agent => "the agent has to log in again",
            Self::Inline => "correct the login below auth.login",
            Self::Login => "transit-kms logs in again",
            Self::Rendered => "the agent has to render a new one",
        }
    }
}

/// What follows from an answer that is not a success.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Consequence {
    /// The node cannot serve requests. Another node is asked, and this one is ejected.
    Eject,
    /// Vault refuses the request in words that are recognised. The call ends.
    Final,
    /// The node cannot serve this path at this moment. Another node is asked, and this one stays.
    Next,
}

/// Whether Vault has processed the request. A request that uses up a credential must not be sent again unless it
/// certainly has not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Processed {
    /// The answer proves that no handler of Vault has seen the request.
    No,
    /// Vault may have processed the request, and its result is lost.
    Unknown,
    /// Vault has processed the request, and the answer is its result.
    Yes,
}

/// The meaning of an answer that is not a success.
#[derive(Debug)]
pub(crate) struct Classified {
    pub(crate) consequence: Consequence,
    pub(crate) error: TransitError,
    pub(crate) processed: Processed,
}

impl Row {
    fn matches(&self, answer: &VaultAnswer<'_>) -> bool {
        let words_match = || match self.words {
            Words::Any => true,
            Words::Contain(words) => words.iter().any(|words| answer.text.contains(words)),
            Words::Equal(words) => answer.errors.iter().any(|error| error.trim() == words),
        };
        (self.operations.is_empty() || self.operations.contains(&answer.operation))
            && (self.statuses.is_empty() || self.statuses.iter().any(|range| range.contains(&answer.status)))
            && words_match()
    }
}

/// An answer that is not a success.
struct VaultAnswer<'a> {
    operation: VaultOperation,
    path: RequestPath<'a>,
    source: TokenSource,
    status: u16,
    /// Vault's errors; empty if the answer is not Vault's.
    errors: &'a [String],
    /// Vault's errors on one line, or the body of another program.
    text: &'a str,
}

impl VaultAnswer<'_> {
    fn classify<'r>(&self, rows: impl IntoIterator<Item = &'r Row>, otherwise: &'r Row) -> Classified {
        let row = rows.into_iter().find(|row| row.matches(self)).unwrap_or(otherwise);
        let mut message = self.fill(&format!("{}: {}", row.cause, row.remedy));
        if !self.errors.is_empty() && !self.text.is_empty() {
            message.push_str(&format!(" (Vault says: {})", self.text));
        }
        let error = TransitError::new(row.kind, message);
        Classified { consequence: row.consequence, error, processed: row.processed }
    }

    fn fill(&self, template: &str) -> String {
        template
            .replace("{capability}", self.operation.capability())
            .replace("{namespace_hint}", self.path.namespace_hint())
            .replace("{next_token}", self.source.next_token())
            .replace("{operation}", self.operation.name())
            .replace("{status}", &self.status.to_string())
            .replace("{path}", &self.path.to_string())
    }
}

/// The meaning of an answer to `request` that is not a success.
pub(crate) fn classify(
    operation: VaultOperation,
    request: &HttpRequest,
    response: &HttpResponse,
) -> Classified {
    let (path, source) = (request.path(), request.token_source);
    if source == TokenSource::Inline && response.inline_auth_failed {
        let errors = vault_errors(&response.body).unwrap_or_default();
        let (status, text) = (response.status, quote(&errors));
        return VaultAnswer { operation, path, source, status, errors: &errors, text: &text }
            .classify([], &INLINE_LOGIN_FAILED);
    }
    classify_body(operation, path, source, response.status, &response.body)
}

fn classify_body(
    operation: VaultOperation,
    path: RequestPath<'_>,
    source: TokenSource,
    status: u16,
    body: &[u8],
) -> Classified {
    match vault_errors(body) {
        Some(errors) => classify_vault(operation, path, source, status, &errors),
        None => {
            let text = String::from_utf8_lossy(body);
            VaultAnswer { operation, path, source, status, errors: &[], text: &text }
                .classify(FOREIGN_ANSWERS, &OTHER_FOREIGN_ANSWER)
        }
    }
}

/// The meaning of `error`, with which one item of a batch failed. It says nothing about the token.
pub(crate) fn classify_item(operation: VaultOperation, path: RequestPath<'_>, error: String) -> TransitError {
    classify_vault(operation, path, TokenSource::Rendered, 400, &[error]).error
}

fn classify_vault(
    operation: VaultOperation,
    path: RequestPath<'_>,
    source: TokenSource,
    status: u16,
    errors: &[String],
) -> Classified {
    let text = quote(errors);
    let rows = source.answers().iter().chain(LOGIN_ANSWERS).chain(VAULT_ANSWERS);
    VaultAnswer { operation, path, source, status, errors, text: &text }.classify(rows, &OTHER_VAULT_ANSWER)
}

/// The errors of Vault's error body; `None` if the body is not Vault's. Vault always sends the field
/// `errors`, though it may be empty or null.
fn vault_errors(body: &[u8]) -> Option<Vec<String>> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let errors = body.get("errors")?.as_array().cloned().unwrap_or_default();
    Some(errors.iter().filter_map(|error| error.as_str().map(str::to_owned)).collect())
}

/// Whether the answer may hold what was asked for: it is a success, or a batch of which some items failed.
/// Such a batch has the status 400 or 500, and the results of all items.
///
/// Source: `batchRequestResponse` in `builtin/logical/transit/path_encrypt.go`
pub(crate) fn is_answer(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct BatchBody {
        #[serde(rename = "data")]
        _data: BatchBodyData,
    }
    #[derive(Deserialize)]
    struct BatchBodyData {
        #[serde(rename = "batch_results")]
        _results: Vec<IgnoredAny>,
    }
    match status {
        200..300 => true,
        400 | 500 => serde_json::from_slice::<BatchBody>(body).is_ok(),
        _ => false,
    }
}

/// Whether an answer to `sys/health` says that the node serves calls.
///
/// Source: <https://developer.hashicorp.com/vault/api-docs/system/health>
pub(crate) fn is_ready(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct HealthBody {
        #[serde(rename = "initialized")]
        _initialized: bool,
    }
    // 429 is a standby and 473 a performance standby. A secondary for disaster recovery (472) serves nothing.
    matches!(status, 200 | 429 | 473) && serde_json::from_slice::<HealthBody>(body).is_ok()
}

#[cfg(test)]
mod tests;
