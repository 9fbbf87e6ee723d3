//! Folders that last as long as the process of the tests.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::files::repository::shared_folder;

/// In each folder; locked by the process that it belongs to.
const LOCK: &str = "lock";

/// A new folder of this process alone. What processes that have ended made under this name goes now, because a value
/// that lasts as long as its process is never dropped.
pub fn own_folder(name: &str) -> PathBuf {
    static LOCKS: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let prefix = format!("{name}-");
    remove_those_of_the_dead(&prefix);
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(shared_folder()).unwrap();
    // By rename: a lock that is there but not locked yet would be taken for one of the dead.
    let new = folder.path().join("lock.new");
    let lock = File::create_new(&new).unwrap();
    lock.lock().unwrap();
    fs::rename(new, folder.path().join(LOCK)).unwrap();
    LOCKS.lock().unwrap().push(lock);
    folder.keep()
}

fn remove_those_of_the_dead(prefix: &str) {
    for entry in fs::read_dir(shared_folder()).unwrap().flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(prefix);
        if is_one && is_of_the_dead(&entry.path()) {
            // Another process may do it at the same time.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// One that has no lock yet is only being made.
fn is_of_the_dead(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{LOCK, own_folder};

    #[test]
    fn a_folder_is_of_one_process_and_goes_after_it() {
        let (first, second) = (own_folder("own"), own_folder("own"));
        assert_ne!(first, second);
        // As of a process that has ended: nobody locks it.
        let left = first.with_file_name(format!("own-{}", std::process::id()));
        fs::create_dir_all(&left).unwrap();
        File::create(left.join(LOCK)).unwrap();
        own_folder("own");
        assert!(first.exists() && second.exists() && !left.exists());
    }
}
