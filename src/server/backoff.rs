//! What to do when `accept(2)` fails: wait, say so once, never give up.

use std::{io, time::Duration};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::Instant,
};
use tracing::{debug, info, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An accept that works this long after the last failure ends the trouble.
/// Less would let a listener that fails at every second try warn each time.
const CALM: Duration = Duration::from_secs(5);

/// Something that yields connections.
pub trait Listener: Send + 'static {
    /// What it yields.
    type Stream: Send + 'static;

    /// The next connection. Must be cancel-safe: a dropped future loses none.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// Whether the process or the machine has run out of file descriptors.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// The failures of one listener.
#[derive(Debug)]
pub(super) struct Failures {
    listener: String,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    failures: u64,
    last: Instant,
    pause: Duration,
}

impl Failures {
    /// `listener` is how the log names it.
    pub(super) fn new(listener: impl Into<String>) -> Self {
        Self { listener: listener.into(), trouble: None }
    }

    /// Accept has failed; wait this long before the next.
    pub(super) fn failed(&mut self, error: &io::Error) -> Duration {
        let listener = &self.listener;
        let trouble = match self.trouble.take() {
            Some(Trouble { failures, pause, .. }) => {
                debug!(listener, %error, failures, "accept still fails");
                let pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                Trouble { failures: failures.saturating_add(1), last: Instant::now(), pause }
            }
            None => {
                warn!(
                    listener,
                    %error,
                    "accept failed; trying again, with pauses of up to {} s{}",
                    LONGEST_PAUSE.as_secs(),
                    if out_of_descriptors(error) { "; raise the limit of open files (RLIMIT_NOFILE)" } else { "" },
                );
                Trouble { failures: 1, last: Instant::now(), pause: FIRST_PAUSE }
            }
        };
        self.trouble.insert(trouble).pause
    }

    /// Accept has worked.
    pub(super) fn succeeded(&mut self) {
        if let Some(trouble) = self.trouble.take_if(|trouble| trouble.last.elapsed() >= CALM) {
            info!(listener = self.listener, failures = trouble.failures, "accept works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_a_second_and_start_anew_after_a_calm() {
        let error = io::Error::from(Errno::MFILE);
        assert!(out_of_descriptors(&error));
        let mut failures = Failures::new("test");
        let pauses: Vec<_> = (0..9).map(|_| failures.failed(&error).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);

        // A single success amid failures changes nothing.
        failures.succeeded();
        assert_eq!(failures.failed(&error), LONGEST_PAUSE);

        tokio::time::advance(CALM).await;
        failures.succeeded();
        assert_eq!(failures.failed(&error), FIRST_PAUSE);
    }
}
