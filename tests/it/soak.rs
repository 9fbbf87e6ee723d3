//! A soak test with random events: tokens and keys rotate, nodes fail, daemons are replaced.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, ThreeNodeVault, config_file, eventually, full,
    measurements::record_measurement, temp_dir, wait_for_session_after,
};

/// Calls per second.
const RATE: u32 = 50;
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The allowed growth of open descriptors over the baseline: connections to failed nodes come and go.
const MAX_MORE_DESCRIPTORS: f64 = 40.0;
/// The allowed growth of memory: the allocator keeps some memory after a burst.
const MAX_MORE_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// A random event.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The network drops all traffic to a node, and later restores it.
    BlackHole,
    /// A node freezes, and later continues.
    Freeze,
    /// A node is killed, and later started again.
    Kill,
    /// The Transit key is rotated.
    NewKeyVersion,
    /// The config gets a new token, and the old one is revoked.
    NewToken,
    /// Another daemon takes over the socket.
    Upgrade,
}

const EVENTS: [Event; 6] =
    [Event::BlackHole, Event::Freeze, Event::Kill, Event::NewKeyVersion, Event::NewToken, Event::Upgrade];

/// A cluster, a socket, and the daemon that owns it.
struct Soak {
    config: PathBuf,
    daemon: Daemon,
    dir: TempDir,
    /// Descriptors and bytes of the daemon after its first event.
    baseline: [f64; 2],
    token: String,
    vault: ThreeNodeVault,
}

impl Soak {
    async fn start() -> Self {
        let (vault, dir) = (ThreeNodeVault::start().await, temp_dir("soak-"));
        let config = dir.path().join("config.yaml");
        let content = vault.rendered().await;
        config_file::by_rename(&config, &content.yaml());
        let daemon = daemon(&dir, &config).await;
        daemon.wait_ready_within(WAIT_TIMEOUT).await;
        Self { config, daemon, dir, baseline: [0.0; 2], token: content.token, vault }
    }

    async fn apply(&mut self, event: Event, node: usize) {
        match event {
            Event::BlackHole => self.vault.links[node].drop_traffic(),
            Event::Freeze => self.vault.members[node].freeze().await,
            Event::Kill => self.vault.members[node].stop(),
            Event::NewKeyVersion => {
                let caller = Caller::of(&self.daemon).await;
                let before = caller.key_id().await;
                self.vault.members[self.vault.leader().await].rotate_key(KEY).await;
                caller.wait_key_id_after(&before, WAIT_TIMEOUT).await;
            }
            Event::NewToken => {
                let generation = self.daemon.generation().await;
                let content = self.vault.rendered().await;
                config_file::by_rename(&self.config, &content.yaml());
                wait_for_session_after(&self.daemon, generation).await;
                let old = std::mem::replace(&mut self.token, content.token);
                self.vault.members[self.vault.leader().await].revoke(&old).await;
            }
            Event::Upgrade => {
                self.assert_no_growth().await;
                let next = daemon(&self.dir, &self.config).await;
                next.wait_ready_within(WAIT_TIMEOUT).await;
                let mut last = std::mem::replace(&mut self.daemon, next);
                assert!(last.terminate().await.success());
                self.baseline = [0.0; 2];
            }
        }
    }

    async fn recover(&mut self, event: Event, node: usize) {
        match event {
            Event::BlackHole => self.vault.links[node].restore().await,
            Event::Freeze => self.vault.members[node].thaw(),
            Event::Kill => {
                self.vault.members[node].start_again_sealed().await;
                self.vault.members[node].unseal_member().await;
            }
            Event::NewKeyVersion | Event::NewToken | Event::Upgrade => {}
        }
        self.vault.wait_complete().await;
        if self.baseline[0].to_bits() == 0 {
            self.baseline = self.usage().await;
        }
    }

    async fn usage(&self) -> [f64; 2] {
        let descriptors = self.daemon.metric("process_open_fds", &[]).await;
        [descriptors, self.daemon.metric("process_resident_memory_bytes", &[]).await]
    }

    async fn assert_no_growth(&self) {
        let [descriptors, bytes] = self.usage().await;
        let [warm_descriptors, warm_bytes] = self.baseline;
        if warm_descriptors > 0.0 {
            assert!(
                descriptors <= warm_descriptors + MAX_MORE_DESCRIPTORS,
                "{warm_descriptors} -> {descriptors}"
            );
            assert!(bytes <= warm_bytes + MAX_MORE_BYTES, "{warm_bytes} -> {bytes}");
        }
    }
}

async fn daemon(dir: &TempDir, config: &std::path::Path) -> Daemon {
    let arguments = ["--takeover", "--log-level", "info", "--health-check-interval", "2s"];
    let socket = Some(dir.path().join("kms.sock"));
    Daemon::start_with(config, DaemonOptions { socket, ..DaemonOptions::arguments(arguments) }).await
}

async fn more_calls(load: &Load, count: u32) {
    let before = load.calls();
    eventually("further calls", WAIT_TIMEOUT, async || load.calls() >= before + u64::from(count)).await;
}

/// `TRANSIT_KMS_TEST_SEED` repeats the events of an earlier run in the same order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_during_random_events() {
    let duration = Duration::from_secs(if full() { 600 } else { 60 });
    let given = std::env::var("TRANSIT_KMS_TEST_SEED").ok();
    let seed = given.map_or_else(|| rand::rng().next_u64(), |seed| seed.parse().unwrap());
    println!("TRANSIT_KMS_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut soak = Soak::start().await;
    let load = Load::at_rate(&soak.daemon, RATE);
    let (begun, mut happened) = (Instant::now(), Vec::new());
    // Each event once in random order, then random events.
    let mut first = EVENTS.to_vec();
    while begun.elapsed() < duration || !first.is_empty() {
        let event = match first.len() {
            0 => EVENTS[random.random_range(0..EVENTS.len())],
            left => first.swap_remove(random.random_range(0..left)),
        };
        let node = random.random_range(0..3);
        println!("{:.1} s: {event:?} ({node})", begun.elapsed().as_secs_f64());
        soak.apply(event, node).await;
        more_calls(&load, RATE).await;
        soak.recover(event, node).await;
        more_calls(&load, RATE / 2).await;
        happened.push(event);
    }
    let took = begun.elapsed();
    let report = load.stop().await;
    report.assert_nothing_failed();
    soak.assert_no_growth().await;
    let [descriptors, bytes] = soak.usage().await;
    record_measurement(
        "soak",
        &format!(
            "{} events in {:.0} s (seed {seed}): {} calls, 0 failed, the longest took {:?}; at the end {descriptors} \
             descriptors, {:.1} MiB",
            happened.len(),
            took.as_secs_f64(),
            report.calls,
            report.longest,
            bytes / 1024.0 / 1024.0,
        ),
    );
}
