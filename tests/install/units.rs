//! What goes onto a node without Kubernetes: systemd units, and what tells kube-apiserver of us.

mod encryption;
mod machine;
mod systemd;

use std::{fs, path::Path};

/// A file of `manifests/`.
pub(crate) fn manifest(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
