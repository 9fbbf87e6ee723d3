//! Clients that create and read Secrets, and try nothing twice.

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
use crate::{LoadReport, Observer};

/// Between two rounds of one client; without a pause they would take all that the machine has.
const PAUSE: Duration = Duration::from_millis(50);

/// Load that goes on until it is stopped: each client creates a Secret and reads it back.
pub struct ApiLoad {
    begun: Instant,
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<LoadReport>,
    written: Arc<Mutex<Vec<(String, String)>>>,
}

/// What became of the requests.
#[derive(Debug)]
pub struct ApiLoadReport {
    pub requests: LoadReport,
    /// Name and value of every Secret whose creation was confirmed.
    pub written: Vec<(String, String)>,
}

impl ApiLoad {
    /// One client for each of `apis`; the names of what it writes begin with `prefix`.
    pub fn start(apis: &[Api], prefix: &str) -> Self {
        let begun = Instant::now();
        let calls = Arc::<AtomicU64>::default();
        let stop = CancellationToken::new();
        let written = Arc::<Mutex<Vec<(String, String)>>>::default();
        let mut tasks = JoinSet::new();
        for (number, api) in apis.iter().enumerate() {
            let client = LoadClient {
                api: api.clone(),
                observer: Observer::new(begun, calls.clone()),
                prefix: format!("{prefix}-{number}"),
                written: written.clone(),
            };
            tasks.spawn(client.run(stop.clone()));
        }
        Self { begun, calls, stop, tasks, written }
    }

    /// Requests answered so far; wait for it to grow to know that load was there.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Lets the requests in flight end, and answers what became of all.
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
    observer: Observer,
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
        self.observer.report()
    }

    async fn round(&mut self, round: u64) {
        let name = format!("{}-{round}", self.prefix);
        let value = format!("value of {name} {:016x}", rand::random::<u64>());
        let api = self.api.clone();
        if self.observer.observed("create", api.create_secret(&name, &value)).await.is_none() {
            return;
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), value.clone()));
        if let Some(read) = self.observer.observed("get", api.secret(&name)).await
            && read != value
        {
            self.observer.failed(format!("get: another value than was written: {read}"));
        }
    }
}
