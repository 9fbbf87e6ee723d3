//! What Vault's answers mean: from status and words to a [`Fault`].
//!
//! Vault tells cases apart in its words only. They are in `tests/golden/vault_words.tsv`,
//! were observed on OpenBao 2.7.2, and stand in the sources of both (`sdk/helper/keysutil/policy.go`, `builtin/logical/transit`,
//! `vault/request_handling.go`).

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

    /// The capability that a policy must grant on the path.
    fn capability(self) -> &'static str {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => "update",
            Self::Health | Self::LookupSelf | Self::ReadKey => "read",
        }
    }
}

/// Vault's error body; `errors` is there even if it is empty or null.
fn errors_of(body: &[u8]) -> Option<Vec<String>> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let errors = body.get("errors")?.as_array().cloned().unwrap_or_default();
    Some(errors.iter().filter_map(|error| error.as_str().map(str::to_owned)).collect())
}

/// Whether this answers what was asked: a success, or a batch of which some items failed, which comes
/// as 400 (500 if only Vault is to blame) with the results of all of them.
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

/// The meaning of an answer that is not a success. `path` is without `/v1/`.
pub(super) fn meaning(operation: Operation, path: &str, status: u16, body: &[u8]) -> TransitError {
    meaning_of_words(operation, path, status, errors_of(body))
}

/// The meaning of `error`, which one item of a batch failed with.
pub(super) fn meaning_of_item(operation: Operation, path: &str, error: String) -> TransitError {
    meaning_of_words(operation, path, 400, Some(vec![error]))
}

fn meaning_of_words(
    operation: Operation,
    path: &str,
    status: u16,
    vaults: Option<Vec<String>>,
) -> TransitError {
    let is_vaults = vaults.is_some();
    let errors = vaults.unwrap_or_default();
    let said = quotable(&errors);
    let has = |words: &str| said.contains(words);
    let error = |fault, message: String| TransitError::new(fault, message);
    match status {
        // A proxy's "not found" says nothing about the key, and its "forbidden" nothing about the policy.
        403 | 404 if !is_vaults => error(
            Fault::Unreachable,
            format!("something that is not Vault answered {status}: is a proxy in front of it?"),
        ),
        400 if has("version is too new") || has("higher than the latest key version") => {
            error(Fault::Lagging, format!("this Vault node does not know the key version: {said}"))
        }
        400 if has("minimum encryption key version") => error(
            Fault::TooOld,
            "min_encryption_version of the key was raised above the version in use: reading the key anew, \
             the next Encrypt uses the newer version"
                .into(),
        ),
        400 if has("too old") => error(
            Fault::TooOld,
            "the ciphertext's key version is below min_decryption_version of the key: lower it to read this \
             value again"
                .into(),
        ),
        400 if has("soft-deleted") => {
            error(Fault::KeyLost, format!("the key is soft-deleted, restore it: {said} ({path})"))
        }
        400 if has("encryption key not found") => error(
            Fault::KeyLost,
            format!("the key does not exist ({path}): restore it, or correct vault.keynames"),
        ),
        400 if has("message authentication failed") || has("invalid ciphertext") => error(
            Fault::BadCiphertext,
            format!("the ciphertext is damaged or was made with another key: {said} ({path})"),
        ),
        400 if has("missing 'context'") => {
            error(Fault::Denied, format!("the key is derived: use one that is not ({path})"))
        }
        400 if has("high complexity") => {
            error(Fault::TooMuch, format!("Vault takes less at once than was asked for: {said}"))
        }
        413 => {
            error(Fault::TooMuch, "a request was longer than Vault, or a proxy in front of it, takes".into())
        }
        400 if has("missing client token") => error(Fault::TokenDead, said),
        403 if is_about_the_token(&errors) => error(
            Fault::TokenDead,
            "Vault does not accept the token any more (expired, revoked, or from another Vault): the agent \
             has to render a new one"
                .into(),
        ),
        403 => error(
            Fault::Denied,
            format!(
                "the token's policy does not allow {}: grant `{}` on {path}{}",
                operation.name(),
                operation.capability(),
                if operation == Operation::Encrypt { ", and see that the key exists" } else { "" }
            ),
        ),
        404 => error(
            Fault::KeyLost,
            format!(
                "not found: {path}{}; check vault.keynames, vault.transitpath and vault.namespace",
                if said.is_empty() { String::new() } else { format!(" ({said})") }
            ),
        ),
        301..=308 => error(
            Fault::Unreachable,
            format!("Vault answered with a redirect ({status}), which is not followed"),
        ),
        412 | 429 | 472..=474 | 500..=599 => error(
            Fault::Unreachable,
            format!(
                "Vault answered {status}{}",
                if said.is_empty() { String::new() } else { format!(": {said}") }
            ),
        ),
        _ => error(Fault::Nonsense, format!("Vault answered {status} to {}: {said}", operation.name())),
    }
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
                other => panic!("{other}"),
            };
            // A policy's refusal is a multierror, over several lines.
            let words = words.replace(": * ", ":\n\t* ");
            let body = serde_json::json!({ "errors": [words] }).to_string();
            let error = meaning(operation, "transit/encrypt/kms", status.parse().unwrap(), body.as_bytes());
            assert_eq!(format!("{:?}", error.fault), meant, "{row}");
            rows += 1;
        }
        assert!(rows > 15);
        assert_eq!(meaning(Operation::Encrypt, "p", 418, b"").fault, Fault::Nonsense);
    }

    #[test]
    fn a_body_that_is_not_vaults_is_no_trouble() {
        for body in [&b""[..], b"<html>Bad Gateway</html>", b"{\"errors\":null}", b"[]"] {
            assert_eq!(meaning(Operation::Encrypt, "p", 502, body).fault, Fault::Unreachable);
        }
        for body in [&b""[..], b"404 page not found", b"{}"] {
            // A proxy whose back ends roll; the key is where it was.
            assert_eq!(meaning(Operation::ReadKey, "p", 404, body).fault, Fault::Unreachable);
            assert_eq!(meaning(Operation::Encrypt, "p", 403, body).fault, Fault::Unreachable);
        }
        for body in [&br#"{"errors":[]}"#[..], br#"{"errors":null}"#] {
            assert_eq!(meaning(Operation::ReadKey, "p", 404, body).fault, Fault::KeyLost);
        }
    }

    #[test]
    fn words_stay_on_one_short_line() {
        let body =
            serde_json::json!({ "errors": [format!("a\n\tb\u{1b}[31m {}", "x".repeat(5000))] }).to_string();
        let message = meaning(Operation::Encrypt, "p", 500, body.as_bytes()).message;
        assert!(message.len() < 400 && !message.contains(char::is_control), "{message}");
    }
}
