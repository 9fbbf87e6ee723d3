//! Constant load, as several API servers would make it, without mercy: nothing is tried again.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use transit_kms::kms::proto::{DecryptRequest, EncryptRequest, StatusRequest};

use super::daemon::{Daemon, Kms, kms_client};

/// kube-apiserver's timeout for each call.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Status, Encrypt, Status, Decrypt.
const CALLS_A_ROUND: u32 = 4;
/// So many failures are kept with their words; all are counted.
const KEPT: usize = 100;

/// Load that goes on until it is stopped. Each task has a connection of its own and goes round:
/// Status, Encrypt of 32 new bytes, Status, Decrypt.
pub(crate) struct Load {
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<LoadReport>,
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(crate) struct LoadReport {
    /// Calls that were answered, well or not.
    pub(crate) calls: u64,
    /// How many failed: an error, a wrong plaintext, a key_id that was not Status's at the time,
    /// or a Status that was not `ok`.
    pub(crate) failed: u64,
    /// The first failures in words, each with the time since the start of the load.
    pub(crate) failures: Vec<String>,
    /// The longest that a call took.
    pub(crate) longest: Duration,
}

impl LoadReport {
    /// Of both.
    fn and(mut self, other: Self) -> Self {
        self.calls += other.calls;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.longest = self.longest.max(other.longest);
        self
    }

    /// # Panics
    /// If a call failed, or if there was none.
    #[track_caller]
    pub(crate) fn assert_nothing_failed(&self) {
        assert!(self.calls > 0, "there was no load");
        let some = self.failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert_eq!(self.failed, 0, "of {} calls these failed:\n{some}", self.calls);
    }
}

impl Load {
    /// Begins with `tasks` tasks. Each rests for `pause` after a round; with no pause they take
    /// all that the machine has, which other tests would like to share.
    pub(crate) async fn start(daemon: &Daemon, tasks: usize, pause: Duration) -> Self {
        Self::start_on(daemon.socket(), tasks, pause).await
    }

    /// Begins with so many calls a second, whatever becomes of them: those that take long keep no other
    /// from being made. All on one connection, as those of an API server.
    pub(crate) async fn at_rate(daemon: &Daemon, per_second: u32) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let (begun, calls) = (Instant::now(), load.calls.clone());
        let (kms, stop) = (kms_client(daemon.socket()).await, load.stop.clone());
        load.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * CALLS_A_ROUND / per_second);
            let mut rounds = JoinSet::new();
            for number in 0_u64.. {
                tokio::select! {
                    _tick = ticks.tick() => {}
                    () = stop.cancelled() => break,
                }
                let mut worker = Worker {
                    begun,
                    calls: calls.clone(),
                    kms: kms.clone(),
                    pause: Duration::ZERO,
                    report: LoadReport::default(),
                };
                rounds.spawn(async move {
                    worker.round(&format!("load-{number}")).await;
                    worker.report
                });
            }
            rounds.join_all().await.into_iter().fold(LoadReport::default(), LoadReport::and)
        });
        load
    }

    /// As [`Load::start`], on this socket.
    pub(crate) async fn start_on(socket: &Path, tasks: usize, pause: Duration) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let begun = Instant::now();
        for _ in 0..tasks {
            let worker = Worker {
                begun,
                calls: load.calls.clone(),
                kms: kms_client(socket).await,
                pause,
                report: LoadReport::default(),
            };
            load.tasks.spawn(worker.run(load.stop.clone()));
        }
        load
    }

    /// Calls answered so far; wait for it to grow to know that load was there.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Lets the calls in flight end, and answers what became of all.
    pub(crate) async fn stop(mut self) -> LoadReport {
        self.stop.cancel();
        let mut total = LoadReport::default();
        while let Some(report) = self.tasks.join_next().await {
            total = total.and(report.unwrap());
        }
        total
    }
}

struct Worker {
    begun: Instant,
    calls: Arc<AtomicU64>,
    kms: Kms,
    pause: Duration,
    report: LoadReport,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) -> LoadReport {
        let mut round = 0;
        while !stop.is_cancelled() {
            round += 1;
            self.round(&format!("load-{round}")).await;
            if !self.pause.is_zero() {
                drop(tokio::time::timeout(self.pause, stop.cancelled()).await);
            }
        }
        self.report
    }

    async fn round(&mut self, uid: &str) {
        let seed: [u8; 32] = rand::random();
        let before = self.status().await;
        let mut kms = self.kms.clone();
        let request = EncryptRequest { plaintext: Bytes::copy_from_slice(&seed), uid: uid.into() };
        let Some(sealed) = self.observed("Encrypt", kms.encrypt(timed(request))).await else {
            return;
        };
        let after = self.status().await;
        if let (Some(before), Some(after)) = (before, after)
            && sealed.key_id != before
            && sealed.key_id != after
        {
            self.failed(format!("Encrypt: key_id {}, Status {before} and then {after}", sealed.key_id));
        }
        let request = DecryptRequest {
            annotations: sealed.annotations,
            ciphertext: sealed.ciphertext,
            key_id: sealed.key_id,
            uid: uid.into(),
        };
        if let Some(opened) = self.observed("Decrypt", kms.decrypt(timed(request))).await
            && opened.plaintext != seed[..]
        {
            self.failed("Decrypt: another plaintext".into());
        }
    }

    /// The key_id of Status.
    async fn status(&mut self) -> Option<String> {
        let mut kms = self.kms.clone();
        let status = self.observed("Status", kms.status(timed(StatusRequest {}))).await?;
        if status.healthz != "ok" {
            self.failed(format!("Status: {}", status.healthz));
        }
        Some(status.key_id)
    }

    async fn observed<T>(
        &mut self,
        method: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<T> {
        let begun = Instant::now();
        let answer = call.await;
        self.report.longest = self.report.longest.max(begun.elapsed());
        self.report.calls += 1;
        self.calls.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(e) => {
                self.failed(format!("{method}: {:?}: {}", e.code(), e.message()));
                None
            }
        }
    }

    fn failed(&mut self, what: String) {
        self.report.failed += 1;
        if self.report.failures.len() < KEPT {
            self.report.failures.push(format!("{:.3} s: {what}", self.begun.elapsed().as_secs_f64()));
        }
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}
