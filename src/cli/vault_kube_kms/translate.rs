//! Translates the flags of vault-kube-kms into a config file and flags of `serve`.

use std::{path::Path, time::Duration};

use kms_plugin::address::{AddressError, UnixAddress};
use serde_json::Value;

use super::{FlagsError, flags::Flags};
use crate::config::{ParseOptions, parse};

/// The name of the text in errors and logs.
pub(super) const NAME: &str = "the flags of vault-kube-kms";
/// The config file in the equivalent command.
pub(super) const CONFIG_PATH: &str = "/etc/transit-kms/config.yaml";
const DEFAULT_LISTEN: &str = "unix:///tmp/vault-kube-kms.socket";
const DEFAULT_METRICS_PORT: u16 = 9090;
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Each setting in the text, and the flag that it is from. The last matching one counts.
const ORIGINS: &[(&str, &str)] = &[
    ("vault.address", "-vault-address"),
    ("vault.namespace", "-vault-namespace"),
    ("vault.transitpath", "-vault-key-path"),
    ("vault.keynames", "-vault-key-path"),
    ("vault.connect_timeout", "-vault-connection-timeout"),
    ("vault.tls.ca_file", "-tls-ca-file"),
    ("vault.tls.server_name", "-tls-sni"),
    ("vault.auth.mount", "-auth-mount"),
    ("vault.auth.namespace", "-vault-auth-namespace"),
    ("vault.auth.role_id", "-approle-role-id"),
    ("vault.auth.secret_id_file", "-approle-secret-id-path"),
];

/// What does the same as the flags of vault-kube-kms.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Translation {
    /// The config file.
    pub(crate) yaml: String,
    /// The arguments after `transit-kms serve`.
    pub(crate) serve_flags: Vec<String>,
    /// Differences that an operator must know, one sentence each.
    pub(crate) notes: Vec<String>,
    /// The address of Vault is `http://`.
    pub(crate) without_tls: bool,
}

/// Translates the flags. `is_set` returns whether an environment variable of `serve` is set: the variable has
/// precedence over defaults of vault-kube-kms that differ from those of `serve`.
pub(super) fn translate(flags: &Flags, is_set: impl Fn(&str) -> bool) -> Result<Translation, FlagsError> {
    let mut notes = Vec::new();
    refuse_unsupported(flags)?;
    let listen = listen(flags)?;
    let yaml = yaml(flags, &listen, &mut notes)?;
    // Whether http:// is allowed is decided at the start: the variable is one of `serve`.
    let options = ParseOptions { allow_http: true };
    parse(yaml.as_bytes(), Path::new(NAME), options).map_err(|error| in_words_of_flags(&error.rule))?;
    let without_tls = given(&flags.vault_address).is_some_and(|address| address.starts_with("http://"));
    if without_tls {
        notes.push(
            "http:// sends the secret_id in clear: it needs --allow-http or TRANSIT_KMS_ALLOW_HTTP=true"
                .into(),
        );
    }
    Ok(Translation { yaml, serve_flags: serve_flags(flags, &listen, is_set)?, notes, without_tls })
}

/// Replaces the key of a setting by the flag that it is from.
fn in_words_of_flags(rule: &str) -> FlagsError {
    let of_rule = ORIGINS.iter().find_map(|(key, flag)| {
        let rest = rule.strip_prefix(key)?;
        // The key of a list entry has an index.
        let rest = rest.strip_prefix(':').or_else(|| rest.split_once("]:").map(|(_, rest)| rest))?;
        Some(FlagsError::Value { flag: (*flag).to_owned(), rule: rest.trim().to_owned() })
    });
    of_rule.unwrap_or_else(|| FlagsError::Config(rule.to_owned()))
}

fn refuse_unsupported(flags: &Flags) -> Result<(), FlagsError> {
    if boolean("-tls-skip-verify", &flags.tls_skip_verify)? {
        let rule = "transit-kms always verifies Vault's certificate: omit this flag, and name the authority with \
                    -tls-ca-file";
        return Err(value_error("-tls-skip-verify", rule));
    }
    boolean("-disable-runtime-metrics", &flags.disable_runtime_metrics)?;
    match given(&flags.auth_method) {
        None | Some("approle") => Ok(()),
        Some(_) => Err(value_error("-auth-method", "must be approle, as in vault-kube-kms")),
    }
}

