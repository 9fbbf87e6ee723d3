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

#[test]
fn a_token_file_is_a_token_that_is_read_at_each_load() {
    let files = Files::new();
    let token_file = files.path("sink");
    let text = format!(
        "address: https://v\nkeynames: k\nauth: {{ method: token_file, token_file: {} }}\n",
        token_file.display()
    );
    let config = files.write("c.yaml", &text);
    let error = read(&config).unwrap_err();
    assert_eq!(error.kind, ConfigErrorKind::Unreadable);
    let missing = format!("auth.token_file: {} does not exist (yet)", token_file.display());
    assert!(error.rule.starts_with(&missing), "{error}");
    files.write("sink", &format!("{SECRET} {SECRET}"));
    let error = read(&config).unwrap_err();
    let rule = format!("auth.token_file: {} must contain a token", token_file.display());
    assert!(error.kind == ConfigErrorKind::Invalid && error.rule.starts_with(&rule), "{error}");
    assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    files.write("sink", SECRET);
    let first = read(&config).unwrap();
    assert_eq!(first.config.credentials, Credentials::Token(Token::new(SECRET).unwrap()));
    files.write("sink", "{\"token\": \"other\"}");
    let second = read(&config).unwrap();
    assert_eq!(second.config.credentials, Credentials::Token(Token::new("other").unwrap()));
    assert_ne!(first.fingerprint, second.fingerprint);
    assert_eq!(first.material_fingerprint, second.material_fingerprint);
    assert_eq!(first.connection_fingerprint, second.connection_fingerprint);
    let named = load_blocking(&config.into(), ParseOptions::default()).files;
    assert_eq!(named, [token_file]);
}

#[test]
fn login_material_has_a_fingerprint_of_its_own_and_may_be_missing() {
    let files = Files::new();
    let (role_id, secret_id) = (files.path("role_id"), files.path("secret_id"));
    let text = format!(
        "address: https://v\nkeynames: k\nauth: {{ method: approle, role_id_file: {}, secret_id_file: {} }}\n",
        role_id.display(),
        secret_id.display()
    );
    let config = files.write("c.yaml", &text);
    let file = |path: &Path| MaterialFile { path: path.to_owned(), setting: "auth.secret_id_file".into() };
    let first = read(&config).unwrap();
    assert!(first.material.get(&file(&secret_id)).unwrap_err().to_string().contains("does not exist (yet)"));
    files.write("secret_id", SECRET);
    let second = read(&config).unwrap();
    assert_eq!(second.material.get(&file(&secret_id)).unwrap(), SECRET.as_bytes());
    assert_eq!(first.fingerprint, second.fingerprint);
    assert_eq!(first.connection_fingerprint, second.connection_fingerprint);
    assert_ne!(first.material_fingerprint, second.material_fingerprint);
    assert!(!format!("{second:?}").contains(SECRET));
    let named = load_blocking(&config.into(), ParseOptions::default()).files;
    assert_eq!(named, [role_id, secret_id]);
}

/// Each file with its mode, and the file that must cause a warning.
#[test]
fn files_with_secrets_of_a_login_must_not_be_readable_by_others() {
    let login = |auth: &str| {
        let files = Files::new();
        let base = files.dir.path().display().to_string();
        let auth = auth.replace("DIR", &base);
        let config = files.write("c.yaml", &format!("address: https://v\nkeynames: k\nauth: {{ {auth} }}\n"));
        for path in [config.clone()].into_iter().chain(["a", "b", "c"].map(|name| files.write(name, "t"))) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let warnings = read(&config).unwrap().config.warnings;
        warnings.iter().map(|warning| warning.replace(&base, "")).collect::<Vec<_>>()
    };
    let by_all = "and can be read by all users (mode 0644):";
    for (auth, expected) in [
        ("method: agent", vec![]),
        (
            "method: approle, role_id_file: DIR/a, secret_id_file: DIR/b, delivery: sealed, private_key_file: DIR/c",
            vec![
                "/b holds the secret_id of auth.secret_id_file",
                "/c holds the private key of auth.private_key_file",
            ],
        ),
        ("method: approle, role_id_file: DIR/a", vec!["/a holds the role_id of auth.role_id_file"]),
        ("method: approle, role_id: r, secret_id: s", vec!["/c.yaml holds credentials"]),
        (
            "method: approle, role_id: r, secret_id_file: DIR/b",
            vec!["/b holds the secret_id of auth.secret_id_file"],
        ),
        (
            "method: cert, cert_file: DIR/a, key_file: DIR/b",
            vec!["/b holds the private key of auth.key_file"],
        ),
        ("method: jwt, role: r, jwt_file: DIR/a", vec!["/a holds the JWT of auth.jwt_file"]),
        // Kubelet decides the mode of the token of a ServiceAccount.
        ("method: kubernetes, role: r, jwt_file: DIR/a", vec![]),
        ("method: token_file, token_file: DIR/a", vec!["/a holds the token of auth.token_file"]),
        (
            "method: token_file, token_file: DIR/a, delivery: wrapped",
            vec!["/a holds the wrapping token of auth.token_file"],
        ),
        (
            "method: userpass, username: u, password_file: DIR/a",
            vec!["/a holds the password of auth.password_file"],
        ),
        ("method: userpass, username: u, password: p", vec!["/c.yaml holds credentials"]),
        (
            "method: inline, login: { method: userpass, username: u, password_file: DIR/a }",
            vec!["/a holds the password of auth.login.password_file"],
        ),
    ] {
        let warnings = login(auth);
        assert_eq!(warnings.len(), expected.len(), "{auth}: {warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.starts_with(&format!("{expected} {by_all}")), "{auth}: {warning}");
        }
    }
}

/// What travels with each request, and the token of a session, must not wait for the next login.
#[test]
fn a_session_that_depends_on_files_changes_with_them() {
    let files = Files::new();
    let password = files.write("password", "one");
    let userpass = format!("method: userpass, username: u, password_file: {}", password.display());
    for (auth, changes) in [
        (userpass.clone(), false),
        (format!("method: inline, login: {{ {userpass} }}"), true),
        (format!("method: token_file, delivery: wrapped, token_file: {}", password.display()), true),
    ] {
        let config =
            files.write("login.yaml", &format!("address: https://v\nkeynames: k\nauth: {{ {auth} }}\n"));
        files.write("password", "one");
        let one = read(&config).unwrap();
        files.write("password", "two");
        let two = read(&config).unwrap();
        assert_eq!(one.fingerprint != two.fingerprint, changes, "{auth}");
        assert_ne!(one.material_fingerprint, two.material_fingerprint, "{auth}");
    }
}

#[test]
fn a_review_of_the_pods_own_token_is_warned_about() {
    let files = Files::new();
    for (auth, warns) in [
        ("method: kubernetes, role: r", true),
        ("method: kubernetes, role: r, jwt_file: /var/run/secrets/tokens/vault", true),
        ("method: inline, login: { method: kubernetes, role: r }", true),
        ("method: kubernetes, role: r, jwt_file: /run/elsewhere/token", false),
        ("method: jwt, role: r, jwt_file: /var/run/secrets/tokens/vault", false),
    ] {
        let config =
            files.write("pod.yaml", &format!("address: https://v\nkeynames: k\nauth: {{ {auth} }}\n"));
        let warnings = read(&config).unwrap().config.warnings;
        let found = warnings.iter().any(|it| it.contains("neither can start") && it.contains("method: jwt"));
        assert_eq!(found, warns, "{auth}: {warnings:?}");
    }
}
