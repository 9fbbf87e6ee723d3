//! The exit codes of all subcommands.

use std::{fmt::Write as _, process::ExitCode};

use kms_plugin::cli::{EXIT_CHECK_FAILED, EXIT_NO_ANSWER, EXIT_USAGE};

/// How a subcommand ends. Codes from 64 are those of sysexits.h.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// `serve` could not bind a socket or port, or `keygen` could not write the key; `EX_CANTCREAT`.
    CannotCreate,
    /// A check of `probe` got an answer, and failed.
    CheckFailed,
    /// `probe` got no answer.
    NoAnswer,
    /// The command has done what it was asked to do.
    Success,
    /// The operating system refuses something that transit-kms needs; `EX_OSERR`.
    System,
    /// A flag, argument or input is not valid; `EX_USAGE`.
    Usage,
}

impl Exit {
    /// Returns the number that the process exits with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::CheckFailed => EXIT_CHECK_FAILED,
            Self::NoAnswer => EXIT_NO_ANSWER,
            Self::Usage => EXIT_USAGE,
            Self::System => 71,
            Self::CannotCreate => 73,
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success; for serve: SIGTERM or SIGINT stopped it",
            Self::CheckFailed => "probe: the check failed; standard error has the reason",
            Self::NoAnswer => "probe: there was no answer",
            Self::Usage => "a flag, argument or input is not valid",
            Self::System => "the operating system refuses something that transit-kms needs",
            Self::CannotCreate => {
                "serve: a socket or port cannot be bound; keygen: the file cannot be written"
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Returns the text below the options in a help: a table of exit codes, then `rest`.
pub(super) fn after_help(exits: &[Exit], rest: &str) -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in exits {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<2}  {}", exit.code(), exit.meaning());
    }
    if !rest.is_empty() {
        text.push('\n');
        text.push_str(rest);
    }
    text
}