fn yaml(flags: &Flags, listen: &UnixAddress, notes: &mut Vec<String>) -> Result<String, FlagsError> {
    let (mount, key) = key(flags)?;
    let mut missing = Vec::new();
    let mut required = |flag: &'static str, value| {
        given(value).unwrap_or_else(|| {
            missing.push(flag);
            ""
        })
    };
    let address = required("-vault-address", &flags.vault_address);
    let role_id = required("-approle-role-id", &flags.approle_role_id);
    let secret_id_file = required("-approle-secret-id-path", &flags.approle_secret_id_path);
    if key.is_empty() {
        missing.push("-vault-key-path");
    }
    if !missing.is_empty() {
        return Err(FlagsError::Missing(missing.join(", ")));
    }
    let timeout = connect_timeout(flags, notes)?;

    let mut yaml = Yaml::default();
    yaml.section(0, "vault");
    yaml.setting(1, "address", Some(address));
    yaml.setting(1, "namespace", given(&flags.vault_namespace));
    yaml.setting(1, "transitpath", Some(mount));
    yaml.setting(1, "keynames", Some(key));
    yaml.setting(1, "connect_timeout", timeout.as_deref());
    let (ca_file, server_name) = (given(&flags.tls_ca_file), given(&flags.tls_sni));
    if ca_file.or(server_name).is_some() {
        yaml.section(1, "tls");
        yaml.setting(2, "ca_file", ca_file);
        yaml.setting(2, "server_name", server_name);
    }
    yaml.section(1, "auth");
    yaml.setting(2, "method", Some("approle"));
    yaml.setting(2, "mount", given(&flags.auth_mount));
    yaml.setting(2, "namespace", given(&flags.vault_auth_namespace));
    yaml.setting(2, "role_id", Some(role_id));
    yaml.setting(2, "secret_id_file", Some(secret_id_file));
    yaml.setting(2, "state_dir", state_dir(listen).as_deref());
    Ok(yaml.0)
}

/// Returns the mount and the name of the key; the name is empty if no flag has it.
fn key(flags: &Flags) -> Result<(&str, &str), FlagsError> {
    let mount = given(&flags.transit_mount).unwrap_or("transit");
    match (given(&flags.vault_key_path), given(&flags.transit_key)) {
        (None, None) => Ok((mount, "")),
        (None, Some(key)) => Ok((mount, key)),
        (Some(_), Some(_)) => {
            Err(value_error("-vault-key-path", "cannot be used together with -transit-key"))
        }
        (Some(path), None) => match path.trim_matches('/').rsplit_once("/keys/") {
            Some((mount, key)) if !mount.starts_with("v1/") && !key.contains('/') => Ok((mount, key)),
            _ => Err(value_error(
                "-vault-key-path",
                "must be MOUNT/keys/NAME, such as transit/keys/kms: the mount of the Transit engine, the word keys, \
                 and the name of the key, without /v1",
            )),
        },
    }
}

fn connect_timeout(flags: &Flags, notes: &mut Vec<String>) -> Result<Option<String>, FlagsError> {
    let Some(text) = given(&flags.vault_connection_timeout) else { return Ok(None) };
    let flag = "-vault-connection-timeout";
    let timeout =
        humantime::parse_duration(text).map_err(|_| value_error(flag, "must be a duration such as 15s"))?;
    if timeout > MAX_CONNECT_TIMEOUT {
        notes.push(format!("{flag} is more than 30s, the maximum of connect_timeout, so 30s is used"));
    }
    Ok(Some(humantime::format_duration(timeout.min(MAX_CONNECT_TIMEOUT)).to_string()))
}

fn listen(flags: &Flags) -> Result<UnixAddress, FlagsError> {
    let listen = given(&flags.listen_address).unwrap_or(DEFAULT_LISTEN);
    // The documentation of vault-kube-kms has both forms.
    let listen = if listen.starts_with('/') { format!("unix://{listen}") } else { listen.to_owned() };
    listen.parse().map_err(|error: AddressError| value_error("-listen-address", &error.to_string()))
}

