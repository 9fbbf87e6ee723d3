//! Hints that something may have changed: the `notify` crate, made harmless.
//!
//! A hint is never believed, only followed by a read, so a lost one costs the
//! time to the next poll and a false one costs a read. What must not happen is
//! that the machinery takes the process down: `notify` panics, in `watch` and
//! again in `Drop`, once its thread is gone (it cannot be started when a limit
//! on threads is reached), hence the guards.

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

use super::watch_set::Places;

/// What `notify` calls with each event, on its own thread.
pub(super) type Handler = Box<dyn FnMut(notify::Result<Event>) + Send>;

/// How a `notify` watcher is made; tests make it fail.
pub(super) type Make = Arc<dyn Fn(Handler) -> notify::Result<Box<dyn notify::Watcher + Send>> + Send + Sync>;

/// Inotify on Linux.
pub(super) fn system() -> Make {
    Arc::new(|handler| {
        let watcher = notify::recommended_watcher(handler)?;
        Ok(Box::new(watcher) as Box<dyn notify::Watcher + Send>)
    })
}

/// Keeps watches on the right directories, as far as it can.
pub(super) struct Notifier {
    make: Make,
    hints: Arc<Notify>,
    /// What the handler compares events with.
    places: Arc<Mutex<Places>>,
    watcher: Option<Guarded>,
    /// Which directory a path was when its watch was made: device and inode.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Notifier {
    /// Wakes `hints` when something happens at the places.
    pub(super) fn new(make: Make, hints: Arc<Notify>) -> Self {
        Self { make, hints, places: Arc::default(), watcher: None, watched: BTreeMap::new() }
    }

    /// Watches these places and no others.
    ///
    /// To be called before every read, also when the places are the same: a
    /// directory that was deleted and made anew has lost its watch, even if it
    /// got its old inode back, and a watch that is there already costs nothing.
    ///
    /// # Errors
    /// Why not all of them are watched. The next call tries again.
    pub(super) fn arm(&mut self, places: &Places) -> Result<(), String> {
        places.clone_into(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner));
        let mut watcher = match self.watcher.take() {
            Some(watcher) => watcher,
            None => {
                self.watched.clear();
                self.start()?
            }
        };
        let mut trouble = Ok(());
        self.watched.retain(|directory, was| {
            let stays = places.directories.contains(directory) && identity(directory) == Some(*was);
            if !stays {
                watcher.forget(directory);
            }
            stays
        });
        for directory in &places.directories {
            let Some(identity) = identity(directory) else {
                continue;
            };
            match watcher.watch(directory) {
                Ok(()) => drop(self.watched.insert(directory.clone(), identity)),
                Err(Refusal::Gone) => {}
                // The watcher is not put back, so that the next call makes another.
                Err(Refusal::Broken) => return Err("the thread that listens for events is gone".to_owned()),
                Err(Refusal::Other(error)) => trouble = Err(error),
            }
        }
        self.watcher = Some(watcher);
        trouble
    }

    fn start(&self) -> Result<Guarded, String> {
        let (hints, places) = (Arc::clone(&self.hints), Arc::clone(&self.places));
        let handler: Handler = Box::new(move |event| {
            let places = places.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| matters(&event, &places)) {
                hints.notify_one();
            }
        });
        match catch_unwind(AssertUnwindSafe(|| (self.make)(handler))) {
            Ok(Ok(watcher)) => Ok(Guarded(Some(watcher))),
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => Err("the thread that listens for events could not be started".to_owned()),
        }
    }
}

/// Whether an event is a reason to read.
///
/// Our own reads open and close the files, so those events would make a loop;
/// a close after writing is never ours.
fn matters(event: &Event, places: &Places) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        EventKind::Access(_) => return false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Other
        | EventKind::Remove(_) => {}
    }
    // Names, not paths: one directory can have several paths (bind mounts), and the event has
    // only one of them.
    event.need_rescan()
        || event.paths.is_empty()
        || event.paths.iter().any(|path| {
            path.file_name().is_none_or(|name| places.names.contains(name))
                || places.directories.contains(path)
        })
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()))
}

fn words(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the limit of inotify watches is reached (fs.inotify.max_user_watches)".to_owned()
        }
        notify::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

enum Refusal {
    Broken,
    Gone,
    Other(String),
}

/// A watcher whose panics end here. Empty once it has panicked.
struct Guarded(Option<Box<dyn notify::Watcher + Send>>);

impl Guarded {
    fn watch(&mut self, directory: &Path) -> Result<(), Refusal> {
        match self.call(|watcher| watcher.watch(directory, RecursiveMode::NonRecursive)) {
            None => Err(Refusal::Broken),
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => match &error.kind {
                notify::ErrorKind::PathNotFound => Err(Refusal::Gone),
                notify::ErrorKind::Io(io) if io.kind() == std::io::ErrorKind::NotFound => Err(Refusal::Gone),
                _ => Err(Refusal::Other(format!("{}: {}", directory.display(), words(&error)))),
            },
        }
    }

