//! The output of a check, as text or JSON.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use serde_json::{Map, Value};

use super::OutputFormat;

/// The exit code of a check that got an answer, and failed.
pub const EXIT_CHECK_FAILED: u8 = 1;
/// The exit code of a check that got no answer.
pub const EXIT_NO_ANSWER: u8 = 2;
/// The exit code for an invalid argument or invalid input: `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// Why a check did not pass.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// There was an answer, and it shows that the check failed.
    #[error("{0}")]
    Failed(String),
    /// The input is invalid. No request was sent.
    #[error("{0}")]
    InvalidInput(String),
    /// There was no answer.
    #[error("{0}")]
    NoAnswer(String),
}

impl CheckError {
    /// Returns the exit code of the program.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => EXIT_CHECK_FAILED,
            Self::NoAnswer(_) => EXIT_NO_ANSWER,
            Self::InvalidInput(_) => EXIT_USAGE,
        }
    }
}

/// The values that a check found, in the order in which they are printed.
#[derive(Debug, Default)]
pub struct Report {
    decrypt_command: Option<String>,
    values: Vec<(&'static str, Value)>,
}

impl Report {
    /// Adds a value.
    pub fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.values.push((name, value.into()));
    }

    /// Adds the time since `start` in milliseconds, with three decimal places.
    pub fn add_elapsed(&mut self, name: &'static str, start: Instant) {
        let micros = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.add(name, f64::from(micros) / 1000.0);
    }

    /// Sets a command for the operator. It is printed as text only.
    pub fn set_decrypt_command(&mut self, command: String) {
        self.decrypt_command = Some(command);
    }

    /// Prints the values on standard output and the reason of a failure on standard error, and returns the exit
    /// code. See [`Report::print`] for `kind` and `name`.
    pub fn finish(
        &self,
        format: OutputFormat,
        kind: &str,
        name: &str,
        result: Result<(), CheckError>,
    ) -> ExitCode {
        let printed = self.print(format, kind, name, &result);
        // The reader may have closed the pipe. The exit code is still useful then.
        drop(io::stdout().lock().write_all(printed.as_bytes()));
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                drop(writeln!(io::stderr().lock(), "{}", printable(&error.to_string())));
                error.exit_code().into()
            }
        }
    }

    /// Returns the text for standard output. `name` is the name of the check; in JSON, it is the value of the key
    /// `kind`.
    #[must_use]
    pub fn print(
        &self,
        format: OutputFormat,
        kind: &str,
        name: &str,
        result: &Result<(), CheckError>,
    ) -> String {
        match format {
            OutputFormat::Json => {
                let mut object: Map<String, Value> =
                    self.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                object.insert(kind.into(), name.into());
                object.insert("ok".into(), result.is_ok().into());
                if let Err(error) = result {
                    object.insert("reason".into(), error.to_string().into());
                }
                format!("{}\n", Value::Object(object))
            }
            OutputFormat::Text => {
                let command = self.decrypt_command.iter();
                let command = command.map(|command| format!("decrypt it: {}\n", printable(command)));
                self.values.iter().map(|(name, value)| line(name, value)).chain(command).collect()
            }
        }
    }
}

fn line(name: &str, value: &Value) -> String {
    match (name.strip_suffix("_ms"), value) {
        (Some(name), value) => format!("{name}: {value} ms\n"),
        (None, Value::String(text)) => format!("{name}: {}\n", printable(text)),
        (None, value) => format!("{name}: {value}\n"),
    }
}

/// Escapes control characters, because the text comes from a server and may be printed on a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect()
}
