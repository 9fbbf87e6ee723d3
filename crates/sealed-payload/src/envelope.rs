//! The structure of a payload: AuthEnvelopedData as `openssl cms` writes it.
//!
//! ```text
//! ContentInfo        SEQUENCE { OID id-smime-ct-authEnvelopedData, [0] {
//! AuthEnvelopedData    SEQUENCE { INTEGER 0,
//! recipientInfos         SET { SEQUENCE { INTEGER 2, [0] key identifier,
//!                                SEQUENCE { OID rsaesOaep, SHA-256, MGF1 with SHA-256 }, OCTET STRING encrypted key } },
//! content                SEQUENCE { OID data,
//!                          SEQUENCE { OID aes-256-gcm, SEQUENCE { OCTET STRING nonce, INTEGER 16 } },
//!                          [0] ciphertext },
//! mac                    OCTET STRING tag } } }
//! ```

use crate::{
    SealedPayloadError,
    der::{DerReader, EXPLICIT_0, IMPLICIT_0, INTEGER, OCTET_STRING, SEQUENCE, SET, encoded},
};

/// The label of the PEM block.
const PEM_LABEL: &str = "CMS";
const KEY_IDENTIFIER_BYTES: usize = 20;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// `id-smime-ct-authEnvelopedData`, 1.2.840.113549.1.9.16.1.23.
const AUTH_ENVELOPED_DATA: &[u8] =
    &[0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x17];
/// `data`, 1.2.840.113549.1.7.1.
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// `aes-256-gcm`, 2.16.840.1.101.3.4.1.46.
const AES_256_GCM: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2e];
/// The length of the tag: INTEGER 16.
const TAG_LENGTH: &[u8] = &[INTEGER, 1, 16];
/// The version of the structure: INTEGER 0.
const VERSION: &[u8] = &[INTEGER, 1, 0];
/// The version of a recipient that is named by its key identifier: INTEGER 2.
const RECIPIENT_VERSION: &[u8] = &[INTEGER, 1, 2];
/// The contents of the AlgorithmIdentifier of OAEP: `rsaesOaep`, `[0]` SHA-256, `[1]` MGF1 with SHA-256. The label is
/// the default, an empty one.
const OAEP_SHA256: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07, 0x30, 0x2b, 0xa0, 0x0d, 0x30, 0x0b,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0xa1, 0x1a, 0x30, 0x18, 0x06, 0x09,
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
    0x65, 0x03, 0x04, 0x02, 0x01,
];

/// The SHA-1 hash of a public key, which names the recipient.
pub(crate) type KeyIdentifier = [u8; KEY_IDENTIFIER_BYTES];

/// The parts of a payload that differ from one payload to the next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct AuthEnvelopedData {
    pub(crate) ciphertext: Vec<u8>,
    pub(crate) encrypted_key: Vec<u8>,
    pub(crate) key_identifier: KeyIdentifier,
    pub(crate) nonce: [u8; NONCE_BYTES],
    pub(crate) tag: [u8; TAG_BYTES],
}

impl AuthEnvelopedData {
    /// Reads the text of a payload.
    pub(crate) fn from_pem(text: &[u8]) -> Result<Self, SealedPayloadError> {
        let mut blocks = crate::pem::blocks(text);
        let block =
            blocks.next().ok_or(SealedPayloadError::NotSealed("it has no block -----BEGIN CMS-----"))?;
        if block.label != PEM_LABEL {
            return Err(SealedPayloadError::NotSealed("its first block is not -----BEGIN CMS-----"));
        }
        let der = block.contents.ok_or(SealedPayloadError::Damaged)?;
        // The text has one form only, so that no change of it is without effect. A courier may have changed its line
        // breaks.
        let lines = str::from_utf8(text).unwrap_or_default().lines();
        if !lines.eq(crate::pem::encoded(PEM_LABEL, &der).lines()) {
            return Err(SealedPayloadError::Damaged);
        }
        Self::from_der(&der)
    }

    pub(crate) fn to_pem(&self) -> String {
        crate::pem::encoded(PEM_LABEL, &self.to_der()).as_str().to_owned()
    }

