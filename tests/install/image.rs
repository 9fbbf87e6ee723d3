//! The container image: its content, and how it runs with few privileges.
//!
//! `scripts/image --local-base` builds it once for all tests. Its cache makes another build of the same sources fast.

mod built;
mod network;
mod podman;

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use self::{
    built::{BuiltImage, ROOT, scripts_image},
    network::Network,
    podman::{ADMIN, Container, Podman},
};
use testkit::{
    Agent, AgentOptions, Bao, ConfigFile, Load, calls, command, config_file, connect, eventually, full,
    kms_client, measurements::record_measurement,
};

/// The user of the image, as in the Dockerfile.
const UID: u32 = 65532;
/// The host's network, which the pods of a control plane use.
const HOST_NETWORK: &str = "--network=host";
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// The memory limit of a container, in bytes.
const MEMORY: u64 = 32 << 20;
/// The directories that are mounted into a container, and their mount points.
const DIRECTORIES: [(&str, &str); 3] = [
    ("admin", "/run/transit-kms-admin"),
    ("config", "/run/transit-kms-config"),
    ("socket", "/run/transit-kms"),
];
/// The path of the config in the container.
const CONFIG: &str = "/run/transit-kms-config/config.yaml";
/// How long a daemon may take to become ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_image_is_built_with_the_pinned_rust_version() {
    let read = |file: &str| fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let pinned = read("rust-toolchain.toml");
    let (_, channel) = pinned.split_once("channel = \"").unwrap();
    let (channel, _) = channel.split_once('"').unwrap();
    assert!(read("Dockerfile").contains(&format!("/rust:{channel}-")), "{channel}");
}

#[test]
fn the_image_contains_only_the_program_and_the_files_that_it_reads() {
    let image = BuiltImage::here();
    let expected = [
        "-rw-r--r-- 0/0 LICENSE",
        "drwxr-xr-x 0/0 etc/",
        "-rw-r--r-- 0/0 etc/group",
        "-rw-r--r-- 0/0 etc/nsswitch.conf",
        "-rw-r--r-- 0/0 etc/passwd",
        "drwxr-xr-x 0/0 etc/ssl/",
        "drwxr-xr-x 0/0 etc/ssl/certs/",
        "-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt",
        "-rw-r--r-- 0/0 etc/transit-kms-release",
        "-rwxr-xr-x 0/0 transit-kms",
    ];
    let entries = image.entries();
    let found: Vec<_> =
        entries.iter().map(|entry| format!("{} {} {}", entry.mode, entry.owner, entry.path)).collect();
    assert_eq!(found, expected);

    let created = image.config["created"].as_str().unwrap().trim_end_matches('Z').replace('T', " ");
    for entry in entries {
        assert_eq!(entry.time, created, "{}: not the creation time of the image", entry.path);
    }
    let archive = fs::metadata(&image.archive).unwrap().len();
    record_measurement("image", &format!("{:.1} MiB as an archive", mib(archive)));
}

#[test]
fn the_image_has_the_certificate_authorities_of_debian_and_none_of_the_build_machine() {
    let bundle = fs::read_to_string(BuiltImage::here().file(BUNDLE)).unwrap();
    let count = bundle.matches("-----BEGIN CERTIFICATE-----").count();
    assert!(count > 100, "{count} authorities");
    for own in fs::read_dir("/usr/local/share/ca-certificates").into_iter().flatten().flatten() {
        let own = fs::read_to_string(own.path()).unwrap_or_default();
        let body = own.lines().nth(1).unwrap_or("-");
        assert!(!bundle.contains(body), "an authority of this machine is in the image");
    }
}

#[test]
fn the_image_has_the_documented_labels_user_and_command() {
    let config = &BuiltImage::here().config["config"];
    assert_eq!(config["User"], format!("{UID}:{UID}"));
    assert_eq!(config["Entrypoint"], json!(["/transit-kms"]));
    assert_eq!(config["Cmd"], json!(["--help"]));
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let description =
        manifest.lines().find_map(|line| line.strip_prefix("description = \"")?.strip_suffix('"')).unwrap();
    let mut labels = json!({
        "org.opencontainers.image.description": description,
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        "org.opencontainers.image.title": "transit-kms",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
    });
    // Another user may own the directory, and Git does not see the user's list of trusted repositories here.
    let trusted = format!("safe.directory={ROOT}");
    let head = command("git").args(["-c", &trusted, "rev-parse", "HEAD"]).current_dir(ROOT).output();
    if let Some(head) = head.ok().filter(|head| head.status.success()) {
        let head = String::from_utf8(head.stdout).unwrap().trim().to_owned();
        let revision = config["Labels"]["org.opencontainers.image.revision"].clone();
        assert_eq!(revision.as_str().unwrap().trim_end_matches("-dirty"), head);
        labels["org.opencontainers.image.revision"] = revision;
    }
    assert_eq!(config["Labels"], labels);
}

