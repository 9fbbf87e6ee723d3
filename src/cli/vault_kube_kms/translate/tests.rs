//! Translates command lines. The real environment is not read, except by the last test.

use std::ffi::OsString;

use super::*;
use crate::config::CredentialSettings;

/// The arguments that OpenShift gives the plugin: `pkg/operator/encryption/kms/pluginlifecycle/vault.go` in
/// openshift/library-go.
const OPENSHIFT: [&str; 10] = [
    "-listen-address=unix:///var/run/kmsplugin/kms-1.sock",
    "-vault-address=https://vault.example.com:8200",
    "-vault-key-path=team/transit/keys/cluster-1",
    "-approle-role-id=1234-abcd",
    "-approle-secret-id-path=/etc/kubernetes/static-pod-resources/secrets/encryption-config/secret-id",
    "-tls-ca-file=/etc/kubernetes/static-pod-resources/secrets/encryption-config/ca-bundle.crt",
    "-tls-sni=vault.internal.example.com",
    "-vault-namespace=admin/kubernetes",
    "-vault-auth-namespace=admin",
    "-metrics-port=0",
];
const REQUIRED: [&str; 4] = [
    "-vault-address=https://v:8200",
    "-vault-key-path=transit/keys/kms",
    "-approle-role-id=r",
    "-approle-secret-id-path=/s",
];

