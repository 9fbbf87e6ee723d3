//! The unpacked output of `scripts/image`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde_json::Value;
use testkit::{
    command::{command, downloading_script},
    process_dir,
};

/// The root of the repository.
pub(super) const ROOT: &str = testkit::repository::ROOT;

/// An image as an archive and as unpacked files.
pub(super) struct BuiltImage {
    /// The archive, for example for `podman load`.
    pub(super) archive: PathBuf,
    /// The OCI image configuration.
    pub(super) config: Value,
    layer: PathBuf,
    files: PathBuf,
}

/// A file or directory of the image.
pub(super) struct Entry {
    pub(super) mode: String,
    /// `uid/gid`.
    pub(super) owner: String,
    pub(super) path: String,
    /// The time of the last change, in UTC: `2026-01-31 12:00:00`.
    pub(super) time: String,
}

impl BuiltImage {
    /// Returns the image for this machine. The first call builds it.
    pub(super) fn here() -> &'static Self {
        static BUILT: OnceLock<BuiltImage> = OnceLock::new();
        BUILT.get_or_init(|| Self::with("here", &[]))
    }

    /// Builds the image for another architecture.
    pub(super) fn for_arch(arch: &str) -> Self {
        Self::with(arch, &["--arch", arch])
    }

    fn with(name: &str, arguments: &[&str]) -> Self {
        let dir = process_dir(&format!("image-{name}"));
        let files = dir.join("files");
        fs::create_dir_all(&files).unwrap();
        let archive = dir.join("transit-kms.tar");
        scripts_image(&[&["--output", archive.to_str().unwrap()], arguments].concat());
        tar(&["--extract", "--file"], &archive, &dir);
        let read = |file: &str| -> Value {
            serde_json::from_str(&fs::read_to_string(dir.join(file)).unwrap()).unwrap()
        };
        let manifest = read("manifest.json");
        let layers = manifest[0]["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1, "{manifest}");
        let layer = dir.join(layers[0].as_str().unwrap());
        tar(&["--extract", "--file"], &layer, &files);
        let config = read(manifest[0]["Config"].as_str().unwrap());
        Self { archive, config, layer, files }
    }

    /// Returns the unpacked file of this path in the image.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.files.join(path)
    }

    /// Returns all files and directories of the image, sorted by path.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let list = ["--list", "--verbose", "--numeric-owner", "--full-time", "--utc", "--file"];
        let mut entries: Vec<_> = tar(&list, &self.layer, &self.files).lines().map(Entry::of_line).collect();
        entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        entries
    }
}

impl Entry {
    fn of_line(line: &str) -> Self {
        let words: Vec<_> = line.split_whitespace().collect();
        let [mode, owner, _size, date, time, path] = words[..] else { panic!("{line}") };
        Self { mode: mode.into(), owner: owner.into(), path: path.into(), time: format!("{date} {time}") }
    }
}

/// Runs `scripts/image --local-base` with additional arguments, and returns its output.
pub(super) fn scripts_image(arguments: &[&str]) -> String {
    let mut command = downloading_script("image");
    let ran = command.arg("--local-base").args(arguments).output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{command:?}: {}\n{complained}\n{said}", ran.status);
    said.into_owned()
}

fn tar(arguments: &[&str], archive: &Path, within: &Path) -> String {
    let ran = command("tar").args(arguments).arg(archive).current_dir(within).output().unwrap();
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}
