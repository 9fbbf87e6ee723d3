//! The real program with the flags of HashiCorp's vault-kube-kms, as OpenShift starts it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::geteuid;
use serde_json::json;
use tempfile::TempDir;
use testkit::{
    Bao, KEY, MOUNT,
    calls::{encrypt, round_trip, status},
    cli::{run, run_with},
    closed_address, command, config_file, connect, eventually, http, kms_client, login, port,
    process::Process,
    repository, temp_dir, unix_url,
};
use tonic::Code;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";
/// `EX_USAGE`.
const USAGE: Option<i32> = Some(64);

/// A running transit-kms that was started with flags of vault-kube-kms.
struct DropIn {
    process: Process,
    metrics_port: u16,
    socket: PathBuf,
}

impl DropIn {
    /// Starts it in this folder with these flags and a socket and a metrics port, and waits until it listens.
    async fn start(dir: &Path, flags: &[String], environment: &[(&str, &str)]) -> Self {
        let (socket, metrics_port) = (dir.join("kms-1.sock"), port::unused());
        let own = [
            format!("-listen-address={}", unix_url(&socket).display()),
            format!("-metrics-port={metrics_port}"),
        ];
        let mut command = command(repository::daemon());
        command.args(own.iter().chain(flags)).envs(environment.iter().copied());
        let process = Process::spawn("transit-kms", &mut command);
        let mut drop_in = Self { process, metrics_port, socket };
        drop_in.wait_listening().await;
        drop_in
    }

    async fn wait_listening(&mut self) {
        eventually("transit-kms listens", WAIT_TIMEOUT, async || {
            assert_eq!(self.process.exited(), None, "{}", self.process.output());
            connect(&self.socket).await
        })
        .await;
    }

    /// The status of a path on the metrics port.
    async fn get(&self, path: &str) -> u16 {
        let url = format!("http://127.0.0.1:{}{path}", self.metrics_port);
        http::client().build().unwrap().get(url).send().await.unwrap().status().as_u16()
    }

    async fn wait_printed(&self, words: &str) {
        eventually(&format!("it prints {words:?}"), WAIT_TIMEOUT, async || {
            let output = self.process.output();
            if output.contains(words) { Ok(()) } else { Err(output) }
        })
        .await;
    }
}

/// The flags for a login on this Vault.
fn login_flags(address: &str, secret_id_file: &Path) -> Vec<String> {
    vec![
        format!("-vault-address={address}"),
        "-vault-key-path=transit/keys/kms".to_owned(),
        "-approle-role-id=role".to_owned(),
        format!("-approle-secret-id-path={}", secret_id_file.display()),
    ]
}

#[tokio::test]
async fn convert_prints_the_config_file_and_the_flags_of_serve() {
    let flags = [
        "-listen-address=unix:///var/run/kmsplugin/kms-1.sock",
        "--vault-address",
        "https://vault.example.com:8200",
        "-vault-key-path=transit/keys/cluster-1",
        "-approle-role-id=1234",
        "-approle-secret-id-path=/etc/vault-kms/secret-id",
        "-metrics-port=0",
    ];
    let expected = r#"# This file replaces flags of vault-kube-kms. `transit-kms convert` printed it.
#
# 1. Save it as /etc/transit-kms/config.yaml, readable only by the user that runs transit-kms.
# 2. Start transit-kms with these arguments instead of the flags:
#      serve --config=/etc/transit-kms/config.yaml \
#        --listen=unix:///var/run/kmsplugin/kms-1.sock \
#        --admin-listen=none \
#        --socket-mode=0660
# 3. In the EncryptionConfiguration, keep the name and the endpoint of the provider.
#
# transit-kms reads this file, the file with the secret_id and the CA file again whenever they change.
# For several Vault nodes, write `addresses: [...]` instead of `address`.
vault:
  address: "https://vault.example.com:8200"
  namespace: "team-a"
  transitpath: "transit"
  keynames: "cluster-1"
  auth:
    method: "approle"
    role_id: "1234"
    secret_id_file: "/etc/vault-kms/secret-id"
    state_dir: "/var/run/kmsplugin/kms-1.sock.state"
"#;
    let arguments: Vec<&str> = ["convert", "--"].into_iter().chain(flags).collect();
    let variables = [("VAULT_KUBE_KMS_VAULT_NAMESPACE", "team-a"), ("VAULT_KUBE_KMS_METRICS_PORT", "1234")];
    let ran = run_with(&arguments, &variables, "").await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(ran.stdout, expected);

    let arguments: Vec<&str> = ["convert", "--serve-flags", "--"].into_iter().chain(flags).collect();
    let ran = run(&arguments).await;
    assert_eq!(
        ran.stdout,
        "serve\n--config=/etc/transit-kms/config.yaml\n--listen=unix:///var/run/kmsplugin/kms-1.sock\n\
         --admin-listen=none\n--socket-mode=0660\n"
    );
}