    /// The kernel may have forgotten it already; that is no error.
    fn forget(&mut self, directory: &Path) {
        let _ = self.call(|watcher| watcher.unwatch(directory));
    }

    fn call<T>(&mut self, what: impl FnOnce(&mut (dyn notify::Watcher + Send)) -> T) -> Option<T> {
        let watcher = self.0.as_deref_mut()?;
        match catch_unwind(AssertUnwindSafe(|| what(watcher))) {
            Ok(result) => Some(result),
            Err(_) => {
                // Its thread is gone: dropping it would panic again.
                std::mem::forget(self.0.take());
                None
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let watcher = self.0.take();
        // A panic that leaves `drop` while another one unwinds would abort the process.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use notify::event::{CreateKind, DataChange, Flag, ModifyKind};

    use super::*;

    fn places() -> Places {
        Places {
            directories: [PathBuf::from("/d")].into_iter().collect(),
            names: ["c.yaml".into()].into_iter().collect(),
        }
    }

    #[test]
    fn our_own_reads_and_the_neighbours_are_no_hints() {
        let read =
            Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/d/c.yaml".into());
        assert!(!matters(&read, &places()));
        let read =
            Event::new(EventKind::Access(AccessKind::Close(AccessMode::Read))).add_path("/d/c.yaml".into());
        assert!(!matters(&read, &places()));
        let neighbour = Event::new(EventKind::Create(CreateKind::File)).add_path("/d/other".into());
        assert!(!matters(&neighbour, &places()));
    }

    #[test]
    fn what_others_write_is_a_hint() {
        let modify = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(matters(&Event::new(modify).add_path("/d/c.yaml".into()), &places()));
        assert!(matters(&Event::new(modify).add_path("/bind/c.yaml".into()), &places()));
        assert!(matters(&Event::new(modify).add_path("/d".into()), &places()));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(matters(&Event::new(closed).add_path("/d/c.yaml".into()), &places()));
        assert!(matters(&Event::new(EventKind::Other).set_flag(Flag::Rescan), &places()));
    }

    /// As `notify` is once its thread has gone.
    #[derive(Debug)]
    struct Dead;

    impl notify::Watcher for Dead {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self)
        }

        fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
            panic!("the thread is gone");
        }

        fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
            panic!("the thread is gone");
        }

        fn kind() -> notify::WatcherKind {
            notify::WatcherKind::NullWatcher
        }
    }

    impl Drop for Dead {
        fn drop(&mut self) {
            panic!("the thread is gone");
        }
    }

    /// Tells which directories it is asked to watch (true) and to forget (false).
    #[derive(Debug)]
    struct Recorder(Arc<Mutex<Vec<(bool, PathBuf)>>>);

    impl notify::Watcher for Recorder {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self(Arc::default()))
        }

        fn watch(&mut self, path: &Path, _: RecursiveMode) -> notify::Result<()> {
            self.0.lock().unwrap().push((true, path.to_owned()));
            Ok(())
        }

        fn unwatch(&mut self, path: &Path) -> notify::Result<()> {
            self.0.lock().unwrap().push((false, path.to_owned()));
            Ok(())
        }

        fn kind() -> notify::WatcherKind {
            notify::WatcherKind::NullWatcher
        }
    }

    #[test]
    fn a_directory_that_was_replaced_is_forgotten_first() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&calls);
        let make: Make = Arc::new(move |_| Ok(Box::new(Recorder(Arc::clone(&recorded)))));
        let mut notifier = Notifier::new(make, Arc::default());
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (old, here) = (base.join("old"), base.join("here"));
        let mut arm = |path: &Path| {
            let mut places = Places::default();
            places.add_way_to(&path.join("c.yaml"));
            notifier.arm(&places).unwrap();
            std::mem::take(&mut *calls.lock().unwrap())
        };
        fs::create_dir(&here).unwrap();
        assert_eq!(arm(&here), [(true, here.clone())]);
        assert_eq!(arm(&here), [(true, here.clone())]);
        fs::rename(&here, &old).unwrap();
        fs::create_dir(&here).unwrap();
        assert_eq!(arm(&here), [(false, here.clone()), (true, here.clone())]);
        assert_eq!(arm(&base), [(false, here.clone()), (true, base)]);
    }

    #[test]
    fn a_watcher_that_panics_is_an_error_and_is_replaced() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let make: Make = Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Dead))
        });
        let mut notifier = Notifier::new(make, Arc::default());
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::default();
        places.add_way_to(&dir.path().join("c.yaml"));
        assert!(notifier.arm(&places).is_err());
        assert!(notifier.arm(&places).is_err());
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn dropping_a_watcher_that_panics_is_quiet_even_while_unwinding() {
        drop(Guarded(Some(Box::new(Dead))));
        let unwound = catch_unwind(|| {
            let _guarded = Guarded(Some(Box::new(Dead)));
            panic!("outer");
        });
        assert!(unwound.is_err());
    }
}
