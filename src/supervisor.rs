//! What systemd is told, if it asked to be: `NOTIFY_SOCKET`, `WATCHDOG_USEC`.
//!
//! Source: sd_notify(3), sd_watchdog_enabled(3).

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

/// The sockets are served. That Vault is there is not said by it: whoever is ordered after us needs a
/// listener, and gets a reason from it at worst; waiting for Vault could be waiting for them.
pub(crate) async fn ready() {
    tell(NotifyState::Ready).await;
}

/// We are on our way out.
pub(crate) async fn stopping() {
    tell(NotifyState::Stopping).await;
}

/// Shows that we live, twice in the time after which systemd restarts us, as long as `live` says so.
/// Never returns. Must run where a runtime that is stuck would keep it from turning.
pub(crate) async fn watchdog(live: impl Fn() -> bool) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(patience) => feed(patience, live, async || tell(NotifyState::Watchdog).await).await,
        None => std::future::pending().await,
    }
}

async fn feed(patience: Duration, live: impl Fn() -> bool, tell: impl AsyncFn()) -> Infallible {
    let mut beats = interval((patience / 2).max(Duration::from_millis(1)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        beats.tick().await;
        if live() {
            tell().await;
        } else if !told {
            told = true;
            warn!("/livez fails: the watchdog is not told that all is well, and will have us restarted");
        }
    }
}

/// On another thread: the write waits for as long as systemd does not read.
async fn tell(state: NotifyState<'static>) {
    let told = tokio::task::spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(std::slice::from_ref(&state)) {
            debug!(%error, %state, "systemd could not be told");
        }
    });
    drop(told.await);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_of_us_twice_in_its_time_and_only_while_we_live() {
        let (alive, heard) = (Cell::new(true), Cell::new(0));
        let feeding = feed(Duration::from_secs(10), || alive.get(), async || heard.set(heard.get() + 1));
        let mut feeding = std::pin::pin!(feeding);
        // At once, and every five seconds.
        assert!(timeout(Duration::from_secs(21), feeding.as_mut()).await.is_err());
        assert_eq!(heard.get(), 5);
        alive.set(false);
        assert!(timeout(Duration::from_secs(60), feeding.as_mut()).await.is_err());
        assert_eq!(heard.get(), 5);
    }
}
