//! Reads and decodes the input before the first request.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{PluginCommand, Target, report::CheckError};
use crate::v2::EncryptResponse;

/// Seeds have 32 bytes and ciphertexts at most 1 KiB. The rest is for base64 and for tests of the plugin's limits.
const MAX_INPUT_BYTES: u64 = 1024 * 1024;
/// The size of the DEK seeds that kube-apiserver sends.
pub const SEED_BYTES: usize = 32;

/// The calls of a check, with their decoded input.
pub enum KmsCall {
    /// Decrypt.
    Decrypt {
        /// The answer of an Encrypt.
        encrypted: EncryptResponse,
        /// Whether the plaintext is printed.
        show_plaintext: bool,
    },
    /// Encrypt.
    Encrypt(Plaintext),
    /// Status, Encrypt and Decrypt.
    Roundtrip,
    /// Status.
    Status,
}

impl KmsCall {
    /// Decodes the arguments of `command` and the files that they name. `input` is standard input.
    ///
    /// # Errors
    /// [`CheckError::InvalidInput`], which never contains a value.
    pub fn new(
        command: &PluginCommand,
        input: &mut impl Read,
        target: &Target<'_>,
    ) -> Result<Self, CheckError> {
        Self::decode(command, input, target).map_err(CheckError::InvalidInput)
    }

    fn decode(command: &PluginCommand, input: &mut impl Read, target: &Target<'_>) -> Result<Self, String> {
        Ok(match command {
            PluginCommand::Decrypt { annotation, ciphertext, encrypted, key_id, show_plaintext } => {
                let encrypted = match (encrypted, ciphertext, key_id) {
                    (Some(path), ..) => read_encrypted(path, input, target)?,
                    (None, Some(ciphertext), Some(key_id)) => EncryptResponse {
                        annotations: annotation
                            .iter()
                            .map(|annotation| parse_annotation(annotation))
                            .collect::<Result<_, _>>()?,
                        ciphertext: parse_ciphertext(&value_or_input("--ciphertext", ciphertext, input)?)?,
                        key_id: key_id.clone(),
                    },
                    _ => return Err("pass --ciphertext and --key-id, or --encrypted".into()),
                };
                Self::Decrypt { encrypted, show_plaintext: *show_plaintext }
            }
            PluginCommand::Encrypt { plaintext: None } => Self::Encrypt(Plaintext::random()),
            PluginCommand::Encrypt { plaintext: Some(plaintext) } => {
                let text = value_or_input("--plaintext", plaintext.expose_secret(), input)?;
                Self::Encrypt(Plaintext::new(decode_base64("--plaintext", text.trim())?))
            }
            PluginCommand::Roundtrip => Self::Roundtrip,
            PluginCommand::Status => Self::Status,
        })
    }
}

/// Bytes that are wiped when the last copy of the handle is dropped.
#[derive(Clone)]
pub struct Plaintext(pub(super) Bytes);

impl Plaintext {
    pub(super) fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Bytes::from_owner(bytes))
    }

    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new(vec![0; SEED_BYTES]);
        rand::fill(bytes.as_mut_slice());
        Self::new(bytes)
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

/// Returns the value of a flag, or all of standard input if the value is `-`.
pub(super) fn value_or_input(
    flag: &str,
    value: &str,
    input: &mut impl Read,
) -> Result<Zeroizing<String>, String> {
    if value != "-" {
        return Ok(Zeroizing::new(value.to_owned()));
    }
    read_all(input).map_err(|why| format!("{flag} -: standard input {why}"))
}

fn read_all(input: &mut impl Read) -> Result<Zeroizing<String>, String> {
    // A string that grows leaves copies in memory, so it starts with enough capacity for usual inputs.
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    let read = input
        .take(MAX_INPUT_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_INPUT_BYTES {
        return Err(format!("is longer than {MAX_INPUT_BYTES} bytes"));
    }
    Ok(text)
}

/// The fields of the output of `encrypt -o json` that Decrypt needs.
#[derive(Deserialize)]
struct EncryptedJson {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    ciphertext: String,
    key_id: String,
}

fn read_encrypted(
    path: &Path,
    input: &mut impl Read,
    target: &Target<'_>,
) -> Result<EncryptResponse, String> {
    let text = if path == Path::new("-") {
        value_or_input("--encrypted", "-", input)?
    } else {
        let file = File::open(path).map_err(|error: io::Error| format!("cannot be read: {error}"));
        file.and_then(|mut file| read_all(&mut file))
            .map_err(|why| format!("--encrypted: {} {why}", path.display()))?
    };
    // The parser's error may contain a value, so it is not shown.
    let EncryptedJson { annotations, ciphertext, key_id } = serde_json::from_str(&text)
        .map_err(|_| format!("--encrypted is not the output of `{} encrypt -o json`", target.command))?;
    let annotations =
        annotations.into_iter().map(|(name, value)| Ok((name, decode_bytes("annotations", &value)?)));
    Ok(EncryptResponse {
        annotations: annotations.collect::<Result<_, String>>()?,
        ciphertext: parse_ciphertext(&ciphertext)?,
        key_id,
    })
}

fn parse_annotation(text: &str) -> Result<(String, Bytes), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.to_owned(), decode_bytes("--annotation", value)?))
        }
        _ => Err("--annotation is not of the form NAME=BASE64".into()),
    }
}

fn decode_bytes(flag: &str, text: &str) -> Result<Bytes, String> {
    decode_base64(flag, text).map(|bytes| Bytes::copy_from_slice(&bytes))
}

pub(super) fn parse_ciphertext(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    // Base64 contains no colon, so this is not base64.
    if text.starts_with("vault:v") {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    decode_bytes("--ciphertext", text)
}

/// Decodes base64. The padding is optional.
pub(super) fn decode_base64(flag: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    // The decoder's error contains a byte of what may be a secret, so it is not shown.
    LENIENT.decode(text).map(Zeroizing::new).map_err(|_| format!("{flag} is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphertexts_are_accepted_as_in_etcd() {
        assert_eq!(parse_ciphertext("vault:v1:abc=\n").unwrap(), "vault:v1:abc=");
        assert_eq!(parse_ciphertext("YWI=").unwrap(), "ab");
        assert_eq!(parse_ciphertext("YWI").unwrap(), "ab");
        assert!(parse_ciphertext("vault").is_err());
    }

    #[test]
    fn an_error_does_not_repeat_the_plaintext() {
        let error = decode_base64("--plaintext", "c2VudGluZWw!").unwrap_err();
        assert_eq!(error, "--plaintext is not base64");
    }
}
