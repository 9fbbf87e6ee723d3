//! Control groups that tests make.

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";

/// Removes a control group with those below it, which must have no processes left.
pub(crate) fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Removes the control group of this name in every hierarchy.
pub(crate) fn remove_everywhere(name: &str) {
    // Version 1 has a folder for each controller, and version 2 has none of these.
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
        remove(&hierarchy.join(name));
    }
}
