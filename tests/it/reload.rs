//! Every way in which the rendered file changes, with real tokens.

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
    Bao, Daemon, DaemonOptions, Kms, Rendered,
    calls::{round_trip, status, timed},
    eventually,
    http::{Proxy, Seen},
    rendered, without_inotify,
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(10);

/// A server, and a daemon that works with it.
struct Bench {
    bao: Bao,
    daemon: Daemon,
    dir: tempfile::TempDir,
    generation: u64,
    kms: Kms,
    pid: u32,
    token: String,
}

impl Bench {
    /// A daemon whose file is where `make` puts it, below the folder that it is given.
    async fn start(make: impl FnOnce(&Path, &str) -> PathBuf) -> Self {
        Self::start_with(DaemonOptions::default(), make).await
    }

    async fn start_with(options: DaemonOptions, make: impl FnOnce(&Path, &str) -> PathBuf) -> Self {
        let bao = Bao::start().await;
        let dir = tempfile::tempdir().unwrap();
        let content = Rendered::with_new_token(&bao).await;
        let config = make(dir.path(), &content.yaml());
        let daemon = Daemon::start_with(&config, options).await;
        let (kms, pid) = (daemon.kms().await, daemon.pid());
        let mut bench = Self { bao, daemon, dir, generation: 0, kms, pid, token: String::new() };
        if config.exists() {
            bench.took(content.token).await;
        }
        bench
    }

    /// Changes the file in this way, with a new token; that token, and no other, is then in use.
    async fn takes(&mut self, change: impl FnOnce(&str)) {
        let content = Rendered::with_new_token(&self.bao).await;
        change(&content.yaml());
        self.took(content.token).await;
    }

    async fn took(&mut self, token: String) {
        self.generation += 1;
        self.daemon.wait_generation(self.generation).await;
        let old = std::mem::replace(&mut self.token, token);
        if !old.is_empty() {
            self.bao.revoke(&old).await;
        }
        round_trip(&self.kms, &format!("session-{}", self.generation)).await;
        assert_eq!(self.daemon.reloads("success").await, self.generation);
        // The calls above did not need a second try: the token that is revoked was no longer used.
        assert_eq!(self.daemon.metric("transit_kms_retries_total", &[]).await, 0.0);
        assert_eq!((self.daemon.exited(), self.daemon.pid()), (None, self.pid));
    }

    /// Waits until the newest config is not in use for a reason with these words.
    async fn wait_trouble(&self, words: &str) {
        eventually("the reason", PATIENCE, async || match self.daemon.admin("/readyz").await {
            (200, text) if text.contains("the newest config is not in use") && text.contains(words) => Ok(()),
            (status, text) => Err(format!("{status} {text}")),
        })
        .await;
    }

    /// # Panics
    /// If anything that was found was not taken.
    async fn assert_nothing_else(&self) {
        for result in ["pending", "refused", "invalid"] {
            assert_eq!(self.daemon.reloads(result).await, 0, "{result}");
        }
    }
}

/// `config.yaml` itself.
fn plain(dir: &Path, text: &str) -> PathBuf {
    let config = dir.join("config.yaml");
    rendered::by_rename(&config, text);
    config
}

#[tokio::test]
async fn by_atomic_rename() {
    let mut bench = Bench::start(plain).await;
    let config = bench.dir.path().join("config.yaml");
    for _ in 0..3 {
        bench.takes(|text| rendered::by_rename(&config, text)).await;
    }
    bench.assert_nothing_else().await;
}

#[tokio::test]
async fn by_the_swap_of_a_kubernetes_volume() {
    let mut volume = None;
    let mut bench = Bench::start(|dir, text| {
        let made = rendered::DataVolume::new(&dir.join("volume"), "config.yaml", text);
        volume.insert(made).path()
    })
    .await;
    let volume = volume.unwrap();
    for _ in 0..3 {
        bench.takes(|text| volume.swap(text)).await;
    }
    bench.assert_nothing_else().await;
}

