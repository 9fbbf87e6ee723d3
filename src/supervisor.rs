//! Notifies systemd, if the unit has `Type=notify` (`NOTIFY_SOCKET`) or `WatchdogSec=` (`WATCHDOG_USEC`).
//!
//! Source: sd_notify(3), sd_watchdog_enabled(3).

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

/// Notifies systemd that the sockets are served.
///
/// It does not wait for Vault. A unit that is ordered after this one needs a listener, and Vault may
/// depend on such a unit: waiting could be a deadlock.
pub(crate) async fn ready() {
    notify(NotifyState::Ready).await;
}

/// Notifies systemd that the process is stopping.
pub(crate) async fn stopping() {
    notify(NotifyState::Stopping).await;
}

/// Notifies the watchdog of systemd while `live` returns true: twice within the time after which systemd
/// restarts the process. Never returns.
///
/// Must run on the runtime that serves calls, so that a stuck runtime stops the notifications.
pub(crate) async fn watchdog(live: impl Fn() -> bool) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(timeout) => notify_while_live(timeout, live, async || notify(NotifyState::Watchdog).await).await,
        None => std::future::pending().await,
    }
}

async fn notify_while_live(timeout: Duration, live: impl Fn() -> bool, notify: impl AsyncFn()) -> Infallible {
    let mut ticks = interval((timeout / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_warned = false;
    loop {
        ticks.tick().await;
        if live() {
            notify().await;
        } else if !has_warned {
            has_warned = true;
            warn!(
                "/livez fails: the watchdog gets no notification any more, and systemd will restart transit-kms"
            );
        }
    }
}

/// Sends a notification on another thread: the write blocks while systemd does not read.
async fn notify(state: NotifyState<'static>) {
    let sent = tokio::task::spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(std::slice::from_ref(&state)) {
            debug!(%error, %state, "cannot notify systemd");
        }
    });
    drop(sent.await);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_notified_twice_per_timeout_and_only_while_livez_succeeds() {
        let (alive, notified) = (Cell::new(true), Cell::new(0));
        let notifying = notify_while_live(
            Duration::from_secs(10),
            || alive.get(),
            async || notified.set(notified.get() + 1),
        );
        let mut notifying = std::pin::pin!(notifying);
        // At the start, and every five seconds.
        assert!(timeout(Duration::from_secs(21), notifying.as_mut()).await.is_err());
        assert_eq!(notified.get(), 5);
        alive.set(false);
        assert!(timeout(Duration::from_secs(60), notifying.as_mut()).await.is_err());
        assert_eq!(notified.get(), 5);
    }
}
