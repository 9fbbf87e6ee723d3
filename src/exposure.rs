//! What modes and owners let other users do. Nothing is refused for it: a warning that stops the
//! daemon would be an outage. The warnings are logged, and stand in `/readyz` until they are cured.

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
/// The kernel's overflow uid.
const UNMAPPED: u32 = 65534;

/// What a mode means depends on who asks.
struct Process {
    groups: Vec<u32>,
    uid: u32,
}

impl Process {
    fn own() -> Self {
        let mut groups: Vec<u32> =
            getgroups().unwrap_or_default().into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.push(getegid().as_raw());
        Self { groups, uid: geteuid().as_raw() }
    }

    /// kubelet's `fsGroup`, for one, is among the process's groups. Root's group is root.
    fn is_in(&self, group: u32) -> bool {
        group == 0 || self.groups.contains(&group)
    }

    /// In a user namespace, users without a name there look like [`UNMAPPED`]: nothing is known of them.
    fn trusts(&self, user: u32) -> bool {
        matches!(user, 0 | UNMAPPED) || user == self.uid
    }
}

/// The part of a file's metadata that counts here.
#[derive(Clone, Copy)]
struct Access {
    group: u32,
    mode: u32,
    owner: u32,
}

impl Access {
    fn of(metadata: &Metadata) -> Self {
        Self { group: metadata.gid(), mode: metadata.mode() & 0o7777, owner: metadata.uid() }
    }

    fn has(self, bits: u32) -> bool {
        self.mode & bits != 0
    }

    /// Which other users may do what `any` and `group` stand for; `None` if there are none.
    fn others(self, process: &Process, any: u32, group: u32) -> Option<String> {
        if self.has(any) {
            Some("all users".to_owned())
        } else if self.has(group) && !process.is_in(self.group) {
            Some(format!("group {}", self.group))
        } else {
            None
        }
    }
}

/// Warnings about a file that holds a secret, such as "the token". Symlinks are followed: the file at
/// their end has the mode that counts. A file that cannot be looked at has none; to read it fails too.
pub(crate) fn of_secret(path: &Path, secret: &str, cure: &str) -> Vec<String> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    secret_warnings(path, Access::of(&metadata), &Process::own(), secret, cure)
}

fn secret_warnings(path: &Path, access: Access, process: &Process, secret: &str, cure: &str) -> Vec<String> {
    let mode = access.mode & 0o777;
    let mut warnings = Vec::new();
    for (done, any, group) in [("read", ANY_READS, GROUP_READS), ("written", ANY_WRITES, GROUP_WRITES)] {
        if let Some(who) = access.others(process, any, group) {
            warnings.push(format!(
                "{} holds {secret} and can be {done} by {who} (mode {mode:04o}): {cure}",
                path.display()
            ));
        }
    }
    warnings
}

/// Warnings about the directory of a socket: a user who may write there may put another socket in its
/// place, and kube-apiserver would hand its seeds to that one. The same holds for every directory on
/// the way, by the path that was given and by the one without symlinks.
pub(crate) fn of_socket(socket: &Path) -> Vec<String> {
    let Some(directory) = socket.parent() else { return Vec::new() };
    let process = Process::own();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut warnings = Vec::new();
    let real = fs::canonicalize(directory).ok();
    for start in real.as_deref().into_iter().chain([directory]) {
        for (height, way) in start.ancestors().enumerate() {
            // Symlinks were followed already, so two names of one directory are one.
            let Some(way) = fs::canonicalize(way).ok().filter(|way| !seen.contains(way)) else { continue };
            if let Ok(metadata) = fs::metadata(&way) {
                warnings.extend(directory_warning(&way, Access::of(&metadata), &process, height == 0));
            }
            seen.push(way);
        }
    }
    warnings
}

