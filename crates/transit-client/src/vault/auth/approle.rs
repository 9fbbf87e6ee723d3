//! The login method `approle`: a role_id, and usually a secret_id.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/approle>

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{AuthMount, Login, LoginMethod, login::unusable};
use crate::{TransitError, token::Token, vault::lenient::Lenient};

/// A secret_id, and what is known about it.
#[derive(Clone)]
pub struct SecretId {
    /// How many logins it allows; 0 for any number, `None` if that is not known.
    pub num_uses: Option<u64>,
    /// The secret_id itself.
    pub value: SecretString,
}

impl SecretId {
    /// Whether it is known to allow one login only.
    #[must_use]
    pub fn is_single_use(&self) -> bool {
        self.num_uses == Some(1)
    }
}

/// What a delivery contains.
pub enum Delivered {
    /// A token whose cubbyhole holds the secret_id, or a wrapping token.
    Cubbyhole {
        /// The path in the cubbyhole, without `/v1/`.
        path: String,
        /// A token with one use left.
        token: Token,
    },
    /// The secret_id.
    SecretId(SecretId),
    /// A wrapping token, which unwraps to the secret_id.
    Wrapped(Token),
}

/// What a text that is not JSON means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PlainText {
    /// It is a secret_id.
    SecretId,
    /// It is a wrapping token.
    WrappingToken,
}

/// A delivery in JSON. It accepts what `vault write -format=json` prints, with and without `-wrap-ttl`, and the
/// `data` of a secret alone.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DeliveryBody {
    data: Option<Box<DeliveryBody>>,
    path: Option<String>,
    secret_id: Option<SecretString>,
    secret_id_num_uses: Lenient,
    token: Option<SecretString>,
    wrap_info: Option<WrapInfoBody>,
    wrapping_token: Option<SecretString>,
}

#[derive(Deserialize)]
struct WrapInfoBody {
    token: SecretString,
}

impl Delivered {
    /// Reads a delivery: JSON, or a text that means what `plain` says. `what` names it in errors.
    ///
    /// # Errors
    /// If it is empty or is not a delivery. The error contains nothing of it.
    pub fn parse(bytes: &[u8], plain: PlainText, what: &str) -> Result<Self, TransitError> {
        let text = std::str::from_utf8(bytes).map_err(|_| unusable(format!("{what} is not text")))?.trim();
        if text.is_empty() {
            return Err(unusable(format!("{what} is empty: it may be half written")));
        }
        if text.starts_with('{') {
            let body: DeliveryBody = serde_json::from_str(text).map_err(|_| {
                unusable(format!("{what} begins like JSON and is none: it may be half written"))
            })?;
            return body.delivered(what);
        }
        if text.contains(char::is_whitespace) {
            return Err(unusable(format!("{what} contains more than one word: is it the right file?")));
        }
        match plain {
            PlainText::SecretId => Ok(Self::SecretId(SecretId { num_uses: None, value: text.into() })),
            PlainText::WrappingToken => Ok(Self::Wrapped(token(text, what)?)),
        }
    }
}

impl DeliveryBody {
    fn delivered(self, what: &str) -> Result<Delivered, TransitError> {
        if let Some(data) = self.data {
            return data.delivered(what);
        }
        let wrapping = self.wrap_info.map(|info| info.token).or(self.wrapping_token);
        match (self.secret_id, wrapping, self.token, self.path) {
            (Some(value), None, ..) => {
                let num_uses = self.secret_id_num_uses.number().and_then(|uses| u64::try_from(uses).ok());
                Ok(Delivered::SecretId(SecretId { num_uses, value }))
            }
            (None, Some(wrapping), ..) => Ok(Delivered::Wrapped(token(wrapping.expose_secret(), what)?)),
            (None, None, Some(single), Some(path)) if is_cubbyhole_path(&path) => {
                Ok(Delivered::Cubbyhole { path, token: token(single.expose_secret(), what)? })
            }
            (None, None, Some(_), Some(_)) => {
                Err(unusable(format!("{what}: `path` must begin with cubbyhole/ and be a plain path")))
            }
            // The form of an agent's sink with `wrap_ttl`.
            (None, None, Some(single), None) => Ok(Delivered::Wrapped(token(single.expose_secret(), what)?)),
            _ => Err(unusable(format!(
                "{what} is JSON without a delivery: it needs `secret_id`, `wrap_info.token`, or `token` with `path`"
            ))),
        }
    }
}