#[test]
fn the_program_is_static_and_contains_no_paths_of_the_build() {
    assert_static(&BuiltImage::here().file("transit-kms"), host_architecture());
    let program = fs::read(BuiltImage::here().file("transit-kms")).unwrap();
    for path in ["/src/", "/usr/local/cargo", "/usr/local/rustup", ROOT] {
        // Paths of the standard library start with the compiler's commit, and may have a similar end.
        let found = program.windows(path.len() + 1).position(|part| {
            part[1..] == *path.as_bytes() && !(part[0].is_ascii_alphanumeric() || part[0] == b'.')
        });
        assert_eq!(found, None, "{path} is in the program");
    }
}

#[test]
fn only_files_that_the_dockerfile_copies_are_in_the_build_context() {
    let dockerfile = fs::read_to_string(Path::new(ROOT).join("Dockerfile")).unwrap();
    let mut copied: Vec<_> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|copy| !copy.starts_with("--from"))
        .flat_map(|copy| copy.split(' ').rev().skip(1))
        .collect();
    let ignore = fs::read_to_string(Path::new(ROOT).join(".dockerignore")).unwrap();
    let mut included: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    copied.sort_unstable();
    included.sort_unstable();
    assert!(ignore.lines().any(|line| line == "*"), ".dockerignore does not exclude all other files");
    assert_eq!(copied, included);
}

