//! What Vault's answers mean: from status and words to a [`Fault`].
//!
//! Vault tells cases apart in its words only. They are in `tests/golden/vault_words.tsv`,
//! were observed on OpenBao 2.7.2, and stand in the sources of both (`sdk/helper/keysutil/policy.go`, `builtin/logical/transit`,
//! `vault/request_handling.go`).

use http::Method;
use serde::{Deserialize, de::IgnoredAny};

use crate::kms::{Fault, TransitError};

/// What was asked of Vault, as metrics name it and as messages speak of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    Decrypt,
    Encrypt,
    Health,
    LookupSelf,
    ReadKey,
    RenewSelf,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
            Self::Health => "health",
            Self::LookupSelf => "lookup_self",
            Self::ReadKey => "read_key",
            Self::RenewSelf => "renew_self",
        }
    }

    /// Whether a caller of ours waits for it, rather than the prober or the keeper, who come again.
    pub(super) fn is_a_callers(self) -> bool {
        matches!(self, Self::Decrypt | Self::Encrypt)
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => Method::POST,
            Self::Health | Self::LookupSelf | Self::ReadKey => Method::GET,
        }
    }

    /// Whether it is about the token itself. What a node says of that is no news of the node.
    pub(super) fn is_token_care(self) -> bool {
        matches!(self, Self::LookupSelf | Self::RenewSelf)
    }

    /// The capability that a policy must grant on the path.
    fn capability(self) -> &'static str {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => "update",
            Self::Health | Self::LookupSelf | Self::ReadKey => "read",
        }
    }
}

/// What follows from an answer that is not a success.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Consequence {
    /// The answer speaks against the node as a whole. Another node is asked, and this one is ejected.
    Eject,
    /// Vault refuses the request in words that are recognised. The call ends.
    Final,
    /// The answer speaks for this path, mount or moment. Another node is asked, and this one stays.
    Next,
}

/// An answer that is not a success, and what it means.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) consequence: Consequence,
    pub(super) error: TransitError,
}

/// Vault's error body; `errors` is there even if it is empty or null.
fn errors_of(body: &[u8]) -> Option<Vec<String>> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let errors = body.get("errors")?.as_array().cloned().unwrap_or_default();
    Some(errors.iter().filter_map(|error| error.as_str().map(str::to_owned)).collect())
}

/// Whether the answer may hold what was asked for: a success, or a batch of which some items failed,
/// which comes as 400 (500 if only Vault is to blame) with the results of all of them.
///
/// Source: `batchRequestResponse` in `builtin/logical/transit/path_encrypt.go`
pub(super) fn is_answer(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Batch {
        #[serde(rename = "data")]
        _data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "batch_results")]
        _results: Vec<IgnoredAny>,
    }
    match status {
        200..300 => true,
        400 | 500 => serde_json::from_slice::<Batch>(body).is_ok(),
        _ => false,
    }
}

/// What an answer to `sys/health` says of the node: ready for calls, or not.
///
/// Source: <https://developer.hashicorp.com/vault/api-docs/system/health>
pub(super) fn is_ready(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Health {
        #[serde(rename = "initialized")]
        _initialized: bool,
    }
    // 429 is a standby, 473 a performance standby. A secondary for disaster recovery (472) serves nothing.
    matches!(status, 200 | 429 | 473) && serde_json::from_slice::<Health>(body).is_ok()
}

/// The meaning of an answer that is not a success. `path` is without `/v1/`.
pub(super) fn classify(operation: Operation, path: &str, status: u16, body: &[u8]) -> Refusal {
    match errors_of(body) {
        Some(errors) => classify_words(operation, path, status, &errors),
        None => classify_foreign(operation, status, body),
    }
}

/// The meaning of `error`, which one item of a batch failed with.
pub(super) fn meaning_of_item(operation: Operation, path: &str, error: String) -> TransitError {
    classify_words(operation, path, 400, &[error]).error
}

/// An answer that is not Vault's: a page of a proxy, a captive portal, another program.
///
/// Only two of them say something about the request: a limit of size, and a limit of rate.
fn classify_foreign(operation: Operation, status: u16, body: &[u8]) -> Refusal {
    let refusal = |consequence, fault, message: String| Refusal {
        consequence,
        error: TransitError::new(fault, message),
    };
    match status {
        301..=308 => refusal(
            Consequence::Eject,
            Fault::Unreachable,
            format!(
                "Vault answered with a redirect ({status}), which is not followed: name the nodes themselves in \
                 vault.addresses, not a proxy or a standby that sends clients on"
            ),
        ),
        // Vault answers this with an empty object, when the state that a header asks for is not there yet.
        412 => refusal(
            Consequence::Next,
            Fault::Unreachable,
            "this Vault node has not caught up with the others (412)".into(),
        ),
        413 => too_much(),
        429 => throttled(""),
        400 if is_from_a_tls_port(body) => refusal(
            Consequence::Eject,
            Fault::Nonsense,
            "the port speaks TLS: write https:// in the address, not http://".into(),
        ),
        _ => refusal(
            Consequence::Eject,
            Fault::Nonsense,
            format!(
                "something that is not Vault answered {status} to {}: {}",
                operation.name(),
                foreign(status)
            ),
        ),
    }
}

