//! Reads real files.

use std::{fs, io, os::unix::fs::PermissionsExt};

use rustix::process::geteuid;

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

fn read(path: &Path) -> Result<LoadedConfig, ConfigError> {
    load_blocking(&path.to_owned().into(), ParseOptions::default()).result
}

#[tokio::test]
async fn all_files_that_the_config_names_are_read() {
    let files = Files::new();
    files.tls();
    let loaded = load(files.config(SECRET), ParseOptions::default()).await.unwrap();
    assert_eq!(loaded.tls.ca.as_deref(), Some(&b"ca.pem"[..]));
    assert_eq!(loaded.tls.client_cert.as_deref(), Some(&b"cert.pem"[..]));
    assert_eq!(loaded.tls.client_key.as_ref().unwrap().as_slice(), b"key.pem");
    let debug = format!("{loaded:?}");
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
fn absent_invalid_and_unreadable_are_distinguished() {
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

/// Root can read every file, so the message is tested without one.
#[test]
fn a_permission_error_names_the_uid() {
    let uid = geteuid().as_raw();
    let error = ReadError::from(io::Error::from(io::ErrorKind::PermissionDenied));
    assert_eq!(error.to_string(), format!("cannot be read by uid {uid}: permission denied"));
    if uid != 0 {
        let files = Files::new();
        let path = files.write("c.yaml", "");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.kind, ConfigErrorKind::Unreadable);
        assert!(std::error::Error::source(&error).is_some(), "{error:?}");
    }
}

#[test]
fn the_error_for_a_missing_file_names_it() {
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
    let files_named = load_blocking(&config.into(), ParseOptions::default()).files;
    assert!(files_named.contains(&files.path("cert.pem")), "{files_named:?}");
}

#[test]
fn pipes_and_devices_are_refused_immediately() {
    let files = Files::new();
    let pipe = files.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    for path in [pipe.as_path(), Path::new("/dev/zero")] {
        assert_eq!(read(path).unwrap_err().rule, "is not a regular file", "{}", path.display());
    }
}

/// Files in `/proc` have contents and report a size of 0.
#[test]
fn a_file_that_is_larger_than_its_reported_size_is_read_completely() {
    let bytes = read_regular(Path::new("/proc/self/status"), MAX_PEM_BYTES).ok().unwrap();
    assert!(bytes.len() > 100, "{}", bytes.len());
    assert!(matches!(read_regular(Path::new("/proc/self/status"), 10), Err(ReadError::TooLarge(10))));
}