#[test]
fn hadolint_reports_nothing() {
    let hadolint = Path::new(ROOT).join("target/tools/venv/bin/hadolint");
    let ran = command(&hadolint).arg("Dockerfile").current_dir(ROOT).output();
    let ran = ran.unwrap_or_else(|e| panic!("{}: {e}: run scripts/install-tools", hadolint.display()));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

#[test]
fn the_image_has_no_shell_and_prints_its_help() {
    let podman = Podman::with(&BuiltImage::here().archive);
    for shell in ["/bin/sh", "/bin/bash", "/busybox/sh"] {
        let ran = podman.run_once(&["--entrypoint", shell], &["-c", "true"]);
        assert_eq!(ran.code, Some(127), "{shell}: {ran:?}");
    }
    let ran = podman.run_once(&[], &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("Usage: transit-kms <COMMAND>"), "{ran:?}");
}

/// Podman processes that share files disturb each other. The worst are the locks in `/dev/shm`: if two of them start at
/// the same time without locks, both create them, and one fails.
#[test]
fn the_podman_of_a_test_shares_no_files_with_others() {
    // Only podman's own directory stays writable.
    const READ_ONLY_HOST: &str = "own=${TMPDIR%/*} && mount --make-rprivate / && mount --bind \"$own\" \"$own\" && \
        for folder in /dev/shm /etc /root /var; do \
        mount --rbind $folder $folder && mount -o remount,bind,ro $folder || exit; done && \
        mount -t tmpfs none /run && exec \"$@\"";
    let podman = Podman::wrapped(
        &["unshare", "--mount", "sh", "-c", READ_ONLY_HOST, "sh"],
        &BuiltImage::here().archive,
    );
    let ran = podman.run_once(&[], &["--version"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// The container has no root, no capabilities, and no writable files except the sockets.
#[tokio::test]
async fn a_hardened_container_serves_under_load_within_32_mib() {
    let bao = Bao::start().await;
    let host = HostDirectories::new(&bao, UID);
    host.render(&host.config_file(&bao, &bao.token().await).yaml());
    let podman = Podman::with(&BuiltImage::here().archive);
    let container = host.serve(&podman, &[HOST_NETWORK]).await;
    assert_confined(&container, UID);
    wait_probes_succeed(&container).await;

    let load = Load::start_on(&host.socket(), 32, Duration::ZERO).await;
    eventually("the load has made many calls", PATIENCE, async || load.calls() > 4000).await;
    let report = load.stop().await;
    report.assert_nothing_failed();
    let memory = container.memory();
    assert_eq!(memory.limit, MEMORY, "{memory:?}");
    record_measurement(
        "image",
        &format!(
            "hardened, {} calls by 32 callers: {:.1} MiB resident, at most {:.1}, of {}",
            report.calls,
            mib(memory.resident),
            mib(memory.most_resident),
            mib(MEMORY),
        ),
    );
    assert_eq!(container.stop().await, Some(0));
}

/// The chart runs it as root without capabilities, because root owns the file of the agent.
#[tokio::test]
async fn a_hardened_container_of_root_uses_the_tokens_that_an_agent_renders() {
    let bao = Bao::start().await;
    let host = HostDirectories::new(&bao, 0);
    let content = host.config_file(&bao, "");
    let mut agent = Agent::start_with(&bao, &content, &host.config(), AgentOptions::default()).await;
    let podman = Podman::with(&BuiltImage::here().archive);
    let container = host.serve(&podman, &[HOST_NETWORK, "--user=0:0"]).await;
    assert_confined(&container, 0);
    wait_probes_succeed(&container).await;

    let old = agent.token();
    agent.log_in_again().await;
    bao.revoke(&old).await;
    // The directory is mounted instead of the file, so the container sees the replaced file.
    let kms = kms_client(&host.socket()).await;
    eventually("the new token is used", PATIENCE, async || {
        calls::encrypt(&kms, b"seed", "image").await.map_err(|status| status.to_string())
    })
    .await;
    wait_probes_succeed(&container).await;
    assert_eq!(container.stop().await, Some(0));
}

/// A static program with glibc may fail to resolve names, because glibc loads shared libraries for that. The container
/// has its own network, with only a DNS server and a forwarded port of Vault.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)] // serves the network while the test waits for podman
async fn the_static_program_resolves_names_with_dns() {
    const NAME: &str = "vault.test.example";
    const PORT: u16 = 8200;
    let bao = Bao::start().await;
    let host = HostDirectories::new(&bao, UID);
    let resolv_conf = host.dir.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    let podman = Podman::with(&BuiltImage::here().archive);
    let volume = format!("--volume={}:/etc/resolv.conf:ro", resolv_conf.display());
    let container = host.serve(&podman, &["--network=none", &volume]).await;

    let network = Network::within(&container, PORT, bao.address().replace("https://", ""));
    let content = host.config_file(&bao, &bao.token().await);
    let addresses = vec![format!("https://{NAME}:{PORT}")];
    host.render(&ConfigFile { addresses, server_name: Some("localhost".into()), ..content }.yaml());
    wait_probes_succeed(&container).await;
    assert!(network.resolved().contains(&format!("{NAME}.")), "{:?}", network.resolved());
    assert_eq!(container.stop().await, Some(0));
}

/// A server with a certificate of a public authority needs no `ca_file`.
#[tokio::test]
async fn without_ca_file_the_program_trusts_the_authorities_of_the_image() {
    let bao = Bao::start().await;
    let host = HostDirectories::new(&bao, UID);
    let yaml = host.config_file(&bao, &bao.token().await).yaml();
    let (before, rest) = yaml.split_once("  tls:\n").unwrap();
    let (_ca_file, after) = rest.split_once('\n').unwrap();
    host.render(&format!("{before}{after}"));
    let podman = Podman::with(&BuiltImage::here().archive);

    let untrusting = host.serve(&podman, &[HOST_NETWORK]).await;
    eventually("an unknown authority is rejected", PATIENCE, async || {
        let said = untrusting.probe("ready").stderr;
        if said.contains("UnknownIssuer") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(untrusting.stop().await, Some(0));

    let image_bundle = fs::read_to_string(BuiltImage::here().file(BUNDLE)).unwrap();
    let bundle = host.dir.path().join("bundle.pem");
    fs::write(&bundle, image_bundle + &fs::read_to_string(bao.ca_file()).unwrap()).unwrap();
    let volume = format!("--volume={}:/{BUNDLE}:ro", bundle.display());
    let container = host.serve(&podman, &[HOST_NETWORK, &volume]).await;
    wait_probes_succeed(&container).await;
    assert_eq!(container.stop().await, Some(0));
}

/// Compiles everything a second time.
#[test]
fn a_second_build_in_another_directory_is_identical() {
    if !full() {
        return;
    }
    let said = scripts_image(&["--check"]);
    assert!(said.contains("is identical"), "{said}");
}

/// Compiles everything with Debian's Rust, which has the standard library of other architectures.
#[test]
fn the_image_for_arm64_is_cross_compiled() {
    if !full() {
        return;
    }
    let image = BuiltImage::for_arch("arm64");
    assert_eq!(image.config["architecture"], "arm64");
    let program = image.file("transit-kms");
    assert_static(&program, "AArch64");
    match command("qemu-aarch64-static").arg(&program).arg("--version").output() {
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stdout);
            let version = said.lines().next();
            assert_eq!(version, Some(concat!("transit-kms ", env!("CARGO_PKG_VERSION"))), "{ran:?}");
        }
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "CI must run the program: qemu-aarch64-static: {e}")
        }
    }
}

/// The directories of the host that are mounted into a container: its sockets and its config. The user of the container
/// owns them.
struct HostDirectories {
    dir: TempDir,
    uid: u32,
}

impl HostDirectories {
    fn new(bao: &Bao, uid: u32) -> Self {
        let host = Self { dir: tempfile::Builder::new().prefix("host-").tempdir().unwrap(), uid };
        for (folder, _mounted) in DIRECTORIES {
            let folder = host.dir.path().join(folder);
            fs::create_dir(&folder).unwrap();
            chown(folder, Some(uid), Some(uid)).unwrap();
        }
        host.write("ca.pem", &fs::read_to_string(bao.ca_file()).unwrap());
        host
    }

    /// Returns the config with the paths of the container.
    fn config_file(&self, bao: &Bao, token: &str) -> ConfigFile {
        ConfigFile { ca_file: CONFIG.replace("config.yaml", "ca.pem").into(), ..ConfigFile::of(bao, token) }
    }

    fn render(&self, yaml: &str) {
        self.write("config.yaml", yaml);
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.config().with_file_name(name);
        config_file::by_rename(&path, text);
        chown(path, Some(self.uid), Some(self.uid)).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config/config.yaml")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket/kms.sock")
    }

    /// Starts a daemon with these directories, and waits until it listens.
    async fn serve<'a>(&self, podman: &'a Podman, options: &[&str]) -> Container<'a> {
        let volumes = DIRECTORIES.iter().map(|(folder, mounted)| {
            format!("--volume={}:{mounted}", self.dir.path().join(folder).display())
        });
        let options: Vec<_> = volumes.chain(options.iter().map(|&option| option.into())).collect();
        let mut container = podman.start(&options, &["serve", "--config", CONFIG, "--admin-listen", ADMIN]);
        eventually("the daemon listens", PATIENCE, async || {
            container.assert_running();
            connect(&self.socket()).await
        })
        .await;
        container
    }
}