fn flags(arguments: &[&str]) -> Result<Flags, FlagsError> {
    Flags::parse_from_go(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
}

fn translated(arguments: &[&str]) -> Result<Translation, FlagsError> {
    translate(&flags(arguments)?, |_| false)
}

/// Adds arguments to the required ones. A later flag replaces an earlier one, as in Go.
fn with(more: &[&str]) -> Result<Translation, FlagsError> {
    translated(&REQUIRED.iter().chain(more).copied().collect::<Vec<_>>())
}

#[test]
fn the_arguments_of_openshift_become_this_config() {
    let translation = translated(&OPENSHIFT).unwrap();
    let expected = r#"vault:
  address: "https://vault.example.com:8200"
  namespace: "admin/kubernetes"
  transitpath: "team/transit"
  keynames: "cluster-1"
  tls:
    ca_file: "/etc/kubernetes/static-pod-resources/secrets/encryption-config/ca-bundle.crt"
    server_name: "vault.internal.example.com"
  auth:
    method: "approle"
    namespace: "admin"
    role_id: "1234-abcd"
    secret_id_file: "/etc/kubernetes/static-pod-resources/secrets/encryption-config/secret-id"
    state_dir: "/var/run/kmsplugin/kms-1.sock.state"
"#;
    assert_eq!(translation.yaml, expected);
    let serve = [
        "--config=/etc/transit-kms/config.yaml",
        "--listen=unix:///var/run/kmsplugin/kms-1.sock",
        "--admin-listen=none",
        "--socket-mode=0660",
    ];
    assert_eq!(translation.serve_flags, serve);
    assert_eq!(translation.notes, Vec::<String>::new());
    let parsed = parse(translation.yaml.as_bytes(), Path::new("x"), ParseOptions::default()).unwrap();
    assert!(matches!(parsed.credentials, CredentialSettings::Login(_)));
}

#[test]
fn flags_are_read_as_go_reads_them() {
    let one_dash = translated(&OPENSHIFT).unwrap();
    let two_dashes: Vec<String> = OPENSHIFT.iter().map(|argument| format!("-{argument}")).collect();
    assert_eq!(translated(&two_dashes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap(), one_dash);
    let spaces: Vec<&str> = OPENSHIFT.iter().flat_map(|argument| argument.split('=')).collect();
    assert_eq!(translated(&spaces).unwrap(), one_dash);
    let last_wins =
        with(&["-approle-role-id=first", "-approle-role-id", "-second", "-vault-namespace="]).unwrap();
    assert!(last_wins.yaml.contains("role_id: \"-second\"\n"), "{}", last_wins.yaml);
    assert_eq!(flags(&["stray"]).err(), Some(FlagsError::NoFlag("stray".into())));
    assert_eq!(flags(&["-vault-address"]).err(), Some(FlagsError::NoValue("vault-address".into())));
    // In Go, the value of a boolean flag never follows after a space.
    let refused = with(&["-tls-skip-verify", "false"]).unwrap_err();
    assert_eq!(refused, FlagsError::NoFlag("false".into()));
    let unknown = with(&["--vault-adress=x"]).unwrap_err().to_string();
    assert!(unknown.starts_with("unknown flag -vault-adress; "), "{unknown}");
    for known in ["-listen-address", "-vault-key-path", "-metrics-port", "-transit-key-name"] {
        assert!(unknown.contains(known), "{unknown}");
    }
    for help in ["-h", "-help", "--help"] {
        let Err(FlagsError::Help(help)) = with(&[help]) else { panic!("{help}") };
        assert!(help.contains("VAULT_KUBE_KMS_VAULT_KEY_PATH"), "{help}");
    }
}

#[test]
fn each_flag_changes_one_thing() {
    for (flag, yaml) in [
        ("-auth-mount=approle-2", "\n    mount: \"approle-2\"\n"),
        ("-auth-method=approle", "\n    method: \"approle\"\n"),
        ("-vault-connection-timeout=1m", "\n  connect_timeout: \"30s\"\n"),
        ("-vault-connection-timeout=15s", "\n  connect_timeout: \"15s\"\n"),
        ("-vault-key-path=a/keys/b/keys/c", "\n  transitpath: \"a/keys/b\"\n  keynames: \"c\"\n"),
        ("-vault-key-path=/transit/keys/kms/", "\n  transitpath: \"transit\"\n  keynames: \"kms\"\n"),
    ] {
        let translation = with(&[flag]).unwrap();
        assert!(translation.yaml.contains(yaml), "{flag}: {}", translation.yaml);
        assert_eq!(translation.notes.len(), usize::from(flag.ends_with("=1m")), "{flag}");
    }
    for (more, serve) in [
        (&[][..], "--admin-listen=127.0.0.1:9090"),
        (&[][..], "--listen=unix:///tmp/vault-kube-kms.socket"),
        (&["-listen-address=/var/run/kms/vault-kms.sock"], "--listen=unix:///var/run/kms/vault-kms.sock"),
        (&["-metrics-port=-1"], "--admin-listen=none"),
        (&["-metrics-port", "0", "-health-port", "8081"], "--admin-listen=0.0.0.0:8081"),
        (&["-health-port=8081"], "--admin-listen=127.0.0.1:9090,0.0.0.0:8081"),
        (&["-health-port=9090"], "--admin-listen=0.0.0.0:9090"),
        (&["-health-port=0"], "--admin-listen=127.0.0.1:9090"),
        (&["-zap-log-level=debug"], "--log-level=debug"),
        (&["-zap-log-level=4"], "--log-level=warn"),
        (&["-zap-log-level=6"], "--log-level=trace"),
        (&["-zap-log-level=panic"], "--log-level=error"),
        (&["-log-level=debug-extended"], "--log-level=trace"),
        (&["-disable-runtime-metrics", "-tls-skip-verify=false"], "--socket-mode=0660"),
    ] {
        let translation = with(more).unwrap();
        assert!(translation.serve_flags.iter().any(|flag| flag == serve), "{more:?}: {translation:?}");
    }
    // Each plugin of a pod has its own directory, and none is in a directory of all users.
    for (listen, state_dir) in [
        ("unix:///run/kms/2.sock", Some("/run/kms/2.sock.state")),
        ("unix:///tmp/kms.sock", None),
        ("unix:///@kms", None),
    ] {
        let yaml = with(&["-listen-address", listen]).unwrap().yaml;
        let found = yaml.lines().find_map(|line| line.strip_prefix("    state_dir: "));
        assert_eq!(found.map(|found| found.trim_matches('"')), state_dir, "{yaml}");
    }
    let mode_is_set =
        translate(&flags(&REQUIRED).unwrap(), |variable| variable == "TRANSIT_KMS_SOCKET_MODE").unwrap();
    assert!(!mode_is_set.serve_flags.iter().any(|flag| flag.starts_with("--socket-mode")), "{mode_is_set:?}");
    let http = with(&["-vault-address=http://v:8200"]).unwrap();
    assert!(http.notes[0].contains("TRANSIT_KMS_ALLOW_HTTP=true"), "{http:?}");
}

#[test]
fn the_flags_of_older_versions_name_the_same_key() {
    let base = ["-vault-address=https://v:8200", "-approle-role-id=r", "-approle-secret-id-path=/s"];
    for (older, mount) in
        [(&["-transit-mount=k8s", "-transit-key=kms"][..], "k8s"), (&["-transit-key-name=kms"], "transit")]
    {
        let arguments: Vec<&str> = base.iter().chain(older).copied().collect();
        let yaml = translated(&arguments).unwrap().yaml;
        assert!(yaml.contains(&format!("transitpath: \"{mount}\"\n  keynames: \"kms\"\n")), "{yaml}");
    }
}

#[test]
fn a_wrong_value_is_an_error_that_names_the_flag_and_not_the_value() {
    for (argument, flag, words) in [
        ("-vault-key-path=transit/SECRET", "-vault-key-path", "MOUNT/keys/NAME, such as transit/keys/kms"),
        ("-vault-key-path=v1/transit/keys/SECRET", "-vault-key-path", "without /v1"),
        ("-vault-key-path=transit/encrypt/SECRET", "-vault-key-path", "MOUNT/keys/NAME"),
        ("-vault-key-path=transit/keys/SECRET/x", "-vault-key-path", "MOUNT/keys/NAME"),
        ("-vault-key-path=transit/keys/SECRET!", "-vault-key-path", "letters, digits"),
        ("-vault-key-path=a//b/keys/SECRET", "-vault-key-path", ""),
        ("-vault-address=SECRET", "-vault-address", ""),
        ("-tls-ca-file=SECRET.pem", "-tls-ca-file", "absolute path"),
        ("-tls-sni=10.0.0.1", "-tls-sni", "DNS name"),
        ("-tls-skip-verify", "-tls-skip-verify", "-tls-ca-file"),
        ("-tls-skip-verify=SECRET", "-tls-skip-verify", "true or false"),
        ("-vault-namespace=a//SECRET", "-vault-namespace", ""),
        ("-vault-auth-namespace=a//SECRET", "-vault-auth-namespace", ""),
        ("-auth-mount=a//SECRET", "-auth-mount", ""),
        ("-approle-secret-id-path=SECRET", "-approle-secret-id-path", "absolute path"),
        ("-vault-connection-timeout=SECRET", "-vault-connection-timeout", "duration"),
        ("-vault-connection-timeout=1ms", "-vault-connection-timeout", "100ms"),
        ("-auth-method=SECRET", "-auth-method", "approle"),
        ("-listen-address=tcp://x", "-listen-address", "is not a unix socket"),
        ("-metrics-port=SECRET", "-metrics-port", "port number"),
        ("-health-port=65536", "-health-port", "65535"),
        ("-log-level=SECRET", "-log-level", "debug"),
        ("-zap-log-level=SECRET", "-zap-log-level", "panic"),
        ("-transit-key=SECRET", "-vault-key-path", "-transit-key"),
    ] {
        let error = with(&[argument]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{flag}: ")) && error.contains(words), "{argument}: {error}");
        assert!(!error.contains("SECRET"), "{argument}: {error}");
    }
    let missing = translated(&["-approle-role-id=r"]).unwrap_err().to_string();
    assert!(missing.ends_with("-vault-address, -approle-secret-id-path, -vault-key-path"), "{missing}");
}

#[test]
fn every_value_stays_one_yaml_string() {
    let translation = with(&["-approle-role-id=a: \"b\" # c\\", "-auth-mount=true"]).unwrap();
    assert!(translation.yaml.contains(r#"role_id: "a: \"b\" # c\\""#), "{}", translation.yaml);
    assert!(translation.yaml.contains("mount: \"true\""), "{}", translation.yaml);
}

#[test]
fn a_command_line_is_recognized_by_a_flag_of_vault_kube_kms() {
    let is_called = |arguments: &[&str]| {
        super::super::is_called(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    };
    assert!(is_called(&OPENSHIFT));
    assert!(is_called(&["--vault-address", "https://v"]));
    assert!(is_called(&["-no-such-flag", "-vault-address=https://v"]));
    assert!(!is_called(&["serve", "-vault-address=https://v"]));
    assert!(!is_called(&["convert", "--", "-vault-address=https://v"]));
    assert!(!is_called(&["--help"]) && !is_called(&["-h"]) && !is_called(&["--version"]));
}
