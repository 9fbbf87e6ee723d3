//! Notices changes of the config file.
//!
//! ```text
//! event, poll, reload request -> debounce -> ConfigReader: set watches, read, hash
//!                                         -> publish an Observation, if it differs from the last one
//! ```
//!
//! Events are hints only: the result of a read decides. Without events, the polls find every change, but later.

mod debounce;
mod notifier;
mod reader;
mod task;
mod watch_set;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::{reader::ConfigReader, task::Task};
use super::{ConfigError, ConfigSource, load::LoadedConfig, parse::ParseOptions};

/// The result of reading the config.
pub type Observation = Result<LoadedConfig, ConfigError>;

type ReloadRequest = oneshot::Sender<Option<Arc<Observation>>>;

/// When the config is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WatchOptions {
    /// The flags that change the rules of the file.
    pub parse: ParseOptions,
    /// The interval of reads without an event.
    pub poll_interval: Duration,
    /// A burst of events is over after this time without an event.
    pub quiet: Duration,
    /// The maximum time from the first event of a burst to the read.
    pub max_delay: Duration,
}

impl Default for WatchOptions {
    /// Polls every 5 s. Reads 250 ms after the last event of a burst, and at most 1 s after the first one.
    fn default() -> Self {
        Self {
            parse: ParseOptions::default(),
            poll_interval: Duration::from_secs(5),
            quiet: Duration::from_millis(250),
            max_delay: Duration::from_secs(1),
        }
    }
}

/// Watches a config and the files that it names, until the [`Watcher`] is dropped. Must be called on a tokio
/// runtime.
///
/// The first observation is made immediately and always published. After that, an observation is published only
/// if it differs from the last one: not after a touch, and not if the same error occurs again. If only the
/// warnings or the login material differ, for example after a change of a file's mode, the observation has the same
/// fingerprint as the last one. New warnings are also logged.
///
/// A new error is published only if a second read, `quiet` later, also fails: a program that writes the file in
/// place first truncates it.
#[must_use]
pub fn watch(source: impl Into<ConfigSource>, options: WatchOptions) -> Watcher {
    watch_with(source, options, notifier::inotify())
}

fn watch_with(
    source: impl Into<ConfigSource>,
    options: WatchOptions,
    make_watcher: notifier::MakeWatcher,
) -> Watcher {
    let source = source.into().into_absolute();
    let hints = Arc::new(Notify::new());
    let (observations, receiver) = watch::channel(None);
    let (requests, inbox) = mpsc::channel(64);
    #[cfg(test)]
    let reads = watch::channel(0).0;
    let task = Task {
        hints: Arc::clone(&hints),
        inbox,
        last_published: None,
        observations,
        options,
        pending_error: None,
        reader: Some(ConfigReader::new(source.clone(), options, make_watcher.clone(), hints)),
        make_watcher,
        requests: Vec::new(),
        source,
        #[cfg(test)]
        reads: reads.clone(),
    };
    tokio::spawn(task.run());
    Watcher {
        receiver,
        reload_handle: ReloadHandle { requests },
        #[cfg(test)]
        reads,
    }
}

/// The receiver of observations. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    receiver: watch::Receiver<Option<Arc<Observation>>>,
    reload_handle: ReloadHandle,
    #[cfg(test)]
    reads: watch::Sender<usize>,
}

impl Watcher {
    /// Waits for an observation that this method has not returned yet, and returns the latest one. Returns
    /// `None` only if the runtime is shutting down.
    ///
    /// Cancel safe.
    pub async fn changed(&mut self) -> Option<Arc<Observation>> {
        self.receiver.changed().await.ok()?;
        self.receiver.borrow_and_update().clone()
    }

    /// Returns the latest observation; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<Observation>> {
        self.receiver.borrow().clone()
    }

    /// Returns a function that returns the latest [`warnings`](super::Config::warnings).
    pub fn warnings(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let receiver = self.receiver.clone();
        move || match receiver.borrow().as_deref() {
            Some(Ok(loaded)) => loaded.config.warnings.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns a handle that requests reloads.
    #[must_use]
    pub fn reload_handle(&self) -> ReloadHandle {
        self.reload_handle.clone()
    }
}

/// Requests reloads, for example because the token in use has become invalid.
#[derive(Clone, Debug)]
pub struct ReloadHandle {
    requests: mpsc::Sender<ReloadRequest>,
}

impl ReloadHandle {
    /// Waits until the watch has ended: the runtime is shutting down, or the watch has panicked.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Reads the config immediately and returns the latest observation. At that time, [`Watcher::changed`]
    /// returns it too. Concurrent callers share one read. Returns `None` if the watch has ended.
    ///
    /// Takes about a millisecond, and `quiet` longer if the read finds a new error, which a second read has to
    /// confirm.
    pub async fn reload(&self) -> Option<Arc<Observation>> {
        let (request, answer) = oneshot::channel();
        self.requests.send(request).await.ok()?;
        answer.await.ok()?
    }
}

#[cfg(test)]
mod tests;
