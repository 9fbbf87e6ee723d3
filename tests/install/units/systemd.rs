//! The units of `manifests/systemd` with a real systemd, agent and server.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use serde_json::json;
use tempfile::TempDir;

use super::{machine::Machine, manifest};
use testkit::{
    Bao, Load, VaultBinary, calls, command, eventually, kms_client, login, measurements, port,
    repository::daemon, temp_dir,
};

const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE: &str = "transit-kms.service";
const SOCKET: &str = "transit-kms.socket";
const AGENT: &str = "transit-kms-agent.service";
const SOCKET_PATH: &str = "/run/transit-kms/kms.sock";
const RESTARTS: usize = 5;

/// Replaces k3s: records the response of the socket when the unit starts.
const K3S: &str = "\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'transit-kms probe status >/run/k3s-saw 2>&1; echo \"exit code $?\" >>/run/k3s-saw'
BindReadOnlyPaths=/run/transit-kms

[Install]
WantedBy=multi-user.target
";

/// A machine with the files of `manifests/`, installed as the documents say.
struct SystemdNode {
    machine: Machine,
    _files: TempDir,
}

impl SystemdNode {
    /// Boots a machine with this kind of agent.
    async fn boot(bao: &Bao, kind: &str) -> Self {
        let files = temp_dir("files-");
        let write = |path: &str, text: &str| {
            let path = files.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for unit in [SERVICE, SOCKET, AGENT] {
            write(&format!("etc/systemd/system/{unit}"), &manifest(&format!("systemd/{unit}")));
        }
        if kind == "vault" {
            let drop_in = "transit-kms-agent.service.d/vault.conf";
            write(&format!("etc/systemd/system/{drop_in}"), &manifest(&format!("systemd/{drop_in}")));
        }
        write("etc/systemd/system/k3s.service", K3S);
        write("etc/sysusers.d/transit-kms.conf", &manifest("systemd/sysusers.conf"));
        write("etc/tmpfiles.d/transit-kms.conf", &manifest("systemd/tmpfiles.conf"));
        // The links that `systemctl enable` makes.
        for (unit, target) in [(SERVICE, "multi-user"), (SOCKET, "sockets"), ("k3s.service", "multi-user")] {
            let wants = files.path().join(format!("etc/systemd/system/{target}.target.wants"));
            fs::create_dir_all(&wants).unwrap();
            std::os::unix::fs::symlink(Path::new("..").join(unit), wants.join(unit)).unwrap();
        }
        let agent = manifest(&format!("agent/{kind}/approle.hcl"));
        for (file, text) in [
            ("agent.hcl", agent),
            ("config.yaml.ctmpl", manifest("agent/config.yaml.ctmpl")),
            // A free port, because the machine shares the host's network.
            ("environment", format!("TRANSIT_KMS_ADMIN_LISTEN=127.0.0.1:{}\n", port::unused())),
        ] {
            let text = text.replace("https://vault.example.com:8200", &bao.address());
            write(&format!("etc/transit-kms/{file}"), &text);
        }
        write("etc/transit-kms/ca/ca.pem", &fs::read_to_string(bao.ca_file()).unwrap());
        login::approle(bao, &files.path().join("etc/transit-kms"), &json!({})).await;
        let agent = files.path().join(if kind == "vault" { "vault" } else { "bao" });
        std::os::unix::fs::symlink(VaultBinary::path(), &agent).unwrap();
        Self { machine: Machine::boot(files.path(), &[daemon().into(), agent]).await, _files: files }
    }

    /// Boots a machine without an agent: transit-kms logs in with credentials of systemd.
    async fn boot_without_agent(bao: &Bao) -> Self {
        let files = temp_dir("files-");
        let write = |path: &str, text: &str| {
            let path = files.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for unit in [SERVICE, SOCKET, "transit-kms.service.d/login.conf"] {
            write(&format!("etc/systemd/system/{unit}"), &manifest(&format!("systemd/{unit}")));
        }
        write("etc/sysusers.d/transit-kms.conf", &manifest("systemd/sysusers.conf"));
        write("etc/tmpfiles.d/transit-kms.conf", &manifest("systemd/tmpfiles.conf"));
        for (unit, target) in [(SERVICE, "multi-user"), (SOCKET, "sockets")] {
            let wants = files.path().join(format!("etc/systemd/system/{target}.target.wants"));
            fs::create_dir_all(&wants).unwrap();
            std::os::unix::fs::symlink(Path::new("..").join(unit), wants.join(unit)).unwrap();
        }
        let config = manifest("systemd/login.yaml").replace("https://vault.example.com:8200", &bao.address());
        write("etc/transit-kms/config.yaml", &config);
        let environment = format!("TRANSIT_KMS_ADMIN_LISTEN=127.0.0.1:{}\n", port::unused());
        write("etc/transit-kms/environment", &environment);
        write("etc/transit-kms/ca/ca.pem", &fs::read_to_string(bao.ca_file()).unwrap());
        login::approle(bao, &files.path().join("etc/transit-kms"), &json!({})).await;
        Self { machine: Machine::boot(files.path(), &[daemon().into()]).await, _files: files }
    }

    /// Waits until Status is `ok`.
    async fn wait_ok(&self) {
        eventually("Status is ok", PATIENCE, async || {
            let ran = self.machine.run(&["transit-kms", "probe", "status"]).await;
            if ran.good { Ok(()) } else { Err(format!("{ran:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn the_plugin_listens_before_kubernetes_starts_and_uses_the_token_of_the_agent() {
    let bao = Bao::start().await;
    let node = SystemdNode::boot(&bao, "openbao").await;
    node.wait_ok().await;
    let machine = &node.machine;

    // The unit of kube-apiserver starts after transit-kms, and reaches the socket through a read-only mount.
    let listening = machine.number(SOCKET, "ActiveEnterTimestampMonotonic").await;
    let serving = machine.number(SERVICE, "ActiveEnterTimestampMonotonic").await;
    let kubernetes = machine.number("k3s.service", "InactiveExitTimestampMonotonic").await;
    assert!(
        0 < listening && listening <= serving && serving <= kubernetes,
        "{listening} {serving} {kubernetes}"
    );
    let saw = fs::read_to_string(machine.path("/run/k3s-saw")).unwrap();
    assert!(!saw.contains("exit code 2"), "the socket did not respond: {saw}");

    // Only the user of the service can read the rendered token.
    let uid = fs::metadata(machine.path(&format!("/proc/{}", machine.number(SERVICE, "MainPID").await)))
        .unwrap()
        .uid();
    assert_ne!(uid, 0);
    for (path, mode, owner) in [
        ("/run/transit-kms", 0o755, 0),
        (SOCKET_PATH, 0o600, 0),
        ("/run/transit-kms-config", 0o700, uid),
        ("/run/transit-kms-config/config.yaml", 0o600, uid),
        ("/etc/transit-kms", 0o750, 0),
        ("/etc/transit-kms/ca", 0o750, 0),
        ("/etc/transit-kms/ca/ca.pem", 0o640, 0),
        ("/etc/transit-kms/secret_id", 0o640, 0),
    ] {
        let found = fs::metadata(machine.path(path)).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.uid()), (mode, owner), "{path}");
    }
    let kms = kms_client(&machine.path(SOCKET_PATH)).await;
    calls::round_trip(&kms, "through systemd's socket").await;

    // The hardening is in effect, and the programs work with it.
    let status = fs::read_to_string(
        machine.path(&format!("/proc/{}/status", machine.number(SERVICE, "MainPID").await)),
    )
    .unwrap();
    let of = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{status}"));
        line.trim().to_owned()
    };
    assert_eq!((of("NoNewPrivs:"), of("Seccomp:")), ("1".into(), "2".into()));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&of(set), 16), Ok(0), "{set}");
    }
    let may_lock = getrlimit(Resource::Memlock).maximum.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    assert_eq!(of("VmLck:") != "0 kB", may_lock, "memory must be locked exactly if systemd can allow it");
    for unit in [SERVICE, AGENT] {
        let journal = machine.run(&["journalctl", "--no-pager", "--unit", unit]).await.stdout;
        assert_eq!(machine.number(unit, "NRestarts").await, 0, "{journal}");
        let refused = ["not permitted", "ermission denied", "Read-only file system", "status=31/SYS"];
        assert!(!refused.iter().any(|words| journal.contains(words)), "{journal}");
    }

    // systemd-analyze reports nothing.
    for unit in [SOCKET, SERVICE, AGENT] {
        let verified =
            machine.run(&["systemd-analyze", "verify", &format!("/etc/systemd/system/{unit}")]).await;
        assert!(verified.good && verified.stderr.is_empty(), "{verified:?}");
    }
}

#[tokio::test]
async fn the_plugin_logs_in_with_credentials_of_systemd_and_uses_new_ones_after_a_restart() {
    let bao = Bao::start().await;
    let node = SystemdNode::boot_without_agent(&bao).await;
    node.wait_ok().await;
    let machine = &node.machine;
    let uid = fs::metadata(machine.path(&format!("/proc/{}", machine.number(SERVICE, "MainPID").await)))
        .unwrap()
        .uid();
    let state = fs::metadata(machine.path("/var/lib/transit-kms")).unwrap();
    assert_eq!((state.permissions().mode() & 0o7777, state.uid()), (0o700, uid));
    let remembered = fs::metadata(machine.path("/var/lib/transit-kms/logins.json")).unwrap();
    assert_eq!((remembered.permissions().mode() & 0o7777, remembered.uid()), (0o600, uid));
    // The config names no secret, and the copies of systemd are for this service only.
    let ready = machine.run(&["transit-kms", "probe", "ready", "--admin", &admin(machine)]).await;
    assert!(ready.good && !ready.stdout.contains("warning"), "{ready:?}");
    let journal = machine.run(&["journalctl", "--no-pager", "--unit", SERVICE]).await.stdout;
    assert!(journal.contains("logged in"), "{journal}");
    let refused = ["not permitted", "ermission denied", "Read-only file system", "cannot be remembered"];
    assert!(!refused.iter().any(|words| journal.contains(words)), "{journal}");

    // systemd copies the file when the service starts.
    let load = Load::start_on(&machine.path(SOCKET_PATH), 2, Duration::from_millis(5)).await;
    let path = format!("auth/approle/role/{}/secret-id", login::ROLE);
    let secret_id = bao.api("POST", &path, json!({})).await["data"]["secret_id"].as_str().unwrap().to_owned();
    let at = machine.path("/etc/transit-kms/secret_id");
    let old = fs::read_to_string(&at).unwrap();
    fs::write(&at, secret_id).unwrap();
    bao.api("POST", &format!("{path}/destroy"), json!({"secret_id": old})).await;
    machine.systemctl(["restart", SERVICE]).await;
    node.wait_ok().await;
    load.stop().await.assert_nothing_failed();

    // An encrypted credential. The machine has no TPM, so the key is a file of this machine.
    let encrypted = "/etc/transit-kms/secret_id.cred";
    let plain = "/etc/transit-kms/secret_id";
    let encrypt = ["systemd-creds", "encrypt", "--with-key=host", "--name=secret_id", plain, encrypted];
    let ran = machine.run(&encrypt).await;
    assert!(ran.good, "{ran:?}");
    fs::remove_file(&at).unwrap();
    let drop_in = machine.path("/etc/systemd/system/transit-kms.service.d/login.conf");
    let text = fs::read_to_string(&drop_in).unwrap();
    let line = format!("LoadCredentialEncrypted=secret_id:{encrypted}");
    fs::write(&drop_in, text.replace(&format!("LoadCredential=secret_id:{plain}"), &line)).unwrap();
    machine.systemctl(["daemon-reload"]).await;
    machine.systemctl(["restart", SERVICE]).await;
    let unit = machine.systemctl(["cat", SERVICE]).await;
    assert!(unit.contains(&line), "{unit}");
    node.wait_ok().await;
}

/// The address of the admin listener.
fn admin(machine: &Machine) -> String {
    let environment = fs::read_to_string(machine.path("/etc/transit-kms/environment")).unwrap();
    let address =
        environment.lines().find_map(|line| line.strip_prefix("TRANSIT_KMS_ADMIN_LISTEN=")).unwrap();
    address.to_owned()
}

#[tokio::test]
async fn no_call_fails_when_the_service_or_the_agent_restarts_under_load() {
    let bao = Bao::start().await;
    let node = SystemdNode::boot(&bao, "openbao").await;
    node.wait_ok().await;
    let load = Load::start_on(&node.machine.path(SOCKET_PATH), 4, Duration::from_millis(5)).await;
    for unit in [[SERVICE; RESTARTS].as_slice(), &[AGENT]].concat() {
        let calls = load.calls();
        eventually("the load continues", PATIENCE, async || load.calls() > calls + 40).await;
        let before = node.machine.number(unit, "MainPID").await;
        node.machine.systemctl(["restart", unit]).await;
        assert_ne!(node.machine.number(unit, "MainPID").await, before);
    }
    node.wait_ok().await;
    let report = load.stop().await;
    report.assert_nothing_failed();
    node.machine.systemctl(["stop", AGENT]).await;
    let rendered = node.machine.path("/run/transit-kms-config/config.yaml");
    assert!(rendered.exists(), "stopping the agent removed the config, which a restart of the service needs");
    measurements::record_measurement(
        "12 systemd: restarts under load",
        &format!("{RESTARTS} of the service and one of the agent, {} calls, 0 failed", report.calls),
    );
}

#[tokio::test]
async fn systemd_restarts_a_service_that_ended_and_the_socket_stays_open() {
    let bao = Bao::start().await;
    let node = SystemdNode::boot(&bao, "vault").await;
    node.wait_ok().await;
    let machine = &node.machine;
    let socket = fs::metadata(machine.path(SOCKET_PATH)).unwrap().ino();

    for unit in [SERVICE, AGENT] {
        machine.systemctl(["kill", "--signal=KILL", unit]).await;
        eventually("the unit restarted", PATIENCE, async || machine.number(unit, "NRestarts").await == 1)
            .await;
        node.wait_ok().await;
    }

    // The watchdog restarts a service that hangs. Shorten its timeout for the test.
    let drop_in = "/run/systemd/system/transit-kms.service.d/short-watchdog.conf";
    fs::create_dir_all(machine.path(drop_in).parent().unwrap()).unwrap();
    fs::write(machine.path(drop_in), "[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n").unwrap();
    machine.systemctl(["daemon-reload"]).await;
    machine.systemctl(["restart", SERVICE]).await;
    node.wait_ok().await;
    machine.systemctl(["kill", "--signal=STOP", SERVICE]).await;
    eventually("the watchdog restarted the service", PATIENCE, async || {
        machine.number(SERVICE, "NRestarts").await == 1
    })
    .await;
    node.wait_ok().await;

    // With an invalid flag, the service fails repeatedly while a client waits on the socket.
    let environment = machine.path("/etc/transit-kms/environment");
    let good = fs::read_to_string(&environment).unwrap();
    fs::write(&environment, format!("{good}TRANSIT_KMS_HEALTH_CHECK_INTERVAL=never\n")).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(machine.path(SOCKET_PATH)).unwrap();
    machine.run(&["systemctl", "restart", SERVICE]).await;
    eventually("systemd started the service many times", PATIENCE, async || {
        machine.number(SERVICE, "NRestarts").await > 30
    })
    .await;
    assert_eq!(machine.property(SOCKET, "ActiveState").await, "active");
    fs::write(&environment, good).unwrap();
    node.wait_ok().await;
    assert_eq!(fs::metadata(machine.path(SOCKET_PATH)).unwrap().ino(), socket, "the socket was replaced");
}

/// The highest accepted exposure level of systemd-analyze. A service without hardening has 9.6, and one with network
/// access cannot have 0.
const MAX_EXPOSURE: f64 = 1.5;

#[test]
fn the_units_have_a_low_exposure_level() {
    for unit in [SERVICE, AGENT] {
        let file = testkit::repository::path("manifests/systemd").join(unit);
        let mut command = command("systemd-analyze");
        command.args(["security", "--offline=yes", "--no-pager"]).arg(file).env("LANG", "C.UTF-8");
        let output = command.output().expect("systemd-analyze: scripts/install-tools gets it");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let score =
            said.lines().find_map(|line| line.split_once("Overall exposure level for ")).map(|it| it.1);
        let score = score.and_then(|it| it.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{said}"));
        measurements::record_measurement("12 systemd: exposure", &format!("{unit} {score} of 10"));
        assert!(score.parse::<f64>().unwrap() <= MAX_EXPOSURE, "{said}");
    }
}
