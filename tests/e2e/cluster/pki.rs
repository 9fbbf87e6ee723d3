//! The certificates and keys of a control plane.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use tempfile::TempDir;

use crate::support::{authority::Authority, scratch};

/// One authority for servers and clients, an administrator, and a key for tokens of ServiceAccounts.
pub(super) struct Pki {
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
        let server = authority.server();
        let pki = Self { admin, authority, dir, server };
        let tokens = KeyPair::generate().unwrap();
        fs::write(pki.service_account_key(), tokens.serialize_pem()).unwrap();
        fs::write(pki.service_account_public_key(), tokens.public_key_pem()).unwrap();
        pki
    }

    /// The authority's certificate.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.authority.file()
    }

    pub(super) fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Chain and key of an API server.
    pub(super) fn server(&self) -> (&Path, &Path) {
        (&self.server.0, &self.server.1)
    }

    /// Chain and key of somebody who may do everything.
    pub(super) fn admin(&self) -> (&Path, &Path) {
        (&self.admin.0, &self.admin.1)
    }

    pub(super) fn service_account_key(&self) -> PathBuf {
        self.dir.path().join("service-account.key")
    }

    pub(super) fn service_account_public_key(&self) -> PathBuf {
        self.dir.path().join("service-account.pub")
    }
}
