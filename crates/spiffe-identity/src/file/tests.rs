use std::error::Error;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::*;

const ID: &str = "spiffe://prod.acme.net/kms/node-1";
/// A part of a JWT that must not be in a message.
const SENTINEL: &str = "sentinel-of-the-jwt";

fn jwt(claims: &str) -> String {
    format!("e30.{}.{SENTINEL}", BASE64URL.encode(claims))
}

#[test]
fn the_spiffe_id_of_a_jwt_is_its_subject() {
    let token = jwt(&format!(r#"{{"aud":["vault"],"exp":1,"sub":"{ID}"}}"#));
    assert_eq!(spiffe_id_of_jwt(&format!("{token}\n")).unwrap().to_string(), ID);
}

#[test]
fn a_jwt_without_a_spiffe_id_is_refused_without_its_contents() {
    let not_text = jwt(&format!(r#"{{"sub":["{SENTINEL}"]}}"#));
    let no_subject = jwt(r#"{"aud":"vault"}"#);
    let two_parts = format!("e30.{SENTINEL}");
    let not_base64 = format!("e30.{SENTINEL}!.x");
    let not_json = format!("e30.{}.x", BASE64URL.encode(SENTINEL));
    let too_long = jwt(&" ".repeat(MAX_JWT_BYTES));
    let service_account = jwt(r#"{"sub":"system:serviceaccount:kube-system:transit-kms"}"#);
    for (token, reason) in [
        ("", "three parts"),
        (two_parts.as_str(), "three parts"),
        (not_base64.as_str(), "not base64url"),
        (not_json.as_str(), "not JSON"),
        (no_subject.as_str(), "`sub`"),
        (not_text.as_str(), "`sub`"),
        (too_long.as_str(), "longer than 64 KiB"),
        (service_account.as_str(), "not a SPIFFE ID: scheme is missing"),
    ] {
        let error = spiffe_id_of_jwt(token).unwrap_err();
        let text = format!("{error} {error:?} {:?}", error.source());
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains(SENTINEL), "{text}");
    }
}

fn certificate(common_name: Option<&str>, names: &[&str]) -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
    if let Some(common_name) = common_name {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.subject_alt_names = names.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn the_spiffe_id_of_a_certificate_is_its_only_uri() {
    let (leaf, key) = certificate(None, &[ID]);
    let (other, _) = certificate(None, &["spiffe://other.example.org/ca"]);
    // The leaf is the first certificate, also in a file that begins with the key.
    for pem in [leaf.clone(), format!("{leaf}{other}"), format!("{key}{leaf}"), format!("# text\n{leaf}")] {
        assert_eq!(spiffe_id_of_certificate(&pem).unwrap().to_string(), ID);
    }
    let (two, _) = certificate(None, &[ID, "spiffe://prod.acme.net/other"]);
    let (none, _) = certificate(Some("node-1"), &[]);
    let (web, _) = certificate(None, &["https://prod.acme.net/kms"]);
    let broken = leaf.replace("-----END", "----END");
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    for (pem, reason) in [
        (two, "multiple URI"),
        (none, "X.509 extension is missing"),
        (web, "missing SPIFFE ID"),
        (broken, "broken"),
        (not_der, "failed parsing"),
        (key, "no block CERTIFICATE"),
        (String::new(), "no block CERTIFICATE"),
        ("x".repeat(MAX_PEM_BYTES + 1), "longer than 256 KiB"),
    ] {
        let text = spiffe_id_of_certificate(&pem).unwrap_err().to_string();
        assert!(text.contains(reason), "{reason}: {text}");
    }
}

#[test]
fn a_certificate_may_have_no_common_name() {
    assert_eq!(common_name(&certificate(Some("node-1"), &[ID]).0).as_deref(), Some("node-1"));
    assert_eq!(common_name(&certificate(None, &[ID]).0), None);
    assert_eq!(common_name(&certificate(Some(""), &[ID]).0), None);
    assert_eq!(common_name("not PEM"), None);
}
