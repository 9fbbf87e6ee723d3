//! Warns about file modes and owners that let other users read secrets or replace sockets.
//!
//! The warnings are logged, and `/readyz` shows them until the cause is gone. They never stop the daemon:
//! that would be an outage.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::{getegid, geteuid, getgroups};

const ANY_READS: u32 = 0o004;
const ANY_WRITES: u32 = 0o002;
const GROUP_READS: u32 = 0o040;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;
/// The kernel's overflow uid: the owner of files whose uid has no mapping in the user namespace.
const UNMAPPED: u32 = 65534;

/// The credentials of the process that the modes are judged for.
struct ProcessIdentity {
    groups: Vec<u32>,
    uid: u32,
}

impl ProcessIdentity {
    fn own() -> Self {
        let mut groups: Vec<u32> =
            getgroups().unwrap_or_default().into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.push(getegid().as_raw());
        Self { groups, uid: geteuid().as_raw() }
    }

    /// The groups of the process include, for example, the `fsGroup` that kubelet sets. Members of the root
    /// group are trusted.
    fn is_in(&self, group: u32) -> bool {
        group == 0 || self.groups.contains(&group)
    }

    /// [`UNMAPPED`] gets no warning, because the real owner is unknown.
    fn trusts(&self, user: u32) -> bool {
        matches!(user, 0 | UNMAPPED) || user == self.uid
    }
}

/// The parts of a file's metadata that decide who has access.
#[derive(Clone, Copy)]
struct FileAccess {
    group: u32,
    mode: u32,
    owner: u32,
}

impl FileAccess {
    fn of(metadata: &Metadata) -> Self {
        Self { group: metadata.gid(), mode: metadata.mode() & 0o7777, owner: metadata.uid() }
    }

    fn has(self, bits: u32) -> bool {
        self.mode & bits != 0
    }

    /// Describes the other users that have a permission: `any` is its bit for others, `group` its bit for the
    /// group. Returns `None` if there are none.
    fn others(self, process: &ProcessIdentity, any: u32, group: u32) -> Option<String> {
        if self.has(any) {
            Some("all users".to_owned())
        } else if self.has(group) && !process.is_in(self.group) {
            Some(format!("group {}", self.group))
        } else {
            None
        }
    }
}

/// Returns warnings about a file that holds a secret, such as "the token". `remedy` says what to do.
///
/// It follows symlinks, because the mode of their target counts. A file without readable metadata gets no
/// warning: reading it fails too, which is reported elsewhere.
pub(crate) fn secret_file_warnings(path: &Path, secret: &str, remedy: &str) -> Vec<String> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    secret_warnings(path, FileAccess::of(&metadata), &ProcessIdentity::own(), secret, remedy)
}

fn secret_warnings(
    path: &Path,
    access: FileAccess,
    process: &ProcessIdentity,
    secret: &str,
    remedy: &str,
) -> Vec<String> {
    let mode = access.mode & 0o777;
    let mut warnings = Vec::new();
    for (action, any, group) in [("read", ANY_READS, GROUP_READS), ("written", ANY_WRITES, GROUP_WRITES)] {
        if let Some(who) = access.others(process, any, group) {
            warnings.push(format!(
                "{} holds {secret} and can be {action} by {who} (mode {mode:04o}): {remedy}",
                path.display()
            ));
        }
    }
    warnings
}

/// Returns warnings about the directory of a socket.
///
/// A user who can write to it can replace the socket, and would get the seeds of kube-apiserver. The same
/// is true for each parent directory, both of the given path and of the path without symlinks.
pub(crate) fn socket_directory_warnings(socket: &Path) -> Vec<String> {
    let Some(directory) = socket.parent() else { return Vec::new() };
    let process = ProcessIdentity::own();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut warnings = Vec::new();
    let real = fs::canonicalize(directory).ok();
    for start in real.as_deref().into_iter().chain([directory]) {
        for (level, ancestor) in start.ancestors().enumerate() {
            // The canonical path makes two names of one directory equal.
            let Some(ancestor) = fs::canonicalize(ancestor).ok().filter(|path| !seen.contains(path)) else {
                continue;
            };
            if let Ok(metadata) = fs::metadata(&ancestor) {
                warnings.extend(directory_warning(
                    &ancestor,
                    FileAccess::of(&metadata),
                    &process,
                    level == 0,
                ));
            }
            seen.push(ancestor);
        }
    }
    warnings
}

