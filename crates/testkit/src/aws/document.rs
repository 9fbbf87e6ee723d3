//! Identity documents of EC2 instances with their signature, in PKCS #7.
//!
//! <https://www.rfc-editor.org/rfc/rfc2315#section-9>

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SigningKey};
use serde_json::json;

use super::{ACCOUNT, INSTANCE_ID, REGION};

/// `data`, `signedData`, `rsaEncryption` and `sha256` as DER object identifiers.
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const SHA256: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SIGNED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];

const CONTEXT_0: u8 = 0xa0;
const NULL: &[u8] = &[0x05, 0x00];
const OCTETS: u8 = 0x04;
const ONE: &[u8] = &[0x02, 0x01, 0x01];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// Signs identity documents in place of AWS.
pub struct DocumentSigner {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl DocumentSigner {
    pub fn new() -> Self {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "transit-kms test EC2");
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, key }
    }

    /// The certificate that Vault must know.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// The document in the form of the metadata service: base64 in lines of 64 characters.
    pub fn document(&self) -> String {
        let document = json!({
            "accountId": ACCOUNT,
            "imageId": "ami-1",
            "instanceId": INSTANCE_ID,
            "pendingTime": "2026-01-01T00:00:00Z",
            "region": REGION,
        })
        .to_string();
        let (issuer, serial) = issuer_and_serial(self.certificate.der());
        let signature = self.key.sign(document.as_bytes()).unwrap();
        let sha256 = der(SEQUENCE, &[SHA256, NULL]);
        let signer = der(
            SEQUENCE,
            &[
                ONE,
                &der(SEQUENCE, &[issuer, serial]),
                &sha256,
                &der(SEQUENCE, &[RSA, NULL]),
                &der(OCTETS, &[&signature]),
            ],
        );
        let content = der(CONTEXT_0, &[&der(OCTETS, &[document.as_bytes()])]);
        let signed = der(
            SEQUENCE,
            &[ONE, &der(SET, &[&sha256]), &der(SEQUENCE, &[DATA, &content]), &der(SET, &[&signer])],
        );
        let text = BASE64.encode(der(SEQUENCE, &[SIGNED_DATA, &der(CONTEXT_0, &[&signed])]));
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        lines.join("\n")
    }
}

impl Default for DocumentSigner {
    fn default() -> Self {
        Self::new()
    }
}

fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let content = contents.concat();
    let mut out = vec![tag];
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    // The shortest form: others are not DER.
    match length {
        [0, short @ 0..0x80] => out.push(short),
        [0, long] => out.extend([0x81, long]),
        long => out.extend([0x82, long[0], long[1]]),
    }
    out.extend(content);
    out
}

/// Splits off the first element: its content, all of it, and the rest.
fn first(bytes: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (header, length) = match bytes[1] {
        length @ 0..0x80 => (2, usize::from(length)),
        long => {
            let octets = usize::from(long & 0x7f);
            (
                2 + octets,
                bytes[2..2 + octets].iter().fold(0, |length, octet| length << 8 | usize::from(*octet)),
            )
        }
    };
    let (whole, rest) = bytes.split_at(header + length);
    (&whole[header..], whole, rest)
}

fn issuer_and_serial(certificate: &[u8]) -> (&[u8], &[u8]) {
    let (certificate, ..) = first(certificate);
    let (to_be_signed, ..) = first(certificate);
    let (_, _version, rest) = first(to_be_signed);
    let (_, serial, rest) = first(rest);
    let (_, _algorithm, rest) = first(rest);
    let (_, issuer, _) = first(rest);
    (issuer, serial)
}
