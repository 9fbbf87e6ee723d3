//! Files that are installed without Kubernetes: systemd units, and the encryption config of kube-apiserver.

mod encryption;
mod machine;
mod systemd;

use std::fs;

/// Returns the content of a file of `manifests/`.
pub(crate) fn manifest(path: &str) -> String {
    let path = testkit::repository::path("manifests").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
