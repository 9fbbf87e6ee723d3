//! What goes onto a node without Kubernetes: systemd units, and what tells kube-apiserver of us.

mod encryption;
mod machine;
mod systemd;

use std::fs;

/// A file of `manifests/`.
pub(crate) fn manifest(path: &str) -> String {
    let path = testkit::repository::path("manifests").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