/// What a plain HTTP request to a TLS port is answered: by Go, so by Vault, and by nginx.
fn is_from_a_tls_port(body: &[u8]) -> bool {
    let body = String::from_utf8_lossy(body);
    ["HTTP request to an HTTPS server", "HTTP request was sent to HTTPS port"]
        .iter()
        .any(|words| body.contains(words))
}

/// What to look at when another program answers in Vault's place.
fn foreign(status: u16) -> &'static str {
    match status {
        401 | 407 => {
            "is a proxy in between? It wants a login of its own: let it pass transit-kms, or name Vault's nodes \
             themselves"
        }
        403 => {
            "is a proxy or a web filter in between? Let it pass transit-kms, or name Vault's nodes themselves"
        }
        404 => "is a proxy in between, or is the path in the address wrong?",
        502..=504 => "is a proxy in between? It does not reach Vault: look at its backends",
        _ => "is a proxy in between, or another program on that port?",
    }
}

fn too_much() -> Refusal {
    Refusal {
        consequence: Consequence::Final,
        error: TransitError::new(
            Fault::TooMuch,
            "a request was longer than Vault, or a proxy in front of it, takes",
        ),
    }
}

/// Going to another node would be a way around the limit that an operator has set.
fn throttled(said: &str) -> Refusal {
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Refusal {
        consequence: Consequence::Final,
        error: TransitError::new(
            Fault::Throttled,
            format!("Vault limits the rate of requests (429){said}; raise the quota, or call less often"),
        ),
    }
}

/// An answer with Vault's error body. What is final stands here, row by row; nothing else is.
fn classify_words(operation: Operation, path: &str, status: u16, errors: &[String]) -> Refusal {
    use Consequence::{Eject, Final, Next};

    let said = quotable(errors);
    let has = |words: &str| said.contains(words);
    let (consequence, fault, message) = match status {
        400 if has("version is too new") || has("higher than the latest key version") => {
            (Next, Fault::Lagging, format!("this Vault node does not know the key version: {said}"))
        }
        400 if has("minimum encryption key version") => (
            Final,
            Fault::TooOld,
            "min_encryption_version of the key was raised above the version in use: reading the key anew, \
             the next Encrypt uses the newer version"
                .into(),
        ),
        400 if has("too old") => (
            Final,
            Fault::TooOld,
            "the ciphertext's key version is below min_decryption_version of the key: lower it to read this \
             value again"
                .into(),
        ),
        400 if has("soft-deleted") => {
            (Final, Fault::KeyLost, format!("the key is soft-deleted, restore it: {said} ({path})"))
        }
        400 if has("encryption key not found") => (
            Final,
            Fault::KeyLost,
            format!("the key does not exist ({path}): restore it, or correct vault.keynames"),
        ),
        400 if has("message authentication failed") || has("invalid ciphertext") => (
            Final,
            Fault::BadCiphertext,
            format!("the ciphertext is damaged or was made with another key: {said} ({path})"),
        ),
        400 if has("decryption not supported for key type") => {
            (Final, Fault::Denied, format!("the key is of a type that cannot decrypt: {said} ({path})"))
        }
        // With another key's ciphertext; Vault blames itself.
        500 if has("failed to RSA decrypt") => (
            Final,
            Fault::BadCiphertext,
            format!("the ciphertext is damaged or was made with another key: {said} ({path})"),
        ),
        400 if has("missing 'context'") => {
            (Final, Fault::Denied, format!("the key is derived: use one that is not ({path})"))
        }
        400 if has("high complexity") => {
            (Final, Fault::TooMuch, format!("Vault takes less at once than was asked for: {said}"))
        }
        400 if has("missing client token") => (Final, Fault::TokenDead, said),
        403 if is_about_the_token(errors) => (
            Final,
            Fault::TokenDead,
            "Vault does not accept the token any more (expired, revoked, or from another Vault): the agent \
             has to render a new one"
                .into(),
        ),
        403 => (
            Final,
            Fault::Denied,
            format!(
                "the token's policy does not allow {}: grant `{}` on {path}{}",
                operation.name(),
                operation.capability(),
                if operation == Operation::Encrypt { ", and see that the key exists" } else { "" }
            ),
        ),
        404 => (
            Final,
            Fault::KeyLost,
            format!(
                "not found: {path}{}; check vault.keynames, vault.transitpath and vault.namespace",
                if said.is_empty() { String::new() } else { format!(" ({said})") }
            ),
        ),
        413 => return too_much(),
        429 => return throttled(&said),
        412 | 500..=599 => {
            let node = ["sealed", "not initialized", "not yet initialized", "node not active"];
            (
                if node.iter().any(|words| has(words)) { Eject } else { Next },
                Fault::Unreachable,
                format!(
                    "Vault answered {status}{}",
                    if said.is_empty() { String::new() } else { format!(": {said}") }
                ),
            )
        }
        _ => (
            Eject,
            Fault::Nonsense,
            format!(
                "Vault answered {status} to {}{}",
                operation.name(),
                if said.is_empty() { String::new() } else { format!(": {said}") }
            ),
        ),
    };
    Refusal { consequence, error: TransitError::new(fault, message) }
}

