use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use notify::event::{CreateKind, DataChange, Flag, ModifyKind};

use super::*;

fn watch_set() -> WatchSet {
    WatchSet {
        directories: [PathBuf::from("/d")].into_iter().collect(),
        names: ["c.yaml".into()].into_iter().collect(),
    }
}

#[test]
fn reads_and_other_files_are_not_relevant() {
    let read = Event::new(EventKind::Access(AccessKind::Open(AccessMode::Any))).add_path("/d/c.yaml".into());
    assert!(!is_relevant(&read, &watch_set()));
    let read =
        Event::new(EventKind::Access(AccessKind::Close(AccessMode::Read))).add_path("/d/c.yaml".into());
    assert!(!is_relevant(&read, &watch_set()));
    let other = Event::new(EventKind::Create(CreateKind::File)).add_path("/d/other".into());
    assert!(!is_relevant(&other, &watch_set()));
}

#[test]
fn writes_are_relevant() {
    let modify = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    assert!(is_relevant(&Event::new(modify).add_path("/d/c.yaml".into()), &watch_set()));
    assert!(is_relevant(&Event::new(modify).add_path("/bind/c.yaml".into()), &watch_set()));
    assert!(is_relevant(&Event::new(modify).add_path("/d".into()), &watch_set()));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    assert!(is_relevant(&Event::new(closed).add_path("/d/c.yaml".into()), &watch_set()));
    assert!(is_relevant(&Event::new(EventKind::Other).set_flag(Flag::Rescan), &watch_set()));
}

/// Behaves as `notify` does after its thread has ended.
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

/// Records the directories that are watched (true) and unwatched (false).
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
fn a_directory_that_was_replaced_is_unwatched_first() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&calls);
    let make_watcher: MakeWatcher = Arc::new(move |_| Ok(Box::new(Recorder(Arc::clone(&recorded)))));
    let mut notifier = Notifier::new(make_watcher, Arc::default());
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    let (old, here) = (base.join("old"), base.join("here"));
    let mut update = |path: &Path| {
        let mut set = WatchSet::default();
        set.add_path(&path.join("c.yaml"));
        notifier.update(&set).unwrap();
        std::mem::take(&mut *calls.lock().unwrap())
    };
    fs::create_dir(&here).unwrap();
    assert_eq!(update(&here), [(true, here.clone())]);
    assert_eq!(update(&here), [(true, here.clone())]);
    fs::rename(&here, &old).unwrap();
    fs::create_dir(&here).unwrap();
    assert_eq!(update(&here), [(false, here.clone()), (true, here.clone())]);
    assert_eq!(update(&base), [(false, here.clone()), (true, base)]);
}

#[test]
fn a_watcher_that_panics_is_an_error_and_is_replaced() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let make_watcher: MakeWatcher = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Dead))
    });
    let mut notifier = Notifier::new(make_watcher, Arc::default());
    let dir = tempfile::tempdir().unwrap();
    let mut set = WatchSet::default();
    set.add_path(&dir.path().join("c.yaml"));
    assert!(notifier.update(&set).is_err());
    assert!(notifier.update(&set).is_err());
    assert_eq!(made.load(Ordering::Relaxed), 2);
}

#[test]
fn dropping_a_watcher_that_panics_does_not_panic_even_during_another_panic() {
    drop(GuardedWatcher(Some(Box::new(Dead))));
    let unwound = catch_unwind(|| {
        let _guarded = GuardedWatcher(Some(Box::new(Dead)));
        panic!("outer");
    });
    assert!(unwound.is_err());
}
