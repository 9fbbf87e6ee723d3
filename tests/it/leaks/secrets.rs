//! The search for secrets in all that a program prints.

use std::collections::HashMap;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use rand::RngExt;
use serde_json::json;
use testkit::cli::Ran;
use tonic::Status;

/// The length of a part of a secret, or of an encoding of it, that counts as a leak.
const MIN_LEAK_LENGTH: usize = 16;

/// A random text that cannot occur by chance.
pub(crate) fn sentinel() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzACDEFGHJKLMNPQRTUVWXY34679";
    let mut rng = rand::rng();
    (0..28).map(|_| char::from(LETTERS[rng.random_range(..LETTERS.len())])).collect()
}

/// All output and responses, with their sources.
#[derive(Default)]
pub(crate) struct Output(Vec<(String, String)>);

impl Output {
    pub(crate) fn add(&mut self, who: &str, what: String) {
        self.0.push((who.to_owned(), what));
    }

    pub(crate) fn add_error(&mut self, who: &str, status: &Status) {
        self.add(who, format!("{status:?} {status} {}", status.message()));
    }

    pub(crate) fn add_run(&mut self, who: &str, ran: &Ran) {
        self.add(who, format!("{}{}", ran.stdout, ran.stderr));
    }

    /// Asserts that there is no token of Vault or OpenBao, by its form: the test does not know the tokens that a login
    /// brings.
    #[track_caller]
    pub(crate) fn assert_no_token(&self) {
        for (who, text) in &self.0 {
            let line = text.lines().find(|line| has_token(line));
            assert!(line.is_none(), "{who} tells a token: {}", line.unwrap_or_default());
        }
    }
}

/// The parts of all encodings of all secrets, with the names of the secrets.
#[derive(Default)]
pub(crate) struct Secrets(HashMap<Vec<u8>, &'static str>);

impl Secrets {
    pub(crate) fn add(&mut self, name: &'static str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        assert!(secret.len() > MIN_LEAK_LENGTH, "{name} is too short, so it could occur by chance");
        for encoding in encodings(secret) {
            for piece in encoding.windows(MIN_LEAK_LENGTH) {
                self.0.insert(piece.to_vec(), name);
            }
        }
    }

    /// Adds the body of a PEM key and its decoded bytes. The common prefix of all keys of a kind is no secret, but does not
    /// occur by chance either.
    pub(crate) fn add_pem(&mut self, name: &'static str, pem: &str) {
        let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        for line in &lines {
            self.add(name, line);
        }
        self.add(name, BASE64.decode(lines.concat()).unwrap());
    }

    pub(crate) fn found_in(&self, said: &Output) -> Option<String> {
        said.0.iter().find_map(|(who, text)| {
            let bytes = text.as_bytes();
            let at = bytes.windows(MIN_LEAK_LENGTH).position(|piece| self.0.contains_key(piece))?;
            let line = text.lines().find(|line| {
                line.as_bytes().windows(MIN_LEAK_LENGTH).any(|piece| self.0.contains_key(piece))
            });
            let name = self.0[&bytes[at..at + MIN_LEAK_LENGTH]];
            Some(format!("{who} tells {name}: {}", line.unwrap_or(text)))
        })
    }

    #[track_caller]
    pub(crate) fn assert_none_in(&self, said: &Output) {
        if let Some(found) = self.found_in(said) {
            panic!("{found}");
        }
    }
}

/// Whether a service, batch or recovery token occurs: a prefix, a dot, and at least 20 characters.
fn has_token(line: &str) -> bool {
    let parts: Vec<_> = line.split('.').collect();
    parts.windows(2).any(|around_dot| {
        let prefix = around_dot[0].rsplit(|c: char| !c.is_ascii_alphanumeric()).next();
        let body = around_dot[1].chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c));
        ["b", "hvb", "hvr", "hvs", "r", "s"].map(Some).contains(&prefix) && body.count() >= 20
    })
}

/// The encodings in which a secret could be printed.
fn encodings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![
        secret.to_vec(),
        hex::encode(secret).into_bytes(),
        hex::encode(secret).to_uppercase().into_bytes(),
        format!("{secret:?}").trim_matches(['[', ']']).as_bytes().to_vec(),
        format!("{:?}", bytes::Bytes::copy_from_slice(secret)).into_bytes(),
        secret.escape_ascii().to_string().into_bytes(),
    ];
    // Base64 depends on the offset modulo 3. All three variants are searched, without the letters at the ends, which
    // depend on the neighbouring bytes.
    for (before, own) in [(0, 0), (1, 2), (2, 3)] {
        let bytes = [&vec![0; before][..], secret].concat();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = engine.encode(&bytes);
            all.push(text.as_bytes()[own..text.len() - 1].to_vec());
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        all.push(json!(text).to_string().trim_matches('"').as_bytes().to_vec());
        let space_as = |space: &str| {
            let of = |byte: u8| match byte {
                b' ' => space.to_owned(),
                _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            };
            secret.iter().copied().map(of).collect::<String>().into_bytes()
        };
        all.extend([space_as("+"), space_as("%20")]);
    }
    all
}

/// Checks the search itself.
#[test]
fn the_search_finds_every_encoding_of_a_secret() {
    let secret: [u8; 32] = rand::random();
    let mut secrets = Secrets::default();
    secrets.add("it", secret);
    secrets.add("a word", "a \"secret\" of %&/ words and nothing else");
    let found = |text: String| {
        let mut said = Output::default();
        said.add("a line", format!("what stands before it {text} and after"));
        secrets.found_in(&said).is_some()
    };
    let part = &secret[5..29];
    for text in [
        BASE64.encode(secret),
        BASE64.encode([b"x", part].concat()),
        BASE64.encode([b"xy", part].concat()),
        URL_SAFE_NO_PAD.encode([b"xyz", part].concat()),
        hex::encode(part),
        hex::encode(part).to_uppercase(),
        format!("{part:?}"),
        format!("{:?}", bytes::Bytes::copy_from_slice(part)),
        part.escape_ascii().to_string(),
        "\"secret\" of %&/ words".to_owned(),
        json!({"x": "\"secret\" of %&/ words"}).to_string(),
        "%22secret%22+of+%25%26%2F".to_owned(),
        "%22secret%22%20of%20%25%26%2F".to_owned(),
    ] {
        assert!(found(text.clone()), "{text}");
    }
    assert!(!found("[12, 34, 56, 78, 90, 12, 34] 0123456789abcdef".to_owned()));
}

#[test]
fn the_search_finds_tokens_by_their_form() {
    for token in ["s.4rZ7HqZ1x0aBcDeFgHiJkLmN", "hvs.CAESIJ-4rZ7HqZ1x0aBcDeFgHiJk", "b.AAAAAQKhF4rZ7HqZ1x0aB"]
    {
        for line in
            [token.to_owned(), format!("x-vault-token: {token}"), json!({ "token": token }).to_string()]
        {
            assert!(has_token(&line), "{line}");
        }
    }
    for line in ["keys.abcdefghijklmnopqrstuvwxyz", "s.short", "vaults.example.com", "it ends. Afterwards"] {
        assert!(!has_token(line), "{line}");
    }
}
