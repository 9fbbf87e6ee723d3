//! Folders that last as long as the test process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::files::repository::shared_folder;

/// A file in each folder, which the owning process has locked.
const LOCK: &str = "lock";

/// Creates a folder for this process only, for values in statics, which are never dropped. Folders of this name whose
/// process has ended are removed here.
pub fn process_dir(name: &str) -> PathBuf {
    static LOCKS: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let prefix = format!("{name}-");
    remove_abandoned(&prefix);
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(shared_folder()).unwrap();
    // Renamed after locking, because an unlocked file would mark the folder as abandoned.
    let new = folder.path().join("lock.new");
    let lock = File::create_new(&new).unwrap();
    lock.lock().unwrap();
    fs::rename(new, folder.path().join(LOCK)).unwrap();
    LOCKS.lock().unwrap().push(lock);
    folder.keep()
}

fn remove_abandoned(prefix: &str) {
    for entry in fs::read_dir(shared_folder()).unwrap().flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(prefix);
        if is_one && is_abandoned(&entry.path()) {
            // Another process may remove it at the same time.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// Whether its process has ended. A folder without a lock file is still being created.
fn is_abandoned(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{LOCK, process_dir};

    #[test]
    fn a_folder_belongs_to_one_process_and_is_removed_after_its_end() {
        let (first, second) = (process_dir("own"), process_dir("own"));
        assert_ne!(first, second);
        // A folder of an ended process: its lock file is not locked.
        let left = first.with_file_name(format!("own-{}", std::process::id()));
        fs::create_dir_all(&left).unwrap();
        File::create(left.join(LOCK)).unwrap();
        process_dir("own");
        assert!(first.exists() && second.exists() && !left.exists());
    }
}
