//! Finds the binary of OpenBao or Vault, which is server, agent and client.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{files::repository, process::command::command};

/// The binary, and which product it is.
pub struct VaultBinary {
    pub(super) path: PathBuf,
    pub(super) is_vault: bool,
}

impl VaultBinary {
    /// Its path.
    pub fn path() -> &'static Path {
        &Self::found().path
    }

    /// `TRANSIT_KMS_TEST_SERVER`, else `bao` or `vault` on PATH, else the download of `scripts/tools`.
    ///
    /// # Panics
    /// If there is none: a test without a server must fail.
    pub(super) fn found() -> &'static Self {
        static FOUND: OnceLock<VaultBinary> = OnceLock::new();
        FOUND.get_or_init(|| {
            let on_path = std::env::var_os("PATH").unwrap_or_default();
            let on_path: Vec<_> = std::env::split_paths(&on_path).collect();
            let mut candidates: Vec<PathBuf> = Vec::new();
            match std::env::var_os("TRANSIT_KMS_TEST_SERVER") {
                Some(given) if !given.is_empty() => candidates.push(given.into()),
                _ => {
                    candidates.extend(on_path.iter().map(|dir| dir.join("bao")));
                    candidates.extend(on_path.iter().map(|dir| dir.join("vault")));
                    candidates.push(repository::path("target/tools/bin/bao"));
                }
            }
            candidates.into_iter().find_map(Self::of_program).unwrap_or_else(|| {
                panic!("no server to test against: run scripts/tools, or name one in TRANSIT_KMS_TEST_SERVER")
            })
        })
    }

    fn of_program(path: PathBuf) -> Option<Self> {
        let version = command(&path).arg("version").output().ok()?;
        let is_vault = String::from_utf8_lossy(&version.stdout).starts_with("Vault");
        version.status.success().then_some(Self { path, is_vault })
    }
}