#[tokio::test]
async fn by_truncating_and_writing() {
    let mut bench = Bench::start(plain).await;
    let config = bench.dir.path().join("config.yaml");
    bench.takes(|text| rendered::in_place(&config, text)).await;

    // Half written, and read in that state; but not for long.
    for turn in 1.. {
        assert!(turn < 10, "this machine is too slow to write a file");
        let before = bench.daemon.reloads("invalid").await;
        let content = Rendered::with_new_token(&bench.bao).await;
        let begun = Instant::now();
        let half = rendered::in_place_half(&config, &content.yaml());
        bench.daemon.signal(Signal::HUP);
        let looked = || bench.daemon.log().matches("reading it a second time").count() == turn;
        eventually("it has read that", PATIENCE, async || looked()).await;
        half.finish();
        let took = begun.elapsed();
        bench.took(content.token).await;
        // Below the time after which a file is called bad.
        if took < Duration::from_millis(200) {
            assert_eq!(bench.daemon.reloads("invalid").await, before);
            break;
        }
    }
    assert_eq!(bench.daemon.reloads("refused").await, 0);
}

#[tokio::test]
async fn a_file_that_stays_half_written_is_reported_and_displaces_nothing() {
    let mut bench = Bench::start(plain).await;
    let config = bench.dir.path().join("config.yaml");
    let content = Rendered::with_new_token(&bench.bao).await;
    let half = rendered::in_place_half(&config, &content.yaml());
    bench.wait_trouble(&format!("{}:", config.display())).await;
    assert_eq!(bench.daemon.reloads("invalid").await, 1);
    assert_eq!(bench.daemon.generation().await, 1);
    round_trip(&bench.kms, "meanwhile").await;

    half.finish();
    bench.took(content.token).await;
    let (_, text) = bench.daemon.admin("/readyz").await;
    assert!(!text.contains("not in use"), "{text}");
}

