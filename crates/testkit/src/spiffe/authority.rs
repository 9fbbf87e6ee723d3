//! The authority of a trust domain: issues X.509-SVIDs and JWT-SVIDs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use serde_json::{Value, json};

/// The lifetime of an SVID if the test sets no other.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The id of the key that signs JWT-SVIDs.
const KEY_ID: &str = "transit-kms-test";

/// What an SVID says about a workload.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The common name of the certificate. SPIRE sets one only if the registration entry has DNS names.
    pub common_name: Option<String>,
    pub lifetime: Duration,
    pub spiffe_id: String,
}

impl Identity {
    /// An identity whose certificate has no common name, as SPIRE issues it.
    pub fn new(spiffe_id: &str) -> Self {
        Self { common_name: None, lifetime: LIFETIME, spiffe_id: spiffe_id.into() }
    }

    #[must_use]
    pub fn with_common_name(self, name: &str) -> Self {
        Self { common_name: Some(name.into()), ..self }
    }

    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }
}

/// An X.509-SVID.
#[derive(Clone)]
pub struct IssuedCertificate {
    pub certificate_der: Vec<u8>,
    pub certificate_pem: String,
    pub key_der: Vec<u8>,
    pub key_pem: String,
}

/// The authority of a trust domain.
pub struct SpiffeAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    jwt_key: KeyPair,
    trust_domain: String,
}

impl SpiffeAuthority {
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(Some(trust_domain));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            jwt_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
            trust_domain: trust_domain.into(),
        }
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The certificate that signs X.509-SVIDs, for the role of Vault's auth method `cert`.
    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn ca_der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// The public key of JWT-SVIDs, as a point of P-256.
    pub(super) fn jwt_public_key(&self) -> &[u8] {
        self.jwt_key.public_key_raw()
    }

    /// The public key of JWT-SVIDs, for `jwt_validation_pubkeys` of Vault's auth method `jwt`.
    pub fn jwt_public_key_pem(&self) -> String {
        self.jwt_key.public_key_pem()
    }

    /// Issues an X.509-SVID.
    pub fn x509_svid(&self, identity: &Identity) -> IssuedCertificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(identity.common_name.as_deref());
        params.subject_alt_names = vec![uri(&identity.spiffe_id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + (now() - Duration::from_secs(60));
        params.not_after = epoch + (now() + identity.lifetime);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        IssuedCertificate {
            certificate_der: certificate.der().to_vec(),
            certificate_pem: certificate.pem(),
            key_der: key.serialize_der(),
            key_pem: key.serialize_pem(),
        }
    }

    /// Issues a JWT-SVID, signed with ES256.
    pub fn jwt_svid(&self, identity: &Identity, audience: &[String]) -> String {
        let now = now();
        let claims = json!({
            "aud": audience,
            "exp": (now + identity.lifetime).as_secs(),
            "iat": now.as_secs(),
            "sub": identity.spiffe_id,
        });
        let part = |value: Value| BASE64URL.encode(value.to_string());
        let signed =
            format!("{}.{}", part(json!({"alg": "ES256", "kid": KEY_ID, "typ": "JWT"})), part(claims));
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.jwt_key.serialize_der())
            .unwrap();
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

/// The subject of SPIRE's certificates.
fn subject(common_name: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CountryName, DnValue::PrintableString("US".try_into().unwrap()));
    subject.push(DnType::OrganizationName, "SPIRE");
    if let Some(name) = common_name {
        subject.push(DnType::CommonName, name);
    }
    subject
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// The time since 1970.
#[expect(clippy::disallowed_methods, reason = "an SVID holds the wall-clock time of its validity")]
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}
