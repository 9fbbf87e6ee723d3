//! What is on disk: the config file and the files that it names, read once and
//! hashed together.

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
    ConfigError, ConfigErrorKind,
    parse::{MAX_FILE_BYTES, ParseOptions, parse},
    settings::{Config, TlsFiles},
};

/// The longest PEM file in bytes; a system's whole bundle of authorities has a quarter of it.
pub const MAX_PEM_BYTES: usize = 1024 * 1024;

/// A config and everything that it names. `Debug` is safe to print.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What the file says.
    pub config: Config,
    /// What the files say that `config.tls` names.
    pub tls: TlsMaterial,
    /// Changes with any byte of any of the files.
    pub fingerprint: Fingerprint,
    /// Changes with what connections are made of: addresses, server name, TLS
    /// files. While it stays, a pool can be kept.
    pub connection_fingerprint: Fingerprint,
}

impl Reading {
    /// How to reach the Vault that the config names.
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

/// A SHA-256 to compare. Not printed: who knows the rest of the file could test
/// guesses of a weak token with it.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Every part goes in with its length, so that no two lists of parts are one text.
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

/// Reads everything, off the runtime's threads.
///
/// # Errors
/// [`ConfigErrorKind::Absent`] without a config file, [`ConfigErrorKind::Unreadable`]
/// if it or a file that it names cannot be read, [`ConfigErrorKind::Invalid`]
/// if it breaks a rule. A pipe, device or directory is refused, not waited for.
pub async fn read(path: PathBuf, options: ParseOptions) -> Result<Reading, ConfigError> {
    let copy = path.clone();
    match tokio::task::spawn_blocking(move || look(&path, options).outcome).await {
        Ok(outcome) => outcome,
        Err(_) => Err(crashed(&copy)),
    }
}

/// The reading thread panicked. No input is known to make it; if one does, it must not end us.
pub(super) fn crashed(path: &Path) -> ConfigError {
    ConfigError::of_kind(
        ConfigErrorKind::Unreadable,
        path,
        "reading it failed inside transit-kms: report this",
    )
}

/// A reading, and which files it depends on even if it failed.
pub(super) struct Look {
    pub outcome: Result<Reading, ConfigError>,
    /// None of them if the config file itself could not be understood.
    pub named: TlsFiles,
}

/// As [`read`], on this thread.
pub(super) fn look(path: &Path, options: ParseOptions) -> Look {
    let text = match read_regular(path, MAX_FILE_BYTES) {
        Ok(text) => text,
        Err(fault) => return Look { outcome: Err(fault.of_config(path)), named: TlsFiles::default() },
    };
    let config = match parse(&text, path, options) {
        Ok(mut config) => {
            config.warnings.extend(exposed(&config.tls, path));
            config
        }
        Err(error) => return Look { outcome: Err(error), named: TlsFiles::default() },
    };
    let named = config.tls.clone();
    let outcome = tls_material(&config.tls, path).map(|tls| {
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
        Reading { config, tls, fingerprint, connection_fingerprint }
    });
    Look { outcome, named }
}

/// Warnings about who else can read or change what is secret. They can change without a byte of the
/// files, so they are part of no fingerprint.
fn exposed(files: &TlsFiles, config: &Path) -> Vec<String> {
    let cure = "have the agent render it with perms = 0600";
    let mut warnings = exposure::of_secret(config, "the token", cure);
    if let Some(key) = &files.client_key_file {
        warnings.extend(exposure::of_secret(
            key,
            "the key of vault.tls.client_key_file",
            "give it mode 0600",
        ));
    }
    warnings
}

fn tls_material(files: &TlsFiles, config: &Path) -> Result<TlsMaterial, ConfigError> {
    let read = |key: &str, file: &Option<PathBuf>| match file {
        None => Ok(None),
        Some(file) => match read_regular(file, MAX_PEM_BYTES) {
            Ok(pem) if pem.is_empty() => {
                let rule = format!("{key}: {} is empty; perhaps it is half written", file.display());
                Err(ConfigError::of_kind(ConfigErrorKind::Unreadable, config, rule))
            }
            Ok(pem) => Ok(Some(pem)),
            Err(fault) => {
                let rule = format!("{key}: {} {}", file.display(), fault.rule());
                Err(ConfigError::of_kind(ConfigErrorKind::Unreadable, config, rule))
            }
        },
    };
    let public = |pem: Option<Zeroizing<Vec<u8>>>| pem.map(|pem| pem.to_vec());
    Ok(TlsMaterial {
        ca: public(read("tls.ca_file", &files.ca_file)?),
        client_cert: public(read("tls.client_cert_file", &files.client_cert_file)?),
        client_key: read("tls.client_key_file", &files.client_key_file)?,
    })
}

enum Fault {
    Absent,
    Io(io::Error),
    NotRegular,
    TooLarge(usize),
}

impl Fault {
    fn of_config(&self, path: &Path) -> ConfigError {
        let kind = match self {
            Self::Absent => ConfigErrorKind::Absent,
            Self::Io(_) | Self::NotRegular => ConfigErrorKind::Unreadable,
            Self::TooLarge(_) => ConfigErrorKind::Invalid,
        };
        ConfigError::of_kind(kind, path, self.rule())
    }

