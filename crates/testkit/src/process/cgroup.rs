//! Removes control groups that tests have created.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
/// The longest time until ending processes are gone.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes a control group and its children, which must not contain processes.
pub fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Waits until the processes of this control group are gone, and removes it from every hierarchy.
#[expect(clippy::disallowed_methods, reason = "`drop` cannot await")]
pub fn remove_everywhere(name: &str) {
    // cgroup v1 has a folder for each controller, v2 has one hierarchy.
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups: Vec<_> =
        hierarchies.chain([PathBuf::from(ROOT)]).map(|hierarchy| hierarchy.join(name)).collect();
    let until = Instant::now() + WAIT_TIMEOUT;
    loop {
        groups.iter().for_each(|group| remove(group));
        if !groups.iter().any(|group| group.exists()) || Instant::now() > until {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
