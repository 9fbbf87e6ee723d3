//! Reads arguments as Go's `flag` package does.
//!
//! Source: <https://pkg.go.dev/flag#hdr-Command_line_flag_syntax>.

use std::ffi::OsString;

use super::{
    FlagsError,
    flags::{KnownFlag, known},
};

/// Returns whether the arguments are those of vault-kube-kms: they begin with a flag, and one of them is a flag of
/// vault-kube-kms. `transit-kms` itself has only `--help` and `--version`.
pub(super) fn are_of_vault_kube_kms(arguments: &[OsString]) -> bool {
    if arguments.first().is_none_or(|first| flag_name(first).is_none()) {
        return false;
    }
    let known = known();
    arguments.iter().filter_map(flag_name).any(|name| known.iter().any(|flag| flag.name == name))
}

/// Writes each flag as `--flag=value`, or `--flag` for a boolean flag without a value.
pub(super) fn normalize(arguments: &[OsString]) -> Result<Vec<String>, FlagsError> {
    let known = known();
    let mut normal = Vec::new();
    let mut rest = arguments.iter().map(|argument| argument.to_str().ok_or(FlagsError::NotUtf8));
    while let Some(argument) = rest.next().transpose()? {
        let Some(name_and_value) = dashless(argument) else {
            return Err(FlagsError::NoFlag(argument.to_owned()));
        };
        let (name, value) = match name_and_value.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name_and_value, None),
        };
        if name == "help" || name == "h" {
            return Ok(vec!["--help".to_owned()]);
        }
        let flag = known.iter().find(|flag| flag.name == name);
        let flag = flag.ok_or_else(|| FlagsError::Unknown { name: name.to_owned(), known: list(&known) })?;
        let value = match value {
            None if !flag.boolean => {
                let next = rest.next().transpose()?;
                Some(next.ok_or_else(|| FlagsError::NoValue(name.to_owned()))?)
            }
            value => value,
        };
        normal.push(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")));
    }
    Ok(normal)
}

/// Lists the flags as an operator writes them.
pub(super) fn list(known: &[KnownFlag]) -> String {
    known.iter().map(|flag| format!("-{}", flag.name)).collect::<Vec<_>>().join(", ")
}

/// Returns the name of a flag, without dashes and value.
fn flag_name(argument: &OsString) -> Option<&str> {
    let name = dashless(argument.to_str()?)?;
    Some(name.split_once('=').map_or(name, |(name, _)| name))
}

/// Removes one or two dashes. Returns `None` for what Go does not take for a flag.
fn dashless(argument: &str) -> Option<&str> {
    let rest = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    (!rest.is_empty() && !rest.starts_with(['-', '='])).then_some(rest)
}
