//! Folders in memory, if there is enough of it.

use rustix::fs::statvfs;
use tempfile::TempDir;

/// Where Linux has a file system in memory.
const IN_MEMORY: &str = "/dev/shm";
/// Containers often have but 64 MiB there; a server takes about 50, and several run at once.
const ENOUGH: u64 = 1 << 30;

/// A new folder that goes with this value, in memory where there is room.
///
/// A server syncs its storage at each change, and holds a key's lock meanwhile. On a disk that others
/// keep busy this was seen to take three seconds, which no daemon can hide from its callers.
pub fn scratch(prefix: &str) -> TempDir {
    let roomy = statvfs(IN_MEMORY).is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) >= ENOUGH);
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(prefix);
    if roomy && let Ok(dir) = builder.tempdir_in(IN_MEMORY) {
        return dir;
    }
    builder.tempdir().unwrap()
}
