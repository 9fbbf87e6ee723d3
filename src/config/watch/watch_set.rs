//! The directories to watch, so that no replacement of a file is missed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
};

/// The kernel follows the same number of symlinks.
const MAX_HOPS: usize = 40;

/// The directories to watch, and the names of the entries whose events count.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct WatchSet {
    /// Existing directories, without symlinks in their paths.
    pub directories: BTreeSet<PathBuf>,
    /// Names of entries in any of the directories.
    pub names: BTreeSet<OsString>,
}

impl WatchSet {
    /// Adds the directory of an absolute path, and the directory of every symlink on the path, because each
    /// symlink can be replaced. A watch on the file itself would see only its first replacement.
    ///
    /// If a part of the path does not exist, the last existing directory is added: the missing part will appear
    /// there.
    pub(super) fn add_path(&mut self, path: &Path) {
        let mut hops = 0;
        let mut here = PathBuf::from("/");
        // In reverse order: the last component is the next one.
        let mut ahead = Vec::new();
        push_components(&mut ahead, path);
        while let Some(step) = ahead.pop() {
            let name = match step {
                PathStep::Root => {
                    here = PathBuf::from("/");
                    continue;
                }
                PathStep::Up => {
                    here.pop();
                    continue;
                }
                PathStep::Down(name) => name,
            };
            let next = here.join(&name);
            let metadata = fs::symlink_metadata(&next);
            if metadata.as_ref().is_ok_and(fs::Metadata::is_dir) && !ahead.is_empty() {
                here = next;
                continue;
            }
            self.directories.insert(here.clone());
            self.names.insert(name);
            hops += 1;
            match (metadata.is_ok_and(|found| found.is_symlink()), fs::read_link(&next)) {
                (true, Ok(target)) if hops <= MAX_HOPS => push_components(&mut ahead, &target),
                _ => return,
            }
        }
    }
}

/// One component of a path.
enum PathStep {
    Down(OsString),
    Root,
    Up,
}

fn push_components(ahead: &mut Vec<PathStep>, path: &Path) {
    ahead.extend(path.components().rev().filter_map(|component| match component {
        Component::CurDir => None,
        Component::Normal(name) => Some(PathStep::Down(name.to_owned())),
        Component::ParentDir => Some(PathStep::Up),
        Component::Prefix(_) | Component::RootDir => Some(PathStep::Root),
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn watch_set(path: &Path) -> WatchSet {
        let mut set = WatchSet::default();
        set.add_path(path);
        set
    }

    fn set<const N: usize>(base: &Path, names: [&str; N]) -> BTreeSet<PathBuf> {
        names.iter().map(|name| base.join(name)).collect()
    }

    #[test]
    fn all_directories_of_a_projected_volume_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("cfg/..v1")).unwrap();
        fs::write(base.join("cfg/..v1/c.yaml"), "").unwrap();
        symlink("..v1", base.join("cfg/..data")).unwrap();
        symlink("..data/c.yaml", base.join("cfg/c.yaml")).unwrap();
        symlink("cfg", base.join("via")).unwrap();
        let watched = watch_set(&base.join("via/./c.yaml"));
        assert_eq!(watched.directories, set(&base, ["", "cfg", "cfg/..v1"]));
        assert_eq!(watched.names, ["via", "c.yaml", "..data"].map(OsString::from).into_iter().collect());
        symlink(base.join("cfg/../cfg/c.yaml"), base.join("far")).unwrap();
        assert_eq!(watch_set(&base.join("far")).directories, set(&base, ["", "cfg", "cfg/..v1"]));
    }

    #[test]
    fn a_path_that_does_not_exist_is_watched_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let watched = watch_set(&base.join("not/there/c.yaml"));
        assert_eq!(watched.directories, set(&base, [""]));
        assert_eq!(watched.names, [OsString::from("not")].into_iter().collect());
        symlink("gone/c.yaml", base.join("c.yaml")).unwrap();
        let watched = watch_set(&base.join("c.yaml"));
        assert_eq!(watched.names, ["c.yaml", "gone"].map(OsString::from).into_iter().collect());
    }

    #[test]
    fn symlinks_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        symlink("b", base.join("a")).unwrap();
        symlink("a", base.join("b")).unwrap();
        assert_eq!(watch_set(&base.join("a")).directories, set(&base, [""]));
        symlink("self/x", base.join("self")).unwrap();
        assert_eq!(watch_set(&base.join("self")).directories, set(&base, [""]));
    }
}