    fn rule(&self) -> String {
        match self {
            Self::Absent => "does not exist (yet); it is read as soon as it appears".to_owned(),
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                format!("cannot be read by uid {}: permission denied", geteuid().as_raw())
            }
            Self::Io(error) => format!("cannot be read: {error}"),
            Self::NotRegular => "is not a regular file".to_owned(),
            Self::TooLarge(limit) => format!("is larger than {} KiB", limit / 1024),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Absent } else { Self::Io(error) }
    }
}

/// Reads a whole regular file of at most `limit` bytes; nothing of it is left in memory that is not wiped.
fn read_regular(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // Asked before opening, because to open a device can have effects; and again afterwards,
    // because it may have been replaced. Without NONBLOCK, opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(Fault::NotRegular);
    }
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Fault::NotRegular);
    }
    // A vector that grows leaves copies behind, so its size is right from the start: one byte
    // more than expected shows that the file has grown since.
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
        return Err(Fault::TooLarge(limit));
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECRET: &str = "hvs.SENTINEL";

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.path(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn config(&self, token: &str) -> PathBuf {
            let base = self.dir.path().display();
            self.write(
                "c.yaml",
                &format!(
                    "address: https://v\nkeynames: k\ntoken: {token}\ntls: {{ ca_file: {base}/ca.pem, \
                     client_cert_file: {base}/cert.pem, client_key_file: {base}/key.pem }}\n"
                ),
            )
        }

        fn tls(&self) {
            for name in ["ca.pem", "cert.pem", "key.pem"] {
                self.write(name, name);
            }
        }
    }

    fn read(path: &Path) -> Result<Reading, ConfigError> {
        look(path, ParseOptions::default()).outcome
    }

    #[tokio::test]
    async fn everything_that_is_named_is_read() {
        let files = Files::new();
        files.tls();
        let reading = super::read(files.config(SECRET), ParseOptions::default()).await.unwrap();
        assert_eq!(reading.tls.ca.as_deref(), Some(&b"ca.pem"[..]));
        assert_eq!(reading.tls.client_cert.as_deref(), Some(&b"cert.pem"[..]));
        assert_eq!(reading.tls.client_key.as_ref().unwrap().as_slice(), b"key.pem");
        let debug = format!("{reading:?}");
        assert!(!debug.contains(SECRET) && !debug.contains("107, 101, 121"), "{debug}");
    }

    #[test]
    fn a_token_changes_one_fingerprint_and_a_certificate_both() {
        let files = Files::new();
        files.tls();
        let first = read(&files.config("a")).unwrap();
        let again = read(&files.config("a")).unwrap();
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_eq!(first.connection_fingerprint, again.connection_fingerprint);
        let token = read(&files.config("b")).unwrap();
        assert_ne!(first.fingerprint, token.fingerprint);
        assert_eq!(first.connection_fingerprint, token.connection_fingerprint);
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            files.write(name, "new");
            let changed = read(&files.config("b")).unwrap();
            assert_ne!(token.fingerprint, changed.fingerprint, "{name}");
            assert_ne!(token.connection_fingerprint, changed.connection_fingerprint, "{name}");
            files.write(name, name);
        }
        let text = fs::read_to_string(files.path("c.yaml")).unwrap();
        for (from, to) in [("https://v", "https://w"), ("tls: {", "tls: { server_name: x,")] {
            let changed = read(&files.write("c.yaml", &text.replace(from, to))).unwrap();
            assert_ne!(token.connection_fingerprint, changed.connection_fingerprint, "{to}");
        }
    }

    #[test]
    fn absent_invalid_and_unreadable_are_told_apart() {
        let files = Files::new();
        let error = read(&files.path("c.yaml")).unwrap_err();
        assert_eq!(error.kind, ConfigErrorKind::Absent);
        assert_eq!(read(&files.path("no/c.yaml")).unwrap_err().kind, ConfigErrorKind::Absent);
        let error = read(&files.write("bad", "x: y\n")).unwrap_err();
        assert_eq!(error.kind, ConfigErrorKind::Invalid);
        let error = read(files.dir.path()).unwrap_err();
        assert_eq!((error.kind, error.rule.as_str()), (ConfigErrorKind::Unreadable, "is not a regular file"));
        let error = read(&files.path("bad/c.yaml")).unwrap_err();
        assert_eq!(error.kind, ConfigErrorKind::Unreadable);
        let big = files.write("big", &"#".repeat(MAX_FILE_BYTES + 1));
        let error = read(&big).unwrap_err();
        assert_eq!((error.kind, error.rule.as_str()), (ConfigErrorKind::Invalid, "is larger than 64 KiB"));
    }

    /// Root reads everything, so the words are tested where the mode is not.
    #[test]
    fn a_refusal_names_the_uid() {
        let uid = geteuid().as_raw();
        let fault = Fault::from(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(fault.rule(), format!("cannot be read by uid {uid}: permission denied"));
        if uid != 0 {
            let files = Files::new();
            let path = files.write("c.yaml", "");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
            assert_eq!(read(&path).unwrap_err().kind, ConfigErrorKind::Unreadable);
        }
    }

    #[test]
    fn a_file_that_is_named_but_missing_is_named_in_the_error() {
        let files = Files::new();
        files.tls();
        fs::remove_file(files.path("cert.pem")).unwrap();
        let config = files.config(SECRET);
        let error = read(&config).unwrap_err();
        assert_eq!(error.kind, ConfigErrorKind::Unreadable);
        let expected = format!("tls.client_cert_file: {} does not exist", files.path("cert.pem").display());
        assert!(error.rule.starts_with(&expected), "{error}");
        files.write("cert.pem", "");
        assert!(read(&config).unwrap_err().rule.contains("is empty"));
        files.write("cert.pem", &"x".repeat(MAX_PEM_BYTES + 1));
        assert!(read(&config).unwrap_err().rule.contains("is larger than 1024 KiB"));
        let named = look(&config, ParseOptions::default()).named;
        assert_eq!(named.client_cert_file, Some(files.path("cert.pem")));
    }

    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let files = Files::new();
        let pipe = files.path("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            assert_eq!(read(path).unwrap_err().rule, "is not a regular file", "{}", path.display());
        }
    }

    /// `/proc` says that its files have no length; they have.
    #[test]
    fn a_file_that_is_longer_than_it_says_is_read_whole() {
        let bytes = read_regular(Path::new("/proc/self/status"), MAX_PEM_BYTES).ok().unwrap();
        assert!(bytes.len() > 100, "{}", bytes.len());
        assert!(matches!(read_regular(Path::new("/proc/self/status"), 10), Err(Fault::TooLarge(10))));
    }
}