/// A dead token is refused before any policy is looked at, in bare words; a policy's
/// refusal comes as a multierror (`1 error occurred:`).
fn is_about_the_token(errors: &[String]) -> bool {
    errors.iter().any(|error| {
        let error = error.trim();
        error == "permission denied" || error.contains("invalid token") || error.contains("bad token")
    })
}

/// Vault's own words, on one line and not too many: they go into logs and to callers.
fn quotable(errors: &[String]) -> String {
    let text = errors.join("; ");
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table is shared with `tests/it/words.rs`, which holds it to a real server.
    #[test]
    fn words_and_their_meaning() {
        let table = include_str!("../../tests/golden/vault_words.tsv");
        let mut rows = 0;
        for row in table.lines().filter(|row| !row.starts_with('#')) {
            let fields: Vec<&str> = row.split('\t').collect();
            let [_, operation, status, words, meant] = fields[..] else { panic!("five fields: {row}") };
            let operation = match operation {
                "decrypt" => Operation::Decrypt,
                "encrypt" => Operation::Encrypt,
                "read_key" => Operation::ReadKey,
                "renew_self" => Operation::RenewSelf,
                other => panic!("{other}"),
            };
            // A policy's refusal is a multierror, over several lines.
            let words = words.replace(": * ", ":\n\t* ");
            let body = serde_json::json!({ "errors": [words] }).to_string();
            let refusal =
                classify(operation, "transit/encrypt/kms", status.parse().unwrap(), body.as_bytes());
            assert_eq!(format!("{:?} {:?}", refusal.error.fault, refusal.consequence), meant, "{row}");
            rows += 1;
        }
        assert!(rows > 15);
    }

    /// The recognised refusals stand in the table above; whatever else comes is none.
    #[test]
    fn what_is_not_recognised_is_never_final() {
        let bodies = [
            "",
            "<html>Bad Gateway</html>",
            "404 page not found",
            "{}",
            "[]",
            r#"{"error":"nope"}"#,
            r#"{"errors":["path disabled in replication DR secondary mode"]}"#,
            r#"{"errors":["something that nobody has heard of"]}"#,
        ];
        for status in 100..600 {
            for body in bodies {
                let is_vaults = body.contains("errors");
                let recognised = [413, 429].contains(&status) || is_vaults && [403, 404].contains(&status);
                if is_answer(status, body.as_bytes()) {
                    continue;
                }
                let refusal = classify(Operation::Decrypt, "p", status, body.as_bytes());
                assert_eq!(
                    refusal.consequence == Consequence::Final,
                    recognised,
                    "{status} {body}: {refusal:?}"
                );
            }
        }
    }

    #[test]
    fn an_answer_that_is_not_vaults_speaks_against_its_node_and_not_of_token_or_key() {
        for status in [200, 400, 401, 403, 404, 407, 472, 500, 502, 503, 504] {
            for body in [&b""[..], b"<html>Bad Gateway</html>", b"404 page not found", b"{}"] {
                let refusal = classify(Operation::ReadKey, "p", status, body);
                assert_eq!(refusal.consequence, Consequence::Eject, "{status}");
                assert_eq!(refusal.error.fault, Fault::Nonsense, "{status}");
            }
        }
        for body in [&br#"{"errors":[]}"#[..], br#"{"errors":null}"#] {
            assert_eq!(classify(Operation::ReadKey, "p", 404, body).error.fault, Fault::KeyLost);
        }
    }

    #[test]
    fn a_node_is_ready_by_its_status_and_in_vaults_words() {
        let vaults = br#"{"initialized":true,"sealed":false,"standby":true}"#;
        for status in [200, 429, 473] {
            assert!(is_ready(status, vaults), "{status}");
            for other in [&b""[..], b"{}", b"<html>", b"OK"] {
                assert!(!is_ready(status, other), "{status}");
            }
        }
        for status in [204, 301, 400, 401, 403, 404, 472, 474, 500, 501, 502, 503, 530] {
            assert!(!is_ready(status, vaults), "{status}");
        }
    }

    #[test]
    fn words_stay_on_one_short_line() {
        let body =
            serde_json::json!({ "errors": [format!("a\n\tb\u{1b}[31m {}", "x".repeat(5000))] }).to_string();
        let message = classify(Operation::Encrypt, "p", 500, body.as_bytes()).error.message;
        assert!(message.len() < 400 && !message.contains(char::is_control), "{message}");
    }
}
