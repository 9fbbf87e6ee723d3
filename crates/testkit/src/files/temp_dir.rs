//! Temporary folders, in memory if there is enough.

use rustix::fs::statvfs;
use tempfile::TempDir;

/// Linux mounts a file system in memory here.
const IN_MEMORY: &str = "/dev/shm";
/// The needed free space. Containers often have only 64 MiB, a server uses about 50 MiB, and several run at once.
const MIN_FREE: u64 = 1 << 30;

/// Creates a folder, in memory if possible. Dropping the value removes it.
///
/// A server syncs its storage at each change while it holds the lock of a key. On a busy disk this can take three
/// seconds, which no daemon can hide from its callers.
pub fn temp_dir(prefix: &str) -> TempDir {
    let roomy = statvfs(IN_MEMORY).is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) >= MIN_FREE);
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(prefix);
    if roomy && let Ok(dir) = builder.tempdir_in(IN_MEMORY) {
        return dir;
    }
    builder.tempdir().unwrap()
}
