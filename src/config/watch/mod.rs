//! Sees every change of the rendered file, and nothing that is none.
//!
//! ```text
//! event, poll, reread -> debounce -> look: watch the places, read, hash
//!                                      -> differs from what was told last? tell it
//! ```
//!
//! Events are only hints; what counts is what a read finds. Polling alone
//! would do, only later.

mod debounce;
mod notifier;
mod watch_set;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tracing::{debug, info, warn};

use self::{debounce::Debounce, notifier::Notifier, watch_set::Places};
use super::{
    ConfigError,
    load::{self, Fingerprint, Look, Reading},
    parse::ParseOptions,
    settings::TlsFiles,
};

/// What was found on disk.
pub type Observation = Result<Reading, ConfigError>;

/// Times after which things are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WatchOptions {
    /// What flags say about the file.
    pub parse: ParseOptions,
    /// Without any event, read this often.
    pub poll_interval: Duration,
    /// After an event, wait until there has been none for this long.
    pub quiet: Duration,
    /// But never longer than this after the first one.
    pub patience: Duration,
}

impl Default for WatchOptions {
    /// Polls every 5 s; reads 250 ms after the last and at most 1 s after the first event.
    fn default() -> Self {
        Self {
            parse: ParseOptions::default(),
            poll_interval: Duration::from_secs(5),
            quiet: Duration::from_millis(250),
            patience: Duration::from_secs(1),
        }
    }
}

/// Watches a config file and all that it names, until the [`Watcher`] is
/// dropped. Must be called on a tokio runtime.
///
/// The first observation is made at once, and told whatever it is. After that,
/// only what differs is told: a file that was touched but not changed, or that
/// has the same error as before, is not. The warnings of a config are logged when
/// they change, which a change of the file's mode alone can bring about; they are
/// told too, in a reading with the same fingerprint. An error that follows on something
/// else is told only if it is still there at a second read, `quiet` later,
/// because writing in place begins with an empty file.
#[must_use]
pub fn watch(path: PathBuf, options: WatchOptions) -> Watcher {
    watch_with(path, options, notifier::system())
}

fn watch_with(path: PathBuf, options: WatchOptions, make: notifier::Make) -> Watcher {
    let path = std::path::absolute(&path).unwrap_or(path);
    let hints = Arc::new(Notify::new());
    let (observations, receiver) = watch::channel(None);
    let (requests, inbox) = mpsc::channel(64);
    #[cfg(test)]
    let looks = watch::channel(0).0;
    let task = Task {
        eye: Some(Eye::new(path.clone(), options, make.clone(), Arc::clone(&hints))),
        make,
        path,
        options,
        hints,
        observations,
        inbox,
        asked: Vec::new(),
        told: None,
        doubt: None,
        #[cfg(test)]
        looks: looks.clone(),
    };
    tokio::spawn(task.run());
    Watcher {
        receiver,
        rereader: Rereader { requests },
        #[cfg(test)]
        looks,
    }
}

/// The watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Watcher {
    receiver: watch::Receiver<Option<Arc<Observation>>>,
    rereader: Rereader,
    #[cfg(test)]
    looks: watch::Sender<usize>,
}

impl Watcher {
    /// The next observation that this has not returned yet; older ones than
    /// the latest are skipped. `None` only if the runtime is shutting down.
    ///
    /// Cancel safe.
    pub async fn changed(&mut self) -> Option<Arc<Observation>> {
        self.receiver.changed().await.ok()?;
        self.receiver.borrow_and_update().clone()
    }

    /// The latest observation; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<Observation>> {
        self.receiver.borrow().clone()
    }

    /// A look at the latest [`warnings`](super::Config::warnings), for as long as the watch lives.
    pub fn warnings(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let receiver = self.receiver.clone();
        move || match receiver.borrow().as_deref() {
            Some(Ok(reading)) => reading.config.warnings.clone(),
            _ => Vec::new(),
        }
    }

    /// A handle to ask for a read.
    #[must_use]
    pub fn rereader(&self) -> Rereader {
        self.rereader.clone()
    }
}

