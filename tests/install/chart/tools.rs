//! Runs the programs that check charts and manifests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};
use testkit::command;

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) good: bool,
    pub(crate) stderr: String,
    pub(crate) stdout: String,
}

impl Ran {
    /// Returns the standard output.
    ///
    /// # Panics
    /// Panics if the command failed.
    #[track_caller]
    pub(crate) fn stdout(self) -> String {
        assert!(self.good, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a program that `scripts/install-tools` gets, such as `bin/helm3`, in the root of the repository.
pub(crate) fn tool<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(name: &str, arguments: I) -> Ran {
    let root = Path::new(testkit::repository::ROOT);
    let program: PathBuf = root.join("target/tools").join(name);
    assert!(program.is_file(), "no {}: run scripts/install-tools", program.display());
    run(command(program).args(arguments))
}

/// Runs a command in the root of the repository.
pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command.current_dir(testkit::repository::ROOT).output().unwrap();
    Ran {
        good: output.status.success(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}
