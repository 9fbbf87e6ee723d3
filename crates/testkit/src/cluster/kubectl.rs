//! The real kubectl.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{pki::Pki, tools::tool};
use crate::{command, config_file, temp_dir};

/// kubectl as an administrator of one API server.
pub struct Kubectl {
    dir: TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub good: bool,
    pub stderr: String,
    pub stdout: String,
}

impl Ran {
    /// Runs a command to its end.
    pub async fn of(command: Command) -> Self {
        let mut command = tokio::process::Command::from(command);
        let output = command.kill_on_drop(true).output().await.unwrap();
        Self {
            good: output.status.success(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }
}

impl Kubectl {
    pub(super) fn of(pki: &Pki, server: &str) -> Self {
        let dir = temp_dir("kubectl-");
        let kubectl = Self { dir };
        let config = kubeconfig(pki, server, pki.admin());
        config_file::by_rename(&kubectl.config(), &config);
        kubectl
    }

    /// Runs it with these arguments.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = command(tool("kubectl"));
        command.arg("--kubeconfig").arg(self.config()).args(arguments);
        // kubectl keeps a cache in its home.
        command.env("HOME", self.dir.path());
        Ran::of(command).await
    }

    /// Runs it with `-o json` and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["-o", "json"]].concat()).await;
        assert!(ran.good, "kubectl {arguments:?}: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Its kubeconfig.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }
}

/// A kubeconfig for a client with this certificate chain and key.
pub(super) fn kubeconfig(pki: &Pki, server: &str, (chain, key): (&Path, &Path)) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority": pki.ca_file()}}],
        "users": [{"name": "it", "user": {"client-certificate": chain, "client-key": key}}],
    });
    config.to_string()
}
