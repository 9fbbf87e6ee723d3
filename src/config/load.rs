//! Reads the config file and the files that it names, and hashes them together.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use transit_client::{
    endpoint::{Endpoint, TlsMaterial},
    token::Token,
};
use zeroize::Zeroizing;

use crate::exposure;

use super::{
    ConfigError, ConfigErrorKind, ConfigSource,
    fingerprint::Fingerprint,
    material::{LoginMaterial, MAX_MATERIAL_BYTES},
    parse::{MAX_FILE_BYTES, ParseOptions, parse},
    read_file::{ReadError, read_regular},
    settings::{
        Config, CredentialSettings, Credentials, TlsFiles,
        auth::{MaterialFile, NamedFile},
    },
    token_file,
};

/// The maximum size of a PEM file in bytes. A system's bundle of all authorities has a quarter of it.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;

/// A config and the contents of the files that it names. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The settings.
    pub config: Config,
    /// The contents of the files in `config.tls`.
    pub tls: TlsMaterial,
    /// The contents of the files that a login needs, also if some of them cannot be read.
    pub material: LoginMaterial,
    /// Changes with every byte of the config file, of the TLS files, of a file with a plain token, and of the files that
    /// a session depends on (see [`AuthSettings::session_needs_files`](super::settings::auth::AuthSettings)).
    pub fingerprint: Fingerprint,
    /// Changes with [`Self::material`], which the next login uses.
    pub material_fingerprint: Fingerprint,
    /// Changes with everything that connections depend on: addresses, connect timeout, server name, TLS
    /// files. While it stays the same, the connection pool can be kept.
    pub connection_fingerprint: Fingerprint,
}

impl LoadedConfig {
    /// Returns how to reach the Vault that the config names.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            addresses: self.config.addresses.clone(),
            connect_timeout: self.config.connect_timeout,
            server_name: self.config.tls.server_name.clone(),
            tls: self.tls.clone(),
        }
    }
}

/// Reads the config and the files that it names, on a thread for blocking calls.
///
/// # Errors
/// [`ConfigErrorKind::Absent`] if there is no config file, [`ConfigErrorKind::Unreadable`] if it or a file that
/// it names cannot be read, [`ConfigErrorKind::Invalid`] if it breaks a rule. A pipe, a device or a directory is
/// refused immediately.
pub async fn load(
    source: impl Into<ConfigSource>,
    options: ParseOptions,
) -> Result<LoadedConfig, ConfigError> {
    let source = source.into();
    let copy = source.clone();
    match tokio::task::spawn_blocking(move || load_blocking(&source, options).result).await {
        Ok(result) => result,
        Err(_) => Err(reader_panicked(copy.name())),
    }
}

/// The error if the thread that reads the files panicked. A panic must not end the process.
pub(super) fn reader_panicked(path: &Path) -> ConfigError {
    ConfigError::new(
        ConfigErrorKind::Unreadable,
        path,
        "cannot be read because of a bug in transit-kms: please report it",
    )
}

/// The result of reading a config, and the files that it depends on.
pub(super) struct Loaded {
    pub result: Result<LoadedConfig, ConfigError>,
    /// The files that the config names, also if one of them cannot be read. Empty if the config file itself
    /// cannot be read or breaks a rule.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    fn failed(error: ConfigError) -> Self {
        Self { result: Err(error), files: Vec::new() }
    }
}

/// Does the same as [`load`], on this thread.
pub(super) fn load_blocking(source: &ConfigSource, options: ParseOptions) -> Loaded {
    let path = source.name();
    let text = match source {
        ConfigSource::File(path) => read_regular(path, MAX_FILE_BYTES),
        ConfigSource::Text { text, .. } => Ok(Zeroizing::new(text.as_bytes().to_vec())),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => return Loaded::failed(unreadable_config(error, path)),
    };
    match parse(&text, path, options) {
        Ok(config) => Loaded { files: files(&config), result: with_files(config, &text, source) },
        Err(error) => Loaded::failed(error),
    }
}

/// Returns all files that the config names.
fn files(config: &Config<CredentialSettings>) -> Vec<PathBuf> {
    let TlsFiles { ca_file, server_name: _, client_cert_file, client_key_file } = &config.tls;
    let tls = [ca_file, client_cert_file, client_key_file].into_iter().flatten();
    let login: Vec<_> = match &config.credentials {
        CredentialSettings::Agent | CredentialSettings::Token(_) => Vec::new(),
        CredentialSettings::Login(auth) => auth.files().into_iter().map(|named| &named.file.path).collect(),
        CredentialSettings::TokenFile(file) => vec![&file.path],
    };
    tls.chain(login).cloned().collect()
}

