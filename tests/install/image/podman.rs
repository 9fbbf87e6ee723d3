//! Containers of the image, with as few privileges as possible.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use procfs::process::Process as Proc;
use tempfile::TempDir;
use testkit::{cgroup, cli::Ran, command, eventually, process::Process};

/// How long a container may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// The admin socket in the container.
pub(super) const ADMIN: &str = "unix:///run/transit-kms-admin/admin.sock";
/// The flags of every container: no writable files, no privileges, few processes, and little memory.
const HARDENED: [&str; 14] = [
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "32m",
    "--pids-limit",
    "50",
    // Otherwise podman raises these limits, which fails on some machines.
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
];

/// The settings without a command-line flag.
const CONF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/containers.conf");
/// The flags of podman's directories, and the directory names.
const DIRECTORIES: [(&str, &str); 5] = [
    ("--network-config-dir", "networks"),
    ("--root", "root"),
    ("--runroot", "run"),
    ("--tmpdir", "tmp"),
    ("--volumepath", "volumes"),
];
/// The directory for temporary files of podman and runc.
const SCRATCH: &str = "temp_dir";

/// A podman with one image. It shares nothing with other podmans of this machine: its files are in its own directory,
/// and its processes in its own cgroup. Both are removed when it is dropped.
pub(super) struct Podman {
    dir: TempDir,
    image: String,
    wrapper: Vec<String>,
}

/// A container that runs a daemon. It is removed when it is dropped.
pub(super) struct Container<'a> {
    name: String,
    podman: &'a Podman,
    process: Process,
}

/// The memory of a container, in bytes.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) limit: u64,
    pub(super) most_resident: u64,
    pub(super) resident: u64,
}

impl Podman {
    /// Loads the image of this archive.
    pub(super) fn with(archive: &Path) -> Self {
        Self::wrapped(&[], archive)
    }

    /// As [`Podman::with`], with these words before each command.
    pub(super) fn wrapped(wrapper: &[&str], archive: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pod-").tempdir().unwrap();
        fs::create_dir(dir.path().join(SCRATCH)).unwrap();
        let wrapper = wrapper.iter().map(|&word| word.into()).collect();
        let mut podman = Self { dir, image: String::new(), wrapper };
        let loaded = podman.stdout(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        podman.image = loaded.trim().rsplit(' ').next().unwrap().into();
        podman
    }

    /// Runs the image without a network until it ends.
    pub(super) fn run_once(&self, options: &[&str], arguments: &[&str]) -> Ran {
        let mut command = self.run(&["--network", "none"]);
        command.args(HARDENED).args(options).arg(&self.image).args(arguments);
        ran(command.output().unwrap())
    }

    /// Runs the image until it is stopped.
    pub(super) fn start(&self, options: &[String], arguments: &[&str]) -> Container<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("daemon-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = self.run(&["--name", &name]);
        command.args(HARDENED).args(options).arg(&self.image).args(arguments);
        Container { name, podman: self, process: Process::spawn("the container", &mut command) }
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let ran = ran(self.command(arguments).output().unwrap_or_else(|e| {
            panic!("podman: {e}: scripts/install-tools node gets what containers need");
        }));
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        ran.stdout
    }

    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&["run", "--rm", "--cgroup-parent"]);
        command.arg(format!("/{}", self.group())).args(arguments);
        command
    }

    /// Returns the parent cgroup of the containers. It has the name of the directory.
    fn group(&self) -> &str {
        self.dir.path().file_name().unwrap().to_str().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.wrapper.iter().map(String::as_str).chain(["podman"]);
        let mut command = command(words.next().unwrap());
        command.args(words).env("CONTAINERS_CONF", CONF).env("HOME", self.dir.path());
        command.env("TMPDIR", self.dir.path().join(SCRATCH));
        for (flag, folder) in DIRECTORIES {
            command.arg(flag).arg(self.dir.path().join(folder));
        }
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc"]);
        command.args(arguments);
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        cgroup::remove_everywhere(self.group());
    }
}

impl Container<'_> {
    /// Runs `transit-kms probe` in the container.
    pub(super) fn probe(&self, what: &str) -> Ran {
        let arguments = ["exec", &self.name, "/transit-kms", "probe", what, "--admin", ADMIN];
        ran(self.podman.command(&arguments).output().unwrap())
    }

    /// # Panics
    /// Panics if the container has ended.
    pub(super) fn assert_running(&mut self) {
        if let Some(status) = self.process.exited() {
            panic!("the container ended: {status}");
        }
    }

    /// Returns the only process of the container.
    pub(super) fn proc(&self) -> Proc {
        let pid = self.podman.stdout(&["inspect", "--format", "{{.State.Pid}}", &self.name]);
        Proc::new(pid.trim().parse().unwrap()).unwrap()
    }

    /// Returns the memory use and the limit.
    pub(super) fn memory(&self) -> Memory {
        let proc = self.proc();
        let status = proc.status().unwrap();
        let kib = |found: Option<u64>| found.unwrap() << 10;
        let groups = proc.cgroups().unwrap();
        let limit = groups.into_iter().find_map(|group| {
            let group_of_v1 = group.controllers.iter().any(|one| one == "memory");
            let file = if group_of_v1 {
                format!("/sys/fs/cgroup/memory{}/memory.limit_in_bytes", group.pathname)
            } else {
                format!("/sys/fs/cgroup{}/memory.max", group.pathname)
            };
            fs::read_to_string(file).ok()?.trim().parse().ok()
        });
        Memory {
            limit: limit.expect("a limit of memory"),
            most_resident: kib(status.vmhwm),
            resident: kib(status.vmrss),
        }
    }

    /// Stops the container as kubelet does, and returns its exit code.
    pub(super) async fn stop(mut self) -> Option<i32> {
        self.podman.stdout(&["stop", &self.name]);
        let process = &mut self.process;
        eventually("the container ends", PATIENCE, async || process.exited()).await.code()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.process.exited().is_none() {
            // The started process is only a client of podman, so killing it does not end the container.
            drop(self.podman.command(&["rm", "--force", "--time", "0", &self.name]).output());
        }
    }
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
    }
}
