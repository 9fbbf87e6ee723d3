//! Reloads after every way in which the rendered file can change, with real tokens.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use procfs::{
    net::TcpState,
    process::{FDTarget, Process},
};
use rustix::process::Signal;
use serde_json::json;
use testkit::{
    Bao, ConfigFile, Daemon, DaemonOptions, Kms,
    calls::{round_trip, status, timed},
    config_file, eventually,
    http::{Proxy, Seen},
    without_inotify,
};
use tonic::Code;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server, and a daemon that uses it.
struct Setup {
    bao: Bao,
    daemon: Daemon,
    dir: tempfile::TempDir,
    generation: u64,
    kms: Kms,
    pid: u32,
    token: String,
}

impl Setup {
    /// Starts a daemon. `make` writes its config below the given folder, and returns the path.
    async fn start(make: impl FnOnce(&Path, &str) -> PathBuf) -> Self {
        Self::start_with(DaemonOptions::default(), make).await
    }

    async fn start_with(options: DaemonOptions, make: impl FnOnce(&Path, &str) -> PathBuf) -> Self {
        let bao = Bao::start().await;
        let dir = tempfile::tempdir().unwrap();
        let content = ConfigFile::with_new_token(&bao).await;
        let config = make(dir.path(), &content.yaml());
        let daemon = Daemon::start_with(&config, options).await;
        let (kms, pid) = (daemon.kms().await, daemon.pid());
        let mut setup = Self { bao, daemon, dir, generation: 0, kms, pid, token: String::new() };
        if config.exists() {
            setup.assert_in_use(content.token).await;
        }
        setup
    }

    /// Changes the file in this way, and checks that its new token is used and no other one.
    async fn change_and_wait(&mut self, change: impl FnOnce(&str)) {
        let content = ConfigFile::with_new_token(&self.bao).await;
        change(&content.yaml());
        self.assert_in_use(content.token).await;
    }

    async fn assert_in_use(&mut self, token: String) {
        self.generation += 1;
        self.daemon.wait_generation(self.generation).await;
        let old = std::mem::replace(&mut self.token, token);
        if !old.is_empty() {
            self.bao.revoke(&old).await;
        }
        round_trip(&self.kms, &format!("session-{}", self.generation)).await;
        assert_eq!(self.daemon.reloads("success").await, self.generation);
        // No call was retried, so the revoked token was no longer used.
        assert_eq!(self.daemon.metric("transit_kms_retries_total", &[]).await, 0.0);
        assert_eq!((self.daemon.exited(), self.daemon.pid()), (None, self.pid));
    }

    /// Waits until the newest config is not in use, with these words in the reason.
    async fn wait_config_error(&self, words: &str) {
        eventually("readyz names the reason", WAIT_TIMEOUT, async || {
            match self.daemon.admin("/readyz").await {
                (200, text) if text.contains("the newest config is not in use") && text.contains(words) => {
                    Ok(())
                }
                (status, text) => Err(format!("{status} {text}")),
            }
        })
        .await;
    }

    /// # Panics
    /// If a config was found but not used.
    async fn assert_every_reload_succeeded(&self) {
        for result in ["pending", "refused", "invalid"] {
            assert_eq!(self.daemon.reloads(result).await, 0, "{result}");
        }
    }
}

/// Writes `config.yaml` as a regular file.
fn plain(dir: &Path, text: &str) -> PathBuf {
    let config = dir.join("config.yaml");
    config_file::by_rename(&config, text);
    config
}

#[tokio::test]
async fn a_file_replaced_by_an_atomic_rename_is_reloaded() {
    let mut setup = Setup::start(plain).await;
    let config = setup.dir.path().join("config.yaml");
    for _ in 0..3 {
        setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
    }
    setup.assert_every_reload_succeeded().await;
}

#[tokio::test]
async fn a_file_replaced_by_a_kubelet_volume_swap_is_reloaded() {
    let mut volume = None;
    let mut setup = Setup::start(|dir, text| {
        let made = config_file::KubeletVolume::new(&dir.join("volume"), "config.yaml", text);
        volume.insert(made).path()
    })
    .await;
    let volume = volume.unwrap();
    for _ in 0..3 {
        setup.change_and_wait(|text| volume.swap(text)).await;
    }
    setup.assert_every_reload_succeeded().await;
}

