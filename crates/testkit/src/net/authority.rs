//! A certificate authority for one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// A new authority whose certificate is `ca.pem` in `dir`.
    pub fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "transit-kms test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, dir: dir.to_owned() };
        fs::write(authority.file(), authority.issuer.pem()).unwrap();
        authority
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for the loopback: the paths of the chain and of its key.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        self.server_at(&[])
    }

    /// Like [`Authority::server`], and also for these addresses and names.
    pub fn server_at(&self, more: &[&str]) -> (PathBuf, PathBuf) {
        let names = ["127.0.0.1", "localhost"].iter().chain(more).map(|name| (*name).to_owned());
        let mut params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("server", params)
    }

    /// A certificate for a client of this name: the paths of the chain and of its key.
    pub fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        self.member(name, None)
    }

    /// Like [`Authority::client`], with an organization, which Kubernetes uses as a group.
    pub fn member(&self, name: &str, organization: Option<&str>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, params)
    }

    /// A certificate with these params and this common name: the paths of the chain and of its key.
    pub fn issue(&self, name: &str, mut params: CertificateParams) -> (PathBuf, PathBuf) {
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        fs::write(&paths.0, certificate.pem()).unwrap();
        fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }
}
