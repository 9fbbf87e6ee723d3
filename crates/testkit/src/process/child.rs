//! A child process. Its output is kept, and it is killed when its value is dropped.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// The number of output lines that a failing test shows.
const TAIL: usize = 80;

/// A running child process.
pub struct Process {
    name: &'static str,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`.
    pub fn spawn(name: &'static str, command: &mut Command) -> Self {
        Self::spawn_with(name, command, Stdio::null())
    }

    /// Like [`Process::spawn`], with this standard input.
    pub fn spawn_with(name: &'static str, command: &mut Command, stdin: Stdio) -> Self {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", command.get_program().display()));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            keep_lines(child.stdout.take().unwrap(), lines.clone()),
            keep_lines(child.stderr.take().unwrap(), lines.clone()),
        ];
        Self { name, child, lines, readers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        // The kernel does not reuse the process id before `exited` has seen the end.
        if self.exited().is_none() {
            let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    /// Whether all its threads are stopped by a signal.
    pub fn is_frozen(&self) -> bool {
        let process = procfs::process::Process::new(i32::try_from(self.child.id()).unwrap()).unwrap();
        process.tasks().unwrap().flatten().all(|task| task.stat().is_ok_and(|stat| stat.state == 'T'))
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended and its output is complete.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = eventually(&what, within, async || self.exited()).await;
        self.read_to_end();
        status
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) {
        // Fails only if it has already ended.
        drop(self.child.kill());
        self.wait();
    }

    /// Blocks until it has ended. Only for processes that end by themselves.
    pub fn wait(&mut self) {
        drop(self.child.wait());
        self.read_to_end();
    }

    /// Its output so far, of standard output and standard error.
    pub fn output(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    fn read_to_end(&mut self) {
        for reader in self.readers.drain(..) {
            drop(reader.join());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("---- the last of {} lines of {} ----", lines.len(), self.name);
            for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
                eprintln!("{line}");
            }
        }
    }
}

fn keep_lines(from: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            line.clear();
        }
    })
}
