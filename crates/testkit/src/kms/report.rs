//! What becomes of the requests of a load: all are counted, and the first failures kept in words.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// So many failures are kept with their words; all are counted.
const KEPT: usize = 100;

/// What became of the requests.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Requests that were answered, well or not.
    pub calls: u64,
    /// How many failed: an error, or an answer that contradicts another.
    pub failed: u64,
    /// The first failures in words, each with the time since the start of the load.
    pub failures: Vec<String>,
    /// The longest that a request took.
    pub longest: Duration,
}

impl LoadReport {
    /// # Panics
    /// If a request failed, or if there was none.
    #[track_caller]
    pub fn assert_nothing_failed(&self) {
        assert!(self.calls > 0, "there was no load");
        let some = self.failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert_eq!(self.failed, 0, "of {} calls these failed:\n{some}", self.calls);
    }

    /// Adds what became of others.
    pub fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.longest = self.longest.max(other.longest);
    }
}

/// Watches the requests of one task.
pub struct Observer {
    begun: Instant,
    calls: Arc<AtomicU64>,
    report: LoadReport,
}

impl Observer {
    /// Counts into `calls` too, for those who wait for it to grow.
    pub fn new(begun: Instant, calls: Arc<AtomicU64>) -> Self {
        Self { begun, calls, report: LoadReport::default() }
    }

    /// What `request` was answered, if that is well.
    pub async fn observed<T, E: fmt::Display>(
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

    /// Notes a failure that is not an error of a request.
    pub fn failed(&mut self, what: String) {
        self.report.failed += 1;
        if self.report.failures.len() < KEPT {
            self.report.failures.push(format!("{:.3} s: {what}", self.begun.elapsed().as_secs_f64()));
        }
    }

    /// What became of all.
    pub fn report(self) -> LoadReport {
        self.report
    }
}