/// Asks for a read now, for whoever finds that what the file said no longer works.
#[derive(Clone, Debug)]
pub struct Rereader {
    requests: mpsc::Sender<oneshot::Sender<Option<Arc<Observation>>>>,
}

impl Rereader {
    /// Returns when the watch has ended, which only a bug or the end of the runtime makes it.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Reads without waiting for events to settle, and returns what is on disk,
    /// once [`Watcher::changed`] can return it too: compare it with what you
    /// have. Many callers at once share a read.
    ///
    /// Takes a millisecond, but `quiet` longer when it finds an error that is
    /// new, for then it looks twice. `None` if the watch has ended.
    pub async fn reread(&self) -> Option<Arc<Observation>> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(answer).await.ok()?;
        answered.await.ok()?
    }
}

/// What was told last.
enum Told {
    Bad(ConfigError),
    Good(Fingerprint, Vec<String>),
}

struct Task {
    /// With a blocking thread while it looks.
    eye: Option<Eye>,
    make: notifier::Make,
    path: PathBuf,
    options: WatchOptions,
    hints: Arc<Notify>,
    observations: watch::Sender<Option<Arc<Observation>>>,
    inbox: mpsc::Receiver<oneshot::Sender<Option<Arc<Observation>>>>,
    asked: Vec<oneshot::Sender<Option<Arc<Observation>>>>,
    told: Option<Told>,
    /// Since when an error has been seen that is not told yet.
    doubt: Option<Instant>,
    #[cfg(test)]
    looks: watch::Sender<usize>,
}

impl Task {
    async fn run(mut self) {
        let mut debounce = Debounce::new(self.options.quiet, self.options.patience);
        // An interval of zero would panic.
        let period = self.options.poll_interval.max(Duration::from_millis(1));
        let mut poll = interval_at(Instant::now() + period, period);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.look().await.is_some() {
            loop {
                let second_look = self.doubt.map(|since| since + self.options.quiet);
                let due = debounce.due().or(second_look);
                tokio::select! {
                    biased;
                    () = self.observations.closed() => return,
                    Some(answer) = self.inbox.recv() => {
                        self.asked.push(answer);
                        while let Ok(answer) = self.inbox.try_recv() {
                            self.asked.push(answer);
                        }
                        break;
                    }
                    // Before the hints: a flood of them must not keep it from its turn.
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        debounce.clear();
                        break;
                    }
                    () = self.hints.notified() => debounce.touch(Instant::now()),
                    // While a burst lasts, its own read is near and better timed.
                    _ = poll.tick(), if due.is_none() => break,
                }
            }
        }
    }

    /// Reads and tells. `None` if the runtime is shutting down.
    async fn look(&mut self) -> Option<()> {
        let mut eye = self.eye.take().unwrap_or_else(|| {
            Eye::new(self.path.clone(), self.options, self.make.clone(), Arc::clone(&self.hints))
        });
        let seen = tokio::task::spawn_blocking(move || {
            let observation = eye.look();
            (eye, observation)
        });
        let observation = match seen.await {
            Ok((eye, observation)) => {
                self.eye = Some(eye);
                observation
            }
            Err(error) if error.is_panic() => Err(load::crashed(&self.path)),
            Err(_) => return None,
        };
        self.consider(observation);
        #[cfg(test)]
        self.looks.send_modify(|looks| *looks += 1);
        Some(())
    }

    fn consider(&mut self, observation: Observation) {
        let known = match (&self.told, &observation) {
            (Some(Told::Good(fingerprint, warnings)), Ok(reading)) => {
                *fingerprint == reading.fingerprint && *warnings == reading.config.warnings
            }
            (Some(Told::Bad(told)), Err(error)) => told == error,
            _ => false,
        };
        if known {
            if let Err(error) = &observation {
                debug!(%error, "config still cannot be read");
            }
        } else {
            let now = Instant::now();
            let waited = self.doubt.is_some_and(|since| now - since >= self.options.quiet);
            if let Err(error) = &observation
                && self.told.is_some()
                && !waited
            {
                debug!(%error, "config cannot be read right now; looking once more");
                self.doubt.get_or_insert(now);
                return;
            }
            self.tell(observation);
        }
        self.doubt = None;
        let latest = self.observations.borrow().clone();
        for answer in self.asked.drain(..) {
            // Whoever asked may have given up.
            let _ = answer.send(latest.clone());
        }
    }

    fn tell(&mut self, observation: Observation) {
        let path = self.path.display();
        self.told = Some(match &observation {
            Ok(reading) => {
                let warnings = &reading.config.warnings;
                let known: &[String] = match &self.told {
                    None => {
                        info!(%path, "config read");
                        &[]
                    }
                    Some(Told::Good(fingerprint, known)) if *fingerprint == reading.fingerprint => {
                        info!(%path, warnings = warnings.len(), "config is the same, its warnings are not");
                        known
                    }
                    Some(Told::Good(_, known)) => {
                        info!(%path, "config changed");
                        known
                    }
                    Some(Told::Bad(_)) => {
                        info!(%path, "config can be read again");
                        &[]
                    }
                };
                for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
                    warn!(%warning, "config");
                }
                Told::Good(reading.fingerprint, warnings.clone())
            }
            Err(error) => {
                warn!(%error, "config cannot be read");
                Told::Bad(error.clone())
            }
        });
        self.observations.send_replace(Some(Arc::new(observation)));
    }
}

