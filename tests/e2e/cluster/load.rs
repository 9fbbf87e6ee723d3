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

use super::api::{Api, ApiError};

/// Between two rounds of one client; without a pause they would take all that the machine has.
const PAUSE: Duration = Duration::from_millis(50);
/// So many failures are kept with their words; all are counted.
const KEPT: usize = 50;

/// Load that goes on until it is stopped: each client creates a Secret and reads it back.
pub(crate) struct ApiLoad {
    begun: Instant,
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<ApiLoadReport>,
    written: Arc<Mutex<Vec<(String, String)>>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct ApiLoadReport {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// The first failures in words, each with the time since the start of the load.
    pub(crate) failures: Vec<String>,
    pub(crate) longest: Duration,
    /// Name and value of every Secret whose creation was confirmed.
    pub(crate) written: Vec<(String, String)>,
}

impl ApiLoadReport {
    /// # Panics
    /// If a request failed, or if there was none.
    #[track_caller]
    pub(crate) fn assert_nothing_failed(&self) {
        assert!(self.calls > 0, "there was no load");
        assert_eq!(self.failed, 0, "of {} requests these failed: {:#?}", self.calls, self.failures);
    }
}

impl ApiLoad {
    /// One client for each of `apis`; the names of what it writes begin with `prefix`.
    pub(crate) fn start(apis: &[Api], prefix: &str) -> Self {
        let begun = Instant::now();
        let calls = Arc::<AtomicU64>::default();
        let stop = CancellationToken::new();
        let written = Arc::<Mutex<Vec<(String, String)>>>::default();
        let mut tasks = JoinSet::new();
        for (number, api) in apis.iter().enumerate() {
            let client = LoadClient {
                api: api.clone(),
                begun,
                calls: calls.clone(),
                prefix: format!("{prefix}-{number}"),
                report: ApiLoadReport::default(),
                written: written.clone(),
            };
            tasks.spawn(client.run(stop.clone()));
        }
        Self { begun, calls, stop, tasks, written }
    }

    /// Requests answered so far; wait for it to grow to know that load was there.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How long it has been running.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Lets the requests in flight end, and answers what became of all.
    pub(crate) async fn stop(mut self) -> ApiLoadReport {
        self.stop.cancel();
        let mut total = ApiLoadReport::default();
        while let Some(report) = self.tasks.join_next().await {
            let report = report.unwrap();
            total.calls += report.calls;
            total.failed += report.failed;
            total.failures.extend(report.failures);
            total.longest = total.longest.max(report.longest);
        }
        total.written = std::mem::take(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner));
        total
    }
}

struct LoadClient {
    api: Api,
    begun: Instant,
    calls: Arc<AtomicU64>,
    prefix: String,
    report: ApiLoadReport,
    written: Arc<Mutex<Vec<(String, String)>>>,
}

impl LoadClient {
    async fn run(mut self, stop: CancellationToken) -> ApiLoadReport {
        let mut round = 0;
        while !stop.is_cancelled() {
            round += 1;
            self.round(round).await;
            drop(tokio::time::timeout(PAUSE, stop.cancelled()).await);
        }
        self.report
    }

    async fn round(&mut self, round: u64) {
        let name = format!("{}-{round}", self.prefix);
        let value = format!("value of {name} {:016x}", rand::random::<u64>());
        let api = self.api.clone();
        if self.observed("create", api.create_secret(&name, &value)).await.is_none() {
            return;
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), value.clone()));
        if let Some(read) = self.observed("get", api.secret(&name)).await
            && read != value
        {
            self.failed(format!("get: another value than was written: {read}"));
        }
    }

    async fn observed<T>(
        &mut self,
        verb: &str,
        request: impl Future<Output = Result<T, ApiError>>,
    ) -> Option<T> {
        let begun = Instant::now();
        let answer = request.await;
        self.report.longest = self.report.longest.max(begun.elapsed());
        self.report.calls += 1;
        self.calls.fetch_add(1, Ordering::Relaxed);
        answer.map_err(|error| self.failed(format!("{verb}: {error}"))).ok()
    }

    fn failed(&mut self, what: String) {
        self.report.failed += 1;
        if self.report.failures.len() < KEPT {
            self.report.failures.push(format!("{:.3} s: {what}", self.begun.elapsed().as_secs_f64()));
        }
    }
}
