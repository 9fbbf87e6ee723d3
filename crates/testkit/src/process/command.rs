//! The one place that makes commands: each program gets an environment of the tests', and nothing of the user's.
//!
//! What the user has set or stored must not decide whether a test passes: `KUBECONFIG`, `HELM_*`, `ETCD_*`,
//! `CONTAINERS_*`, proxies, `NOTIFY_SOCKET`, `BASH_ENV`, a `.gitconfig`, caches below the home folder.
//! `clippy.toml` forbids `Command::new` elsewhere.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::Command,
};

use crate::files::repository;

/// What a program gets of the environment of the tests: where temporary files go, where `cargo llvm-cov` wants its
/// files, and where a version manager keeps the `python3` that is first in `PATH`.
const KEPT: [&str; 4] = ["ASDF_DATA_DIR", "LLVM_PROFILE_FILE", "PYENV_ROOT", "TMPDIR"];
/// Nobody can make it, not even root, so no program keeps anything in it. One that needs a home is given its own.
const NO_HOME: &str = "/proc/no-home";
/// Where Debian has `runc` and `iptables`. The `PATH` of `su` and of cron has none of these.
const FOR_ROOT: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A command that runs `program`.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", NO_HOME).env("LANG", "C.UTF-8").env("PATH", path());
    command.envs(KEPT.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command
}

/// A command that runs a script of this repository which downloads: it needs what the user has set for that, such as
/// proxies, authorities, and the homes of Rust and Go. The script itself must keep out the rest.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn downloading_script(name: &str) -> Command {
    let mut command = Command::new(repository::path("scripts").join(name));
    command.env("PATH", path());
    command
}

/// Where programs are found.
fn path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    env::join_paths(env::split_paths(&given).chain(FOR_ROOT.iter().map(Into::into))).unwrap()
}

#[cfg(test)]
mod tests {
    use super::{KEPT, NO_HOME, command};

    #[test]
    fn a_program_gets_nothing_of_the_users_environment() {
        // scripts/test-node runs tests without cargo.
        let is_of_the_tests = |name: &str| name.starts_with("CARGO_") || name.starts_with("TRANSIT_KMS_");
        let more = std::env::vars_os().any(|(name, _)| is_of_the_tests(&name.to_string_lossy()));
        assert!(more, "the tests themselves have more");
        let output = command("env").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let names = said.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        for name in names {
            assert!(["HOME", "LANG", "PATH"].contains(&name) || KEPT.contains(&name), "{name}");
        }
        assert!(said.contains(&format!("HOME={NO_HOME}\n")), "{said}");
    }

    #[test]
    fn not_even_root_can_keep_a_file_in_the_home_of_a_program() {
        let output = command("sh").args(["-c", "mkdir -p \"$HOME/.cache\""]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
    }
}