    fn from_der(der: &[u8]) -> Result<Self, SealedPayloadError> {
        let is = |found: Option<()>, why| found.ok_or(SealedPayloadError::NotSealed(why));
        let damaged = SealedPayloadError::Damaged;
        let mut outer = DerReader::new(der);
        let mut info = outer.nested(SEQUENCE).ok_or(damaged.clone())?;
        is(
            info.exactly(AUTH_ENVELOPED_DATA),
            "it is CMS without authentication; pass -aes-256-gcm to openssl cms",
        )?;
        let mut explicit = info.nested(EXPLICIT_0).ok_or(damaged.clone())?;
        let mut data = explicit.nested(SEQUENCE).ok_or(damaged.clone())?;
        data.exactly(VERSION).ok_or(damaged.clone())?;

        let mut recipients = data.nested(SET).ok_or(damaged.clone())?;
        let recipient = recipients.nested(SEQUENCE);
        let mut recipient = recipient.ok_or(SealedPayloadError::NotSealed(
            "its recipient has no RSA key; pass -recip to openssl cms",
        ))?;
        is(recipients.end(), "it has several recipients; make one payload for each node")?;
        is(
            recipient.exactly(RECIPIENT_VERSION),
            "it names its recipient by the issuer of a certificate; pass -keyid to openssl cms",
        )?;
        let key_identifier = recipient.element(IMPLICIT_0).and_then(array).ok_or(damaged.clone())?;
        let algorithm = recipient.element(SEQUENCE).ok_or(damaged.clone())?;
        is(
            (algorithm == OAEP_SHA256).then_some(()),
            "its key is not encrypted with RSA-OAEP and SHA-256; pass -keyopt rsa_padding_mode:oaep -keyopt \
             rsa_oaep_md:sha256 to openssl cms",
        )?;
        let encrypted_key = recipient.element(OCTET_STRING).ok_or(damaged.clone())?.to_vec();

        let mut content = data.nested(SEQUENCE).ok_or(damaged.clone())?;
        content.exactly(DATA).ok_or(damaged.clone())?;
        let mut algorithm = content.nested(SEQUENCE).ok_or(damaged.clone())?;
        is(
            algorithm.exactly(AES_256_GCM),
            "its cipher is not AES-256-GCM; pass -aes-256-gcm to openssl cms",
        )?;
        let mut parameters = algorithm.nested(SEQUENCE).ok_or(damaged.clone())?;
        let nonce = parameters.element(OCTET_STRING).and_then(array).ok_or(damaged.clone())?;
        parameters.exactly(TAG_LENGTH).ok_or(damaged.clone())?;
        let ciphertext = content.element(IMPLICIT_0).ok_or(damaged.clone())?.to_vec();
        let tag = data.element(OCTET_STRING).and_then(array).ok_or(damaged.clone())?;
        let ends = [outer, info, explicit, data, recipient, content, algorithm, parameters];
        if ends.iter().any(|reader| reader.end().is_none()) {
            return Err(damaged);
        }
        Ok(Self { ciphertext, encrypted_key, key_identifier, nonce, tag })
    }

    fn to_der(&self) -> Vec<u8> {
        let recipient = encoded(
            SEQUENCE,
            &[
                RECIPIENT_VERSION,
                &encoded(IMPLICIT_0, &[&self.key_identifier]),
                &encoded(SEQUENCE, &[OAEP_SHA256]),
                &encoded(OCTET_STRING, &[&self.encrypted_key]),
            ],
        );
        let parameters = encoded(SEQUENCE, &[&encoded(OCTET_STRING, &[&self.nonce]), TAG_LENGTH]);
        let algorithm = encoded(SEQUENCE, &[AES_256_GCM, &parameters]);
        let content = encoded(SEQUENCE, &[DATA, &algorithm, &encoded(IMPLICIT_0, &[&self.ciphertext])]);
        let data = encoded(
            SEQUENCE,
            &[VERSION, &encoded(SET, &[&recipient]), &content, &encoded(OCTET_STRING, &[&self.tag])],
        );
        encoded(SEQUENCE, &[AUTH_ENVELOPED_DATA, &encoded(EXPLICIT_0, &[&data])])
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(ciphertext: Vec<u8>) -> AuthEnvelopedData {
        AuthEnvelopedData {
            ciphertext,
            encrypted_key: vec![5; 384],
            key_identifier: [1; 20],
            nonce: [2; 12],
            tag: [3; 16],
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(ciphertext in prop::collection::vec(any::<u8>(), 0..300)) {
            let payload = sample(ciphertext);
            prop_assert_eq!(AuthEnvelopedData::from_pem(payload.to_pem().as_bytes()), Ok(payload));
        }

        /// Damaged payloads do not panic, and each accepted one has exactly one form.
        #[test]
        fn accepted_bytes_are_written_the_same(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
        ) {
            let mut der = sample(vec![4; 36]).to_der();
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            if is_cut {
                der.truncate(cut.index(der.len()));
            }
            if let Ok(read) = AuthEnvelopedData::from_der(&der) {
                prop_assert_eq!(read.to_der(), der);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(AuthEnvelopedData::from_der(&bytes).is_err());
            prop_assert!(AuthEnvelopedData::from_pem(&bytes).is_err());
        }
    }
}
