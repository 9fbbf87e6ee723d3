//! The image: how it is built, and what it stands.
//!
//! `scripts/image` builds it with a base of its own, once for all tests here: what it has built before, of the
//! same sources, it finds in its cache.

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
    built::{Built, ROOT, scripts_image},
    network::Network,
    podman::{ADMIN, Container, Podman},
};
use testkit::{
    Agent, AgentOptions, Bao, ConfigFile, Load, calls, command, config_file, connect, eventually, full,
    kms_client, measurements::record_measurement,
};

/// Its own user; see the Dockerfile.
const UID: u32 = 65532;
/// On the host's network, as the pods of a control plane are.
const HOST: &str = "--network=host";
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// All that a container is given.
const MEMORY: u64 = 32 << 20;
/// The folders that a container sees, and where it sees them.
const FOLDERS: [(&str, &str); 3] = [
    ("admin", "/run/transit-kms-admin"),
    ("config", "/run/transit-kms-config"),
    ("socket", "/run/transit-kms"),
];
/// Where it reads its config.
const CONFIG: &str = "/run/transit-kms-config/config.yaml";
/// How long a daemon may take to be well, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn it_is_built_with_the_pinned_rust() {
    let read = |file: &str| fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let pinned = read("rust-toolchain.toml");
    let (_, channel) = pinned.split_once("channel = \"").unwrap();
    let (channel, _) = channel.split_once('"').unwrap();
    assert!(read("Dockerfile").contains(&format!("/rust:{channel}-")), "{channel}");
}

#[test]
fn it_holds_the_program_and_what_that_reads_and_nothing_else() {
    let image = Built::here();
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
        assert_eq!(entry.time, created, "{}: as old as the image says", entry.path);
    }
    let archive = fs::metadata(&image.archive).unwrap().len();
    record_measurement("image", &format!("{:.1} MiB as an archive", mib(archive)));
}

#[test]
fn its_authorities_are_those_of_debian_and_none_of_this_machine() {
    let bundle = fs::read_to_string(Built::here().file(BUNDLE)).unwrap();
    let count = bundle.matches("-----BEGIN CERTIFICATE-----").count();
    assert!(count > 100, "{count} authorities");
    for own in fs::read_dir("/usr/local/share/ca-certificates").into_iter().flatten().flatten() {
        let own = fs::read_to_string(own.path()).unwrap_or_default();
        let body = own.lines().nth(1).unwrap_or("-");
        assert!(!bundle.contains(body), "an authority of this machine is in the image");
    }
}

#[test]
fn its_labels_user_and_command_are_as_promised() {
    let config = &Built::here().config["config"];
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
    // Git does not see the list of repositories that the user trusts, and the folder may be of another user.
    let trusted = format!("safe.directory={ROOT}");
    let head = command("git").args(["-c", &trusted, "rev-parse", "HEAD"]).current_dir(ROOT).output();
    if let Some(head) = head.ok().filter(|head| head.status.success()) {
        let head = String::from_utf8(head.stdout).unwrap().trim().to_owned();
        let said = config["Labels"]["org.opencontainers.image.revision"].clone();
        assert_eq!(said.as_str().unwrap().trim_end_matches("-dirty"), head);
        labels["org.opencontainers.image.revision"] = said;
    }
    assert_eq!(config["Labels"], labels);
}

#[test]
fn its_program_is_static_and_knows_nothing_of_where_it_was_built() {
    is_static(&Built::here().file("transit-kms"), machine_here());
    let program = fs::read(Built::here().file("transit-kms")).unwrap();
    for place in ["/src/", "/usr/local/cargo", "/usr/local/rustup", ROOT] {
        // The standard library is told by the commit of its compiler, whose paths end alike.
        let found = program.windows(place.len() + 1).position(|part| {
            part[1..] == *place.as_bytes() && !(part[0].is_ascii_alphanumeric() || part[0] == b'.')
        });
        assert_eq!(found, None, "{place} is in the program");
    }
}

#[test]
fn nothing_but_what_is_copied_can_change_it() {
    let dockerfile = fs::read_to_string(Path::new(ROOT).join("Dockerfile")).unwrap();
    let mut copied: Vec<_> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|copy| !copy.starts_with("--from"))
        .flat_map(|copy| copy.split(' ').rev().skip(1))
        .collect();
    let ignore = fs::read_to_string(Path::new(ROOT).join(".dockerignore")).unwrap();
    let mut let_in: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    copied.sort_unstable();
    let_in.sort_unstable();
    assert!(ignore.lines().any(|line| line == "*"), "all else is kept out");
    assert_eq!(copied, let_in);
}

