use super::{row::Row, *};
use crate::ErrorKind;

const GOLDEN: &str = include_str!("../../../../../../tests/golden/vault_errors.tsv");

/// The operations without the token of a session.
const LOGIN: [VaultOperation; 4] = [
    VaultOperation::Login,
    VaultOperation::ReadCubbyhole,
    VaultOperation::Unwrap,
    VaultOperation::WrappingLookup,
];

/// The meaning of an answer to a session with a rendered token.
fn classify(operation: VaultOperation, path: RequestPath<'_>, status: u16, body: &[u8]) -> Classified {
    classify_body(operation, path, TokenSource::Rendered, status, body)
}

fn at(path: &str) -> RequestPath<'_> {
    RequestPath { namespace: None, path }
}

/// `tests/it/vault_errors.rs` checks the same table against a real server.
#[test]
fn the_words_have_the_meaning_of_the_golden_table() {
    let mut rows = 0;
    for row in GOLDEN.lines().filter(|row| !row.starts_with('#')) {
        let fields: Vec<&str> = row.split('\t').collect();
        let [_, operation, status, words, meant] = fields[..] else { panic!("five fields: {row}") };
        let operation = match operation {
            "decrypt" => VaultOperation::Decrypt,
            "encrypt" => VaultOperation::Encrypt,
            "read_key" => VaultOperation::ReadKey,
            "renew_self" => VaultOperation::RenewSelf,
            other => *LOGIN.iter().find(|it| it.name() == other).unwrap_or_else(|| panic!("{other}")),
        };
        // The refusal of a policy is a multierror of several lines.
        let words = words.replace(": * ", ":\n\t* ");
        let body = serde_json::json!({ "errors": [words] }).to_string();
        let classified =
            classify(operation, at("transit/encrypt/kms"), status.parse().unwrap(), body.as_bytes());
        assert_eq!(format!("{:?} {:?}", classified.error.kind, classified.consequence), meant, "{row}");
        rows += 1;
    }
    assert!(rows > 15);
}

#[test]
fn an_answer_that_is_not_recognised_is_never_final() {
    let bodies = [
        "",
        "<html>Bad Gateway</html>",
        "404 page not found",
        "{}",
        "[]",
        r#"{"error":"nope"}"#,
        r#"{"errors":["path disabled in replication DR secondary mode"]}"#,
        r#"{"errors":["something unknown"]}"#,
    ];
    for status in 100..600 {
        for body in bodies {
            let is_vaults = body.contains("errors");
            let recognised = [413, 429].contains(&status) || is_vaults && [403, 404].contains(&status);
            if is_answer(status, body.as_bytes()) {
                continue;
            }
            let classified = classify(VaultOperation::Decrypt, at("p"), status, body.as_bytes());
            assert_eq!(
                classified.consequence == Consequence::Final,
                recognised,
                "{status} {body}: {classified:?}"
            );
        }
    }
}

#[test]
fn an_answer_that_is_not_vaults_ejects_its_node_and_says_nothing_about_token_or_key() {
    for status in [200, 400, 401, 403, 404, 407, 472, 500, 502, 503, 504] {
        for body in [&b""[..], b"<html>Bad Gateway</html>", b"404 page not found", b"{}"] {
            let classified = classify(VaultOperation::ReadKey, at("p"), status, body);
            assert_eq!(classified.consequence, Consequence::Eject, "{status}");
            assert_eq!(classified.error.kind, ErrorKind::InvalidResponse, "{status}");
        }
    }
    for body in [&br#"{"errors":[]}"#[..], br#"{"errors":null}"#] {
        assert_eq!(classify(VaultOperation::ReadKey, at("p"), 404, body).error.kind, ErrorKind::KeyNotFound);
    }
}

