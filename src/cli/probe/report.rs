//! The output of a check, as text or JSON.

use std::time::Instant;

use serde_json::{Map, Value};

use super::args::OutputFormat;
use crate::cli::Exit;

/// Why a check did not pass.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ProbeError {
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

impl ProbeError {
    pub(super) const fn exit_code(&self) -> u8 {
        let exit = match self {
            Self::Failed(_) => Exit::CheckFailed,
            Self::InvalidInput(_) => Exit::Usage,
            Self::NoAnswer(_) => Exit::NoAnswer,
        };
        exit.code()
    }
}

/// The values that a check found, in the order in which they are printed.
#[derive(Debug, Default)]
pub(super) struct Report {
    decrypt_command: Option<String>,
    values: Vec<(&'static str, Value)>,
}

impl Report {
    pub(super) fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.values.push((name, value.into()));
    }

    /// Adds the time since `start` in milliseconds, with three decimal places.
    pub(super) fn add_elapsed(&mut self, name: &'static str, start: Instant) {
        let micros = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.add(name, f64::from(micros) / 1000.0);
    }

    /// Sets a command for the operator. It is printed as text only.
    pub(super) fn set_decrypt_command(&mut self, command: String) {
        self.decrypt_command = Some(command);
    }

    /// Returns the text for standard output. `name` is the name of the check.
    pub(super) fn print(&self, format: OutputFormat, name: &str, result: &Result<(), ProbeError>) -> String {
        match format {
            OutputFormat::Json => {
                let mut object: Map<String, Value> =
                    self.values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                object.insert("probe".into(), name.into());
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
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect()
}
