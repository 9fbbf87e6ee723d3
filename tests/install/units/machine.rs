//! A simulated machine made of namespaces, with a real systemd as its first process.
//!
//! It shares `/usr` and the network with the host, so that it reaches the test's server. Everything else is its own and
//! in memory. It needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{cgroup, command, eventually, process::Process, temp_dir};

/// On an idle machine, the boot takes two seconds.
const UP_WITHIN: Duration = Duration::from_secs(60);
const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install/units/boot.sh");
/// Moves into the cgroup of the first argument, and unshares all namespaces except network and user.
const UNSHARE: &str = "echo $$ >\"$0/cgroup.procs\" && exec unshare \
    --cgroup --ipc --mount --pid --uts --fork --kill-child -- \"$@\"";

/// The machine. Everything in it is killed when it is dropped.
pub(super) struct Machine {
    init: u32,
    process: Process,
    _cgroup: Cgroup,
    _dir: TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) good: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Machine {
    /// Boots a machine with these files copied over its root and these programs in `/usr/local/bin`.
    pub(super) async fn boot(files: &Path, programs: &[PathBuf]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "systemd in namespaces needs root: run as root");
        let (dir, cgroup) = (temp_dir("machine-"), Cgroup::new());
        let mut command = command("sh");
        command
            .args(["-c", UNSHARE])
            .arg(&cgroup.0)
            .args(["sh", BOOT])
            .arg(dir.path())
            .arg(files)
            .args(programs);
        let mut process = Process::spawn("the machine", &mut command);
        let children = format!("/proc/{0}/task/{0}/children", process.pid());
        let init = eventually("systemd runs", UP_WITHIN, async || {
            assert_eq!(process.exited(), None, "the machine ended: {}", process.output());
            let init = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (name.trim() == "systemd").then_some(init)
        })
        .await;
        let machine = Self { init, process, _cgroup: cgroup, _dir: dir };
        eventually("the machine is up", UP_WITHIN, async || {
            let state = machine.run(&["systemctl", "is-system-running"]).await;
            if ["running", "degraded"].contains(&state.stdout.trim()) {
                Ok(())
            } else {
                Err(format!("{state:?}"))
            }
        })
        .await;
        machine
    }

    /// Returns the path on the host for a path of the machine.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Runs a command in the machine.
    pub(super) async fn run(&self, words: &[&str]) -> Ran {
        let mut nsenter = tokio::process::Command::from(command("nsenter"));
        nsenter.args(["--target", &self.init.to_string(), "--all", "--wd=/", "--"]).args(words);
        let output = nsenter.env("PATH", "/usr/local/bin:/usr/bin:/usr/sbin").output().await.unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ran { good: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Runs `systemctl`.
    ///
    /// # Panics
    /// Panics if it fails.
    pub(super) async fn systemctl<const N: usize>(&self, arguments: [&str; N]) -> String {
        let ran = self.run(&[&["systemctl"], &arguments[..]].concat()).await;
        assert!(ran.good, "systemctl {arguments:?}: {ran:?}");
        ran.stdout.trim().to_owned()
    }

    /// Returns a property of a unit.
    pub(super) async fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(["show", "--value", "--property", name, unit]).await
    }

    /// Returns a numeric property of a unit.
    pub(super) async fn number(&self, unit: &str, name: &str) -> u64 {
        let found = self.property(unit, name).await;
        found.parse().unwrap_or_else(|_| panic!("{name} of {unit} is {found:?}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = command("nsenter")
                .args(["--target", &self.init.to_string(), "--all", "--wd=/", "--"])
                .args(["journalctl", "--no-pager", "--lines=200", "--output=short-monotonic"])
                .output();
            eprintln!(
                "{}",
                journal.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default()
            );
        }
        // The kernel kills all processes of a PID namespace with its first one. Then `unshare`, which waits, ends.
        if self.process.exited().is_none() {
            let init = Pid::from_raw(i32::try_from(self.init).unwrap()).unwrap();
            kill_process(init, Signal::KILL).ok();
            self.process.wait();
        }
    }
}

/// A new cgroup below the one of the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let process = procfs::process::Process::myself().unwrap();
        let mounts = process.mountinfo().unwrap();
        let mount = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2").expect("a mounted cgroup2");
        let own = process.cgroups().unwrap().into_iter().find(|one| one.hierarchy == 0).expect("a cgroup");
        let parent = mount.mount_point.join(own.pathname.trim_start_matches('/'));
        // A process id is not unique enough for the name: a killed test leaves its cgroup, and its id may be used again,
        // or be used in another PID namespace.
        let new = tempfile::Builder::new().prefix("transit-kms-test-").tempdir_in(&parent);
        Self(new.unwrap_or_else(|error| panic!("{}: {error}", parent.display())).keep())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}