#[test]
fn hadolint_has_nothing_to_say() {
    let hadolint = Path::new(ROOT).join("target/tools/venv/bin/hadolint");
    let ran = command(&hadolint).arg("Dockerfile").current_dir(ROOT).output();
    let ran = ran.unwrap_or_else(|e| panic!("{}: {e}: run scripts/install-tools", hadolint.display()));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

#[test]
fn it_has_no_shell() {
    let podman = Podman::with(&Built::here().archive);
    for shell in ["/bin/sh", "/bin/bash", "/busybox/sh"] {
        let ran = podman.run_once(&["--entrypoint", shell], &["-c", "true"]);
        assert_eq!(ran.code, Some(127), "{shell}: {ran:?}");
    }
    // Told nothing, it tells what it can be told.
    let ran = podman.run_once(&[], &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("Usage: transit-kms <COMMAND>"), "{ran:?}");
}

/// What several podmans of a machine share is where one disturbs another, above all the locks in `/dev/shm`: where these
/// do not exist, two podmans that start at once both create them, and one fails.
#[test]
fn podman_shares_nothing_with_another_one() {
    // Its own folder stays writable, wherever it is.
    const SEALED: &str = "own=${TMPDIR%/*} && mount --make-rprivate / && mount --bind \"$own\" \"$own\" && \
        for folder in /dev/shm /etc /root /var; do \
        mount --rbind $folder $folder && mount -o remount,bind,ro $folder || exit; done && \
        mount -t tmpfs none /run && exec \"$@\"";
    let podman = Podman::wrapped(&["unshare", "--mount", "sh", "-c", SEALED, "sh"], &Built::here().archive);
    let ran = podman.run_once(&[], &["--version"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// No root, no capability, no file to write to but the sockets.
#[tokio::test]
async fn hardened_it_serves_under_load_within_32_mib() {
    let bao = Bao::start().await;
    let place = Place::new(&bao, UID);
    place.render(&place.rendered(&bao, &bao.token().await).yaml());
    let podman = Podman::with(&Built::here().archive);
    let container = place.serve(&podman, &[HOST]).await;
    confined(&container, UID);
    well(&container).await;

    let load = Load::start_on(&place.socket(), 32, Duration::ZERO).await;
    eventually("there is load", PATIENCE, async || load.calls() > 4000).await;
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

/// As the chart runs it: as root, whose the agent's file is, without any of root's powers.
#[tokio::test]
async fn hardened_as_root_it_takes_the_tokens_that_an_agent_renders() {
    let bao = Bao::start().await;
    let place = Place::new(&bao, 0);
    let content = place.rendered(&bao, "");
    let mut agent = Agent::start_with(&bao, &content, &place.config(), AgentOptions::default()).await;
    let podman = Podman::with(&Built::here().archive);
    let container = place.serve(&podman, &[HOST, "--user=0:0"]).await;
    confined(&container, 0);
    well(&container).await;

    let old = agent.token();
    agent.log_in_again().await;
    bao.revoke(&old).await;
    // The directory is mounted and not the file, so the new one is seen.
    let kms = kms_client(&place.socket()).await;
    eventually("the new token is used", PATIENCE, async || {
        calls::encrypt(&kms, b"seed", "image").await.map_err(|status| status.to_string())
    })
    .await;
    well(&container).await;
    assert_eq!(container.stop().await, Some(0));
}

/// A static program finds names too, though glibc is said to want its shared libraries for that. The container has a
/// network of its own, with nothing on it but a name server and the way to Vault.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)] // which serves the network while we wait for podman
async fn it_asks_a_name_server() {
    const NAME: &str = "vault.test.example";
    const PORT: u16 = 8200;
    let bao = Bao::start().await;
    let place = Place::new(&bao, UID);
    let resolv_conf = place.dir.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    let podman = Podman::with(&Built::here().archive);
    let volume = format!("--volume={}:/etc/resolv.conf:ro", resolv_conf.display());
    let container = place.serve(&podman, &["--network=none", &volume]).await;

    let network = Network::within(&container, PORT, bao.address().replace("https://", ""));
    let content = place.rendered(&bao, &bao.token().await);
    let addresses = vec![format!("https://{NAME}:{PORT}")];
    place.render(&ConfigFile { addresses, server_name: Some("localhost".into()), ..content }.yaml());
    well(&container).await;
    assert!(network.asked().contains(&format!("{NAME}.")), "{:?}", network.asked());
    assert_eq!(container.stop().await, Some(0));
}

/// A server that a public authority vouches for needs no `ca_file`.
#[tokio::test]
async fn it_trusts_the_authorities_of_its_bundle() {
    let bao = Bao::start().await;
    let place = Place::new(&bao, UID);
    let yaml = place.rendered(&bao, &bao.token().await).yaml();
    let (before, rest) = yaml.split_once("  tls:\n").unwrap();
    let (_ca_file, after) = rest.split_once('\n').unwrap();
    place.render(&format!("{before}{after}"));
    let podman = Podman::with(&Built::here().archive);

    let stranger = place.serve(&podman, &[HOST]).await;
    eventually("an unknown authority is refused", PATIENCE, async || {
        let said = stranger.probe("ready").stderr;
        if said.contains("UnknownIssuer") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(stranger.stop().await, Some(0));

    let ours = fs::read_to_string(Built::here().file(BUNDLE)).unwrap();
    let bundle = place.dir.path().join("bundle.pem");
    fs::write(&bundle, ours + &fs::read_to_string(bao.ca_file()).unwrap()).unwrap();
    let volume = format!("--volume={}:/{BUNDLE}:ro", bundle.display());
    let container = place.serve(&podman, &[HOST, &volume]).await;
    well(&container).await;
    assert_eq!(container.stop().await, Some(0));
}

/// Costs a second compilation of everything.
#[test]
fn built_again_elsewhere_it_is_the_same() {
    if !full() {
        return;
    }
    let said = scripts_image(&["--check"]);
    assert!(said.contains("is identical"), "{said}");
}

/// Costs a compilation with Debian's own Rust, which has what it takes to compile for other processors.
#[test]
fn for_arm64_it_is_cross_compiled() {
    if !full() {
        return;
    }
    let image = Built::for_arch("arm64");
    assert_eq!(image.config["architecture"], "arm64");
    let program = image.file("transit-kms");
    is_static(&program, "AArch64");
    match command("qemu-aarch64-static").arg(&program).arg("--version").output() {
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stdout);
            assert_eq!(said.trim(), concat!("transit-kms ", env!("CARGO_PKG_VERSION")), "{ran:?}");
        }
        Err(e) => assert!(std::env::var_os("CI").is_none(), "in CI it is run: qemu-aarch64-static: {e}"),
    }
}

/// What a container sees of the host: the folders for its sockets and that of its config, whose owner is the user
/// that it runs as.
struct Place {
    dir: TempDir,
    uid: u32,
}

impl Place {
    fn new(bao: &Bao, uid: u32) -> Self {
        let place = Self { dir: tempfile::Builder::new().prefix("place-").tempdir().unwrap(), uid };
        for (folder, _mounted) in FOLDERS {
            let folder = place.dir.path().join(folder);
            fs::create_dir(&folder).unwrap();
            chown(folder, Some(uid), Some(uid)).unwrap();
        }
        place.write("ca.pem", &fs::read_to_string(bao.ca_file()).unwrap());
        place
    }

    /// What the config says, in the words of the container.
    fn rendered(&self, bao: &Bao, token: &str) -> ConfigFile {
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

    /// A daemon here, which listens.
    async fn serve<'a>(&self, podman: &'a Podman, options: &[&str]) -> Container<'a> {
        let volumes = FOLDERS.iter().map(|(folder, mounted)| {
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

/// The kernel's own word for it.
fn confined(container: &Container<'_>, uid: u32) {
    let proc = container.proc();
    let status = proc.status().unwrap();
    assert_eq!((status.ruid, status.euid, status.suid, status.fuid), (uid, uid, uid, uid));
    assert_eq!((status.capeff, status.capprm, status.capbnd), (0, 0, Some(0)), "no capability");
    assert_eq!(status.nonewprivs, Some(1), "no new privileges");
    assert_eq!(status.seccomp, Some(2), "system calls are filtered");
    let mounts = proc.mountinfo().unwrap();
    let root = mounts.iter().find(|mount| mount.mount_point == Path::new("/")).unwrap();
    assert!(root.mount_options.contains_key("ro"), "{root:?}");
}

/// Waits until the probes in the container say that all is well.
async fn well(container: &Container<'_>) {
    for what in ["live", "ready", "roundtrip"] {
        eventually(&format!("probe {what}"), PATIENCE, async || {
            let ran = container.probe(what);
            if ran.code == Some(0) { Ok(()) } else { Err(format!("{ran:?}")) }
        })
        .await;
    }
}

/// What readelf calls the processor that we are on.
fn machine_here() -> &'static str {
    if cfg!(target_arch = "aarch64") { "AArch64" } else { "X86-64" }
}

fn is_static(program: &Path, machine: &str) {
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
