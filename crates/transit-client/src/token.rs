//! A Vault token.

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

use crate::rule::BrokenRule;

/// The longest token, in bytes. Batch tokens have a few hundred.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// A Vault token. It is a valid header value, and is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Token(Arc<SecretString>);

impl Token {
    /// Trims white space around the token.
    ///
    /// # Errors
    /// If the token is empty, longer than [`MAX_TOKEN_BYTES`], or has characters other than visible ASCII.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim();
        if text.is_empty() {
            Err(BrokenRule("must not be empty"))
        } else if text.len() > MAX_TOKEN_BYTES {
            Err(BrokenRule("must not be longer than 4096 bytes"))
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(BrokenRule("must be visible ASCII characters without spaces"))
        } else {
            Ok(Self(Arc::new(SecretString::from(text))))
        }
    }

    /// The token itself. It must not get into logs or errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Eq for Token {}

impl PartialEq for Token {
    /// It does not take constant time: both tokens come from the config, and no peer can measure it.
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_header_value_and_is_not_shown() {
        let token = Token::new(" hvs.abc \n").unwrap();
        assert_eq!(token.expose(), "hvs.abc");
        assert_eq!(format!("{token:?}"), "Token(***)");
        assert_eq!(token, Token::new("hvs.abc").unwrap());
        assert_ne!(token, Token::new("hvs.abd").unwrap());
        for text in ["", "  ", "a b", "a\nb", "a\u{0}b", "\u{e9}", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(Token::new(text).is_err());
        }
        assert!(Token::new(&"x".repeat(MAX_TOKEN_BYTES)).is_ok());
    }
}