/// The path becomes a part of a URL.
fn is_cubbyhole_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    path.split('/').next() == Some("cubbyhole")
        && path.split('/').count() > 1
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain))
}

fn token(text: &str, what: &str) -> Result<Token, TransitError> {
    Token::new(text).map_err(|rule| unusable(format!("{what}: the token in it {rule}")))
}

/// A login with this role_id.
#[must_use]
pub fn login(at: AuthMount, role_id: SecretString, secret_id: Option<SecretId>) -> Login {
    let Some(SecretId { num_uses, value }) = secret_id else {
        return Login::new(LoginMethod::AppRole, at, [("role_id", role_id)]);
    };
    let fields = [("role_id", role_id), ("secret_id", value)];
    Login::new(LoginMethod::AppRole, at, fields).with_uses(num_uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Delivered, TransitError> {
        Delivered::parse(text.as_bytes(), PlainText::SecretId, "the delivery")
    }

    #[test]
    fn a_delivery_is_read_in_every_form_that_tools_write() {
        for (text, uses) in [
            ("0e1f", None),
            (" 0e1f \n", None),
            (r#"{"secret_id":"0e1f"}"#, None),
            (r#"{"secret_id":"0e1f","secret_id_num_uses":1,"secret_id_ttl":600}"#, Some(1)),
            (
                r#"{"request_id":"r","data":{"secret_id":"0e1f","secret_id_num_uses":0},"wrap_info":null}"#,
                Some(0),
            ),
        ] {
            match parsed(text).unwrap_or_else(|error| panic!("{text}: {error}")) {
                Delivered::SecretId(secret_id) => {
                    assert_eq!(secret_id.value.expose_secret(), "0e1f", "{text}");
                    assert_eq!(secret_id.num_uses, uses, "{text}");
                }
                _ => panic!("{text}"),
            }
        }
        for text in [
            r#"{"wrap_info":{"token":"s.wrap","ttl":60,"creation_path":"auth/approle/role/r/secret-id"}}"#,
            r#"{"wrapping_token":"s.wrap"}"#,
            r#"{"token":"s.wrap","ttl":60}"#,
        ] {
            assert!(
                matches!(parsed(text), Ok(Delivered::Wrapped(token)) if token.expose() == "s.wrap"),
                "{text}"
            );
        }
        let plain = Delivered::parse(b"s.wrap\n", PlainText::WrappingToken, "it");
        assert!(matches!(plain, Ok(Delivered::Wrapped(token)) if token.expose() == "s.wrap"));
        let cubbyhole = parsed(r#"{"token":"s.one","path":"cubbyhole/node-1"}"#);
        assert!(matches!(cubbyhole, Ok(Delivered::Cubbyhole { path, .. }) if path == "cubbyhole/node-1"));
    }

    #[test]
    fn what_is_no_delivery_is_refused_without_a_quote_of_it() {
        for text in [
            "",
            " \n",
            "two words",
            "{\"secret_id\": \"s3cr3t",
            "{}",
            r#"{"data":{}}"#,
            r#"{"token":"s3cr3t","path":"secret/data/x"}"#,
            r#"{"token":"s3cr3t","path":"cubbyhole/../sys/x"}"#,
            r#"{"token":"s3cr3t","path":"cubbyhole/"}"#,
            r#"{"wrapping_token":"s3cr3t with spaces"}"#,
        ] {
            let Err(error) = parsed(text) else { panic!("{text}") };
            assert!(!error.message.contains("s3cr3t"), "{error}");
            assert!(error.message.contains("the delivery"), "{error}");
        }
    }
}
