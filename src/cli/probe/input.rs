//! The input, read and decoded before anybody is asked.

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

use super::{Ask, unused::UnusedArgs};
use kms_plugin::v2::EncryptResponse;

/// Seeds have 32 bytes and ciphertexts at most 1 KiB; this is for base64 and for tests of limits.
const MOST_INPUT: u64 = 1024 * 1024;
/// What kube-apiserver sends.
pub(super) const SAMPLE_BYTES: usize = 32;

/// The input, read and decoded before anybody is asked.
pub(super) enum Prepared {
    Admin(&'static str),
    Kms(Call),
    Unused(UnusedArgs),
}

pub(super) enum Call {
    Decrypt { encrypted: EncryptResponse, show_plaintext: bool },
    Encrypt(Plaintext),
    Roundtrip,
    Status,
}

impl Prepared {
    pub(super) fn new(ask: &Ask, input: &mut impl Read) -> Result<Self, String> {
        Ok(match ask {
            Ask::Decrypt { annotation, ciphertext, encrypted, key_id, show_plaintext } => {
                let encrypted = match (encrypted, ciphertext, key_id) {
                    (Some(path), ..) => encrypted_in(path, input)?,
                    (None, Some(ciphertext), Some(key_id)) => EncryptResponse {
                        annotations: annotation
                            .iter()
                            .map(|one| annotation_of(one))
                            .collect::<Result<_, _>>()?,
                        ciphertext: ciphertext_of(&given("--ciphertext", ciphertext, input)?)?,
                        key_id: key_id.clone(),
                    },
                    _ => return Err("name --ciphertext and --key-id, or --encrypted".into()),
                };
                Self::Kms(Call::Decrypt { encrypted, show_plaintext: *show_plaintext })
            }
            Ask::Encrypt { plaintext: None } => Self::Kms(Call::Encrypt(Plaintext::random())),
            Ask::Encrypt { plaintext: Some(plaintext) } => {
                let text = given("--plaintext", plaintext.expose_secret(), input)?;
                Self::Kms(Call::Encrypt(Plaintext::new(decoded("--plaintext", text.trim())?)))
            }
            Ask::Live => Self::Admin("/livez"),
            Ask::Ready => Self::Admin("/readyz"),
            Ask::Roundtrip => Self::Kms(Call::Roundtrip),
            Ask::Status => Self::Kms(Call::Status),
            Ask::Unused(unused) => Self::Unused(unused.clone()),
        })
    }
}

/// Bytes that are wiped when the last who holds them lets go.
#[derive(Clone)]
pub(super) struct Plaintext(pub(super) Bytes);

impl Plaintext {
    pub(super) fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Bytes::from_owner(bytes))
    }

    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new(vec![0; SAMPLE_BYTES]);
        rand::fill(bytes.as_mut_slice());
        Self::new(bytes)
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

pub(super) fn given(flag: &str, value: &str, input: &mut impl Read) -> Result<Zeroizing<String>, String> {
    if value != "-" {
        return Ok(Zeroizing::new(value.to_owned()));
    }
    all_of(input).map_err(|why| format!("{flag} -: standard input {why}"))
}

fn all_of(input: &mut impl Read) -> Result<Zeroizing<String>, String> {
    // Room for all of it at once: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    let read = input
        .take(MOST_INPUT + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MOST_INPUT {
        return Err(format!("is longer than {MOST_INPUT} bytes"));
    }
    Ok(text)
}

/// The part of what `probe encrypt -o json` prints that Decrypt needs.
#[derive(Deserialize)]
struct Encrypted {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    ciphertext: String,
    key_id: String,
}

fn encrypted_in(path: &Path, input: &mut impl Read) -> Result<EncryptResponse, String> {
    let text = if path == Path::new("-") {
        given("--encrypted", "-", input)?
    } else {
        let file = File::open(path).map_err(|error: io::Error| format!("cannot be read: {error}"));
        file.and_then(|mut file| all_of(&mut file))
            .map_err(|why| format!("--encrypted: {} {why}", path.display()))?
    };
    // The error of the parser may print a value.
    let Encrypted { annotations, ciphertext, key_id } = serde_json::from_str(&text)
        .map_err(|_| "--encrypted holds no answer of `transit-kms probe encrypt -o json`")?;
    let annotations = annotations.into_iter().map(|(name, value)| Ok((name, bytes("annotations", &value)?)));
    Ok(EncryptResponse {
        annotations: annotations.collect::<Result<_, String>>()?,
        ciphertext: ciphertext_of(&ciphertext)?,
        key_id,
    })
}

fn annotation_of(text: &str) -> Result<(String, Bytes), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), bytes("--annotation", value)?)),
        _ => Err("--annotation is not of the form NAME=BASE64".into()),
    }
}

fn bytes(flag: &str, text: &str) -> Result<Bytes, String> {
    decoded(flag, text).map(|bytes| Bytes::copy_from_slice(&bytes))
}

pub(super) fn ciphertext_of(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    // Base64 has no colon, so this cannot be meant otherwise.
    if text.starts_with("vault:v") {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    bytes("--ciphertext", text)
}

/// Padding may be left out.
pub(super) fn decoded(flag: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    // The error of the decoder names a byte of what may be a secret.
    LENIENT.decode(text).map(Zeroizing::new).map_err(|_| format!("{flag} is not base64"))
}
