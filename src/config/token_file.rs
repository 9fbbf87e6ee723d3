//! Reads a token that another program, such as an agent, keeps in a file of its own.

use serde::Deserialize;
use transit_client::token::Token;
use zeroize::Zeroizing;

/// The forms of JSON: `token` (the sink of an agent), `client_token` (`vault login -field=auth`), and
/// `auth.client_token` (the answer of a login). Other fields are not read.
#[derive(Deserialize)]
struct TokenJson {
    auth: Option<AuthJson>,
    client_token: Option<String>,
    /// Only wrapping information has it.
    creation_path: Option<serde::de::IgnoredAny>,
    token: Option<String>,
}

#[derive(Deserialize)]
struct AuthJson {
    client_token: Option<String>,
}

/// Returns the token in a file: the whole text, or one of three fields of JSON. The error never contains a part of
/// the file.
pub(super) fn token(contents: &[u8]) -> Result<Token, String> {
    let text = str::from_utf8(contents).map_err(|_| "is not UTF-8 text".to_owned())?.trim();
    if text.is_empty() {
        return Err("is empty; the file may be half written".to_owned());
    }
    if !text.starts_with('{') {
        return Token::new(text).map_err(|rule| format!("must contain a token: it {rule}"));
    }
    let json: TokenJson = serde_json::from_str(text)
        .map_err(|_| "is not the JSON of a token; the file may be half written".to_owned())?;
    let nested = json.auth.and_then(|auth| auth.client_token);
    let found = [json.token, json.client_token, nested].map(|field| field.map(Zeroizing::new));
    if json.creation_path.is_some() {
        return Err("contains a wrapping token: set delivery: wrapped".to_owned());
    }
    let token = found.iter().flatten().next();
    let token = token.ok_or("is JSON without token, client_token or auth.client_token")?;
    Token::new(token).map_err(|rule| format!("must contain a token: it {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_in_each_form() {
        for text in [
            "hvs.SENTINEL",
            " hvs.SENTINEL\n",
            "{\"token\": \"hvs.SENTINEL\", \"wrap_info\": null}",
            "\n{\"client_token\": \"hvs.SENTINEL\", \"accessor\": \"a\"}",
            "{\"auth\": {\"client_token\": \"hvs.SENTINEL\", \"policies\": []}, \"data\": null}",
            "{\"auth\": null, \"token\": \"hvs.SENTINEL\"}",
        ] {
            assert_eq!(token(text.as_bytes()).unwrap().expose(), "hvs.SENTINEL", "{text}");
        }
    }

    #[test]
    fn what_is_no_token_is_explained_without_its_text() {
        let wrapped = "{\"token\": \"hvs.SENTINEL\", \"ttl\": 300, \"creation_path\": \"sys/wrapping/wrap\"}";
        for (text, words) in [
            ("", "is empty; the file may be half written"),
            (" \n", "is empty"),
            ("hvs.SENTINEL hvs.SENTINEL", "must contain a token: it must be visible ASCII"),
            ("{\"token\": \"hvs.SENTINEL", "is not the JSON of a token; the file may be half written"),
            ("{\"token\": [\"hvs.SENTINEL\"]}", "is not the JSON of a token"),
            ("{\"value\": \"hvs.SENTINEL\"}", "is JSON without token, client_token or auth.client_token"),
            ("{\"token\": \"hvs.SENTINEL x\"}", "must contain a token: it must be visible ASCII"),
            (wrapped, "contains a wrapping token: set delivery: wrapped"),
        ] {
            let error = token(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(words) && !error.contains("SENTINEL"), "{text}: {error}");
        }
        assert_eq!(token(b"\xff").unwrap_err(), "is not UTF-8 text");
    }
}
