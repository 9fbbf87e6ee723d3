//! The results of the requests of a load: counts, and the messages of the first failures.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The number of failures whose messages are kept.
const KEPT_FAILURES: usize = 100;

/// The results of the requests.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// The number of completed requests, including failures.
    pub calls: u64,
    /// The number of failures: an error, or a response that contradicts another.
    pub failed: u64,
    /// The messages of the first failures, each with the time since the start of the load.
    pub failures: Vec<String>,
    /// The longest duration of a request.
    pub longest: Duration,
}

impl LoadReport {
    /// # Panics
    /// If a request failed, or if there was no request.
    #[track_caller]
    pub fn assert_nothing_failed(&self) {
        assert!(self.calls > 0, "there was no load");
        let some = self.failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert_eq!(self.failed, 0, "of {} calls these failed:\n{some}", self.calls);
    }

    /// Adds the results of other requests.
    pub fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.longest = self.longest.max(other.longest);
    }
}

/// Records the requests of one task.
pub struct RequestRecorder {
    begun: Instant,
    calls: Arc<AtomicU64>,
    report: LoadReport,
}

impl RequestRecorder {
    /// Also counts in `calls`, which others can read meanwhile.
    pub fn new(begun: Instant, calls: Arc<AtomicU64>) -> Self {
        Self { begun, calls, report: LoadReport::default() }
    }

    /// Waits for a request and records its result. Returns the response if it is no error.
    pub async fn record<T, E: fmt::Display>(
        &mut self,
        what: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let begun = Instant::now();
        let answer = request.await;
        self.report.longest = self.report.longest.max(begun.elapsed());
        self.report.calls += 1;
        self.calls.fetch_add(1, Ordering::Relaxed);
        answer.map_err(|error| self.failed(format!("{what}: {error}"))).ok()
    }

    /// Records a failure that is not an error of a request.
    pub fn failed(&mut self, what: String) {
        self.report.failed += 1;
        if self.report.failures.len() < KEPT_FAILURES {
            self.report.failures.push(format!("{:.3} s: {what}", self.begun.elapsed().as_secs_f64()));
        }
    }

    /// The results of all requests.
    pub fn report(self) -> LoadReport {
        self.report
    }
}
