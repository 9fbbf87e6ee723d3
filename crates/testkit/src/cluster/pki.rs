//! The certificates and keys of a control plane.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use tempfile::TempDir;

use crate::{authority::Authority, scratch};

/// What an API server is called, besides by the loopback: the addresses of the Service `kubernetes` and of
/// the node of `tests/node`.
pub(super) const SERVICE: &str = "10.0.0.1";
/// See [`SERVICE`].
pub(super) const NODE: &str = "10.99.0.1";

/// One authority for servers and clients, an administrator, and a key for tokens of ServiceAccounts.
pub struct Pki {
    admin: (PathBuf, PathBuf),
    authority: Authority,
    dir: TempDir,
    server: (PathBuf, PathBuf),
}

impl Pki {
    pub(super) fn new() -> Self {
        let dir = scratch("pki-");
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

    /// The folder that all of it is in.
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

    /// Chain and key of somebody who may do everything.
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
