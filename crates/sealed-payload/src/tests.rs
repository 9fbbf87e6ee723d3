//! Keys and payloads, with golden files of openssl 3.0.
//!
//! `tests/golden/sealed_payload/` has a key, its public key, a certificate of it, a payload, and payloads in other forms
//! of CMS. `tests/it/sealed_payload.rs` runs openssl itself.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::{MAX_CONTENT_BYTES, MAX_PAYLOAD_BYTES, NodeKey, NodePublicKey, SealedPayloadError, seal};

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/golden/sealed_payload/", $name)).as_slice()
    };
}

static KEY: LazyLock<NodeKey> = LazyLock::new(|| NodeKey::from_pem(golden!("node-key.pem")).unwrap());

fn error<T>(result: Result<T, SealedPayloadError>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_payload_of_openssl_is_opened() {
    assert_eq!(KEY.open(golden!("openssl.pem")).unwrap().as_slice(), b"golden secret_id");
}

#[test]
fn a_key_keeps_its_form() {
    assert_eq!(KEY.public_key().to_pem().as_bytes(), golden!("node.pub"));
    let text = KEY.to_pem().unwrap();
    assert!(golden!("node-key.pem").ends_with(text.as_bytes()));
    assert_eq!(
        NodeKey::from_pem(text.as_bytes()).unwrap().public_key().to_pem().as_bytes(),
        golden!("node.pub")
    );
}

#[test]
fn a_sealed_content_is_opened_by_its_key_only() {
    let other = NodeKey::generate().unwrap();
    for key in [golden!("node.pub"), golden!("node.crt")] {
        let payload = seal(key, b"a secret").unwrap();
        assert_eq!(KEY.open(payload.as_bytes()).unwrap().as_slice(), b"a secret");
        let said = error(other.open(payload.as_bytes()));
        for identifier in [KEY.public_key().identifier(), other.public_key().identifier()] {
            assert!(said.contains(&identifier) && said.contains("transit-kms keygen"), "{said}");
        }
        assert_ne!(payload, seal(key, b"a secret").unwrap(), "each payload has its own key and nonce");
    }
}

#[test]
fn a_generated_key_has_3072_bits_and_survives_a_file() {
    let key = NodeKey::generate().unwrap();
    let payload = key.public_key().seal(b"a secret").unwrap();
    let read = NodeKey::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
    assert_eq!(read.open(payload.as_bytes()).unwrap().as_slice(), b"a secret");
    // The SPKI of an RSA key with this size has 422 bytes.
    assert_eq!(key.public_key().to_pem().len(), golden!("node.pub").len());
}

#[test]
fn the_length_of_a_content_is_limited() {
    let longest = vec![b'x'; MAX_CONTENT_BYTES];
    let payload = seal(golden!("node.pub"), &longest).unwrap();
    assert!(payload.len() < MAX_PAYLOAD_BYTES);
    assert_eq!(KEY.open(payload.as_bytes()).unwrap().as_slice(), longest);
    for wrong in [&[b'x'; MAX_CONTENT_BYTES + 1][..], b""] {
        assert_eq!(
            seal(golden!("node.pub"), wrong),
            Err(SealedPayloadError::ContentLength { found: wrong.len() })
        );
    }
    assert!(error(KEY.open(&vec![b'x'; MAX_PAYLOAD_BYTES + 1])).contains("too long"));
}

#[test]
fn every_changed_byte_is_detected() {
    let payload = golden!("openssl.pem");
    for at in 0..payload.len() {
        for bit in 0..8 {
            let mut changed = payload.to_vec();
            changed[at] ^= 1 << bit;
            assert!(KEY.open(&changed).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_shorter_or_longer_payload_is_refused() {
    let payload = golden!("openssl.pem");
    // The last byte is a line break, which may be missing.
    for end in 0..payload.len() - 1 {
        assert!(KEY.open(&payload[..end]).is_err(), "{end}");
    }
    for more in [payload, b"more", b"-----BEGIN CMS-----\n-----END CMS-----\n"] {
        assert_eq!(KEY.open(&[payload, more].concat()).unwrap_err(), SealedPayloadError::Damaged);
        assert!(KEY.open(&[more, payload].concat()).is_err());
    }
}

#[test]
fn a_courier_may_change_line_breaks() {
    let payload = str::from_utf8(golden!("openssl.pem")).unwrap();
    for same in [payload.replace('\n', "\r\n"), payload.trim_end().to_owned()] {
        assert_eq!(KEY.open(same.as_bytes()).unwrap().as_slice(), b"golden secret_id");
    }
}

#[test]
fn other_forms_of_cms_are_refused_with_the_option_to_pass() {
    for (payload, option) in [
        (golden!("refused-aes-128.pem"), "-aes-256-gcm"),
        (golden!("refused-by-issuer.pem"), "-keyid"),
        (golden!("refused-oaep-sha1.pem"), "-keyopt rsa_oaep_md:sha256"),
        (golden!("refused-secret-key.pem"), "-recip"),
        (golden!("refused-pkcs1.pem"), "-keyopt rsa_padding_mode:oaep"),
        (golden!("refused-two-recipients.pem"), "one payload for each node"),
        (golden!("refused-unauthenticated.pem"), "-aes-256-gcm"),
        (golden!("node.crt"), "-----BEGIN CMS-----"),
        (b"e46d3c17-secret_id", "-----BEGIN CMS-----"),
        (b"", "-----BEGIN CMS-----"),
    ] {
        let said = error(KEY.open(payload));
        assert!(said.contains("not a sealed payload") && said.contains(option), "{said}");
        assert!(!said.contains("e46d3c17"), "{said}");
    }
}

#[test]
fn an_unusable_key_says_what_to_do() {
    let damaged = str::from_utf8(golden!("node-key.pem")).unwrap().replacen("MIIG", "MIIH", 1);
    let relabelled = |label: &str| {
        str::from_utf8(golden!("node-key.pem")).unwrap().replace("PRIVATE KEY", label).into_bytes()
    };
    for (file, words) in [
        (b"".to_vec(), "transit-kms keygen"),
        (golden!("node.pub").to_vec(), "-----BEGIN PRIVATE KEY-----"),
        (damaged.into_bytes(), "it is damaged"),
        (relabelled("ENCRYPTED PRIVATE KEY"), "passphrase"),
        (relabelled("RSA PRIVATE KEY"), "PKCS#8"),
        (relabelled("EC PRIVATE KEY"), "not an RSA key"),
    ] {
        let said = error(NodeKey::from_pem(&file));
        assert!(said.contains("the key cannot be used") && said.contains(words), "{said}");
    }
    for (file, words) in [
        (b"".to_vec(), "-----BEGIN PUBLIC KEY-----"),
        (golden!("node-key.pem").to_vec(), "must stay on its node"),
        (golden!("node.pub").to_ascii_uppercase(), "get it again"),
        (golden!("openssl.pem").to_vec(), "transit-kms keygen"),
    ] {
        let said = error(NodePublicKey::from_pem(&file));
        assert!(said.to_lowercase().contains(&words.to_lowercase()), "{said}");
    }
}

proptest! {
    #[test]
    fn any_certificate_is_read_without_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let block = crate::pem::blocks(golden!("node.crt")).next().unwrap();
        let mut der = block.contents.unwrap().to_vec();
        for (at, byte) in changes {
            let at = at.index(der.len());
            der[at] = byte;
        }
        let text = crate::pem::encoded("CERTIFICATE", &der);
        prop_assert!(NodePublicKey::from_pem(text.as_bytes()).is_ok() || !der.is_empty());
    }
}
