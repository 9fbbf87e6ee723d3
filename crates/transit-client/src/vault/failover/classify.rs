//! What Vault's answers mean: from status and words to a [`ErrorKind`].
//!
//! Vault tells cases apart in its words only. They are in `tests/golden/vault_errors.tsv`,
//! were observed on OpenBao 2.7.2, and stand in the sources of both (`sdk/helper/keysutil/policy.go`, `builtin/logical/transit`,
//! `vault/request_handling.go`).

use std::fmt;

use http::Method;
use serde::{Deserialize, de::IgnoredAny};

use crate::{ErrorKind, TransitError, text::one_line};

/// What was asked of Vault, as metrics name it and as messages speak of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// `transit/decrypt/<key>`.
    Decrypt,
    /// `transit/encrypt/<key>`.
    Encrypt,
    /// `sys/health`.
    Health,
    /// `auth/token/lookup-self`.
    LookupSelf,
    /// `transit/keys/<key>`.
    ReadKey,
    /// `auth/token/renew-self`.
    RenewSelf,
}

impl Operation {
    /// The name in metrics and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
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
    pub(crate) fn is_a_callers(self) -> bool {
        matches!(self, Self::Decrypt | Self::Encrypt)
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Decrypt | Self::Encrypt | Self::RenewSelf => Method::POST,
            Self::Health | Self::LookupSelf | Self::ReadKey => Method::GET,
        }
    }

    /// Whether it is about the token itself. What a node says of that is no news of the node.
    pub(crate) fn is_token_care(self) -> bool {
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

/// Where something is asked for, as messages name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) namespace: Option<&'a str>,
    /// Without `/v1/`.
    pub(crate) path: &'a str,
}

impl Place<'_> {
    /// What may be wrong with the namespace, as the end of a sentence.
    fn namespace_hint(self) -> &'static str {
        match self.namespace {
            Some(_) => "; Vault Community Edition has no namespaces: leave vault.namespace out there",
            None => "; a token of a child namespace needs vault.namespace",
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace `{namespace}`"),
            None => Ok(()),
        }
    }
}

/// What follows from an answer that is not a success.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Consequence {
    /// The answer speaks against the node as a whole. Another node is asked, and this one is ejected.
    Eject,
    /// Vault refuses the request in words that are recognised. The call ends.
    Final,
    /// The answer speaks for this path, mount or moment. Another node is asked, and this one stays.
    Next,
}

/// An answer that is not a success, and what it means.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) consequence: Consequence,
    pub(crate) error: TransitError,
}

