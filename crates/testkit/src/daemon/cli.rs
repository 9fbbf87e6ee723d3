//! Runs commands of the program to their end.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    files::repository::{daemon, kmsctl},
    process::command::command,
};

/// The longest time of a command.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stderr: String,
    pub stdout: String,
}

impl Ran {
    /// Parses its standard output, one line of JSON.
    ///
    /// # Panics
    /// If it is something else.
    pub fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Runs the program with these arguments.
pub async fn run(arguments: &[&str]) -> Ran {
    run_with(arguments, &[], "").await
}

/// Like [`run`], with these environment variables and this standard input.
pub async fn run_with(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Ran {
    let mut command = command(daemon());
    command.args(arguments).envs(environment.iter().copied());
    finish(command, input).await
}

/// Runs `transit-kmsctl` with these arguments and this standard input.
pub async fn run_kmsctl(arguments: &[&str], input: &str) -> Ran {
    run_kmsctl_with(arguments, &[], input).await
}

/// Like [`run_kmsctl`], with these environment variables.
pub async fn run_kmsctl_with(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Ran {
    let mut command = command(kmsctl());
    command.args(arguments).envs(environment.iter().copied());
    finish(command, input).await
}

/// Runs the program as another user, who must be able to enter `dir`. Needs root.
pub async fn run_as(uid: u32, dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = of_user(uid, dir);
    command.args(arguments);
    finish(command, "").await
}

/// The program as `uid`: a copy in `dir`, because the user may not be able to enter the target folder.
pub(crate) fn of_user(uid: u32, dir: &Path) -> Command {
    let copy = dir.join("transit-kms");
    if !copy.exists() {
        fs::copy(daemon(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = command(copy);
    command.uid(uid).gid(uid);
    command
}

async fn finish(command: Command, input: &str) -> Ran {
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = timeout(WAIT_TIMEOUT, async {
        // The command may end without reading its input.
        drop(stdin.write_all(input.as_bytes()).await);
        drop(stdin);
        child.wait_with_output().await.unwrap()
    });
    let output = output.await.expect("the program does not end");
    Ran {
        code: output.status.code(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
    }
}
