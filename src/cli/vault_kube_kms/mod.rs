//! Starts with the flags of HashiCorp's vault-kube-kms, in its place.
//!
//! ```text
//! arguments  as Go reads flags      -> --flag=value
//! flags      flags and variables    -> Flags
//! translate  Flags                  -> the config as YAML, and flags of `serve`
//! ```
//!
//! The daemon runs with exactly what `transit-kms convert` prints. Only the config file is a text in memory.

mod arguments;
mod flags;
mod translate;

use std::{env, ffi::OsString};

use self::flags::Flags;
pub(super) use self::translate::Translation;
use crate::config::ConfigSource;

/// The variable that shows that a process without arguments is configured as vault-kube-kms.
const ADDRESS_VARIABLE: &str = "VAULT_KUBE_KMS_VAULT_ADDRESS";
/// The variable of `serve --allow-http`.
const ALLOW_HTTP_VARIABLE: &str = "TRANSIT_KMS_ALLOW_HTTP";
/// The prefix of all variables of vault-kube-kms.
pub(super) const VARIABLE_PREFIX: &str = "VAULT_KUBE_KMS_";

/// Why the flags cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum FlagsError {
    /// A rule that cannot be traced to one flag.
    #[error("the flags give an invalid config: {0}")]
    Config(String),
    /// The help was requested. This is its text.
    #[error("{0}")]
    Help(String),
    /// The parser's message.
    #[error("{0}")]
    Invalid(String),
    /// Flags without a default.
    #[error("these flags, or their variables VAULT_KUBE_KMS_..., are required: {0}")]
    Missing(String),
    /// An argument without a dash.
    #[error("unexpected argument {0:?}: all arguments of vault-kube-kms are flags")]
    NoFlag(String),
    #[error("an argument is not UTF-8 text")]
    NotUtf8,
    #[error("-{0} needs a value")]
    NoValue(String),
    /// A flag that vault-kube-kms does not have.
    #[error("unknown flag -{name}; these flags of vault-kube-kms are known: {known}")]
    Unknown {
        /// Without dashes.
        name: String,
        /// All flags.
        known: String,
    },
    /// The value is not shown: it can be a secret in the wrong place.
    #[error("{flag}: {rule}")]
    Value {
        /// With its dash.
        flag: String,
        /// The broken rule.
        rule: String,
    },
}

/// Returns whether the process is started as vault-kube-kms: with one of its flags, or without arguments and with its
/// variables.
pub(super) fn is_called(arguments: &[OsString]) -> bool {
    if arguments.is_empty() {
        return env::var_os(ADDRESS_VARIABLE).is_some_and(|address| !address.is_empty());
    }
    arguments::are_of_vault_kube_kms(arguments)
}

/// Translates the arguments and the environment of this process, to start with them.
///
/// The flags stay the same while the process runs, so a config that can never be used ends it.
pub(super) fn translate_to_serve(arguments: &[OsString]) -> Result<Translation, FlagsError> {
    let translation = translate(arguments)?;
    if translation.without_tls && env::var_os(ALLOW_HTTP_VARIABLE).is_none() {
        return Err(FlagsError::Value {
            flag: "-vault-address".to_owned(),
            rule: format!(
                "is http://, which would send the secret_id in clear: use https://, or set {ALLOW_HTTP_VARIABLE}=true"
            ),
        });
    }
    Ok(translation)
}

/// Translates the arguments and the environment of this process.
pub(super) fn translate(arguments: &[OsString]) -> Result<Translation, FlagsError> {
    let flags = Flags::parse_from_go(arguments)?;
    translate::translate(&flags, |variable| env::var_os(variable).is_some())
}

impl Translation {
    /// Returns the config file as a text in memory.
    pub(super) fn config(&self) -> ConfigSource {
        ConfigSource::Text { name: translate::NAME.into(), text: self.yaml.as_str().into() }
    }
}

/// Lists the flags, for the help of `convert`.
pub(super) fn flag_list() -> String {
    arguments::list(&flags::known())
}