/// Looks at the disk; blocks.
struct Eye {
    path: PathBuf,
    options: WatchOptions,
    notifier: Notifier,
    /// The files that the config names; none while it cannot be understood.
    named: TlsFiles,
    /// Events are known not to come, and it has been said.
    deaf: bool,
}

impl Eye {
    fn new(path: PathBuf, options: WatchOptions, make: notifier::Make, hints: Arc<Notify>) -> Self {
        Self { path, options, notifier: Notifier::new(make, hints), named: TlsFiles::default(), deaf: false }
    }

    /// Watches first and reads then, so that nothing can change unseen between
    /// the two. If the read shows that the way to the files is another, or was
    /// changed meanwhile, both are done again; a file that changes faster than
    /// that is left to the next event.
    fn look(&mut self) -> Observation {
        let mut places = self.places();
        let mut rounds = 0;
        loop {
            self.arm(&places);
            let Look { outcome, named } = load::look(&self.path, self.options.parse);
            self.named = named;
            let now = self.places();
            rounds += 1;
            if now == places || rounds == 4 {
                return outcome;
            }
            places = now;
        }
    }

    fn places(&self) -> Places {
        let files = [&self.named.ca_file, &self.named.client_cert_file, &self.named.client_key_file];
        let mut places = Places::default();
        for path in files.into_iter().flatten().map(PathBuf::as_path).chain([self.path.as_path()]) {
            places.add_way_to(path);
        }
        places
    }

