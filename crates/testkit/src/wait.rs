//! The one place of the tests that sleeps.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `holds` until it does, and answers what it found.
///
/// `holds` answers a `bool`, an `Option`, or a `Result` whose error says what is still amiss.
///
/// # Panics
/// After `within`, naming `what` and the last thing that was amiss.
#[track_caller]
pub fn eventually<V: Verdict>(
    what: &str,
    within: Duration,
    mut holds: impl AsyncFnMut() -> V,
) -> impl Future<Output = V::Found> {
    let caller = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        let mut last = "no answer".to_owned();
        loop {
            let left = within.saturating_sub(begun.elapsed()).max(INTERVAL);
            let verdict = match tokio::time::timeout(left, holds()).await {
                Ok(answer) => answer.verdict(),
                // What was amiss before says more than that this last look was too slow.
                Err(_) => Err(last.clone()),
            };
            match verdict {
                Ok(found) => return found,
                Err(amiss) if begun.elapsed() >= within => {
                    panic!("{caller}: not within {within:?}: {what} ({amiss})")
                }
                Err(amiss) => {
                    last = amiss;
                    tokio::time::sleep(INTERVAL).await;
                }
            }
        }
    }
}

/// What a condition may answer.
pub trait Verdict {
    /// What is found once it holds.
    type Found;

    /// Found, or what is still amiss.
    fn verdict(self) -> Result<Self::Found, String>;
}

impl Verdict for bool {
    type Found = ();

    fn verdict(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it does not hold".into()) }
    }
}

impl<T> Verdict for Option<T> {
    type Found = T;

    fn verdict(self) -> Result<T, String> {
        self.ok_or_else(|| "there is none".into())
    }
}

impl<T, E: ToString> Verdict for Result<T, E> {
    type Found = T;

    fn verdict(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}
