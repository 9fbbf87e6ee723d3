//! The task of a watch: decides when to read and what to publish.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    Observation, ReloadRequest, WatchOptions, debounce::Debounce, notifier::MakeWatcher, reader::ConfigReader,
};
use crate::config::{ConfigError, ConfigSource, Fingerprint, load};

/// What the next observation is compared with.
pub(super) enum LastPublished {
    Error(ConfigError),
    Config { fingerprint: Fingerprint, material: Fingerprint, warnings: Vec<String> },
}

pub(super) struct Task {
    pub(super) hints: Arc<Notify>,
    pub(super) inbox: mpsc::Receiver<ReloadRequest>,
    pub(super) last_published: Option<LastPublished>,
    pub(super) make_watcher: MakeWatcher,
    pub(super) observations: watch::Sender<Option<Arc<Observation>>>,
    pub(super) options: WatchOptions,
    /// When an error was first seen that is not published yet.
    pub(super) pending_error: Option<Instant>,
    /// `None` while a blocking thread uses it.
    pub(super) reader: Option<ConfigReader>,
    #[cfg(test)]
    pub(super) reads: watch::Sender<usize>,
    /// Requests that the next observation answers.
    pub(super) requests: Vec<ReloadRequest>,
    pub(super) source: ConfigSource,
}

impl Task {
    pub(super) async fn run(mut self) {
        let mut debounce = Debounce::new(self.options.quiet, self.options.max_delay);
        // An interval of zero would panic.
        let period = self.options.poll_interval.max(Duration::from_millis(1));
        let mut poll = interval_at(Instant::now() + period, period);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.read().await.is_some() {
            loop {
                let second_read = self.pending_error.map(|since| since + self.options.quiet);
                let due = debounce.due().or(second_read);
                tokio::select! {
                    biased;
                    () = self.observations.closed() => return,
                    Some(request) = self.inbox.recv() => {
                        self.requests.push(request);
                        while let Ok(request) = self.inbox.try_recv() {
                            self.requests.push(request);
                        }
                        break;
                    }
                    // Before the hints, so that a flood of hints cannot delay the read.
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        debounce.clear();
                        break;
                    }
                    () = self.hints.notified() => debounce.touch(Instant::now()),
                    // During a burst of events, the read at its end replaces the poll.
                    _ = poll.tick(), if due.is_none() => break,
                }
            }
        }
    }

    /// Reads the config and handles the result. Returns `None` if the runtime is shutting down.
    async fn read(&mut self) -> Option<()> {
        let mut reader = self.reader.take().unwrap_or_else(|| {
            ConfigReader::new(
                self.source.clone(),
                self.options,
                self.make_watcher.clone(),
                Arc::clone(&self.hints),
            )
        });
        let read = tokio::task::spawn_blocking(move || {
            let observation = reader.read();
            (reader, observation)
        });
        let observation = match read.await {
            Ok((reader, observation)) => {
                self.reader = Some(reader);
                observation
            }
            Err(error) if error.is_panic() => Err(load::reader_panicked(self.source.name())),
            Err(_) => return None,
        };
        self.handle(observation);
        #[cfg(test)]
        self.reads.send_modify(|reads| *reads += 1);
        Some(())
    }

    fn handle(&mut self, observation: Observation) {
        let unchanged = match (&self.last_published, &observation) {
            (Some(LastPublished::Config { fingerprint, material, warnings }), Ok(loaded)) => {
                *fingerprint == loaded.fingerprint
                    && *material == loaded.material_fingerprint
                    && *warnings == loaded.config.warnings
            }
            (Some(LastPublished::Error(last)), Err(error)) => last == error,
            _ => false,
        };
        if unchanged {
            if let Err(error) = &observation {
                debug!(%error, "config still cannot be loaded");
            }
        } else {
            let now = Instant::now();
            let confirmed = self.pending_error.is_some_and(|since| now - since >= self.options.quiet);
            if let Err(error) = &observation
                && self.last_published.is_some()
                && !confirmed
            {
                debug!(%error, "config cannot be loaded; reading it a second time");
                self.pending_error.get_or_insert(now);
                return;
            }
            self.publish(observation);
        }
        self.pending_error = None;
        let latest = self.observations.borrow().clone();
        for request in self.requests.drain(..) {
            // Fails if the caller has stopped waiting.
            let _ = request.send(latest.clone());
        }
    }

    fn publish(&mut self, observation: Observation) {
        let path = self.source.name().display();
        self.last_published = Some(match &observation {
            Ok(loaded) => {
                let warnings = &loaded.config.warnings;
                let known: &[String] = match &self.last_published {
                    None => {
                        info!(%path, "config loaded");
                        &[]
                    }
                    Some(LastPublished::Config { fingerprint, material, warnings: known })
                        if *fingerprint == loaded.fingerprint && *material != loaded.material_fingerprint =>
                    {
                        info!(%path, "the login material has changed; the next login uses it");
                        known
                    }
                    Some(LastPublished::Config { fingerprint, warnings: known, .. })
                        if *fingerprint == loaded.fingerprint =>
                    {
                        info!(%path, warnings = warnings.len(), "config is unchanged, but its warnings have changed");
                        known
                    }
                    Some(LastPublished::Config { warnings: known, .. }) => {
                        info!(%path, "config changed");
                        known
                    }
                    Some(LastPublished::Error(_)) => {
                        info!(%path, "config can be loaded again");
                        &[]
                    }
                };
                for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
                    warn!(%warning, "config has a warning");
                }
                LastPublished::Config {
                    fingerprint: loaded.fingerprint,
                    material: loaded.material_fingerprint,
                    warnings: warnings.clone(),
                }
            }
            Err(error) => {
                warn!(%error, "config cannot be loaded");
                LastPublished::Error(error.clone())
            }
        });
        self.observations.send_replace(Some(Arc::new(observation)));
    }
}