#[test]
fn a_node_is_ready_if_status_and_body_say_so() {
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
fn quotes_stay_on_one_short_line() {
    let body =
        serde_json::json!({ "errors": [format!("a\n\tb\u{1b}[31m {}", "x".repeat(5000))] }).to_string();
    for status in [400, 403, 404, 500, 503] {
        let message = classify(VaultOperation::Encrypt, at("p"), status, body.as_bytes()).error.message;
        assert!(message.len() < 800 && !message.contains(char::is_control), "{message}");
    }
}

#[test]
fn every_message_has_a_cause_and_a_remedy_and_quotes_vault() {
    let words = GOLDEN.lines();
    let words = words.filter(|row| !row.starts_with('#')).filter_map(|row| row.split('\t').nth(3));
    let bodies = words.map(|words| serde_json::json!({ "errors": [words] }).to_string());
    let others = ["", "<html>Bad Gateway</html>", "{}", r#"{"errors":[]}"#, r#"{"errors":null}"#];
    for body in bodies.chain(others.map(str::to_owned)) {
        for status in (100..600).filter(|status| !is_answer(*status, body.as_bytes())) {
            for operation in [
                VaultOperation::Decrypt,
                VaultOperation::Encrypt,
                VaultOperation::ReadKey,
                VaultOperation::RenewSelf,
            ]
            .into_iter()
            .chain(LOGIN)
            {
                let message = classify(operation, at("p"), status, body.as_bytes()).error.message;
                let (cause, remedy) = message.split_once(": ").unwrap();
                assert!(!cause.is_empty() && remedy.len() > 8 && !message.ends_with(':'), "{message}");
                let said = vault_errors(body.as_bytes()).unwrap_or_default();
                assert!(said.iter().all(|said| message.contains(said)), "{message}");
            }
        }
    }
}

#[test]
fn a_message_names_the_namespace_and_what_may_be_wrong_with_it() {
    let policy = br#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;
    let place = RequestPath { namespace: Some("team-a"), path: "transit/encrypt/kms" };
    // Vault Community Edition takes the namespace for a part of the path. No test server shows it.
    let message = classify(VaultOperation::Encrypt, place, 403, policy).error.message;
    assert!(message.contains("`update` on transit/encrypt/kms in namespace `team-a`"), "{message}");
    assert!(message.contains("Vault Community Edition has no namespaces"), "{message}");
    let message = classify(VaultOperation::Encrypt, at("transit/encrypt/kms"), 403, policy).error.message;
    assert!(message.contains("a token of a child namespace needs vault.namespace"), "{message}");
}

/// So that no row is added without its words in the golden table.
#[test]
fn every_row_with_words_is_in_the_golden_table() {
    let words = |row: &Row| match row.words {
        Words::Any => Vec::new(),
        Words::Contain(words) => words.to_vec(),
        Words::Equal(words) => vec![words],
    };
    for words in VAULT_ANSWERS.iter().chain(LOGIN_ANSWERS).flat_map(words) {
        let is_there = GOLDEN.lines().any(|line| {
            !line.starts_with('#') && line.split('\t').nth(3).is_some_and(|golden| golden.contains(words))
        });
        assert!(is_there, "`{words}` is not in tests/golden/vault_errors.tsv");
    }
}

#[test]
fn no_answer_to_a_login_says_that_a_token_is_invalid_or_a_key_is_at_fault() {
    let words = GOLDEN.lines().filter(|row| !row.starts_with('#')).filter_map(|row| row.split('\t').nth(3));
    for body in words.map(|words| serde_json::json!({ "errors": [words] }).to_string()) {
        for (status, operation) in [400, 403, 404].into_iter().flat_map(|it| LOGIN.map(|other| (it, other))) {
            let classified = classify(operation, at("auth/approle/login"), status, body.as_bytes());
            let (kind, message) = (classified.error.kind, classified.error.message);
            let expected = match status {
                _ if body.contains("DR secondary") => ErrorKind::InvalidResponse,
                404 => ErrorKind::KeyNotFound,
                _ => ErrorKind::Denied,
            };
            assert_eq!(kind, expected, "{status} {message}");
            assert!(!message.contains("vault.keynames") && !message.contains("Transit"), "{message}");
        }
    }
}

/// A request that uses up a credential is sent to another node after the answers of the first list only.
#[test]
fn vault_has_certainly_not_processed_a_request_only_if_the_answer_proves_it() {
    use Processed::{No, Unknown};
    let said = |words: &str| serde_json::json!({ "errors": [words] }).to_string();
    let html = || "<html>".to_owned();
    for (status, body, processed) in [
        (503, said("Vault is sealed"), No),
        (503, said("Vault is not initialized"), No),
        (500, said("local node not active but active cluster node not found"), No),
        (400, said("path disabled in replication DR secondary mode"), No),
        (412, said("required index state not present"), No),
        (412, "{}".into(), No),
        (400, "Client sent an HTTP request to an HTTPS server.".into(), No),
        (429, said("request path \"auth/approle/login\": rate limit quota exceeded"), No),
        // A standby answers these two after it has passed the request on as well.
        (307, String::new(), Unknown),
        (503, said("no active Vault instance found"), Unknown),
        (500, said("Vault is sealed"), Unknown),
        (503, said("failed to store the lease: Vault is sealed"), Unknown),
        (500, said("internal error"), Unknown),
        (502, said("upstream rate limited"), Unknown),
        (405, said("unsupported operation"), Unknown),
        (429, said("request path \"auth/approle/login\": lease count quota exceeded"), Unknown),
        (302, html(), Unknown),
        (401, html(), Unknown),
        (403, html(), Unknown),
        (404, html(), Unknown),
        (500, html(), Unknown),
        (502, html(), Unknown),
        (504, html(), Unknown),
    ] {
        let classified = classify(VaultOperation::Login, at("auth/approle/login"), status, body.as_bytes());
        assert_eq!(classified.processed, processed, "{status} {body}");
    }
}

#[test]
fn the_remedy_for_an_invalid_token_depends_on_where_tokens_come_from() {
    let refused = br#"{"errors":["permission denied"]}"#;
    let missing = br#"{"errors":["missing client token"]}"#;
    for (source, status, body, kind, words) in [
        (
            TokenSource::Rendered,
            403,
            &refused[..],
            ErrorKind::TokenInvalid,
            "the agent has to render a new one",
        ),
        (TokenSource::Login, 403, refused, ErrorKind::TokenInvalid, "transit-kms logs in again"),
        (TokenSource::Agent, 403, refused, ErrorKind::TokenInvalid, "set use_auto_auth_token"),
        (TokenSource::Agent, 400, missing, ErrorKind::TokenInvalid, "set use_auto_auth_token"),
        (TokenSource::Inline, 403, refused, ErrorKind::Denied, "needs OpenBao 2.6.2 or newer"),
        (TokenSource::Inline, 400, missing, ErrorKind::Denied, "needs OpenBao 2.6.2 or newer"),
    ] {
        let Classified { consequence, error, .. } =
            classify_body(VaultOperation::ReadKey, at("transit/keys/kms"), source, status, body);
        assert_eq!((consequence, error.kind), (Consequence::Final, kind), "{source:?}");
        assert!(error.message.contains(words), "{source:?}: {error}");
    }
    let away = br#"{"errors":["failed to get the response: context deadline exceeded"]}"#;
    let Classified { consequence, error, .. } =
        classify_body(VaultOperation::ReadKey, at("transit/keys/kms"), TokenSource::Agent, 500, away);
    assert_eq!((consequence, error.kind), (Consequence::Eject, ErrorKind::Unreachable));
    assert!(error.message.contains("the agent does not reach Vault"), "{error}");
}
