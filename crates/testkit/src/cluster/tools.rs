//! Finds the binaries of the control plane: in the folder `KUBEBUILDER_ASSETS`, as controller-runtime's envtest
//! does, or in the output of `scripts/e2e-tools`.

use std::{path::PathBuf, sync::OnceLock};

use crate::{command, repository};

/// Where `scripts/e2e-tools` puts the newest minor.
const COMPILED: &str = "target/tools/kubernetes-1.37";

/// A binary of the control plane.
///
/// # Panics
/// If it does not exist: a test without its real parts must fail.
pub fn tool(name: &str) -> PathBuf {
    let given = std::env::var_os("KUBEBUILDER_ASSETS").filter(|given| !given.is_empty());
    let folder = given.map_or_else(|| repository::path(COMPILED), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "no {name} in {}: run scripts/e2e-tools, or name a folder in KUBEBUILDER_ASSETS",
        folder.display()
    );
    path
}

/// The output of `kube-apiserver --version` and `etcd --version`.
pub(super) fn versions() -> &'static str {
    static VERSIONS: OnceLock<String> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        let first_line = |name| {
            let output = command(tool(name)).arg("--version").output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().next().unwrap_or_default().to_owned()
        };
        format!("{}, {}", first_line("kube-apiserver"), first_line("etcd"))
    })
}