/// Reads the files that the config names. `text` is the config itself.
fn with_files(
    mut config: Config<CredentialSettings>,
    text: &[u8],
    source: &ConfigSource,
) -> Result<LoadedConfig, ConfigError> {
    config.warnings.extend(exposure_warnings(&config, source.file()));
    config.warnings.extend(token_review_warning(&config.credentials));
    let path = source.name();
    let tls = tls_material(&config.tls, path)?;
    let tls_parts =
        [tls.ca.as_deref(), tls.client_cert.as_deref(), tls.client_key.as_ref().map(|key| key.as_slice())];
    let (credentials, token_file) = match config.credentials.clone() {
        CredentialSettings::Agent => (Credentials::Agent, None),
        CredentialSettings::Login(auth) => (Credentials::Login(auth), None),
        CredentialSettings::Token(token) => (Credentials::Token(token), None),
        CredentialSettings::TokenFile(file) => {
            let (token, contents) = read_token(&file, path)?;
            (Credentials::Token(token), Some(contents))
        }
    };
    let token_file = token_file.as_ref().map(|contents| contents.as_slice());
    let material = match &credentials {
        Credentials::Agent | Credentials::Token(_) => LoginMaterial::default(),
        Credentials::Login(auth) => {
            LoginMaterial::read(auth.files().iter().map(|named| named.file.path.as_path()))
        }
    };
    let material_fingerprint = material.fingerprint();
    let fingerprint = Fingerprint::of([Some(text)].into_iter().chain(tls_parts).chain([token_file]));
    let fingerprint = match &credentials {
        Credentials::Login(auth) if auth.session_needs_files() => fingerprint.and(material_fingerprint),
        _ => fingerprint,
    };
    let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
    let connect_timeout = config.connect_timeout.as_millis().to_be_bytes();
    let connection_parts =
        [config.tls.server_name.as_ref().map(String::as_bytes), Some(&connect_timeout[..])];
    Ok(LoadedConfig {
        fingerprint,
        connection_fingerprint: Fingerprint::of(
            tls_parts
                .into_iter()
                .chain(connection_parts)
                .chain(addresses.iter().map(|address| Some(address.as_bytes()))),
        ),
        material_fingerprint,
        config: config.with_credentials(credentials),
        material,
        tls,
    })
}

/// Reads a file with a plain token. A config without a token is useless, so a file that cannot be used fails the
/// load.
fn read_token(file: &MaterialFile, config: &Path) -> Result<(Token, Zeroizing<Vec<u8>>), ConfigError> {
    let rule = |why: &dyn fmt::Display| format!("{}: {} {why}", file.setting, file.path.display());
    let contents = read_regular(&file.path, MAX_MATERIAL_BYTES).map_err(|error| {
        ConfigError::new(ConfigErrorKind::Unreadable, config, rule(&error)).with_source(error)
    })?;
    match token_file::token(&contents) {
        Ok(token) => Ok((token, contents)),
        Err(why) => Err(ConfigError::new(ConfigErrorKind::Invalid, config, rule(&why))),
    }
}

/// Returns a warning if the login may depend on the API server that this process serves.
fn token_review_warning(credentials: &CredentialSettings) -> Option<String> {
    let CredentialSettings::Login(auth) = credentials else { return None };
    let file = auth.pod_token()?;
    Some(format!(
        "{}: Vault has this token of the pod reviewed by the API server of its cluster: if transit-kms serves that API \
         server, neither can start after an outage; use auth.method: jwt with static keys there, see \
         docs/auth/kubernetes.md",
        file.setting
    ))
}

/// Returns warnings about other users who can read or change files with secrets. The warnings depend on modes
/// and owners, not on the contents, so no fingerprint covers them.
///
/// `path` is the config file, if there is one.
fn exposure_warnings(config: &Config<CredentialSettings>, path: Option<&Path>) -> Vec<String> {
    let rendered = |secret: &str| match path {
        Some(path) => {
            exposure::secret_file_warnings(path, secret, "have the agent render it with perms = 0600")
        }
        None => Vec::new(),
    };
    let named = |path: &Path, secret: &str| exposure::secret_file_warnings(path, secret, "give it mode 0600");
    let mut warnings = Vec::new();
    match &config.credentials {
        CredentialSettings::Agent => {}
        CredentialSettings::Login(auth) => {
            if auth.has_inline_secret() {
                warnings.extend(rendered("credentials"));
            }
            for NamedFile { file, secret } in auth.files() {
                if let Some(secret) = secret {
                    warnings.extend(named(&file.path, &format!("{secret} of {}", file.setting)));
                }
            }
        }
        CredentialSettings::Token(_) => warnings.extend(rendered("the token")),
        CredentialSettings::TokenFile(file) => {
            warnings.extend(named(&file.path, &format!("the token of {}", file.setting)));
        }
    }
    if let Some(key) = &config.tls.client_key_file {
        warnings.extend(named(key, "the key of vault.tls.client_key_file"));
    }
    warnings
}

fn tls_material(files: &TlsFiles, config: &Path) -> Result<TlsMaterial, ConfigError> {
    let read = |key: &str, file: &Option<PathBuf>| {
        let Some(file) = file else { return Ok(None) };
        let unreadable = |why: &dyn fmt::Display| {
            let rule = format!("{key}: {} {why}", file.display());
            ConfigError::new(ConfigErrorKind::Unreadable, config, rule)
        };
        match read_regular(file, MAX_PEM_BYTES) {
            Ok(pem) if pem.is_empty() => Err(unreadable(&"is empty; the file may be half written")),
            Ok(pem) => Ok(Some(pem)),
            Err(error) => Err(unreadable(&error).with_source(error)),
        }
    };
    let public = |pem: Option<Zeroizing<Vec<u8>>>| pem.map(|pem| pem.to_vec());
    Ok(TlsMaterial {
        ca: public(read("tls.ca_file", &files.ca_file)?),
        client_cert: public(read("tls.client_cert_file", &files.client_cert_file)?),
        client_key: read("tls.client_key_file", &files.client_key_file)?,
    })
}

/// The error for a config file that cannot be read.
fn unreadable_config(error: ReadError, path: &Path) -> ConfigError {
    let kind = match error {
        ReadError::Absent => ConfigErrorKind::Absent,
        ReadError::Io(_) | ReadError::NotRegular | ReadError::PermissionDenied(_) => {
            ConfigErrorKind::Unreadable
        }
        ReadError::Empty | ReadError::TooLarge(_) => ConfigErrorKind::Invalid,
    };
    ConfigError::new(kind, path, error.to_string()).with_source(error)
}

#[cfg(test)]
mod tests;
