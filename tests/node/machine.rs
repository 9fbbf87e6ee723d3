//! The machine that `scripts/test-node` has made: an address, a disk in memory, control groups, images.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{command, eventually};

/// The directory of the socket, on every machine.
pub(crate) const SOCKETS: &str = "/run/transit-kms";
/// The socket.
pub(crate) const SOCKET: &str = "/run/transit-kms/kms.sock";
/// Where a machine has what the agent logs in with.
pub(crate) const CREDENTIALS: &str = "/etc/transit-kms";

const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What the machine has, whatever runs on it.
pub(crate) struct Machine {
    group: String,
}

impl Machine {
    /// # Panics
    /// Where `scripts/test-node` has not made one.
    pub(crate) fn new() -> Self {
        Self { group: variable("TRANSIT_KMS_NODE_GROUP") }
    }

    /// A folder of the node's disk, which lasts as long as the machine.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        let path = Path::new(&variable("TRANSIT_KMS_NODE")).join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// What holds the images, a file each.
    pub(crate) fn archives(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(variable("TRANSIT_KMS_NODE_IMAGES")).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect()
    }

    /// The processes of pods that run this program.
    pub(crate) fn running(&self, program: &str) -> Vec<Pid> {
        let runs = |pid: &Pid| {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim_end() == program)
        };
        processes(&self.pids()).into_iter().filter(runs).collect()
    }

    /// The control group that kubelet puts pods below.
    pub(crate) fn group(&self) -> String {
        format!("/{}", self.group)
    }

    /// A command whose process, and whatever it starts, belongs to the node and ends with its power.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let group = self.pids().join("runtime");
        fs::create_dir_all(&group).unwrap();
        let mut command = command("sh");
        command.args(["-c", "echo $$ >\"$0\"; exec \"$@\""]).arg(group.join("cgroup.procs")).arg(program);
        command
    }

    /// Kills everything that runs on the node, and leaves what a boot finds: the disk, and an empty `/run`.
    pub(crate) async fn power_off(&self) {
        eventually("nothing runs on the node any more", GONE_WITHIN, async || {
            let left = processes(&self.pids());
            for pid in &left {
                // Fails only if it is gone by now.
                let _gone = kill_process(*pid, Signal::KILL);
            }
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        // Else kubelet's next start asks, for seconds each, after containers that it takes for running.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove_below(&hierarchy.path().join(&self.group));
        }
        remove_below(&Path::new("/sys/fs/cgroup").join(&self.group));
        let disk = variable("TRANSIT_KMS_NODE");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        // The last first: it may stand on the others.
        for at in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if at.starts_with("/run/") || at.starts_with(&format!("{disk}/kubelet")) {
                run("umount", &["--lazy", at]);
            }
        }
        run("umount", &["--lazy", "/run"]);
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"]);
    }

    /// Our group among those that count processes.
    fn pids(&self) -> PathBuf {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" }).join(&self.group)
    }
}

/// The processes in a control group and in all below it.
fn processes(group: &Path) -> Vec<Pid> {
    // It may go at any moment.
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

/// Removes the control groups below this one, if there is one.
fn remove_below(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            // One that is still busy is asked after, as said above.
            let _removed = fs::remove_dir(entry.path());
        }
    }
}

/// # Panics
/// If the command fails.
fn run(program: &str, arguments: &[&str]) {
    let ran = command(program).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test-node"))
}
