//! The simulated machine that `scripts/test-node` makes: an address, a disk in memory, cgroups and images.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{command, eventually};

/// The directory of the KMS socket.
pub(crate) const SOCKETS: &str = "/run/transit-kms";
/// The KMS socket.
pub(crate) const SOCKET: &str = "/run/transit-kms/kms.sock";
/// The directory of the credentials.
pub(crate) const CREDENTIALS: &str = "/etc/transit-kms";
/// The directory of what transit-kms remembers of its logins.
pub(crate) const STATE: &str = "/var/lib/transit-kms";

const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// The machine without the programs that run on it.
pub(crate) struct Machine {
    group: String,
}

impl Machine {
    /// # Panics
    /// Panics if `scripts/test-node` did not start this process.
    pub(crate) fn new() -> Self {
        Self { group: variable("TRANSIT_KMS_NODE_GROUP") }
    }

    /// Returns a directory on the machine's disk, which exists until the script ends.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        let path = Path::new(&variable("TRANSIT_KMS_NODE")).join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Returns the image archives.
    pub(crate) fn archives(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(variable("TRANSIT_KMS_NODE_IMAGES")).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect()
    }

    /// Returns the pod processes that run this program.
    pub(crate) fn running(&self, program: &str) -> Vec<Pid> {
        let runs = |pid: &Pid| {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim_end() == program)
        };
        processes(&self.pids()).into_iter().filter(runs).collect()
    }

    /// Returns the parent cgroup of all pods.
    pub(crate) fn group(&self) -> String {
        format!("/{}", self.group)
    }

    /// Returns a command whose process and descendants run on the node: [`Machine::power_off`] kills them.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let group = self.pids().join("runtime");
        fs::create_dir_all(&group).unwrap();
        let mut command = command("sh");
        command.args(["-c", "echo $$ >\"$0\"; exec \"$@\""]).arg(group.join("cgroup.procs")).arg(program);
        command
    }

    /// Kills everything that runs on the node. The disk stays, and `/run` becomes empty.
    pub(crate) async fn power_off(&self) {
        eventually("no process runs on the node", ENDED_WITHIN, async || {
            let left = processes(&self.pids());
            for pid in &left {
                // Fails only if the process has already ended.
                let _ended = kill_process(*pid, Signal::KILL);
            }
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        // Otherwise kubelet takes the containers for running at its next start, and queries each of them for seconds.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove_below(&hierarchy.path().join(&self.group));
        }
        remove_below(&Path::new("/sys/fs/cgroup").join(&self.group));
        let disk = variable("TRANSIT_KMS_NODE");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        // In reverse order, because later mounts may be on top of earlier ones.
        for at in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if at.starts_with("/run/") || at.starts_with(&format!("{disk}/kubelet")) {
                run("umount", &["--lazy", at]);
            }
        }
        run("umount", &["--lazy", "/run"]);
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"]);
    }

    /// Returns the cgroup of the node in the hierarchy of the `pids` controller.
    fn pids(&self) -> PathBuf {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" }).join(&self.group)
    }
}

/// Returns the processes in a cgroup and its descendants.
fn processes(group: &Path) -> Vec<Pid> {
    // The cgroup may disappear at any moment.
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<Pid> =
        text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// Removes all descendants of this cgroup, if it exists.
fn remove_below(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            // Removal fails while a cgroup is in use. Then kubelet's next start is slower, as described above.
            let _removed = fs::remove_dir(entry.path());
        }
    }
}

/// # Panics
/// Panics if the command fails.
fn run(program: &str, arguments: &[&str]) {
    let ran = command(program).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test-node"))
}
