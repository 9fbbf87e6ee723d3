//! Which directories to watch, so that no way of replacing a file is missed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf},
};

/// As many symlinks as the kernel follows.
const MAX_HOPS: usize = 40;

/// Directories, and the names in them that matter.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Places {
    /// Existing directories, without symlinks in their paths.
    pub directories: BTreeSet<PathBuf>,
    /// Names of entries of any of the directories.
    pub names: BTreeSet<OsString>,
}

impl Places {
    /// Adds the directory of an absolute path, and that of every symlink on the
    /// way to it, for each of them can be replaced and then leads elsewhere. A
    /// watch on the file itself would see only its first replacement.
    ///
    /// Where the way ends early, the last directory that exists is added: it
    /// is there that the missing part will appear.
    pub(super) fn add_way_to(&mut self, path: &Path) {
        let mut hops = 0;
        let mut here = PathBuf::from("/");
        // The next component is the last of the list.
        let mut ahead = Vec::new();
        push_components(&mut ahead, path);
        while let Some(step) = ahead.pop() {
            let name = match step {
                Way::Root => {
                    here = PathBuf::from("/");
                    continue;
                }
                Way::Up => {
                    here.pop();
                    continue;
                }
                Way::Down(name) => name,
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

enum Way {
    Down(OsString),
    Root,
    Up,
}

fn push_components(ahead: &mut Vec<Way>, path: &Path) {
    ahead.extend(path.components().rev().filter_map(|component| match component {
        Component::CurDir => None,
        Component::Normal(name) => Some(Way::Down(name.to_owned())),
        Component::ParentDir => Some(Way::Up),
        Component::Prefix(_) | Component::RootDir => Some(Way::Root),
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn way(path: &Path) -> Places {
        let mut places = Places::default();
        places.add_way_to(path);
        places
    }

    fn set<const N: usize>(base: &Path, names: [&str; N]) -> BTreeSet<PathBuf> {
        names.iter().map(|name| base.join(name)).collect()
    }

    #[test]
    fn the_way_through_a_projected_volume() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("cfg/..v1")).unwrap();
        fs::write(base.join("cfg/..v1/c.yaml"), "").unwrap();
        symlink("..v1", base.join("cfg/..data")).unwrap();
        symlink("..data/c.yaml", base.join("cfg/c.yaml")).unwrap();
        symlink("cfg", base.join("via")).unwrap();
        let places = way(&base.join("via/./c.yaml"));
        assert_eq!(places.directories, set(&base, ["", "cfg", "cfg/..v1"]));
        assert_eq!(places.names, ["via", "c.yaml", "..data"].map(OsString::from).into_iter().collect());
        symlink(base.join("cfg/../cfg/c.yaml"), base.join("far")).unwrap();
        assert_eq!(way(&base.join("far")).directories, set(&base, ["", "cfg", "cfg/..v1"]));
    }

    #[test]
    fn a_way_that_ends_early_is_watched_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let places = way(&base.join("not/there/c.yaml"));
        assert_eq!(places.directories, set(&base, [""]));
        assert_eq!(places.names, [OsString::from("not")].into_iter().collect());
        symlink("gone/c.yaml", base.join("c.yaml")).unwrap();
        let places = way(&base.join("c.yaml"));
        assert_eq!(places.names, ["c.yaml", "gone"].map(OsString::from).into_iter().collect());
    }

    #[test]
    fn a_circle_ends() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        symlink("b", base.join("a")).unwrap();
        symlink("a", base.join("b")).unwrap();
        assert_eq!(way(&base.join("a")).directories, set(&base, [""]));
        symlink("self/x", base.join("self")).unwrap();
        assert_eq!(way(&base.join("self")).directories, set(&base, [""]));
    }
}
