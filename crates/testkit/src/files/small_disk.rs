//! A small file system, for tests of a full disk.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::process::command::command;

/// A mounted tmpfs. Dropping this value unmounts it.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a file system of this size, such as `64k`, at an existing folder. `None` without the right to mount, which
    /// needs root; in CI that is a failure.
    pub fn mounted(at: &Path, size: &str) -> Option<Self> {
        let mount = command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "transit-kms-test"])
            .arg(at)
            .output()
            .unwrap();
        if mount.status.success() {
            return Some(Self(at.to_owned()));
        }
        assert!(std::env::var_os("CI").is_none(), "CI must run this test as root: {mount:?}");
        eprintln!("not tested, no right to mount here: {mount:?}");
        None
    }

    /// Fills it completely.
    pub fn fill(&self) {
        let block = vec![7; 4096];
        let mut file = fs::File::create(self.filler()).unwrap();
        while file.write_all(&block).is_ok() {}
        // The rest that is smaller than a block.
        while file.write_all(b".").is_ok() {}
    }

    /// Frees the space that [`SmallDisk::fill`] has used.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because an ending process may still have a file open on it.
        let unmounted = command("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
