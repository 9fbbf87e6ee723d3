//! Constant load, as of several API servers. Requests are not retried, and a refused connection is a failure.

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
    kms::reconnect::{ReconnectingKms, reconnecting_client},
    kms::report::{LoadReport, RequestRecorder},
};

/// Status, Encrypt, Status, Decrypt.
const CALLS_PER_ROUND: u32 = 4;

/// Load until it is stopped. A round is Status, Encrypt of 32 new bytes, Status, Decrypt.
pub struct Load {
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<LoadReport>,
}

impl Load {
    /// Starts `tasks` tasks, each on its own connection, with a pause after each round. Without a pause they use all
    /// cores, which other tests need too.
    pub async fn start(daemon: &Daemon, tasks: usize, pause: Duration) -> Self {
        Self::start_on(daemon.socket(), tasks, pause).await
    }

    /// Starts a constant number of calls per second on one connection, as an API server does. Slow calls do not delay
    /// later ones.
    pub fn at_rate(daemon: &Daemon, per_second: u32) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let (begun, calls) = (Instant::now(), load.calls.clone());
        let (kms, stop) = (reconnecting_client(daemon.socket()), load.stop.clone());
        load.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * CALLS_PER_ROUND / per_second);
            let mut rounds = JoinSet::new();
            for number in 0_u64.. {
                tokio::select! {
                    _tick = ticks.tick() => {}
                    () = stop.cancelled() => break,
                }
                let recorder = RequestRecorder::new(begun, calls.clone());
                let mut worker = Worker { kms: kms.clone(), recorder, pause: Duration::ZERO };
                rounds.spawn(async move {
                    worker.round(&format!("load-{number}")).await;
                    worker.recorder.report()
                });
            }
            let mut total = LoadReport::default();
            rounds.join_all().await.into_iter().for_each(|report| total.add(report));
            total
        });
        load
    }

    /// Like [`Load::start`], on this socket.
    pub async fn start_on(socket: &Path, tasks: usize, pause: Duration) -> Self {
        let mut load = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        let begun = Instant::now();
        for _ in 0..tasks {
            let recorder = RequestRecorder::new(begun, load.calls.clone());
            let worker = Worker { kms: reconnecting_client(socket), recorder, pause };
            load.tasks.spawn(worker.run(load.stop.clone()));
        }
        load
    }

    /// The number of completed calls. Wait until it grows to be sure that there was load.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Waits for the calls in flight, and returns the results of all.
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
    kms: ReconnectingKms,
    recorder: RequestRecorder,
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
        self.recorder.report()
    }

    async fn round(&mut self, uid: &str) {
        let seed: [u8; 32] = rand::random();
        let before = self.status().await;
        let mut kms = self.kms.clone();
        let request = EncryptRequest { plaintext: Bytes::copy_from_slice(&seed), uid: uid.into() };
        let Some(sealed) = self.record("Encrypt", kms.encrypt(timed(request))).await else {
            return;
        };
        let after = self.status().await;
        if let (Some(before), Some(after)) = (before, after)
            && sealed.key_id != before
            && sealed.key_id != after
        {
            self.recorder
                .failed(format!("Encrypt: key_id {}, Status {before} and then {after}", sealed.key_id));
        }
        let request = DecryptRequest {
            annotations: sealed.annotations,
            ciphertext: sealed.ciphertext,
            key_id: sealed.key_id,
            uid: uid.into(),
        };
        if let Some(opened) = self.record("Decrypt", kms.decrypt(timed(request))).await
            && opened.plaintext != seed[..]
        {
            self.recorder.failed("Decrypt: another plaintext".into());
        }
    }

    /// The key_id of Status.
    async fn status(&mut self) -> Option<String> {
        let mut kms = self.kms.clone();
        let status = self.record("Status", kms.status(timed(StatusRequest {}))).await?;
        if status.healthz != "ok" {
            self.recorder.failed(format!("Status: {}", status.healthz));
        }
        Some(status.key_id)
    }

    async fn record<T>(
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
        self.recorder.record(method, call).await
    }
}
