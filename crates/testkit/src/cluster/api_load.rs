//! Load on API servers: clients that create and read Secrets, without retries.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use crate::{LoadReport, RequestRecorder};

/// The pause between two rounds of one client. Without it, the clients would use all cores.
const PAUSE: Duration = Duration::from_millis(50);

/// Load until it is stopped: each client creates a Secret and reads it back.
pub struct ApiLoad {
    begun: Instant,
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<LoadReport>,
    written: Arc<Mutex<Vec<(String, String)>>>,
}

/// The results of the requests.
#[derive(Debug)]
pub struct ApiLoadReport {
    pub requests: LoadReport,
    /// The name and value of every Secret whose creation was confirmed.
    pub written: Vec<(String, String)>,
}

impl ApiLoad {
    /// Starts one client for each of `apis`. The names of its Secrets begin with `prefix`.
    pub fn start(apis: &[Api], prefix: &str) -> Self {
        let begun = Instant::now();
        let calls = Arc::<AtomicU64>::default();
        let stop = CancellationToken::new();
        let written = Arc::<Mutex<Vec<(String, String)>>>::default();
        let mut tasks = JoinSet::new();
        for (number, api) in apis.iter().enumerate() {
            let client = LoadClient {
                api: api.clone(),
                recorder: RequestRecorder::new(begun, calls.clone()),
                prefix: format!("{prefix}-{number}"),
                written: written.clone(),
            };
            tasks.spawn(client.run(stop.clone()));
        }
        Self { begun, calls, stop, tasks, written }
    }

    /// The number of completed requests. Wait until it grows to be sure that there was load.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The time since the start.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits for the requests in flight, and returns the results of all.
    pub async fn stop(mut self) -> ApiLoadReport {
        self.stop.cancel();
        let mut requests = LoadReport::default();
        while let Some(report) = self.tasks.join_next().await {
            requests.add(report.unwrap());
        }
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        ApiLoadReport { requests, written }
    }
}

struct LoadClient {
    api: Api,
    recorder: RequestRecorder,
    prefix: String,
    written: Arc<Mutex<Vec<(String, String)>>>,
}

impl LoadClient {
    async fn run(mut self, stop: CancellationToken) -> LoadReport {
        let mut round = 0;
        while !stop.is_cancelled() {
            round += 1;
            self.round(round).await;
            drop(tokio::time::timeout(PAUSE, stop.cancelled()).await);
        }
        self.recorder.report()
    }

    async fn round(&mut self, round: u64) {
        let name = format!("{}-{round}", self.prefix);
        let value = format!("value of {name} {:016x}", rand::random::<u64>());
        let api = self.api.clone();
        if self.recorder.record("create", api.create_secret(&name, &value)).await.is_none() {
            return;
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), value.clone()));
        if let Some(read) = self.recorder.record("get", api.secret(&name)).await
            && read != value
        {
            self.recorder.failed(format!("get: another value than was written: {read}"));
        }
    }
}
