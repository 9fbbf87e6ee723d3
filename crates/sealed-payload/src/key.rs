//! The RSA key of a node, and the public key for which payloads are sealed.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand,
    rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
        PrivateDecryptingKey, PublicEncryptingKey,
    },
};
use zeroize::Zeroizing;

use crate::{
    MAX_CONTENT_BYTES, MAX_PAYLOAD_BYTES, SealedPayloadError,
    der::{BIT_STRING, DerReader, EXPLICIT_0, INTEGER, SEQUENCE},
    envelope::{AuthEnvelopedData, KeyIdentifier},
    pem,
};

/// 128 bits of security (NIST SP 800-57, part 1, table 2).
const KEY_SIZE: KeySize = KeySize::Rsa3072;
const CONTENT_KEY_BYTES: usize = 32;
const PRIVATE_KEY: &str = "PRIVATE KEY";
const PUBLIC_KEY: &str = "PUBLIC KEY";

/// The private key of a node. It opens the payloads that are sealed for this node.
pub struct NodeKey {
    decrypting: OaepPrivateDecryptingKey,
    private: PrivateDecryptingKey,
    public: NodePublicKey,
}

impl NodeKey {
    /// Generates an RSA key with 3072 bits.
    ///
    /// # Errors
    /// [`SealedPayloadError::Library`].
    pub fn generate() -> Result<Self, SealedPayloadError> {
        let private = PrivateDecryptingKey::generate(KEY_SIZE)
            .map_err(|_| SealedPayloadError::Library("generate an RSA key"))?;
        Self::new(private)
    }

    /// Reads a private key in PEM (PKCS#8), of 2048 to 8192 bits. Text around the block is not used.
    ///
    /// # Errors
    /// [`SealedPayloadError::UnusableKey`].
    pub fn from_pem(text: &[u8]) -> Result<Self, SealedPayloadError> {
        let unusable = SealedPayloadError::UnusableKey;
        let block = pem::blocks(text).find(|block| block.label.ends_with(PRIVATE_KEY));
        let block = block.ok_or(unusable(
            "the file has no block -----BEGIN PRIVATE KEY-----. Name the file that `transit-kms keygen` has made",
        ))?;
        match block.label {
            PRIVATE_KEY => {}
            "ENCRYPTED PRIVATE KEY" => {
                return Err(unusable(
                    "it is encrypted with a passphrase. Write it without one: `openssl pkey -in FILE`",
                ));
            }
            "RSA PRIVATE KEY" => {
                return Err(unusable("its format is PKCS#1. Convert it to PKCS#8: `openssl pkey -in FILE`"));
            }
            _ => return Err(unusable("it is not an RSA key. Make one with `transit-kms keygen`")),
        }
        let der = block
            .contents
            .ok_or(unusable("its PEM block is not base64. Restore the file, or make a new key"))?;
        let private = PrivateDecryptingKey::from_pkcs8(&der).map_err(|_| {
            unusable("it is not an RSA key of 2048 to 8192 bits, or it is damaged. Make one with `transit-kms keygen`")
        })?;
        Self::new(private)
    }

    fn new(private: PrivateDecryptingKey) -> Result<Self, SealedPayloadError> {
        let public = NodePublicKey::new(private.public_key())?;
        let decrypting = OaepPrivateDecryptingKey::new(private.clone())
            .map_err(|_| SealedPayloadError::Library("use the RSA key"))?;
        Ok(Self { decrypting, private, public })
    }

    /// Returns the private key in PEM (PKCS#8).
    ///
    /// # Errors
    /// [`SealedPayloadError::Library`].
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SealedPayloadError> {
        let der: Pkcs8V1Der<'_> =
            self.private.as_der().map_err(|_| SealedPayloadError::Library("encode the RSA key"))?;
        Ok(pem::encoded(PRIVATE_KEY, der.as_ref()))
    }

    /// The public key.
    #[must_use]
    pub const fn public_key(&self) -> &NodePublicKey {
        &self.public
    }

    /// Returns the content of a payload that was sealed for this key.
    ///
    /// # Errors
    /// [`SealedPayloadError::NotSealed`], [`SealedPayloadError::OtherKey`] and [`SealedPayloadError::Damaged`].
    pub fn open(&self, payload: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedPayloadError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(SealedPayloadError::NotSealed("it is too long: a payload has at most 8192 bytes"));
        }
        let AuthEnvelopedData { ciphertext, encrypted_key, key_identifier, nonce, tag } =
            AuthEnvelopedData::from_pem(payload)?;
        if key_identifier != self.public.identifier {
            return Err(SealedPayloadError::OtherKey {
                found: hex::encode(key_identifier),
                own: self.public.identifier(),
            });
        }
        let mut buffer = Zeroizing::new(vec![0; self.decrypting.min_output_size()]);
        let content_key = self
            .decrypting
            .decrypt(&OAEP_SHA256_MGF1SHA256, &encrypted_key, &mut buffer, None)
            .map_err(|_| SealedPayloadError::Damaged)?;
        let cipher = cipher(content_key).ok_or(SealedPayloadError::Damaged)?;
        let mut content = Zeroizing::new(vec![0; ciphertext.len()]);
        cipher
            .open_separate_gather(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &ciphertext,
                &tag,
                &mut content,
            )
            .map_err(|_| SealedPayloadError::Damaged)?;
        Ok(content)
    }
}

/// The public key of a node. Payloads are sealed for it.
pub struct NodePublicKey {
    encrypting: OaepPublicEncryptingKey,
    identifier: KeyIdentifier,
    spki: Vec<u8>,
}

