//! Control groups that tests make.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
/// How long processes that are ending may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes a control group with those below it, which must have no processes left.
pub fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Removes the control group of this name in every hierarchy, once its processes are gone.
#[expect(clippy::disallowed_methods, reason = "what is dropped cannot await")]
pub fn remove_everywhere(name: &str) {
    // Version 1 has a folder for each controller, and version 2 has none of these.
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups: Vec<_> =
        hierarchies.chain([PathBuf::from(ROOT)]).map(|hierarchy| hierarchy.join(name)).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        groups.iter().for_each(|group| remove(group));
        if !groups.iter().any(|group| group.exists()) || Instant::now() > until {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