impl Refusal {
    /// Every refusal names its cause and the next step, and quotes Vault's own words.
    fn new(consequence: Consequence, kind: ErrorKind, cause: &str, next: &str, said: &str) -> Self {
        let quote = if said.is_empty() { String::new() } else { format!(" (Vault says: {said})") };
        Self { consequence, error: TransitError::new(kind, format!("{cause}: {next}{quote}")) }
    }
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
pub(crate) fn is_answer(status: u16, body: &[u8]) -> bool {
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
pub(crate) fn is_ready(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Health {
        #[serde(rename = "initialized")]
        _initialized: bool,
    }
    // 429 is a standby, 473 a performance standby. A secondary for disaster recovery (472) serves nothing.
    matches!(status, 200 | 429 | 473) && serde_json::from_slice::<Health>(body).is_ok()
}

/// The meaning of an answer that is not a success.
pub(crate) fn classify(operation: Operation, place: Place<'_>, status: u16, body: &[u8]) -> Refusal {
    match errors_of(body) {
        Some(errors) => classify_words(operation, place, status, &errors),
        None => classify_foreign(operation, status, body),
    }
}

/// The meaning of `error`, which one item of a batch failed with.
pub(crate) fn meaning_of_item(operation: Operation, place: Place<'_>, error: String) -> TransitError {
    classify_words(operation, place, 400, &[error]).error
}

/// An answer that is not Vault's: a page of a proxy, a captive portal, another program.
///
/// Only two of them say something about the request: a limit of size, and a limit of rate.
fn classify_foreign(operation: Operation, status: u16, body: &[u8]) -> Refusal {
    use Consequence::{Eject, Next};

    let (consequence, kind, cause, next) = match status {
        301..=308 => (
            Eject,
            ErrorKind::Unreachable,
            format!("Vault answered with a redirect ({status}), which is not followed"),
            "name the nodes themselves in vault.addresses, not a proxy or a standby that sends clients on",
        ),
        // Vault answers this with an empty object, when the state that a header asks for is not there yet.
        412 => (
            Next,
            ErrorKind::Unreachable,
            "this Vault node has not caught up with the others (412)".into(),
            "if it stays so, look at the replication of Vault",
        ),
        413 => return too_much(""),
        429 => return throttled(""),
        400 if is_from_a_tls_port(body) => (
            Eject,
            ErrorKind::InvalidResponse,
            "the port speaks TLS".into(),
            "write https:// in the address, not http://",
        ),
        _ => (
            Eject,
            ErrorKind::InvalidResponse,
            format!("something that is not Vault answered {status} to {}", operation.name()),
            foreign(status),
        ),
    };
    Refusal::new(consequence, kind, &cause, next, "")
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

fn too_much(said: &str) -> Refusal {
    let cause = "a request was longer than Vault, or a proxy in between, takes";
    let next = "raise max_request_size of Vault's listener, or the limit of the proxy";
    Refusal::new(Consequence::Final, ErrorKind::BatchTooLarge, cause, next, said)
}

/// Going to another node would be a way around the limit that an operator has set.
fn throttled(said: &str) -> Refusal {
    let cause = "Vault limits the rate of requests (429)";
    let next = "raise the quota, or call less often";
    Refusal::new(Consequence::Final, ErrorKind::Throttled, cause, next, said)
}

/// An answer with Vault's error body. What is final stands here, row by row; nothing else is.
fn classify_words(operation: Operation, place: Place<'_>, status: u16, errors: &[String]) -> Refusal {
    use Consequence::{Eject, Final, Next};

    let said = quotable(errors);
    let has = |words: &str| said.contains(words);
    let (consequence, kind, cause, next): (_, _, String, String) = match status {
        400 if has("version is too new") || has("higher than the latest key version") => (
            Next,
            ErrorKind::VersionUnavailable,
            "this Vault node does not know the key version".into(),
            "it lags behind the others, or an older Vault was restored".into(),
        ),
        400 if has("minimum encryption key version") => (
            Final,
            ErrorKind::VersionTooOld,
            "min_encryption_version of the key was raised above the version in use".into(),
            "transit-kms reads the key again, and the next Encrypt uses the newer version".into(),
        ),
        400 if has("too old") => (
            Final,
            ErrorKind::VersionTooOld,
            "the ciphertext's key version is below min_decryption_version of the key".into(),
            "lower it to read this value again".into(),
        ),
        400 if has("soft-deleted") => (
            Final,
            ErrorKind::KeyNotFound,
            format!("the key is soft-deleted ({place})"),
            "restore it (write to its soft-delete-restore)".into(),
        ),
        400 if has("encryption key not found") => (
            Final,
            ErrorKind::KeyNotFound,
            format!("the key does not exist ({place})"),
            "restore it, or correct vault.keynames".into(),
        ),
        _ if is_about_the_ciphertext(status, &said) => (
            Final,
            ErrorKind::BadCiphertext,
            format!("the ciphertext is damaged or was made with another key ({place})"),
            "compare the value with a snapshot of etcd, or name the other key in vault.keynames, behind the \
             first"
                .into(),
        ),
        400 if has("missing 'context'") => (
            Final,
            ErrorKind::Denied,
            format!("the key is derived ({place})"),
            "use a key of type aes256-gcm96 that is not derived".into(),
        ),
        400 if has("high complexity") => (
            Final,
            ErrorKind::BatchTooLarge,
            "Vault takes less at once than was asked for".into(),
            "it is asked for less from now on; the limits are max_request_json_strings and \
             max_request_json_memory of Vault's listener"
                .into(),
        ),
        400 if has("missing client token") => (
            Final,
            ErrorKind::TokenInvalid,
            "Vault has seen no token".into(),
            "does a proxy in between take the header X-Vault-Token away?".into(),
        ),
        400 if has("decryption not supported for key type") => (
            Final,
            ErrorKind::Denied,
            format!("the key is of a type that cannot decrypt ({place})"),
            "name a key of type aes256-gcm96 in vault.keynames".into(),
        ),
        403 if is_about_the_token(errors) => (
            Final,
            ErrorKind::TokenInvalid,
            "Vault does not accept the token any more (it is expired, revoked, of another Vault or namespace, \
             used from outside its bound CIDRs, or its entity is disabled)"
                .into(),
            format!("the agent has to render a new one{}", place.namespace_hint()),
        ),
        403 => (
            Final,
            ErrorKind::Denied,
            format!("the token's policy does not allow {}", operation.name()),
            format!(
                "grant `{}` on {place}{}{}",
                operation.capability(),
                also(operation),
                place.namespace_hint()
            ),
        ),
        404 => (Final, ErrorKind::KeyNotFound, format!("not found: {place}"), absent(&said).into()),
        413 => return too_much(&said),
        429 => return throttled(&said),
        412 | 500..=599 => {
            // What speaks of the node, and what to do.
            let node = [
                ("sealed", "unseal it"),
                ("not initialized", "initialize it, or correct the address"),
                ("not yet initialized", "initialize it, or correct the address"),
                ("node not active", "the cluster has no leader: look at its nodes"),
            ];
            let known = node.iter().find(|(words, _)| has(words));
            (
                if known.is_some() { Eject } else { Next },
                ErrorKind::Unreachable,
                format!("Vault answered {status} to {}", operation.name()),
                known.map_or("Vault's own log says why", |(_, next)| next).into(),
            )
        }
        _ => (
            Eject,
            ErrorKind::InvalidResponse,
            format!("Vault answered {status} to {}", operation.name()),
            if has("replication DR secondary") {
                "it is a secondary for disaster recovery: name the nodes of the primary in vault.addresses"
            } else {
                "Vault's own log may say why"
            }
            .into(),
        ),
    };
    Refusal::new(consequence, kind, &cause, &next, &said)
}

/// What else must be so before Vault allows it: it answers the same if it is not.
fn also(operation: Operation) -> &'static str {
    match operation {
        Operation::Encrypt => {
            ", see that the key exists, and that `allowed_parameters` of the policy, if it has them, name \
             `plaintext` and `key_version`"
        }
        Operation::Decrypt => {
            ", and see that `allowed_parameters` of the policy, if it has them, name `ciphertext` and \
             `batch_input`"
        }
        Operation::Health | Operation::LookupSelf | Operation::ReadKey | Operation::RenewSelf => "",
    }
}

/// What to do about something that is not there.
fn absent(said: &str) -> &'static str {
    if said.contains("namespace not found") {
        "create the namespace, or correct vault.namespace"
    } else if said.contains("no handler for route") || said.contains("unsupported path") {
        "nothing is mounted there: mount Transit, or correct vault.transitpath and vault.namespace"
    } else {
        "create or restore it, or check vault.keynames, vault.transitpath and vault.namespace"
    }
}

/// The ciphertext is damaged, or another key made it. To that of another key, an RSA key answers 500.
fn is_about_the_ciphertext(status: u16, said: &str) -> bool {
    match status {
        400 => said.contains("message authentication failed") || said.contains("invalid ciphertext"),
        500 => said.contains("failed to RSA decrypt"),
        _ => false,
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

/// Vault's own words, on one line and not too many: they go into logs and to callers. Vault does not
/// repeat tokens; what looks like one is cut all the same.
fn quotable(errors: &[String]) -> String {
    let line = one_line(&errors.join("; "));
    line.split(' ').map(without_token).collect::<Vec<_>>().join(" ")
}

/// Cuts a word where a token begins: `hvs.`, `hvb.` or `hvr.`, or one letter, a dot, and much behind it.
fn without_token(word: &str) -> String {
    const LEAST: usize = 16;
    let starts = word.char_indices().map(|(at, _)| at);
    let token = starts.filter_map(|at| word.split_at_checked(at)).find(|(before, rest)| {
        let begins_here = !before.ends_with(|c: char| c.is_alphanumeric());
        let long = |rest: &str| {
            rest.chars().take_while(|c| c.is_alphanumeric() || "-_.".contains(*c)).count() >= LEAST
        };
        begins_here
            && (["hvs.", "hvb.", "hvr."].iter().any(|prefix| rest.starts_with(prefix))
                || ["s.", "b.", "r."].iter().any(|prefix| rest.strip_prefix(prefix).is_some_and(long)))
    });
    match token {
        Some((before, _)) => format!("{before}***"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Place<'_> {
        Place { namespace: None, path }
    }

    /// The table is shared with `tests/it/vault_errors.rs`, which holds it to a real server.
    #[test]
    fn words_and_their_meaning() {
        let table = include_str!("../../../../../tests/golden/vault_errors.tsv");
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
                classify(operation, at("transit/encrypt/kms"), status.parse().unwrap(), body.as_bytes());
            assert_eq!(format!("{:?} {:?}", refusal.error.kind, refusal.consequence), meant, "{row}");
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
                let refusal = classify(Operation::Decrypt, at("p"), status, body.as_bytes());
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
                let refusal = classify(Operation::ReadKey, at("p"), status, body);
                assert_eq!(refusal.consequence, Consequence::Eject, "{status}");
                assert_eq!(refusal.error.kind, ErrorKind::InvalidResponse, "{status}");
            }
        }
        for body in [&br#"{"errors":[]}"#[..], br#"{"errors":null}"#] {
            assert_eq!(classify(Operation::ReadKey, at("p"), 404, body).error.kind, ErrorKind::KeyNotFound);
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
        for status in [400, 403, 404, 500, 503] {
            let message = classify(Operation::Encrypt, at("p"), status, body.as_bytes()).error.message;
            assert!(message.len() < 800 && !message.contains(char::is_control), "{message}");
        }
    }

    #[test]
    fn every_refusal_has_a_next_step_and_quotes_vault() {
        let words = include_str!("../../../../../tests/golden/vault_errors.tsv").lines();
        let words = words.filter(|row| !row.starts_with('#')).filter_map(|row| row.split('\t').nth(3));
        let bodies = words.map(|words| serde_json::json!({ "errors": [words] }).to_string());
        let others = ["", "<html>Bad Gateway</html>", "{}", r#"{"errors":[]}"#, r#"{"errors":null}"#];
        for body in bodies.chain(others.map(str::to_owned)) {
            for status in (100..600).filter(|status| !is_answer(*status, body.as_bytes())) {
                for operation in
                    [Operation::Decrypt, Operation::Encrypt, Operation::ReadKey, Operation::RenewSelf]
                {
                    let message = classify(operation, at("p"), status, body.as_bytes()).error.message;
                    let (cause, next) = message.split_once(": ").unwrap();
                    assert!(!cause.is_empty() && next.len() > 8 && !message.ends_with(':'), "{message}");
                    let said = errors_of(body.as_bytes()).unwrap_or_default();
                    assert!(said.iter().all(|said| message.contains(said)), "{message}");
                }
            }
        }
    }

    #[test]
    fn what_looks_like_a_token_is_not_quoted() {
        let token = "CAESIJ0123456789abcdef";
        for told in [
            format!("bad token hvs.{token} here"),
            format!("bad token \"hvb.{token}\""),
            format!("token=s.{token}"),
            format!("(b.{token})"),
            format!("{token}:r.{token}"),
        ] {
            let said = quotable(std::slice::from_ref(&told));
            assert!(said.contains("***") && !said.contains(&format!(".{token}")), "{said}");
        }
        for kept in [
            "no handler for route \"transit/keys/kms\". route entry not found.",
            "vault.example.org",
            "s.bogus",
        ] {
            assert_eq!(quotable(&[kept.to_owned()]), kept);
        }
    }

    #[test]
    fn a_namespace_is_named_and_doubted() {
        let policy = br#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;
        let place = Place { namespace: Some("team-a"), path: "transit/encrypt/kms" };
        // Vault Community Edition takes the namespace for a part of the path. It is not here to be asked.
        let message = classify(Operation::Encrypt, place, 403, policy).error.message;
        assert!(message.contains("`update` on transit/encrypt/kms in namespace `team-a`"), "{message}");
        assert!(message.contains("Vault Community Edition has no namespaces"), "{message}");
        let message = classify(Operation::Encrypt, at("transit/encrypt/kms"), 403, policy).error.message;
        assert!(message.contains("a token of a child namespace needs vault.namespace"), "{message}");
    }
}