impl NodePublicKey {
    /// Reads a public key (SPKI) or a certificate with one, in PEM. Of several blocks, the first one counts. The other
    /// fields of a certificate, such as its validity, are not used.
    ///
    /// # Errors
    /// [`SealedPayloadError::UnusableKey`].
    pub fn from_pem(text: &[u8]) -> Result<Self, SealedPayloadError> {
        let unusable = SealedPayloadError::UnusableKey;
        let no_key = || {
            unusable(
                "the file has no block -----BEGIN PUBLIC KEY----- or -----BEGIN CERTIFICATE-----. Name the file with \
                 the output of `transit-kms keygen`",
            )
        };
        for block in pem::blocks(text) {
            let certificate = match block.label {
                "CERTIFICATE" => true,
                PUBLIC_KEY => false,
                label if label.ends_with(PRIVATE_KEY) => {
                    return Err(unusable(
                        "it is a private key, which must stay on its node. Name the file with the output of \
                         `transit-kms keygen`, which is the public key",
                    ));
                }
                _ => continue,
            };
            let der = block.contents.ok_or(unusable("its PEM block is not base64. Get the key again"))?;
            let spki = if certificate { spki_of_certificate(&der) } else { Some(der.as_slice()) };
            let key = spki.and_then(|spki| PublicEncryptingKey::from_der(spki).ok());
            return Self::new(key.ok_or(unusable(
                "it is not an RSA key of 2048 to 8192 bits, or it is damaged. Get it again with `transit-kms keygen`",
            ))?);
        }
        Err(no_key())
    }

    fn new(key: PublicEncryptingKey) -> Result<Self, SealedPayloadError> {
        let failed = || SealedPayloadError::Library("encode the RSA key");
        let spki: PublicKeyX509Der<'_> = key.as_der().map_err(|_| failed())?;
        let spki = spki.as_ref().to_vec();
        let identifier = identifier(&spki).ok_or_else(failed)?;
        let encrypting =
            OaepPublicEncryptingKey::new(key).map_err(|_| SealedPayloadError::Library("use the RSA key"))?;
        Ok(Self { encrypting, identifier, spki })
    }

    /// Returns the subject key identifier in hexadecimal digits: the SHA-1 hash of the public key. `openssl x509` can
    /// write it into certificates.
    #[must_use]
    pub fn identifier(&self) -> String {
        hex::encode(self.identifier)
    }

    /// Returns the key in PEM (SPKI).
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encoded(PUBLIC_KEY, &self.spki).as_str().to_owned()
    }

    /// Seals `content`: encrypts it with a new AES-256-GCM key, and this key with the public key.
    ///
    /// # Errors
    /// [`SealedPayloadError::ContentLength`] and [`SealedPayloadError::Library`].
    pub fn seal(&self, content: &[u8]) -> Result<String, SealedPayloadError> {
        if content.is_empty() || content.len() > MAX_CONTENT_BYTES {
            return Err(SealedPayloadError::ContentLength { found: content.len() });
        }
        let failed = |_| SealedPayloadError::Library("encrypt the payload");
        let mut content_key = Zeroizing::new([0; CONTENT_KEY_BYTES]);
        let mut nonce = [0; 12];
        rand::fill(content_key.as_mut_slice()).map_err(failed)?;
        rand::fill(&mut nonce).map_err(failed)?;
        let cipher =
            cipher(content_key.as_slice()).ok_or(SealedPayloadError::Library("encrypt the payload"))?;
        let mut buffer = Zeroizing::new(content.to_vec());
        // A key encrypts one content, so the nonce cannot repeat.
        let tag = cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut buffer)
            .map_err(failed)?;
        let mut encrypted_key = vec![0; self.encrypting.ciphertext_size()];
        self.encrypting
            .encrypt(&OAEP_SHA256_MGF1SHA256, content_key.as_slice(), &mut encrypted_key, None)
            .map_err(failed)?;
        let tag = tag.as_ref().try_into().map_err(|_| SealedPayloadError::Library("encrypt the payload"))?;
        let payload = AuthEnvelopedData {
            ciphertext: buffer.to_vec(),
            encrypted_key,
            key_identifier: self.identifier,
            nonce,
            tag,
        };
        Ok(payload.to_pem())
    }
}

/// AES-256-GCM with this key, or `None` if the key has another length.
fn cipher(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

/// The SHA-1 hash of the bits of the subjectPublicKey.
fn identifier(spki: &[u8]) -> Option<KeyIdentifier> {
    let mut fields = DerReader::new(spki).nested(SEQUENCE)?;
    fields.element(SEQUENCE)?;
    let (unused_bits, key) = fields.element(BIT_STRING)?.split_first()?;
    if *unused_bits != 0 {
        return None;
    }
    digest(&SHA1_FOR_LEGACY_USE_ONLY, key).as_ref().try_into().ok()
}

/// The SPKI of a certificate; see RFC 5280, section 4.1.
fn spki_of_certificate(der: &[u8]) -> Option<&[u8]> {
    let mut certificate = DerReader::new(der).nested(SEQUENCE)?;
    let mut fields = certificate.nested(SEQUENCE)?;
    if fields.is_next(EXPLICIT_0) {
        fields.element(EXPLICIT_0)?;
    }
    fields.element(INTEGER)?;
    for _signature_issuer_validity_subject in 0..4 {
        fields.element(SEQUENCE)?;
    }
    fields.whole(SEQUENCE)
}
