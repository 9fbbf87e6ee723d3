//! The input, read and decoded before anybody is asked.

use std::{fmt, io::Read};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::{Ask, unused::UnusedArgs};

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
    Decrypt { ciphertext: Bytes, key_id: String, show_plaintext: bool },
    Encrypt(Plaintext),
    Roundtrip,
    Status,
}

impl Prepared {
    pub(super) fn new(ask: &Ask, input: &mut impl Read) -> Result<Self, String> {
        Ok(match ask {
            Ask::Decrypt { ciphertext, key_id, show_plaintext } => Self::Kms(Call::Decrypt {
                ciphertext: ciphertext_of(&given("--ciphertext", ciphertext, input)?)?,
                key_id: key_id.clone(),
                show_plaintext: *show_plaintext,
            }),
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
    // Room for all of it at once: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    let read = input
        .take(MOST_INPUT + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("{flag} -: cannot read standard input: {error}"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MOST_INPUT {
        return Err(format!("{flag} -: standard input is longer than {MOST_INPUT} bytes"));
    }
    Ok(text)
}

pub(super) fn ciphertext_of(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    // Base64 has no colon, so this cannot be meant otherwise.
    if text.starts_with("vault:v") {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    decoded("--ciphertext", text).map(|bytes| Bytes::copy_from_slice(&bytes))
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