    fn arm(&mut self, places: &Places) {
        let path: &Path = &self.path;
        match (self.notifier.arm(places), self.deaf) {
            (Ok(()), false) => {}
            (Ok(()), true) => {
                info!(path = %path.display(), "changes of the config are noticed at once again");
                self.deaf = false;
            }
            (Err(cause), false) => {
                warn!(
                    path = %path.display(),
                    cause,
                    every = ?self.options.poll_interval,
                    "changes of the config cannot all be noticed at once; the files are polled",
                );
                self.deaf = true;
            }
            (Err(cause), true) => debug!(path = %path.display(), cause, "the config is still only polled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
        time::SystemTime,
    };

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::{ConfigErrorKind, Credentials};

    const DEADLINE: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_secs(3600);

    /// Polls never, so that whatever is found was found by an event.
    fn by_events() -> WatchOptions {
        WatchOptions {
            poll_interval: NEVER,
            quiet: Duration::from_millis(40),
            patience: Duration::from_millis(160),
            ..WatchOptions::default()
        }
    }

    /// For tests that must act between the two looks at an error.
    fn slowly() -> WatchOptions {
        WatchOptions { quiet: Duration::from_secs(1), patience: Duration::from_secs(4), ..by_events() }
    }

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn make_dir(&self, name: &str) {
            fs::create_dir_all(self.path(name)).unwrap();
        }

        fn write(&self, name: &str, token: &str) {
            fs::write(self.path(name), text(token)).unwrap();
        }

        /// As the agent does.
        fn rename_over(&self, name: &str, token: &str) {
            let path = self.path(name);
            let temporary = path.parent().unwrap().join("1234567890");
            fs::write(&temporary, text(token)).unwrap();
            fs::rename(temporary, path).unwrap();
        }

        /// As `ln -sfn` does.
        fn link_over(&self, target: &str, name: &str) {
            let temporary = self.path("link.tmp");
            symlink(target, &temporary).unwrap();
            fs::rename(temporary, self.path(name)).unwrap();
        }

        fn watch(&self, name: &str) -> Watcher {
            watch(self.path(name), by_events())
        }
    }

    fn text(token: &str) -> String {
        format!("address: https://v\nkeynames: k\ntoken: {token}\n")
    }

    async fn next(watcher: &mut Watcher) -> Arc<Observation> {
        timeout(DEADLINE, watcher.changed())
            .await
            .expect("an observation in time")
            .expect("a watch that lives")
    }

    async fn next_token(watcher: &mut Watcher) -> String {
        match &*next(watcher).await {
            Ok(reading) => token(reading),
            Err(error) => panic!("{error}"),
        }
    }

    async fn next_error(watcher: &mut Watcher) -> ConfigErrorKind {
        match &*next(watcher).await {
            Ok(reading) => panic!("token {}", token(reading)),
            Err(error) => error.kind,
        }
    }

    fn token(reading: &Reading) -> String {
        match &reading.config.credentials {
            Credentials::Token(token) => token.expose().to_owned(),
            Credentials::Unsupported { method } => panic!("{method}"),
        }
    }

    impl Watcher {
        fn looks(&self) -> usize {
            *self.looks.borrow()
        }

        async fn looked(&self, times: usize) {
            let mut looks = self.looks.subscribe();
            timeout(DEADLINE, looks.wait_for(|looks| *looks >= times)).await.expect("looks in time").unwrap();
        }

        fn has_news(&self) -> bool {
            self.receiver.has_changed().unwrap()
        }
    }

    #[tokio::test]
    async fn atomic_renames_are_seen_each_time() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        for token in ["t1", "t2", "t3"] {
            bench.rename_over("c.yaml", token);
            assert_eq!(next_token(&mut watcher).await, token);
        }
    }

    #[tokio::test]
    async fn projected_volumes_are_seen_each_time() {
        let bench = Bench::new();
        let version = |number: usize| {
            bench.make_dir(&format!("..v{number}"));
            bench.write(&format!("..v{number}/c.yaml"), &format!("t{number}"));
            bench.link_over(&format!("..v{number}"), "..data");
            if number > 0 {
                fs::remove_dir_all(bench.path(&format!("..v{}", number - 1))).unwrap();
            }
        };
        version(0);
        symlink("..data/c.yaml", bench.path("c.yaml")).unwrap();
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        for number in 1..4 {
            version(number);
            assert_eq!(next_token(&mut watcher).await, format!("t{number}"));
        }
    }

