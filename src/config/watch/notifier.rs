//! Reports file events, through the `notify` crate.
//!
//! An event is a hint only, and a read follows it. A missed event delays the read until the next poll, and a wrong
//! one costs a read. But `notify` must not end the process: it panics, in `watch` and again in `Drop`, if its
//! thread is gone. Its thread cannot start when a limit of threads is reached. Therefore panics are caught here.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{
    Event, EventKind, RecursiveMode,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

use super::watch_set::WatchSet;

/// Handles each event, on the thread of `notify`.
pub(super) type EventHandler = Box<dyn FnMut(notify::Result<Event>) + Send>;

/// Makes a `notify` watcher. Tests make it fail.
pub(super) type MakeWatcher =
    Arc<dyn Fn(EventHandler) -> notify::Result<Box<dyn notify::Watcher + Send>> + Send + Sync>;

/// Makes a watcher that uses inotify.
pub(super) fn inotify() -> MakeWatcher {
    Arc::new(|handler| {
        let watcher = notify::recommended_watcher(handler)?;
        Ok(Box::new(watcher) as Box<dyn notify::Watcher + Send>)
    })
}

/// Keeps watches on the directories of a [`WatchSet`].
pub(super) struct Notifier {
    hints: Arc<Notify>,
    make_watcher: MakeWatcher,
    /// The event handler reads it.
    set: Arc<Mutex<WatchSet>>,
    /// The watched directories, each with its device and inode at the time of the call.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    watcher: Option<GuardedWatcher>,
}

impl Notifier {
    /// Notifies `hints` of events in the watched directories.
    pub(super) fn new(make_watcher: MakeWatcher, hints: Arc<Notify>) -> Self {
        Self { hints, make_watcher, set: Arc::default(), watched: BTreeMap::new(), watcher: None }
    }

    /// Watches the directories of `set`, and no others.
    ///
    /// Must be called before every read, also with the same set: a directory that was deleted and created again
    /// has no watch, even if it has the same inode. Setting a watch that exists already costs nothing.
    ///
    /// # Errors
    /// If not all directories can be watched. The next call tries again.
    pub(super) fn update(&mut self, set: &WatchSet) -> Result<(), NotifyError> {
        set.clone_into(&mut self.set.lock().unwrap_or_else(PoisonError::into_inner));
        let mut watcher = match self.watcher.take() {
            Some(watcher) => watcher,
            None => {
                self.watched.clear();
                self.start()?
            }
        };
        self.watched.retain(|directory, was| {
            let keep = set.directories.contains(directory) && identity(directory) == Some(*was);
            if !keep {
                watcher.unwatch(directory);
            }
            keep
        });
        let mut result = Ok(());
        for directory in &set.directories {
            let Some(identity) = identity(directory) else {
                continue;
            };
            match watcher.watch(directory) {
                Ok(()) => drop(self.watched.insert(directory.clone(), identity)),
                // The watcher is dropped, so that the next call makes another one.
                Err(NotifyError::Panicked) => return Err(NotifyError::Panicked),
                Err(error) if error.is_not_found() => {}
                Err(error) => result = Err(error),
            }
        }
        self.watcher = Some(watcher);
        result
    }

    fn start(&self) -> Result<GuardedWatcher, NotifyError> {
        let (hints, set) = (Arc::clone(&self.hints), Arc::clone(&self.set));
        let handler: EventHandler = Box::new(move |event| {
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| is_relevant(&event, &set)) {
                hints.notify_one();
            }
        });
        match catch_unwind(AssertUnwindSafe(|| (self.make_watcher)(handler))) {
            Ok(Ok(watcher)) => Ok(GuardedWatcher(Some(watcher))),
            Ok(Err(error)) => Err(NotifyError::Start(error)),
            Err(_) => Err(NotifyError::Panicked),
        }
    }
}

/// Why directories cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotifyError {
    #[error("the thread that receives file events has ended or could not start")]
    Panicked,
    #[error("{}", message(.0))]
    Start(#[source] notify::Error),
    #[error("{}: {}", .directory.display(), message(.source))]
    Watch { directory: PathBuf, source: notify::Error },
}

impl NotifyError {
    /// The directory disappeared before it could be watched. The next read watches its parent.
    fn is_not_found(&self) -> bool {
        let Self::Watch { source, .. } = self else { return false };
        match &source.kind {
            notify::ErrorKind::PathNotFound => true,
            notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// `notify` adds the paths to its messages; here, they are the caller's part.
fn message(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the limit of inotify watches is reached (fs.inotify.max_user_watches)".to_owned()
        }
        notify::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

/// Returns whether an event is a reason to read.
///
/// Each read of this process opens and closes the files, so those events would cause a loop. This process never
/// writes the files, so a close after a write is relevant.
fn is_relevant(event: &Event, set: &WatchSet) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        EventKind::Access(_) => return false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Other
        | EventKind::Remove(_) => {}
    }
    // Names are compared, not paths: a directory can have several paths (bind mounts), and the event has only
    // one of them.
    event.need_rescan()
        || event.paths.is_empty()
        || event.paths.iter().any(|path| {
            path.file_name().is_none_or(|name| set.names.contains(name)) || set.directories.contains(path)
        })
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()))
}

/// A watcher whose panics are caught. Empty after a panic.
struct GuardedWatcher(Option<Box<dyn notify::Watcher + Send>>);

impl GuardedWatcher {
    fn watch(&mut self, directory: &Path) -> Result<(), NotifyError> {
        match self.call(|watcher| watcher.watch(directory, RecursiveMode::NonRecursive)) {
            None => Err(NotifyError::Panicked),
            Some(result) => {
                result.map_err(|source| NotifyError::Watch { directory: directory.to_owned(), source })
            }
        }
    }

    /// Errors are ignored: the kernel removes the watch of a deleted directory itself.
    fn unwatch(&mut self, directory: &Path) {
        let _ = self.call(|watcher| watcher.unwatch(directory));
    }

    fn call<T>(&mut self, f: impl FnOnce(&mut (dyn notify::Watcher + Send)) -> T) -> Option<T> {
        let watcher = self.0.as_deref_mut()?;
        match catch_unwind(AssertUnwindSafe(|| f(watcher))) {
            Ok(result) => Some(result),
            Err(_) => {
                // Dropping it would panic again, because its thread is gone.
                std::mem::forget(self.0.take());
                None
            }
        }
    }
}

impl Drop for GuardedWatcher {
    fn drop(&mut self) {
        let watcher = self.0.take();
        // A panic that leaves `drop` during another panic aborts the process.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    }
}

#[cfg(test)]
mod tests;
