//! Creates every command of the tests, with an environment that contains nothing of the user's.
//!
//! Variables and files of the user must not decide whether a test passes: `KUBECONFIG`, `HELM_*`, `ETCD_*`,
//! `CONTAINERS_*`, proxies, `NOTIFY_SOCKET`, `BASH_ENV`, a `.gitconfig`, caches below the home folder.
//! `clippy.toml` forbids `Command::new` elsewhere.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::Command,
};

use crate::files::repository;

/// Variables that a program inherits: the folder of temporary files, the files of `cargo llvm-cov`, and the folder where
/// a version manager keeps the `python3` that is first in `PATH`.
const KEPT: [&str; 4] = ["ASDF_DATA_DIR", "LLVM_PROFILE_FILE", "PYENV_ROOT", "TMPDIR"];
/// Not even root can create this folder, so no program keeps files in it. A program that needs a home gets its own.
const NO_HOME: &str = "/proc/no-home";
/// Debian's folders of `runc` and `iptables`, which the `PATH` of `su` and of cron lacks.
const FOR_ROOT: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A command that runs `program`.
#[expect(clippy::disallowed_methods, reason = "every command is created here")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", NO_HOME).env("LANG", "C.UTF-8").env("PATH", path());
    command.envs(KEPT.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command
}

/// A command that runs a downloading script of this repository. It inherits the user's environment, because it needs
/// proxies, certificate authorities, and the homes of Rust and Go. The script must not depend on the rest.
#[expect(clippy::disallowed_methods, reason = "every command is created here")]
pub fn downloading_script(name: &str) -> Command {
    let mut command = Command::new(repository::path("scripts").join(name));
    command.env("PATH", path());
    command
}

/// The `PATH` of every program.
fn path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    env::join_paths(env::split_paths(&given).chain(FOR_ROOT.iter().map(Into::into))).unwrap()
}

#[cfg(test)]
mod tests {
    use super::{KEPT, NO_HOME, command};

    #[test]
    fn a_program_gets_no_other_variables_of_the_user() {
        // scripts/test-node runs tests without cargo.
        let is_of_the_tests = |name: &str| name.starts_with("CARGO_") || name.starts_with("TRANSIT_KMS_");
        let more = std::env::vars_os().any(|(name, _)| is_of_the_tests(&name.to_string_lossy()));
        assert!(more, "the test process has variables that a program must not get");
        let output = command("env").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let names = said.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        for name in names {
            assert!(["HOME", "LANG", "PATH"].contains(&name) || KEPT.contains(&name), "{name}");
        }
        assert!(said.contains(&format!("HOME={NO_HOME}\n")), "{said}");
    }

    #[test]
    fn not_even_root_can_write_to_the_home_of_a_program() {
        let output = command("sh").args(["-c", "mkdir -p \"$HOME/.cache\""]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
    }
}