    #[tokio::test]
    async fn a_file_that_is_half_written_for_a_moment_is_not_an_error() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = watch(bench.path("c.yaml"), slowly());
        assert_eq!(next_token(&mut watcher).await, "t0");
        let text = text("t1");
        let (first, second) = text.split_at(text.len() / 2);
        let mut file = File::create(bench.path("c.yaml")).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        watcher.looked(2).await;
        file.write_all(second.as_bytes()).unwrap();
        assert_eq!(next_token(&mut watcher).await, "t1");
    }

    #[tokio::test]
    async fn a_file_that_stays_half_written_is_an_error_and_then_is_not() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        let mut file = File::create(bench.path("c.yaml")).unwrap();
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Invalid);
        assert!(watcher.looks() >= 3, "it looked twice before it told the error");
        file.write_all(text("t1").as_bytes()).unwrap();
        assert_eq!(next_token(&mut watcher).await, "t1");
        fs::write(bench.path("c.yaml"), text("t1")).unwrap();
        fs::write(bench.path("c.yaml"), text("t2")).unwrap();
        assert_eq!(next_token(&mut watcher).await, "t2");
    }

    #[tokio::test]
    async fn a_file_that_does_not_exist_yet_is_seen_when_it_does() {
        let bench = Bench::new();
        let mut watcher = bench.watch("not/yet/c.yaml");
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Absent);
        bench.make_dir("not");
        bench.make_dir("not/yet");
        bench.write("not/yet/c.yaml", "t1");
        assert_eq!(next_token(&mut watcher).await, "t1");
        bench.rename_over("not/yet/c.yaml", "t2");
        assert_eq!(next_token(&mut watcher).await, "t2");
        fs::remove_file(bench.path("not/yet/c.yaml")).unwrap();
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Absent);
        bench.write("not/yet/c.yaml", "t2");
        assert_eq!(next_token(&mut watcher).await, "t2");
    }

    #[tokio::test]
    async fn a_directory_that_is_made_anew_is_watched_anew() {
        let bench = Bench::new();
        bench.make_dir("d");
        bench.write("d/c.yaml", "t0");
        let mut watcher = bench.watch("d/c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        for round in ["a", "b", "c"] {
            fs::remove_dir_all(bench.path("d")).unwrap();
            assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Absent);
            bench.make_dir("d");
            bench.write("d/c.yaml", round);
            assert_eq!(next_token(&mut watcher).await, round);
            // At once, so that the directory may even get its old inode back.
            fs::remove_dir_all(bench.path("d")).unwrap();
            bench.make_dir("d");
            bench.write("d/c.yaml", &format!("{round}2"));
            assert_eq!(next_token(&mut watcher).await, format!("{round}2"));
            // And by renames, which leave the old one alive elsewhere.
            bench.make_dir("new");
            bench.write("new/c.yaml", &format!("{round}3"));
            fs::rename(bench.path("d"), bench.path(&format!("old-{round}"))).unwrap();
            fs::rename(bench.path("new"), bench.path("d")).unwrap();
            assert_eq!(next_token(&mut watcher).await, format!("{round}3"));
            bench.rename_over("d/c.yaml", &format!("{round}4"));
            assert_eq!(next_token(&mut watcher).await, format!("{round}4"));
        }
    }

    #[tokio::test]
    async fn a_symlink_is_followed_wherever_it_leads() {
        let bench = Bench::new();
        for dir in ["a", "b", "cfg"] {
            bench.make_dir(dir);
        }
        bench.write("a/rendered.yaml", "a0");
        bench.write("b/rendered.yaml", "b0");
        symlink("../a/rendered.yaml", bench.path("cfg/c.yaml")).unwrap();
        let mut watcher = bench.watch("cfg/c.yaml");
        assert_eq!(next_token(&mut watcher).await, "a0");
        bench.rename_over("a/rendered.yaml", "a1");
        assert_eq!(next_token(&mut watcher).await, "a1");
        bench.link_over("../b/rendered.yaml", "cfg/c.yaml");
        assert_eq!(next_token(&mut watcher).await, "b0");
        bench.rename_over("b/rendered.yaml", "b1");
        assert_eq!(next_token(&mut watcher).await, "b1");
        bench.rename_over("b/rendered.yaml", "b2");
        assert_eq!(next_token(&mut watcher).await, "b2");
    }

    #[tokio::test]
    async fn without_events_polling_finds_it_and_events_are_tried_again() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let broken = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&broken);
        let make: notifier::Make = Arc::new(move |handler| {
            if still.load(Ordering::Relaxed) {
                Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))
            } else {
                notifier::system()(handler)
            }
        });
        let options = WatchOptions { poll_interval: Duration::from_millis(50), ..by_events() };
        let mut watcher = watch_with(bench.path("c.yaml"), options, make.clone());
        assert_eq!(next_token(&mut watcher).await, "t0");
        bench.rename_over("c.yaml", "t1");
        assert_eq!(next_token(&mut watcher).await, "t1");

        // With polls out of the way, only a watcher that was tried again can tell.
        let mut watcher = watch_with(bench.path("c.yaml"), by_events(), make);
        assert_eq!(next_token(&mut watcher).await, "t1");
        broken.store(false, Ordering::Relaxed);
        watcher.rereader().reread().await.unwrap();
        bench.rename_over("c.yaml", "t2");
        assert_eq!(next_token(&mut watcher).await, "t2");
    }

    #[tokio::test]
    async fn a_touch_is_looked_at_and_not_told() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        let looks = watcher.looks();
        let file = File::options().append(true).open(bench.path("c.yaml")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        watcher.looked(looks + 1).await;
        assert!(!watcher.has_news());
        let looks = watcher.looks();
        bench.rename_over("c.yaml", "t0");
        watcher.looked(looks + 1).await;
        assert!(!watcher.has_news());
    }

    #[tokio::test]
    async fn our_own_reads_wake_nobody() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        for _ in 0..10 {
            watcher.rereader().reread().await.unwrap();
        }
        // If a read were an event, each quiet time would bring another look.
        sleep(by_events().quiet * 10).await;
        assert_eq!(watcher.looks(), 11);
    }

    #[tokio::test]
    async fn the_same_error_is_told_once() {
        let bench = Bench::new();
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Absent);
        let found = watcher.rereader().reread().await.unwrap();
        assert!(found.is_err());
        assert!(!watcher.has_news());
        fs::write(bench.path("c.yaml"), "x: y\n").unwrap();
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Invalid);
    }

    #[tokio::test]
    async fn files_that_are_named_are_watched_too() {
        let bench = Bench::new();
        bench.make_dir("pki");
        let base = bench.dir.path().display();
        fs::write(bench.path("pki/ca.pem"), "one").unwrap();
        let text = text("t0") + &format!("tls: {{ ca_file: {base}/pki/ca.pem }}\n");
        fs::write(bench.path("c.yaml"), &text).unwrap();
        let mut watcher = bench.watch("c.yaml");
        let first = next(&mut watcher).await;
        fs::write(bench.path("pki/ca.tmp"), "two").unwrap();
        fs::rename(bench.path("pki/ca.tmp"), bench.path("pki/ca.pem")).unwrap();
        let second = next(&mut watcher).await;
        let (first, second) = (first.as_ref().as_ref().unwrap(), second.as_ref().as_ref().unwrap());
        assert_eq!(second.tls.ca.as_deref(), Some(&b"two"[..]));
        assert_ne!(first.connection_fingerprint, second.connection_fingerprint);
        fs::remove_file(bench.path("pki/ca.pem")).unwrap();
        assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Unreadable);
        fs::write(bench.path("pki/ca.pem"), "three").unwrap();
        assert_eq!(next_token(&mut watcher).await, "t0");
    }

    #[tokio::test]
    async fn a_reread_waits_for_no_event() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let options = WatchOptions { quiet: NEVER, patience: NEVER, ..by_events() };
        let mut watcher = watch(bench.path("c.yaml"), options);
        assert_eq!(next_token(&mut watcher).await, "t0");
        bench.rename_over("c.yaml", "t1");
        let rereader = watcher.rereader();
        let (one, two) = tokio::join!(rereader.reread(), rereader.reread());
        for found in [one, two] {
            assert_eq!(token(found.unwrap().as_ref().as_ref().unwrap()), "t1");
        }
        assert!(watcher.has_news());
        assert_eq!(next_token(&mut watcher).await, "t1");
    }

    #[tokio::test]
    async fn a_reread_of_a_half_written_file_waits_for_the_second_look() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = watch(bench.path("c.yaml"), slowly());
        assert_eq!(next_token(&mut watcher).await, "t0");
        File::create(bench.path("c.yaml")).unwrap();
        let rereader = watcher.rereader();
        let reread = tokio::spawn(async move { rereader.reread().await });
        watcher.looked(2).await;
        bench.write("c.yaml", "t1");
        let found = timeout(DEADLINE, reread).await.unwrap().unwrap().unwrap();
        assert_eq!(token(found.as_ref().as_ref().unwrap()), "t1");
    }

    #[tokio::test]
    async fn the_watch_ends_with_the_watcher() {
        let bench = Bench::new();
        bench.write("c.yaml", "t0");
        let mut watcher = bench.watch("c.yaml");
        assert_eq!(next_token(&mut watcher).await, "t0");
        let rereader = watcher.rereader();
        assert!(watcher.latest().is_some());
        drop(watcher);
        timeout(DEADLINE, rereader.requests.closed()).await.expect("an end in time");
        assert!(rereader.reread().await.is_none());
    }
}
