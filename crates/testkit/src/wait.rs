//! Waits for a condition. Tests do not sleep for fixed times.

use std::time::{Duration, Instant};

/// The time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `check` until it succeeds, and returns its value.
///
/// `check` returns a `bool`, an `Option`, or a `Result` whose error says what is still wrong.
///
/// # Panics
/// After `within`, with `what` and the last error.
#[track_caller]
pub fn eventually<V: Outcome>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> V,
) -> impl Future<Output = V::Value> {
    let caller = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        let mut last = "no answer".to_owned();
        loop {
            let left = within.saturating_sub(begun.elapsed()).max(INTERVAL);
            let outcome = match tokio::time::timeout(left, check()).await {
                Ok(answer) => answer.outcome(),
                // The previous error says more than the timeout of this check.
                Err(_) => Err(last.clone()),
            };
            match outcome {
                Ok(value) => return value,
                Err(error) if begun.elapsed() >= within => {
                    panic!("{caller}: not within {within:?}: {what} ({error})")
                }
                Err(error) => {
                    last = error;
                    tokio::time::sleep(INTERVAL).await;
                }
            }
        }
    }
}

/// The result of one check of a condition.
pub trait Outcome {
    /// The value of a successful check.
    type Value;

    /// The value, or the reason why the condition does not hold yet.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it does not hold".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "there is none".into())
    }
}

impl<T, E: ToString> Outcome for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}
