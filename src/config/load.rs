//! Reads the config file and the files that it names, and hashes them together.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, process::geteuid};
use sha2::{Digest, Sha256};
use transit_client::endpoint::{Endpoint, TlsMaterial};
use zeroize::Zeroizing;

use crate::exposure;

use super::{
    ConfigError, ConfigErrorKind, ConfigSource,
    parse::{MAX_FILE_BYTES, ParseOptions, parse},
    settings::{Config, TlsFiles},
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
    /// Changes with every byte of every file.
    pub fingerprint: Fingerprint,
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

/// A SHA-256 for comparisons. It is never printed: with the rest of the file, it would allow tests of guesses
/// of a weak token.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Hashes each part with its length, so that different lists of parts never have the same input.
    fn of<'a>(parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            match part {
                Some(bytes) => {
                    hash.update([1]);
                    hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
                    hash.update(bytes);
                }
                None => hash.update([0]),
            }
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
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
    pub files: TlsFiles,
}

impl Loaded {
    fn failed(error: ConfigError) -> Self {
        Self { result: Err(error), files: TlsFiles::default() }
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
        Err(error) => return Loaded::failed(error.of_config(path)),
    };
    let config = match parse(&text, path, options) {
        Ok(mut config) => {
            config.warnings.extend(exposure_warnings(&config.tls, source.file()));
            config
        }
        Err(error) => return Loaded::failed(error),
    };
    let files = config.tls.clone();
    let result = tls_material(&config.tls, path).map(|tls| {
        let material = [
            tls.ca.as_deref(),
            tls.client_cert.as_deref(),
            tls.client_key.as_ref().map(|key| key.as_slice()),
        ];
        let fingerprint = Fingerprint::of([Some(text.as_slice())].into_iter().chain(material));
        let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
        let connect_timeout = config.connect_timeout.as_millis().to_be_bytes();
        let connection_fingerprint = Fingerprint::of(
            material
                .into_iter()
                .chain([config.tls.server_name.as_ref().map(String::as_bytes), Some(&connect_timeout[..])])
                .chain(addresses.iter().map(|address| Some(address.as_bytes()))),
        );
        LoadedConfig { config, tls, fingerprint, connection_fingerprint }
    });
    Loaded { result, files }
}

/// Returns warnings about other users who can read or change files with secrets. The warnings depend on modes
/// and owners, not on the contents, so no fingerprint covers them.
fn exposure_warnings(files: &TlsFiles, config: Option<&Path>) -> Vec<String> {
    let cure = "have the agent render it with perms = 0600";
    let mut warnings = match config {
        Some(config) => exposure::secret_file_warnings(config, "the token", cure),
        None => Vec::new(),
    };
    if let Some(key) = &files.client_key_file {
        warnings.extend(exposure::secret_file_warnings(
            key,
            "the key of vault.tls.client_key_file",
            "give it mode 0600",
        ));
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

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("does not exist (yet); it is read as soon as it appears")]
    Absent,
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    #[error("is not a regular file")]
    NotRegular,
    #[error("cannot be read by uid {}: permission denied", geteuid().as_raw())]
    PermissionDenied(#[source] io::Error),
    /// The maximum size in bytes.
    #[error("is larger than {} KiB", .0 / 1024)]
    TooLarge(usize),
}

impl ReadError {
    /// The error for a config file that cannot be read.
    fn of_config(self, path: &Path) -> ConfigError {
        let kind = match self {
            Self::Absent => ConfigErrorKind::Absent,
            Self::Io(_) | Self::NotRegular | Self::PermissionDenied(_) => ConfigErrorKind::Unreadable,
            Self::TooLarge(_) => ConfigErrorKind::Invalid,
        };
        ConfigError::new(kind, path, self.to_string()).with_source(self)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied(error),
            _ => Self::Io(error),
        }
    }
}

/// Reads a regular file of at most `limit` bytes. No copy of its contents stays in memory without being wiped.
fn read_regular(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    // Checked before the file is opened, because opening a device can have side effects, and again afterwards,
    // because the file may have been replaced. Without NONBLOCK, opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    // A vector that grows leaves copies in memory, so its size is fixed: the file's size, and one byte that
    // shows whether the file has grown.
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(vec![0; expected.min(limit) + 1]);
    let mut length = fill(&mut file, &mut bytes)?;
    if length == bytes.len() && length <= limit {
        let mut larger = Zeroizing::new(vec![0; limit + 1]);
        for (to, from) in larger.iter_mut().zip(bytes.iter()) {
            *to = *from;
        }
        length += fill(&mut file, larger.get_mut(length..).unwrap_or_default())?;
        bytes = larger;
    }
    if length > limit {
        return Err(ReadError::TooLarge(limit));
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
