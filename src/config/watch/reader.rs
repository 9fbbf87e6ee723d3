//! Reads the config and keeps the watches on its files. All calls block.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::{
    Observation, WatchOptions,
    notifier::{MakeWatcher, Notifier},
    watch_set::WatchSet,
};
use crate::config::{
    ConfigSource,
    load::{Loaded, load_blocking},
};

/// The directories are read again at most this often in one read of the config.
const MAX_ROUNDS: usize = 4;

pub(super) struct ConfigReader {
    /// The files that the config names; none if the config cannot be parsed.
    files: Vec<PathBuf>,
    notifier: Notifier,
    options: WatchOptions,
    /// Not all files can be watched, so the polls must find their changes. This has been logged.
    polling_only: bool,
    source: ConfigSource,
}

impl ConfigReader {
    pub(super) fn new(
        source: ConfigSource,
        options: WatchOptions,
        make_watcher: MakeWatcher,
        hints: Arc<Notify>,
    ) -> Self {
        Self {
            files: Vec::new(),
            notifier: Notifier::new(make_watcher, hints),
            options,
            polling_only: false,
            source,
        }
    }

    /// Sets the watches before it reads, so that no change between the two is missed. If the paths lead to other
    /// directories afterwards, both are repeated. After [`MAX_ROUNDS`], the next event or poll finds the change.
    pub(super) fn read(&mut self) -> Observation {
        let mut set = self.watch_set();
        let mut rounds = 0;
        loop {
            self.update_watches(&set);
            let Loaded { result, files } = load_blocking(&self.source, self.options.parse);
            self.files = files;
            let new_set = self.watch_set();
            rounds += 1;
            if new_set == set || rounds == MAX_ROUNDS {
                return result;
            }
            set = new_set;
        }
    }

    fn watch_set(&self) -> WatchSet {
        let mut set = WatchSet::default();
        for path in self.files.iter().map(PathBuf::as_path).chain(self.source.file()) {
            set.add_path(path);
        }
        set
    }

    fn update_watches(&mut self, set: &WatchSet) {
        let path = self.source.name().display();
        match (self.notifier.update(set), self.polling_only) {
            (Ok(()), false) => {}
            (Ok(()), true) => {
                info!(%path, "config changes are noticed immediately again");
                self.polling_only = false;
            }
            (Err(cause), false) => {
                warn!(
                    %path,
                    %cause,
                    every = ?self.options.poll_interval,
                    "config changes are not all noticed immediately; the files are polled",
                );
                self.polling_only = true;
            }
            (Err(cause), true) => debug!(%path, %cause, "the config files are still polled"),
        }
    }
}