#[tokio::test]
async fn a_file_that_is_truncated_and_written_is_reloaded() {
    let mut setup = Setup::start(plain).await;
    let config = setup.dir.path().join("config.yaml");
    setup.change_and_wait(|text| config_file::in_place(&config, text)).await;

    // The file is read while it is half-written, but completed soon after.
    for turn in 1.. {
        assert!(turn < 10, "this machine is too slow to write a file");
        let before = setup.daemon.reloads("invalid").await;
        let content = ConfigFile::with_new_token(&setup.bao).await;
        let begun = Instant::now();
        let half = config_file::in_place_first_half(&config, &content.yaml());
        setup.daemon.signal(Signal::HUP);
        let has_read = || setup.daemon.log().matches("reading it a second time").count() == turn;
        eventually("the half-written file is read", WAIT_TIMEOUT, async || has_read()).await;
        half.finish();
        let took = begun.elapsed();
        setup.assert_in_use(content.token).await;
        // Less than the time after which an invalid file is reported.
        if took < Duration::from_millis(200) {
            assert_eq!(setup.daemon.reloads("invalid").await, before);
            break;
        }
    }
    assert_eq!(setup.daemon.reloads("refused").await, 0);
}

#[tokio::test]
async fn a_half_written_file_is_reported_and_replaces_nothing() {
    let mut setup = Setup::start(plain).await;
    let config = setup.dir.path().join("config.yaml");
    let content = ConfigFile::with_new_token(&setup.bao).await;
    let half = config_file::in_place_first_half(&config, &content.yaml());
    setup.wait_config_error(&format!("{}:", config.display())).await;
    assert_eq!(setup.daemon.reloads("invalid").await, 1);
    assert_eq!(setup.daemon.generation().await, 1);
    round_trip(&setup.kms, "meanwhile").await;

    half.finish();
    setup.assert_in_use(content.token).await;
    let (_, text) = setup.daemon.admin("/readyz").await;
    assert!(!text.contains("not in use"), "{text}");
}

