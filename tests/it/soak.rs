//! Everything at random, for a while: tokens and keys rotate, nodes fail, daemons follow each other.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, Trio, eventually, figures::figure, full, rendered, scratch,
    wait_for_session_after,
};

/// Calls a second.
const RATE: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(60);
/// What a daemon may have more at its end than once it was warm: connections to nodes that were away come and go.
const MORE_DESCRIPTORS: f64 = 40.0;
/// Of memory; an allocator keeps some of what a burst took.
const MORE_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A node swallows what it is sent, and is mended.
    BlackHole,
    /// A node stops, and goes on.
    Freeze,
    /// A node is killed, and started again.
    Kill,
    /// The Transit key has a new version.
    NewKeyVersion,
    /// The file has a new token, and the old one is revoked.
    NewToken,
    /// Another daemon takes the socket over.
    Upgrade,
}

const EVENTS: [Event; 6] =
    [Event::BlackHole, Event::Freeze, Event::Kill, Event::NewKeyVersion, Event::NewToken, Event::Upgrade];

/// A cluster, a socket, and the daemon that has it.
struct Soak {
    config: PathBuf,
    daemon: Daemon,
    dir: TempDir,
    /// Descriptors and bytes of the daemon once it was warm.
    warm: [f64; 2],
    token: String,
    trio: Trio,
}

impl Soak {
    async fn start() -> Self {
        let (trio, dir) = (Trio::start().await, scratch("soak-"));
        let config = dir.path().join("config.yaml");
        let content = trio.rendered().await;
        rendered::by_rename(&config, &content.yaml());
        let daemon = daemon(&dir, &config).await;
        daemon.wait_ready_within(PATIENCE).await;
        Self { config, daemon, dir, warm: [0.0; 2], token: content.token, trio }
    }

    async fn happens(&mut self, event: Event, node: usize) {
        match event {
            Event::BlackHole => self.trio.wires[node].swallow(),
            Event::Freeze => self.trio.members[node].freeze().await,
            Event::Kill => self.trio.members[node].stop(),
            Event::NewKeyVersion => {
                let caller = Caller::of(&self.daemon).await;
                let before = caller.key_id().await;
                self.trio.members[self.trio.leader().await].rotate_key(KEY).await;
                caller.wait_key_id_after(&before, PATIENCE).await;
            }
            Event::NewToken => {
                let generation = self.daemon.generation().await;
                let content = self.trio.rendered().await;
                rendered::by_rename(&self.config, &content.yaml());
                wait_for_session_after(&self.daemon, generation).await;
                let old = std::mem::replace(&mut self.token, content.token);
                self.trio.members[self.trio.leader().await].revoke(&old).await;
            }
            Event::Upgrade => {
                self.assert_flat().await;
                let next = daemon(&self.dir, &self.config).await;
                next.wait_ready_within(PATIENCE).await;
                let mut last = std::mem::replace(&mut self.daemon, next);
                assert!(last.terminate().await.success());
                self.warm = [0.0; 2];
            }
        }
    }

    async fn heals(&mut self, event: Event, node: usize) {
        match event {
            Event::BlackHole => self.trio.wires[node].mend().await,
            Event::Freeze => self.trio.members[node].thaw(),
            Event::Kill => {
                self.trio.members[node].start_again_sealed().await;
                self.trio.members[node].unseal_member().await;
            }
            Event::NewKeyVersion | Event::NewToken | Event::Upgrade => {}
        }
        self.trio.whole().await;
        if self.warm[0].to_bits() == 0 {
            self.warm = self.usage().await;
        }
    }

    async fn usage(&self) -> [f64; 2] {
        let descriptors = self.daemon.metric("process_open_fds", &[]).await;
        [descriptors, self.daemon.metric("process_resident_memory_bytes", &[]).await]
    }

    async fn assert_flat(&self) {
        let [descriptors, bytes] = self.usage().await;
        let [warm_descriptors, warm_bytes] = self.warm;
        if warm_descriptors > 0.0 {
            assert!(
                descriptors <= warm_descriptors + MORE_DESCRIPTORS,
                "{warm_descriptors} -> {descriptors}"
            );
            assert!(bytes <= warm_bytes + MORE_BYTES, "{warm_bytes} -> {bytes}");
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
    eventually("calls go on", PATIENCE, async || load.calls() >= before + u64::from(count)).await;
}

/// `TRANSIT_KMS_TEST_SEED` has the same things happen again, in the same order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_at_random_and_no_call_fails() {
    let duration = Duration::from_secs(if full() { 600 } else { 60 });
    let given = std::env::var("TRANSIT_KMS_TEST_SEED").ok();
    let seed = given.map_or_else(|| rand::rng().next_u64(), |seed| seed.parse().unwrap());
    println!("TRANSIT_KMS_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut soak = Soak::start().await;
    let load = Load::at_rate(&soak.daemon, RATE);
    let (begun, mut happened) = (Instant::now(), Vec::new());
    // All of them once, in random order; then whatever comes.
    let mut first = EVENTS.to_vec();
    while begun.elapsed() < duration || !first.is_empty() {
        let event = match first.len() {
            0 => EVENTS[random.random_range(0..EVENTS.len())],
            left => first.swap_remove(random.random_range(0..left)),
        };
        let node = random.random_range(0..3);
        println!("{:.1} s: {event:?} ({node})", begun.elapsed().as_secs_f64());
        soak.happens(event, node).await;
        more_calls(&load, RATE).await;
        soak.heals(event, node).await;
        more_calls(&load, RATE / 2).await;
        happened.push(event);
    }
    let took = begun.elapsed();
    let report = load.stop().await;
    report.assert_nothing_failed();
    soak.assert_flat().await;
    let [descriptors, bytes] = soak.usage().await;
    figure(
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