/// `holds_socket` means that the socket is directly in this directory. For other directories the sticky bit
/// is enough, as it is for `/tmp`.
fn directory_warning(
    path: &Path,
    access: FileAccess,
    process: &ProcessIdentity,
    holds_socket: bool,
) -> Option<String> {
    let sticky = access.has(STICKY);
    let who = if process.trusts(access.owner) {
        access.others(process, ANY_WRITES, GROUP_WRITES)?
    } else {
        format!("its owner, uid {}", access.owner)
    };
    if sticky && !holds_socket && process.trusts(access.owner) {
        return None;
    }
    let risk =
        if sticky { "create another socket there while transit-kms is not running" } else { "replace it" };
    Some(format!(
        "the socket's directory {} can be written by {who} (mode {:04o}), who can {risk}: \
         change its owner to root or to the user of transit-kms, and its mode to 0755",
        path.display(),
        access.mode
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn process() -> ProcessIdentity {
        ProcessIdentity { groups: vec![7, 8], uid: 5 }
    }

    fn access(mode: u32, owner: u32, group: u32) -> FileAccess {
        FileAccess { group, mode, owner }
    }

    #[test]
    fn only_the_owner_and_groups_of_the_process_may_read_a_secret() {
        for (mode, group, words) in [
            (0o600, 99, vec![]),
            (0o400, 99, vec![]),
            (0o640, 7, vec![]),
            // The mode that kubelet sets with `fsGroup`.
            (0o660, 8, vec![]),
            (0o640, 0, vec![]),
            (0o640, 99, vec!["read by group 99 (mode 0640)"]),
            (0o660, 99, vec!["read by group 99", "written by group 99"]),
            (0o644, 7, vec!["read by all users (mode 0644)"]),
            (0o666, 7, vec!["read by all users", "written by all users (mode 0666)"]),
            (0o602, 7, vec!["written by all users"]),
        ] {
            let path = Path::new("/c.yaml");
            let warnings = secret_warnings(path, access(mode, 5, group), &process(), "the token", "remedy");
            assert_eq!(warnings.len(), words.len(), "{mode:o}: {warnings:?}");
            for (warning, words) in warnings.iter().zip(words) {
                assert!(
                    warning.starts_with("/c.yaml holds the token and can be ") && warning.contains(words),
                    "{warning}"
                );
            }
        }
    }

    #[test]
    fn only_root_and_the_process_may_write_to_a_directory() {
        for (mode, owner, group, holds_socket, words) in [
            (0o755, 0, 99, true, None),
            (0o700, 5, 99, true, None),
            (0o775, 0, 7, true, None),
            (0o2775, 0, 0, true, None),
            (0o775, 0, 99, true, Some("group 99 (mode 0775), who can replace it")),
            (0o777, 0, 0, true, Some("all users (mode 0777), who can replace it")),
            (0o1777, 0, 0, true, Some("create another socket there while")),
            (0o755, 9, 0, true, Some("its owner, uid 9")),
            (0o755, UNMAPPED, UNMAPPED, true, None),
            (0o1777, 0, 0, false, None),
            (0o777, 0, 0, false, Some("replace it")),
            (0o755, 9, 0, false, Some("its owner, uid 9")),
            (0o1777, 9, 0, false, Some("its owner, uid 9")),
        ] {
            let warning =
                directory_warning(Path::new("/d"), access(mode, owner, group), &process(), holds_socket);
            match (&warning, words) {
                (None, None) => {}
                (Some(warning), Some(words)) => assert!(warning.contains(words), "{warning}"),
                _ => panic!("{mode:o} {owner} {group} {holds_socket}: {warning:?}"),
            }
        }
    }

    #[test]
    fn symlinks_are_followed_and_both_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for name in ["real", "real/in", "links"] {
            fs::create_dir(base.join(name)).unwrap();
            mode(&base.join(name), 0o755);
        }
        symlink(base.join("real/in"), base.join("links/in")).unwrap();
        let socket = base.join("links/in/kms.sock");
        assert_eq!(socket_directory_warnings(&socket), Vec::<String>::new());
        for directory in ["real/in", "real", "links"] {
            mode(&base.join(directory), 0o777);
            let warnings = socket_directory_warnings(&socket);
            assert!(
                warnings.len() == 1 && warnings[0].contains(&format!("{}/{directory} can", base.display())),
                "{warnings:?}"
            );
            mode(&base.join(directory), 0o755);
        }

        // The layout of a volume of kubelet.
        fs::write(base.join("real/c.yaml"), "").unwrap();
        symlink(base.join("real"), base.join("..data")).unwrap();
        symlink("..data/c.yaml", base.join("c.yaml")).unwrap();
        mode(&base.join("real/c.yaml"), 0o600);
        assert!(secret_file_warnings(&base.join("c.yaml"), "x", "y").is_empty());
        mode(&base.join("real/c.yaml"), 0o604);
        assert_eq!(secret_file_warnings(&base.join("c.yaml"), "x", "y").len(), 1);
        assert!(secret_file_warnings(&base.join("absent"), "x", "y").is_empty());
    }
}
