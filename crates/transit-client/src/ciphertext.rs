//! Ciphertexts of Transit: `vault:v<version>:<base64>`.

use std::fmt;

use crate::key_id::KeyVersion;

/// The longest ciphertext, in bytes. kube-apiserver refuses a longer one.
///
/// Source: `encryptedDEKSourceMaxSize` in k8s.io/apiserver
/// `pkg/storage/value/encrypt/envelope/kmsv2/envelope.go`.
pub const MAX_CIPHERTEXT_BYTES: usize = 1024;

/// A ciphertext of the right form. Only Transit can check its content.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Ciphertext {
    text: String,
    version: KeyVersion,
}

/// Why bytes are not a ciphertext of Transit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCiphertext {
    /// They are not of the form `vault:v<version>:<base64>`.
    #[error(
        "the ciphertext is not of the form vault:v<version>:<base64>: another provider made it, or it is damaged"
    )]
    Form,
    /// They are more than [`MAX_CIPHERTEXT_BYTES`].
    #[error("the ciphertext is longer than {MAX_CIPHERTEXT_BYTES} bytes")]
    TooLong,
}

impl Ciphertext {
    /// Checks the form of a ciphertext that kube-apiserver stored or Transit returned.
    ///
    /// # Errors
    /// If `bytes` is too long, or not of the form `vault:v<version>:<base64>`. Version 0 is an error too, because
    /// Transit would read it as version 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidCiphertext> {
        if bytes.len() > MAX_CIPHERTEXT_BYTES {
            return Err(InvalidCiphertext::TooLong);
        }
        let text = str::from_utf8(bytes).map_err(|_| InvalidCiphertext::Form)?;
        let (version, body) = text
            .strip_prefix("vault:v")
            .and_then(|rest| rest.split_once(':'))
            .ok_or(InvalidCiphertext::Form)?;
        let version = KeyVersion::parse(version).ok_or(InvalidCiphertext::Form)?;
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        if body.is_empty() || !body.bytes().all(base64) {
            return Err(InvalidCiphertext::Form);
        }
        Ok(Self { text: text.to_owned(), version })
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The key version that the ciphertext names.
    #[must_use]
    pub fn version(&self) -> KeyVersion {
        self.version
    }

    /// The text as bytes, as kube-apiserver stores it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertext(v{}, {} bytes)", self.version, self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_form_is_checked() {
        assert_eq!(Ciphertext::parse(b"vault:v12:QUJD").unwrap().version().number(), 12);
        for bad in [
            "",
            "vault:",
            "vault:v1",
            "vault:v1:",
            "vault:v0:QUJD",
            "vault:v01:QUJD",
            "vault:v-1:QUJD",
            "vault:-:QUJD",
            "vault:v1:QU JD",
            "vault:v1:QUJD\n",
            "kms:v1:QUJD",
            "Vault:v1:QUJD",
            "vault:v1:Ω",
        ] {
            assert_eq!(Ciphertext::parse(bad.as_bytes()), Err(InvalidCiphertext::Form), "{bad}");
        }
        let long = format!("vault:v1:{}", "A".repeat(MAX_CIPHERTEXT_BYTES));
        assert_eq!(Ciphertext::parse(long.as_bytes()), Err(InvalidCiphertext::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Ciphertext::parse(&bytes);
        }
    }
}