/// Asserts, from `/proc`, that the container has no privileges.
fn assert_confined(container: &Container<'_>, uid: u32) {
    let proc = container.proc();
    let status = proc.status().unwrap();
    assert_eq!((status.ruid, status.euid, status.suid, status.fuid), (uid, uid, uid, uid));
    assert_eq!((status.capeff, status.capprm, status.capbnd), (0, 0, Some(0)), "a capability is set");
    assert_eq!(status.nonewprivs, Some(1), "no_new_privs is not set");
    assert_eq!(status.seccomp, Some(2), "no seccomp filter");
    let mounts = proc.mountinfo().unwrap();
    let root = mounts.iter().find(|mount| mount.mount_point == Path::new("/")).unwrap();
    assert!(root.mount_options.contains_key("ro"), "{root:?}");
}

/// Waits until all probes in the container succeed.
async fn wait_probes_succeed(container: &Container<'_>) {
    for what in ["live", "ready", "roundtrip"] {
        eventually(&format!("probe {what}"), PATIENCE, async || {
            let ran = container.probe(what);
            if ran.code == Some(0) { Ok(()) } else { Err(format!("{ran:?}")) }
        })
        .await;
    }
}

/// Returns readelf's name of this machine's architecture.
fn host_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "AArch64" } else { "X86-64" }
}

fn assert_static(program: &Path, machine: &str) {
    let readelf = |what: &str| {
        let ran = command("readelf").args(["--wide", what]).arg(program).output();
        let ran = ran.unwrap_or_else(|e| panic!("readelf: {e}: it is in Debian's package binutils"));
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    };
    let header = readelf("--file-header");
    assert!(header.contains(machine), "{header}");
    let segments = readelf("--program-headers");
    assert!(segments.contains("LOAD") && !segments.contains("INTERP"), "{segments}");
    let dynamic = readelf("--dynamic");
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