#[tokio::test]
async fn a_file_that_does_not_exist_yet() {
    // Neither does its directory.
    let mut bench = Bench::start(|dir, _| dir.join("absent/config.yaml")).await;
    let config = bench.dir.path().join("absent/config.yaml");
    let refused = eventually("it has looked", PATIENCE, async || {
        let refused = status(&bench.kms).await.unwrap_err();
        refused.message().contains(config.to_str().unwrap()).then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::Unavailable);
    let (ready, text) = bench.daemon.admin("/readyz").await;
    assert!(ready == 503 && text.contains(config.to_str().unwrap()), "{ready} {text}");
    assert_eq!(bench.daemon.admin("/livez").await.0, 200);

    bench
        .takes(|text| {
            fs::create_dir(config.parent().unwrap()).unwrap();
            rendered::by_rename(&config, text);
        })
        .await;
    bench.takes(|text| rendered::by_rename(&config, text)).await;
}

#[tokio::test]
async fn a_directory_that_is_deleted_and_made_anew() {
    let below = |dir: &Path, text: &str| {
        fs::create_dir(dir.join("below")).unwrap();
        plain(&dir.join("below"), text)
    };
    let mut bench = Bench::start(below).await;
    let dir = bench.dir.path().to_owned();
    // At once.
    bench
        .takes(|text| {
            fs::remove_dir_all(dir.join("below")).unwrap();
            below(&dir, text);
        })
        .await;
    // And after it was missed.
    let seen = bench.daemon.reloads("invalid").await;
    fs::remove_dir_all(dir.join("below")).unwrap();
    bench.wait_trouble("below/config.yaml").await;
    assert_eq!(bench.daemon.reloads("invalid").await, seen + 1);
    round_trip(&bench.kms, "without a file").await;
    bench.takes(|text| drop(below(&dir, text))).await;
    // The new directory is watched as the old one was.
    bench.takes(|text| rendered::by_rename(&dir.join("below/config.yaml"), text)).await;
}

#[tokio::test]
async fn through_a_symlink_into_another_directory() {
    let mut bench = Bench::start(|dir, text| {
        for name in ["here", "there", "elsewhere"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        plain(&dir.join("there"), text);
        symlink("../there/config.yaml", dir.join("here/config.yaml")).unwrap();
        dir.join("here/config.yaml")
    })
    .await;
    let dir = bench.dir.path().to_owned();
    bench.takes(|text| rendered::by_rename(&dir.join("there/config.yaml"), text)).await;
    bench.takes(|text| rendered::in_place(&dir.join("there/config.yaml"), text)).await;
    // Now it leads elsewhere, and what happens there counts.
    bench
        .takes(|text| {
            plain(&dir.join("elsewhere"), text);
            symlink(dir.join("elsewhere/config.yaml"), dir.join("here/new")).unwrap();
            fs::rename(dir.join("here/new"), dir.join("here/config.yaml")).unwrap();
        })
        .await;
    bench.takes(|text| rendered::by_rename(&dir.join("elsewhere/config.yaml"), text)).await;
    bench.assert_nothing_else().await;
}

#[tokio::test]
async fn without_inotify_by_polling() {
    let Some(wrapper) = without_inotify() else { return };
    let options = DaemonOptions { wrapper, ..DaemonOptions::default() };
    let mut bench = Bench::start_with(options, plain).await;
    let config = bench.dir.path().join("config.yaml");
    let log = bench.daemon.log();
    assert!(log.contains("are not all noticed immediately; the files are polled"), "{log}");
    bench.takes(|text| rendered::by_rename(&config, text)).await;
    bench.assert_nothing_else().await;
}

#[tokio::test]
async fn a_touch_without_a_change_is_nothing() {
    let mut bench = Bench::start(plain).await;
    let config = bench.dir.path().join("config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let touch = || {
        let later = SystemTime::now() + Duration::from_secs(1);
        fs::File::options().write(true).open(&config).unwrap().set_modified(later).unwrap();
    };
    touch();
    rendered::by_rename(&config, &text);
    // This read is after both, and of the same content.
    bench.daemon.signal(Signal::HUP);
    eventually("it reads", PATIENCE, async || bench.daemon.log().contains("SIGHUP")).await;
    rendered::in_place(&config, &text);
    touch();
    // By exactly one.
    bench.takes(|text| rendered::by_rename(&config, text)).await;
    touch();
    bench.takes(|text| rendered::by_rename(&config, text)).await;
    bench.assert_nothing_else().await;
}

#[tokio::test]
async fn connections_to_vault_outlive_the_token() {
    let mut bench = Bench::start(plain).await;
    let config = bench.dir.path().join("config.yaml");
    let port = bench.bao.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let before = connections(port);
    assert!(!before.is_empty());
    const SWAPS: usize = 6;
    for _ in 0..SWAPS {
        bench.takes(|text| rendered::by_rename(&config, text)).await;
    }
    let after = connections(port);
    assert!(before.is_subset(&after), "{before:?} {after:?}");
    // A probe and a call at one time need two, and the pool now and then makes a spare one; but a
    // swap as such needs none.
    assert!(after.len() < before.len() + SWAPS, "{before:?} {after:?}");
}

/// The local ports of the connections to this port that are not of this process.
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
async fn a_call_in_flight_ends_on_the_session_that_it_began_with() {
    let bao = Bao::start().await;
    bao.audit_uids().await;
    let proxy = Proxy::start(&bao, "").await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    // The audit log tells the sessions apart by what their tokens carry.
    let content = async |session: &str| {
        let token = bao.create_token(json!({"meta": {"session": session}, "ttl": "1h"})).await;
        Rendered::of(&bao, &token)
    };
    let through_the_proxy = |content| Rendered { addresses: vec![proxy.address()], ..content };

    rendered::by_rename(&config, &through_the_proxy(content("one").await).yaml());
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
    eventually("the call is on its way", PATIENCE, async || proxy.seen().iter().any(of_slow)).await;

    // Once over the same connections, and once over others.
    rendered::by_rename(&config, &through_the_proxy(content("two").await).yaml());
    daemon.wait_generation(2).await;
    rendered::by_rename(&config, &content("three").await.yaml());
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