#[tokio::test]
async fn flags_that_cannot_work_end_the_process_with_64_and_say_what_to_write() {
    let secret_id_file = Path::new("/absent/secret-id");
    for (more, words) in [
        (
            "-vault-adress=https://v",
            "unknown flag -vault-adress; these flags of vault-kube-kms are known: -listen-address,",
        ),
        ("-vault-key-path=transit/kms", "-vault-key-path: must be MOUNT/keys/NAME, such as transit/keys/kms"),
        ("-tls-skip-verify", "-tls-skip-verify: transit-kms always verifies Vault's certificate"),
        (
            "-vault-address=http://v:8200",
            "-vault-address: is http://, which would send the secret_id in clear",
        ),
        ("-vault-address=", "required: -vault-address"),
        ("stray", "unexpected argument \"stray\""),
    ] {
        let flags = login_flags("https://v:8200", secret_id_file);
        let arguments: Vec<&str> = flags.iter().map(String::as_str).chain([more]).collect();
        let ran = run(&arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (USAGE, ""), "{more}: {ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(words), "{more}: {ran:?}");
    }
}

#[tokio::test]
async fn the_helps_name_the_flags_and_variables() {
    let help = run(&["--help"]).await.stdout;
    assert!(help.contains("starts with the flags of vault-kube-kms; see `transit-kms convert"), "{help}");
    let help = run(&["convert", "--help"]).await.stdout;
    assert!(help.contains("-approle-secret-id-path"), "{help}");
    let help = run(&["-vault-address=https://v", "-help"]).await;
    assert_eq!(help.code, Some(0), "{help:?}");
    assert!(help.stdout.contains("[env: VAULT_KUBE_KMS_APPROLE_SECRET_ID_PATH=]"), "{help:?}");
}

/// As with a config file, the socket exists at once, and Status says what is missing.
#[tokio::test]
async fn the_socket_and_the_metrics_port_answer_without_vault() {
    let dir = temp_dir("drop-in-");
    let secret_id_file = dir.path().join("secret-id");
    fs::write(&secret_id_file, "secret").unwrap();
    let flags = login_flags(&closed_address(), &secret_id_file);
    let mut drop_in =
        DropIn::start(dir.path(), &flags, &[("VAULT_KUBE_KMS_VAULT_NAMESPACE", "team-a")]).await;
    // Another container in the pod can have another uid and the group of the volume.
    assert_eq!(fs::metadata(&drop_in.socket).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(status(&kms_client(&drop_in.socket).await).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(drop_in.get("/healthz").await, 200);
    assert_eq!(drop_in.get("/metrics").await, 200);
    assert_eq!(drop_in.get("/readyz").await, 503);
    let output = drop_in.process.output();
    assert!(!output.contains("ignored the variable"), "{output}");
    drop_in.process.signal(rustix::process::Signal::TERM);
    assert_eq!(drop_in.process.ended(WAIT_TIMEOUT).await.code(), Some(0));
}

#[tokio::test]
async fn the_variables_are_enough() {
    let dir = temp_dir("drop-in-");
    let socket = dir.path().join("kms.sock");
    let listen = unix_url(&socket).into_string().unwrap();
    let address = closed_address();
    let mut command = command(repository::daemon());
    command.envs([
        ("VAULT_KUBE_KMS_LISTEN_ADDRESS", listen.as_str()),
        ("VAULT_KUBE_KMS_VAULT_ADDRESS", &address),
        ("VAULT_KUBE_KMS_VAULT_KEY_PATH", "transit/keys/kms"),
        ("VAULT_KUBE_KMS_APPROLE_ROLE_ID", "role"),
        ("VAULT_KUBE_KMS_APPROLE_SECRET_ID_PATH", "/absent/secret-id"),
        ("VAULT_KUBE_KMS_METRICS_PORT", "0"),
    ]);
    let process = Process::spawn("transit-kms", &mut command);
    let mut drop_in = DropIn { process, metrics_port: 0, socket };
    drop_in.wait_listening().await;
    let output = drop_in.process.output();
    assert!(!output.contains("serving /livez"), "{output}");
}

/// The containers that check health and readiness for OpenShift can have another uid than transit-kms.
#[tokio::test]
async fn a_rejected_peer_is_logged_with_the_variable_that_allows_it() {
    let dir = temp_dir("drop-in-");
    let flags = login_flags(&closed_address(), &dir.path().join("secret-id"));
    let drop_in = DropIn::start(dir.path(), &flags, &[("TRANSIT_KMS_ALLOW_UID", "4242")]).await;
    let own = geteuid().as_raw();
    let mut uids = [own, 4242];
    uids.sort_unstable();
    let [first, second] = uids;
    drop_in
        .wait_printed(&format!(
            "uid {own} is not allowed; --allow-uid {first},{second} or TRANSIT_KMS_ALLOW_UID={first},{second} would allow it"
        ))
        .await;
}

/// A real server with an AppRole, and a transit-kms that logs in with it.
struct LoggedIn {
    bao: Bao,
    dir: TempDir,
    drop_in: DropIn,
}

impl LoggedIn {
    async fn start(key_path: &str) -> Self {
        let (bao, dir) = (Bao::start().await, temp_dir("drop-in-"));
        login::approle(&bao, dir.path(), &json!({})).await;
        let role_id = fs::read_to_string(dir.path().join("role_id")).unwrap();
        let flags = [
            format!("-vault-address={}", bao.address()),
            format!("-vault-key-path={key_path}"),
            format!("-approle-role-id={role_id}"),
            format!("-approle-secret-id-path={}", dir.path().join("secret_id").display()),
            format!("-tls-ca-file={}", bao.ca_file().display()),
            // Trace.
            "-zap-log-level=6".to_owned(),
        ];
        let drop_in = DropIn::start(dir.path(), &flags, &[]).await;
        Self { bao, dir, drop_in }
    }

    async fn wait_ready(&self) {
        eventually("/readyz is 200", WAIT_TIMEOUT, async || match self.drop_in.get("/readyz").await {
            200 => Ok(()),
            _ => Err(self.drop_in.process.output()),
        })
        .await;
    }
}

#[tokio::test]
async fn a_login_with_the_flags_serves_calls() {
    let setup = LoggedIn::start(&format!("{MOUNT}/keys/{KEY}")).await;
    setup.wait_ready().await;
    round_trip(&kms_client(&setup.drop_in.socket).await, "with-flags").await;
    assert!(setup.dir.path().join("kms-1.sock.state").is_dir());
}

/// vault-kube-kms needs a restart for this.
#[tokio::test]
async fn a_new_secret_id_is_used_without_a_restart() {
    let mut setup = LoggedIn::start(&format!("{MOUNT}/keys/{KEY}")).await;
    setup.wait_ready().await;
    let pid = setup.drop_in.process.pid();
    let kms = kms_client(&setup.drop_in.socket).await;
    round_trip(&kms, "before").await;

    let (bao, file) = (&setup.bao, setup.dir.path().join("secret_id"));
    let role = format!("auth/approle/role/{}", login::ROLE);
    let old = fs::read_to_string(&file).unwrap();
    let answer = bao.api("POST", &format!("{role}/secret-id"), json!({})).await;
    let new = answer["data"]["secret_id"].as_str().unwrap();
    config_file::by_rename(&file, new);
    bao.api("POST", &format!("{role}/secret-id/destroy"), json!({"secret_id": &old})).await;
    // Only a login with the new secret_id gives another token.
    bao.api("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({})).await;
    eventually("a call with a token of the new secret_id", WAIT_TIMEOUT, async || {
        encrypt(&kms, SEED, "after").await.map_err(|error| error.to_string())
    })
    .await;
    round_trip(&kms, "after").await;
    assert_eq!((setup.drop_in.process.exited(), setup.drop_in.process.pid()), (None, pid));
    let output = setup.drop_in.process.output();
    assert!(output.contains(" DEBUG "), "the level is not used");
    let line = output.lines().find(|line| line.contains(&old) || line.contains(new));
    assert_eq!(line, None, "a secret_id is printed");
}

#[tokio::test]
async fn a_key_path_that_the_policy_does_not_cover_is_explained() {
    let setup = LoggedIn::start(&format!("{MOUNT}/keys/absent")).await;
    let kms = kms_client(&setup.drop_in.socket).await;
    eventually("Status names the key and the remedy", WAIT_TIMEOUT, async || {
        let error = status(&kms).await.unwrap_err();
        let words = ["absent", "policy"];
        if words.iter().all(|word| error.message().contains(word)) { Ok(()) } else { Err(error.to_string()) }
    })
    .await;
}