#[tokio::test]
async fn a_file_and_directory_created_later_are_noticed() {
    // Its directory does not exist either.
    let mut setup = Setup::start(|dir, _| dir.join("absent/config.yaml")).await;
    let config = setup.dir.path().join("absent/config.yaml");
    let refused = eventually("Status names the missing file", WAIT_TIMEOUT, async || {
        let refused = status(&setup.kms).await.unwrap_err();
        refused.message().contains(config.to_str().unwrap()).then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    let (ready, text) = setup.daemon.admin("/readyz").await;
    assert!(ready == 503 && text.contains(config.to_str().unwrap()), "{ready} {text}");
    assert_eq!(setup.daemon.admin("/livez").await.0, 200);

    setup
        .change_and_wait(|text| {
            fs::create_dir(config.parent().unwrap()).unwrap();
            config_file::by_rename(&config, text);
        })
        .await;
    setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
}

#[tokio::test]
async fn a_deleted_and_recreated_directory_is_watched_again() {
    let below = |dir: &Path, text: &str| {
        fs::create_dir(dir.join("below")).unwrap();
        plain(&dir.join("below"), text)
    };
    let mut setup = Setup::start(below).await;
    let dir = setup.dir.path().to_owned();
    // Recreated at once.
    setup
        .change_and_wait(|text| {
            fs::remove_dir_all(dir.join("below")).unwrap();
            below(&dir, text);
        })
        .await;
    // Recreated after its absence was reported.
    let seen = setup.daemon.reloads("invalid").await;
    fs::remove_dir_all(dir.join("below")).unwrap();
    setup.wait_config_error("below/config.yaml").await;
    assert_eq!(setup.daemon.reloads("invalid").await, seen + 1);
    round_trip(&setup.kms, "without a file").await;
    setup.change_and_wait(|text| drop(below(&dir, text))).await;
    // The new directory is watched like the old one.
    setup.change_and_wait(|text| config_file::by_rename(&dir.join("below/config.yaml"), text)).await;
}

#[tokio::test]
async fn a_change_behind_a_symlink_into_another_directory_is_noticed() {
    let mut setup = Setup::start(|dir, text| {
        for name in ["here", "there", "elsewhere"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        plain(&dir.join("there"), text);
        symlink("../there/config.yaml", dir.join("here/config.yaml")).unwrap();
        dir.join("here/config.yaml")
    })
    .await;
    let dir = setup.dir.path().to_owned();
    setup.change_and_wait(|text| config_file::by_rename(&dir.join("there/config.yaml"), text)).await;
    setup.change_and_wait(|text| config_file::in_place(&dir.join("there/config.yaml"), text)).await;
    // The link now leads to another directory, whose changes count.
    setup
        .change_and_wait(|text| {
            plain(&dir.join("elsewhere"), text);
            symlink(dir.join("elsewhere/config.yaml"), dir.join("here/new")).unwrap();
            fs::rename(dir.join("here/new"), dir.join("here/config.yaml")).unwrap();
        })
        .await;
    setup.change_and_wait(|text| config_file::by_rename(&dir.join("elsewhere/config.yaml"), text)).await;
    setup.assert_every_reload_succeeded().await;
}

#[tokio::test]
async fn without_inotify_a_change_is_found_by_polling() {
    let Some(wrapper) = without_inotify() else { return };
    let options = DaemonOptions { wrapper, ..DaemonOptions::default() };
    let mut setup = Setup::start_with(options, plain).await;
    let config = setup.dir.path().join("config.yaml");
    let log = setup.daemon.log();
    assert!(log.contains("are not all noticed immediately; the files are polled"), "{log}");
    setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
    setup.assert_every_reload_succeeded().await;
}

#[tokio::test]
async fn a_touched_file_with_the_same_content_is_not_reloaded() {
    let mut setup = Setup::start(plain).await;
    let config = setup.dir.path().join("config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let touch = || {
        let later = SystemTime::now() + Duration::from_secs(1);
        fs::File::options().write(true).open(&config).unwrap().set_modified(later).unwrap();
    };
    touch();
    config_file::by_rename(&config, &text);
    // This reload is after both touches, with the same content.
    setup.daemon.signal(Signal::HUP);
    eventually("SIGHUP is handled", WAIT_TIMEOUT, async || setup.daemon.log().contains("SIGHUP")).await;
    config_file::in_place(&config, &text);
    touch();
    // Increased by exactly one.
    setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
    touch();
    setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
    setup.assert_every_reload_succeeded().await;
}

#[tokio::test]
async fn connections_to_vault_are_kept_when_the_token_changes() {
    let mut setup = Setup::start(plain).await;
    let config = setup.dir.path().join("config.yaml");
    let port = setup.bao.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let before = connections(port);
    assert!(!before.is_empty());
    const SWAPS: usize = 6;
    for _ in 0..SWAPS {
        setup.change_and_wait(|text| config_file::by_rename(&config, text)).await;
    }
    let after = connections(port);
    assert!(before.is_subset(&after), "{before:?} {after:?}");
    // A health check and a concurrent call need two connections, and the pool sometimes opens a spare one. A change of the
    // token opens none.
    assert!(after.len() < before.len() + SWAPS, "{before:?} {after:?}");
}

/// The local ports of connections to this port by other processes.
fn connections(to: u16) -> BTreeSet<u16> {
    let test = Process::myself().unwrap();
    let own: BTreeSet<_> = test
        .fd()
        .unwrap()
        .filter_map(|fd| if let FDTarget::Socket(inode) = fd.ok()?.target { Some(inode) } else { None })
        .collect();
    let entries = test.tcp().unwrap().into_iter();
    entries
        .filter(|entry| entry.state == TcpState::Established && !own.contains(&entry.inode))
        .filter(|entry| entry.remote_address == (Ipv4Addr::LOCALHOST, to).into())
        .map(|entry| entry.local_address.port())
        .collect()
}

#[tokio::test]
async fn a_call_in_flight_finishes_on_the_session_it_started_with() {
    let bao = Bao::start().await;
    bao.enable_uid_audit().await;
    let proxy = Proxy::start(&bao, "").await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    // The metadata of the tokens distinguish the sessions in the audit log.
    let content = async |session: &str| {
        let token = bao.create_token(json!({"meta": {"session": session}, "ttl": "1h"})).await;
        ConfigFile::of(&bao, &token)
    };
    let through_the_proxy = |content| ConfigFile { addresses: vec![proxy.address()], ..content };

    config_file::by_rename(&config, &through_the_proxy(content("one").await).yaml());
    let daemon = Daemon::start_with(&config, DaemonOptions::arguments(["--allow-http"])).await;
    daemon.wait_generation(1).await;
    let kms = daemon.kms().await;

    proxy.hold("slow");
    let mut slow =
        timed(kms_plugin::v2::EncryptRequest { plaintext: vec![7; 32].into(), uid: "slow".into() });
    slow.set_timeout(Duration::from_secs(30));
    let slow = tokio::spawn({
        let mut kms = kms.clone();
        async move { kms.encrypt(slow).await }
    });
    let of_slow = |seen: &Seen| seen.headers.get("x-kms-uid").is_some_and(|uid| uid == "slow");
    eventually("the call is on its way", WAIT_TIMEOUT, async || proxy.seen().iter().any(of_slow)).await;

    // First on the same connections, then on others.
    config_file::by_rename(&config, &through_the_proxy(content("two").await).yaml());
    daemon.wait_generation(2).await;
    config_file::by_rename(&config, &content("three").await.yaml());
    daemon.wait_generation(3).await;
    round_trip(&kms, "fast").await;

    assert!(!slow.is_finished());
    proxy.release();
    let sealed = slow.await.unwrap().unwrap().into_inner();
    assert!(sealed.ciphertext.starts_with(b"vault:v1:"));
    for (uid, session) in [("slow", "one"), ("fast", "three")] {
        let entries = bao.audited(uid);
        assert!(!entries.is_empty(), "{uid}");
        for entry in entries {
            assert_eq!(entry["auth"]["metadata"]["session"], json!(session), "{uid}: {entry}");
        }
    }
    assert_eq!(proxy.seen().iter().filter(|seen| of_slow(seen)).count(), 1);
}
