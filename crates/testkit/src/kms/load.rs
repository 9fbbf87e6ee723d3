//! Constant load, as several API servers would make it, without mercy: nothing that was sent is tried
//! again, and a connection that is refused is a failure.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use kms_plugin::v2::{DecryptRequest, EncryptRequest, StatusRequest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::{
    daemon::process::Daemon,
    kms::calls::{TIMEOUT, timed},
    kms::reconnect::{LastingKms, lasting_client},
    kms::report::{LoadReport, Observer},
};

/// Status, Encrypt, Status, Decrypt.
const CALLS_A_ROUND: u32 = 4;

/// Load that goes on until it is stopped. Each task has a connection of its own and goes round:
/// Status, Encrypt of 32 new bytes, Status, Decrypt.
pub struct Load {
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<LoadReport>,
}

impl Load {
    /// Begins with `tasks` tasks. Each rests for `pause` after a round; with no pause they take
    /// all that the machine has, which other tests would like to share.
    pub async fn start(daemon: &Daemon, tasks: usize, pause: Duration) -> Self {
        Self::start_on(daemon.socket(), tasks, pause).await
    }

    /// Begins with so many calls a second, whatever becomes of them: those that take long keep no other
    /// from being made. All on one connection, as those of an API server.
    pub fn at_rate(daemon: &Daemon, per_second: u32) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let (begun, calls) = (Instant::now(), load.calls.clone());
        let (kms, stop) = (lasting_client(daemon.socket()), load.stop.clone());
        load.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * CALLS_A_ROUND / per_second);
            let mut rounds = JoinSet::new();
            for number in 0_u64.. {
                tokio::select! {
                    _tick = ticks.tick() => {}
                    () = stop.cancelled() => break,
                }
                let observer = Observer::new(begun, calls.clone());
                let mut worker = Worker { kms: kms.clone(), observer, pause: Duration::ZERO };
                rounds.spawn(async move {
                    worker.round(&format!("load-{number}")).await;
                    worker.observer.report()
                });
            }
            let mut total = LoadReport::default();
            rounds.join_all().await.into_iter().for_each(|report| total.add(report));
            total
        });
        load
    }

    /// As [`Load::start`], on this socket.
    pub async fn start_on(socket: &Path, tasks: usize, pause: Duration) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let begun = Instant::now();
        for _ in 0..tasks {
            let observer = Observer::new(begun, load.calls.clone());
            let worker = Worker { kms: lasting_client(socket), observer, pause };
            load.tasks.spawn(worker.run(load.stop.clone()));
        }
        load
    }

    /// Calls answered so far; wait for it to grow to know that load was there.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Lets the calls in flight end, and answers what became of all.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.cancel();
        let mut total = LoadReport::default();
        while let Some(report) = self.tasks.join_next().await {
            total.add(report.unwrap());
        }
        total
    }
}

struct Worker {
    kms: LastingKms,
    observer: Observer,
    pause: Duration,
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
        self.observer.report()
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
            self.observer
                .failed(format!("Encrypt: key_id {}, Status {before} and then {after}", sealed.key_id));
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
            self.observer.failed("Decrypt: another plaintext".into());
        }
    }

    /// The key_id of Status.
    async fn status(&mut self) -> Option<String> {
        let mut kms = self.kms.clone();
        let status = self.observed("Status", kms.status(timed(StatusRequest {}))).await?;
        if status.healthz != "ok" {
            self.observer.failed(format!("Status: {}", status.healthz));
        }
        Some(status.key_id)
    }

    async fn observed<T>(
        &mut self,
        method: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<T> {
        let call = async {
            let late = |_| Err(Status::deadline_exceeded("no answer in time"));
            let answer = tokio::time::timeout(TIMEOUT, call).await.unwrap_or_else(late);
            let answer = answer.map_err(|error| format!("{:?}: {}", error.code(), error.message()))?;
            Ok::<_, String>(answer.into_inner())
        };
        self.observer.observed(method, call).await
    }
}
