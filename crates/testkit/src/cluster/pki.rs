//! The certificates and keys of a control plane.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use tempfile::TempDir;

use crate::{authority::Authority, temp_dir};

/// Addresses in the certificate of an API server besides the loopback: those of the Service `kubernetes` and of
/// the node in `tests/node`.
pub(super) const SERVICE: &str = "10.0.0.1";
/// See [`SERVICE`].
pub(super) const NODE: &str = "10.99.0.1";

/// One certificate authority for servers and clients, an administrator's certificate, and a key for tokens of
/// ServiceAccounts.
pub struct Pki {
    admin: (PathBuf, PathBuf),
    authority: Authority,
    dir: TempDir,
    server: (PathBuf, PathBuf),
}

impl Pki {
    pub(super) fn new() -> Self {
        let dir = temp_dir("pki-");
        let authority = Authority::new(dir.path());
        let admin = authority.member("admin", Some("system:masters"));
        let server = authority.server_at(&[SERVICE, NODE, "kubernetes.default.svc"]);
        let pki = Self { admin, authority, dir, server };
        let tokens = KeyPair::generate().unwrap();
        fs::write(pki.service_account_key(), tokens.serialize_pem()).unwrap();
        fs::write(pki.service_account_public_key(), tokens.public_key_pem()).unwrap();
        pki
    }

    /// The authority's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.authority.file()
    }

    /// The folder of all certificates and keys.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Chain and key of an API server.
    pub fn server(&self) -> (&Path, &Path) {
        (&self.server.0, &self.server.1)
    }

    /// Chain and key of a node's kubelet.
    pub(super) fn kubelet(&self, node: &str) -> (PathBuf, PathBuf) {
        self.authority.member(&format!("system:node:{node}"), Some("system:nodes"))
    }

    /// Chain and key of an administrator.
    pub(super) fn admin(&self) -> (&Path, &Path) {
        (&self.admin.0, &self.admin.1)
    }

    pub fn service_account_key(&self) -> PathBuf {
        self.dir.path().join("service-account.key")
    }

    pub fn service_account_public_key(&self) -> PathBuf {
        self.dir.path().join("service-account.pub")
    }
}
