//! A file system of its own that is soon full.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::process::command::command;

/// It is unmounted with this value.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// A disk of this size, such as `64k`, at a folder that is there. None if we may not mount, which
    /// only root may; in CI that is a failure.
    pub fn mounted(at: &Path, size: &str) -> Option<Self> {
        let mount = command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "transit-kms-test"])
            .arg(at)
            .output()
            .unwrap();
        if mount.status.success() {
            return Some(Self(at.to_owned()));
        }
        assert!(std::env::var_os("CI").is_none(), "in CI this is tested, as root: {mount:?}");
        eprintln!("not tested, no right to mount here: {mount:?}");
        None
    }

    /// Takes all the room that there is.
    pub fn fill(&self) {
        let block = vec![7; 4096];
        let mut file = fs::File::create(self.filler()).unwrap();
        while file.write_all(&block).is_ok() {}
        // The last piece that a whole block does not fit into.
        while file.write_all(b".").is_ok() {}
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is still ending may have a file open there.
        let unmounted = command("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