/// Returns a directory beside the socket.
///
/// In a container, the volume of the socket is the only directory that can be written, and each plugin of a pod needs a
/// directory of its own. `None` means the default: other users can create files in `/tmp`.
fn state_dir(listen: &UnixAddress) -> Option<String> {
    let path = listen.path()?;
    let shared = ["/tmp", "/var/tmp"].map(Path::new);
    if shared.iter().any(|shared| path.parent() == Some(shared)) {
        return None;
    }
    Some(format!("{}.state", path.to_str()?))
}

fn serve_flags(
    flags: &Flags,
    listen: &UnixAddress,
    is_set: impl Fn(&str) -> bool,
) -> Result<Vec<String>, FlagsError> {
    let metrics = port("-metrics-port", &flags.metrics_port)?.unwrap_or(Some(DEFAULT_METRICS_PORT));
    let health = port("-health-port", &flags.health_port)?.flatten();
    let admin = match (metrics, health) {
        (None, None) => "none".to_owned(),
        (Some(metrics), Some(health)) if metrics == health => format!("0.0.0.0:{health}"),
        (metrics, health) => [("127.0.0.1", metrics), ("0.0.0.0", health)]
            .into_iter()
            .filter_map(|(address, port)| Some(format!("{address}:{}", port?)))
            .collect::<Vec<_>>()
            .join(","),
    };
    let mut serve = vec![
        format!("--config={CONFIG_PATH}"),
        format!("--listen={listen}"),
        format!("--admin-listen={admin}"),
    ];
    if !is_set("TRANSIT_KMS_SOCKET_MODE") {
        serve.push("--socket-mode=0660".to_owned());
    }
    if let Some(level) = log_level(flags)? {
        serve.push(format!("--log-level={level}"));
    }
    Ok(serve)
}

/// Returns `None` if the flag is not given, and `Some(None)` if it disables the port.
fn port(flag: &str, value: &Option<String>) -> Result<Option<Option<u16>>, FlagsError> {
    let Some(text) = given(value) else { return Ok(None) };
    let number: i64 = text.parse().map_err(|_| value_error(flag, "must be a port number, or 0 for none"))?;
    if number <= 0 {
        return Ok(Some(None));
    }
    let port = u16::try_from(number).map_err(|_| value_error(flag, "must be at most 65535"))?;
    Ok(Some(Some(port)))
}

fn log_level(flags: &Flags) -> Result<Option<&'static str>, FlagsError> {
    if let Some(text) = given(&flags.zap_log_level) {
        return match (text, text.parse::<u32>()) {
            ("debug", _) => Ok(Some("debug")),
            ("info", _) => Ok(Some("info")),
            ("error" | "panic", _) => Ok(Some("error")),
            (_, Ok(..=3)) => Ok(Some("info")),
            (_, Ok(4)) => Ok(Some("warn")),
            (_, Ok(5)) => Ok(Some("debug")),
            (_, Ok(_)) => Ok(Some("trace")),
            _ => Err(value_error("-zap-log-level", "must be debug, info, error, panic or a number")),
        };
    }
    match given(&flags.log_level) {
        None => Ok(None),
        Some("debug") => Ok(Some("debug")),
        Some("info") => Ok(Some("info")),
        Some("warn") => Ok(Some("warn")),
        Some("error") => Ok(Some("error")),
        Some("debug-extended") => Ok(Some("trace")),
        Some(_) => Err(value_error("-log-level", "must be debug, info, warn or error")),
    }
}

/// Parses the values that Go's `strconv.ParseBool` accepts.
fn boolean(flag: &str, value: &Option<String>) -> Result<bool, FlagsError> {
    match given(value) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(value_error(flag, "must be true or false")),
    }
}

/// An empty value is the default of the flags of vault-kube-kms, so it counts as not given.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|text| !text.is_empty())
}

fn value_error(flag: &str, rule: &str) -> FlagsError {
    FlagsError::Value { flag: flag.to_owned(), rule: rule.to_owned() }
}

/// Writes YAML. Strings are quoted as in JSON, which is valid YAML for every text.
#[derive(Default)]
struct Yaml(String);

impl Yaml {
    fn section(&mut self, depth: usize, name: &str) {
        self.0 += &format!("{}{name}:\n", "  ".repeat(depth));
    }

    fn setting(&mut self, depth: usize, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0 += &format!("{}{name}: {}\n", "  ".repeat(depth), Value::from(value));
        }
    }
}

#[cfg(test)]
mod tests;
