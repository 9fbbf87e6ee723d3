//! What was learnt and how it went, for people and for machines.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::cli::EXIT_USAGE;

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Output {
    /// One JSON object
    Json,
    /// For people
    Text,
}

/// How it went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Answered, and the answer is not good.
    Bad(String),
    /// All is well.
    Good,
    /// The input is not usable; nobody was asked.
    Input(String),
    /// No answer.
    Silence(String),
}

impl Verdict {
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Bad(_) => 1,
            Self::Silence(_) => 2,
            Self::Input(_) => EXIT_USAGE,
        }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Good => None,
            Self::Bad(reason) | Self::Input(reason) | Self::Silence(reason) => Some(reason),
        }
    }
}

/// What was learnt, in the order in which it was.
#[derive(Debug, Default)]
pub(super) struct Report {
    learnt: Vec<(&'static str, Value)>,
    next_step: Option<String>,
}

impl Report {
    pub(super) fn learn(&mut self, what: &'static str, value: impl Into<Value>) {
        self.learnt.push((what, value.into()));
    }

    /// A command line that goes on from here, for people.
    pub(super) fn next_step(&mut self, line: String) {
        self.next_step = Some(line);
    }

    /// Milliseconds, with three digits after the point.
    pub(super) fn took(&mut self, what: &'static str, since: Instant) {
        let micros = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.learn(what, f64::from(micros) / 1000.0);
    }

    pub(super) fn print(&self, output: Output, name: &str, verdict: &Verdict) -> String {
        match output {
            Output::Json => {
                let mut object: Map<String, Value> =
                    self.learnt.iter().map(|(what, value)| ((*what).to_owned(), value.clone())).collect();
                object.insert("probe".into(), name.into());
                object.insert("ok".into(), (*verdict == Verdict::Good).into());
                if let Some(reason) = verdict.reason() {
                    object.insert("reason".into(), reason.into());
                }
                format!("{}\n", Value::Object(object))
            }
            Output::Text => {
                let next = self.next_step.iter().map(|next| format!("decrypt it: {}\n", visible(next)));
                self.learnt.iter().map(|(what, value)| line(what, value)).chain(next).collect()
            }
        }
    }
}

pub(super) fn line(what: &str, value: &Value) -> String {
    match (what.strip_suffix("_ms"), value) {
        (Some(what), value) => format!("{what}: {value} ms\n"),
        (None, Value::String(text)) => format!("{what}: {}\n", visible(text)),
        (None, value) => format!("{what}: {value}\n"),
    }
}

/// Text from the other side, without what a terminal would obey.
pub(super) fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] })
        .collect()
}