/// `holds_it`: the socket is right in it. Elsewhere the sticky bit is enough, as it is in `/tmp`.
fn directory_warning(path: &Path, access: Access, process: &Process, holds_it: bool) -> Option<String> {
    let sticky = access.has(STICKY);
    let who = if process.trusts(access.owner) {
        access.others(process, ANY_WRITES, GROUP_WRITES)?
    } else {
        format!("uid {}, who owns it", access.owner)
    };
    if sticky && !holds_it && process.trusts(access.owner) {
        return None;
    }
    let what =
        if sticky { "put another socket there while transit-kms is not running" } else { "replace it" };
    Some(format!(
        "the socket's directory {} can be written by {who} (mode {:04o}), who can {what}: \
         give it to root or to the user of transit-kms, with mode 0755",
        path.display(),
        access.mode
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn process() -> Process {
        Process { groups: vec![7, 8], uid: 5 }
    }

    fn access(mode: u32, owner: u32, group: u32) -> Access {
        Access { group, mode, owner }
    }

    #[test]
    fn a_secret_is_for_its_owner_and_for_groups_of_the_process() {
        for (mode, group, words) in [
            (0o600, 99, vec![]),
            (0o400, 99, vec![]),
            (0o640, 7, vec![]),
            // As kubelet leaves it for `fsGroup`.
            (0o660, 8, vec![]),
            (0o640, 0, vec![]),
            (0o640, 99, vec!["read by group 99 (mode 0640)"]),
            (0o660, 99, vec!["read by group 99", "written by group 99"]),
            (0o644, 7, vec!["read by all users (mode 0644)"]),
            (0o666, 7, vec!["read by all users", "written by all users (mode 0666)"]),
            (0o602, 7, vec!["written by all users"]),
        ] {
            let path = Path::new("/c.yaml");
            let told = secret_warnings(path, access(mode, 5, group), &process(), "the token", "cure");
            assert_eq!(told.len(), words.len(), "{mode:o}: {told:?}");
            for (told, words) in told.iter().zip(words) {
                assert!(
                    told.starts_with("/c.yaml holds the token and can be ") && told.contains(words),
                    "{told}"
                );
            }
        }
    }

    #[test]
    fn a_directory_is_for_root_and_the_process() {
        for (mode, owner, group, holds_it, words) in [
            (0o755, 0, 99, true, None),
            (0o700, 5, 99, true, None),
            (0o775, 0, 7, true, None),
            (0o2775, 0, 0, true, None),
            (0o775, 0, 99, true, Some("group 99 (mode 0775), who can replace it")),
            (0o777, 0, 0, true, Some("all users (mode 0777), who can replace it")),
            (0o1777, 0, 0, true, Some("put another socket there while")),
            (0o755, 9, 0, true, Some("uid 9, who owns it")),
            (0o755, UNMAPPED, UNMAPPED, true, None),
            (0o1777, 0, 0, false, None),
            (0o777, 0, 0, false, Some("replace it")),
            (0o755, 9, 0, false, Some("uid 9, who owns it")),
            (0o1777, 9, 0, false, Some("uid 9, who owns it")),
        ] {
            let told = directory_warning(Path::new("/d"), access(mode, owner, group), &process(), holds_it);
            match (&told, words) {
                (None, None) => {}
                (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
                _ => panic!("{mode:o} {owner} {group} {holds_it}: {told:?}"),
            }
        }
    }

    #[test]
    fn symlinks_are_followed_and_both_ways_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for name in ["real", "real/in", "links"] {
            fs::create_dir(base.join(name)).unwrap();
            mode(&base.join(name), 0o755);
        }
        symlink(base.join("real/in"), base.join("links/in")).unwrap();
        let socket = base.join("links/in/kms.sock");
        assert_eq!(of_socket(&socket), Vec::<String>::new());
        for way in ["real/in", "real", "links"] {
            mode(&base.join(way), 0o777);
            let told = of_socket(&socket);
            assert!(
                told.len() == 1 && told[0].contains(&format!("{}/{way} can", base.display())),
                "{told:?}"
            );
            mode(&base.join(way), 0o755);
        }

        // As in a volume of kubelet's.
        fs::write(base.join("real/c.yaml"), "").unwrap();
        symlink(base.join("real"), base.join("..data")).unwrap();
        symlink("..data/c.yaml", base.join("c.yaml")).unwrap();
        mode(&base.join("real/c.yaml"), 0o600);
        assert!(of_secret(&base.join("c.yaml"), "x", "y").is_empty());
        mode(&base.join("real/c.yaml"), 0o604);
        assert_eq!(of_secret(&base.join("c.yaml"), "x", "y").len(), 1);
        assert!(of_secret(&base.join("absent"), "x", "y").is_empty());
    }
}
