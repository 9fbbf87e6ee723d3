//! Parses the config file: Trousseau's two shapes, with the settings that transit-kms adds.

mod auth;
mod rules;
mod section;
mod spelling;
mod tree;
mod trousseau;

use std::path::Path;

use self::{
    section::{Section, merged_mappings},
    tree::YamlNode,
};
use super::{
    ConfigError,
    settings::{Config, CredentialSettings},
};

/// The maximum size of the config file in bytes.
pub const MAX_FILE_BYTES: usize = 64 * 1024;

/// The flags that change the rules of the file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ParseOptions {
    /// Accept `http://` addresses.
    pub allow_http: bool,
}

/// Parses a config. `path` is used in errors only.
///
/// Accepts what templates and Trousseau's parser (viper) allow: a BOM, CRLF, blank lines before `---`, `---` at the
/// end, spaces around values, optional settings without a value, numbers as names, merge keys.
///
/// # Errors
/// If the text breaks a rule; the kind is always `Invalid`. The error names the line and the rule, never a value.
pub fn parse(
    text: &[u8],
    path: &Path,
    options: ParseOptions,
) -> Result<Config<CredentialSettings>, ConfigError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(ConfigError::invalid(path, None, "is larger than 64 KiB"));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let line_of = |offset| 1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count();
    let text = std::str::from_utf8(text).map_err(|error| {
        ConfigError::invalid(path, Some(line_of(error.valid_up_to())), "is not UTF-8 text")
    })?;
    // The YAML parser refuses them too, but without a line.
    if let Some(offset) = text.find(is_forbidden) {
        let rule = "contains a control character; the file may be half written";
        return Err(ConfigError::invalid(path, Some(line_of(offset)), rule));
    }
    let tree = tree::read(text).map_err(|error| ConfigError {
        column: error.location.filter(|_| error.is_syntax).map(|(_, column)| column),
        ..ConfigError::invalid(path, error.location.map(|(line, _)| line), error.rule)
    })?;
    let entries = match &tree {
        YamlNode::Map(entries) => entries,
        YamlNode::Null => {
            return Err(ConfigError::invalid(path, None, "is empty; the file may be half written"));
        }
        YamlNode::Plain { .. } | YamlNode::Seq(_) | YamlNode::Str(_) => {
            let rule = "must contain settings such as `address: https://...`; the file may be half written";
            return Err(ConfigError::invalid(path, None, rule));
        }
    };
    let root = Section::new(String::new(), Vec::new(), entries);
    let merged = merged_mappings(&tree);
    root.and_then(|root| rules::config(&root.without_definitions(&merged), options)).map_err(|broken| {
        let line = tree::locate(text, &broken.steps).map(|(line, _)| line);
        ConfigError::invalid(path, line, broken.rule)
    })
}

/// Returns whether YAML forbids this character.
fn is_forbidden(character: char) -> bool {
    let allowed = matches!(character, '\t' | '\n' | '\r' | '\u{85}') || !character.is_control();
    !allowed || matches!(character, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests;
