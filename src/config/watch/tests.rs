//! Watches real files with real inotify.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use tokio::time::{sleep, timeout};

use super::*;
use crate::config::{ConfigErrorKind, Credentials, settings::auth::MaterialFile};

const DEADLINE: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3600);

/// Without polls, so that events find every change.
fn by_events() -> WatchOptions {
    WatchOptions {
        poll_interval: NEVER,
        quiet: Duration::from_millis(40),
        max_delay: Duration::from_millis(160),
        ..WatchOptions::default()
    }
}

/// For tests that must act between the two reads of an error.
fn slowly() -> WatchOptions {
    WatchOptions { quiet: Duration::from_secs(1), max_delay: Duration::from_secs(4), ..by_events() }
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

    /// Replaces the file as the agent does.
    fn rename_over(&self, name: &str, token: &str) {
        let path = self.path(name);
        let temporary = path.parent().unwrap().join("1234567890");
        fs::write(&temporary, text(token)).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// Replaces a symlink as `ln -sfn` does.
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
    timeout(DEADLINE, watcher.changed()).await.expect("an observation in time").expect("a running watch")
}

async fn next_token(watcher: &mut Watcher) -> String {
    match &*next(watcher).await {
        Ok(loaded) => token(loaded),
        Err(error) => panic!("{error}"),
    }
}

async fn next_error(watcher: &mut Watcher) -> ConfigErrorKind {
    match &*next(watcher).await {
        Ok(loaded) => panic!("token {}", token(loaded)),
        Err(error) => error.kind,
    }
}

fn token(loaded: &LoadedConfig) -> String {
    match &loaded.config.credentials {
        Credentials::Token(token) => token.expose().to_owned(),
        other => panic!("{other:?}"),
    }
}

impl Watcher {
    fn reads(&self) -> usize {
        *self.reads.borrow()
    }

    async fn wait_for_reads(&self, times: usize) {
        let mut reads = self.reads.subscribe();
        timeout(DEADLINE, reads.wait_for(|reads| *reads >= times)).await.expect("reads in time").unwrap();
    }

    fn has_changed(&self) -> bool {
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
    watcher.wait_for_reads(2).await;
    file.write_all(second.as_bytes()).unwrap();
    assert_eq!(next_token(&mut watcher).await, "t1");
}

#[tokio::test]
async fn a_file_that_stays_half_written_is_an_error_until_it_is_complete() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_token(&mut watcher).await, "t0");
    let mut file = File::create(bench.path("c.yaml")).unwrap();
    assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Invalid);
    assert!(watcher.reads() >= 3, "the error is read twice before it is published");
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
async fn a_directory_that_is_created_again_is_watched_again() {
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
        // Without a pause, so that the directory may get the same inode.
        fs::remove_dir_all(bench.path("d")).unwrap();
        bench.make_dir("d");
        bench.write("d/c.yaml", &format!("{round}2"));
        assert_eq!(next_token(&mut watcher).await, format!("{round}2"));
        // By renames, after which the old directory still exists under another name.
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
async fn symlinks_are_followed() {
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
async fn without_events_polls_find_changes_and_events_are_tried_again() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let broken = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&broken);
    let make_watcher: notifier::MakeWatcher = Arc::new(move |handler| {
        if still.load(Ordering::Relaxed) {
            Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))
        } else {
            notifier::inotify()(handler)
        }
    });
    let options = WatchOptions { poll_interval: Duration::from_millis(50), ..by_events() };
    let mut watcher = watch_with(bench.path("c.yaml"), options, make_watcher.clone());
    assert_eq!(next_token(&mut watcher).await, "t0");
    bench.rename_over("c.yaml", "t1");
    assert_eq!(next_token(&mut watcher).await, "t1");

    // Without polls, only a watcher that was made again notices the change.
    let mut watcher = watch_with(bench.path("c.yaml"), by_events(), make_watcher);
    assert_eq!(next_token(&mut watcher).await, "t1");
    broken.store(false, Ordering::Relaxed);
    watcher.reload_handle().reload().await.unwrap();
    bench.rename_over("c.yaml", "t2");
    assert_eq!(next_token(&mut watcher).await, "t2");
}

#[tokio::test]
async fn a_touch_is_read_and_not_published() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_token(&mut watcher).await, "t0");
    let reads = watcher.reads();
    let file = File::options().append(true).open(bench.path("c.yaml")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    watcher.wait_for_reads(reads + 1).await;
    assert!(!watcher.has_changed());
    let reads = watcher.reads();
    bench.rename_over("c.yaml", "t0");
    watcher.wait_for_reads(reads + 1).await;
    assert!(!watcher.has_changed());
}

#[tokio::test]
async fn reads_cause_no_events() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_token(&mut watcher).await, "t0");
    for _ in 0..10 {
        watcher.reload_handle().reload().await.unwrap();
    }
    // If a read caused an event, another read would follow after each quiet time.
    sleep(by_events().quiet * 10).await;
    assert_eq!(watcher.reads(), 11);
}

#[tokio::test]
async fn the_same_error_is_published_once() {
    let bench = Bench::new();
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Absent);
    let found = watcher.reload_handle().reload().await.unwrap();
    assert!(found.is_err());
    assert!(!watcher.has_changed());
    fs::write(bench.path("c.yaml"), "x: y\n").unwrap();
    assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Invalid);
}

#[tokio::test]
async fn files_that_the_config_names_are_watched_too() {
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
async fn a_reload_does_not_wait_for_events() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let options = WatchOptions { quiet: NEVER, max_delay: NEVER, ..by_events() };
    let mut watcher = watch(bench.path("c.yaml"), options);
    assert_eq!(next_token(&mut watcher).await, "t0");
    bench.rename_over("c.yaml", "t1");
    let handle = watcher.reload_handle();
    let (one, two) = tokio::join!(handle.reload(), handle.reload());
    for found in [one, two] {
        assert_eq!(token(found.unwrap().as_ref().as_ref().unwrap()), "t1");
    }
    assert!(watcher.has_changed());
    assert_eq!(next_token(&mut watcher).await, "t1");
}

#[tokio::test]
async fn a_reload_of_a_half_written_file_waits_for_the_second_read() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let mut watcher = watch(bench.path("c.yaml"), slowly());
    assert_eq!(next_token(&mut watcher).await, "t0");
    File::create(bench.path("c.yaml")).unwrap();
    let handle = watcher.reload_handle();
    let reload = tokio::spawn(async move { handle.reload().await });
    watcher.wait_for_reads(2).await;
    bench.write("c.yaml", "t1");
    let found = timeout(DEADLINE, reload).await.unwrap().unwrap().unwrap();
    assert_eq!(token(found.as_ref().as_ref().unwrap()), "t1");
}

#[tokio::test]
async fn the_watch_ends_with_the_watcher() {
    let bench = Bench::new();
    bench.write("c.yaml", "t0");
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_token(&mut watcher).await, "t0");
    let handle = watcher.reload_handle();
    assert!(watcher.latest().is_some());
    drop(watcher);
    timeout(DEADLINE, handle.requests.closed()).await.expect("an end in time");
    assert!(handle.reload().await.is_none());
}

#[tokio::test]
async fn the_files_that_a_fixed_text_names_are_watched() {
    let bench = Bench::new();
    fs::write(bench.path("ca.pem"), "first").unwrap();
    let text = format!("{}tls: {{ ca_file: {} }}\n", text("t"), bench.path("ca.pem").display());
    let source = ConfigSource::Text { name: "flags".into(), text: text.into() };
    assert!(!format!("{source:?}").contains("https://v"), "{source:?}");
    let mut watcher = watch(source, by_events());
    let ca = |found: &Observation| found.as_ref().unwrap().tls.ca.clone().unwrap();
    assert_eq!(ca(&*next(&mut watcher).await), b"first");
    fs::write(bench.path("ca.new"), "second").unwrap();
    fs::rename(bench.path("ca.new"), bench.path("ca.pem")).unwrap();
    assert_eq!(ca(&*next(&mut watcher).await), b"second");
    fs::remove_file(bench.path("ca.pem")).unwrap();
    let found = next(&mut watcher).await;
    let error = found.as_ref().as_ref().unwrap_err();
    assert!(error.to_string().starts_with("flags: tls.ca_file: "), "{error}");
}

#[tokio::test]
async fn login_material_is_observed_without_a_new_config() {
    let bench = Bench::new();
    let secret_id = bench.path("credentials/secret_id");
    let text = format!(
        "address: https://v\nkeynames: k\nauth: {{ method: approle, role_id: r, secret_id_file: {} }}\n",
        secret_id.display()
    );
    fs::write(bench.path("c.yaml"), text).unwrap();
    let mut watcher = bench.watch("c.yaml");
    let file = MaterialFile { path: secret_id.clone(), setting: "auth.secret_id_file".into() };
    let material = |found: &Observation| {
        let loaded = found.as_ref().unwrap();
        loaded.material.get(&file).map(<[u8]>::to_vec).map_err(|error| error.to_string())
    };
    let first = next(&mut watcher).await;
    let missing = material(&first).unwrap_err();
    assert!(
        missing.starts_with("auth.secret_id_file: ") && missing.contains("does not exist (yet)"),
        "{missing}"
    );
    bench.make_dir("credentials");
    for contents in ["first", "second"] {
        fs::write(bench.path("credentials/new"), contents).unwrap();
        fs::rename(bench.path("credentials/new"), &secret_id).unwrap();
        let found = next(&mut watcher).await;
        assert_eq!(material(&found).unwrap(), contents.as_bytes());
        assert_eq!(
            found.as_ref().as_ref().unwrap().fingerprint,
            first.as_ref().as_ref().unwrap().fingerprint
        );
    }
    fs::remove_file(&secret_id).unwrap();
    assert!(material(&*next(&mut watcher).await).is_err(), "the config stays usable");
}

#[tokio::test]
async fn a_token_file_is_reloaded_as_a_rendered_token_is() {
    let bench = Bench::new();
    let sink = bench.path("sink");
    let text = format!(
        "address: https://v\nkeynames: k\nauth: {{ method: token_file, token_file: {} }}\n",
        sink.display()
    );
    fs::write(bench.path("c.yaml"), text).unwrap();
    fs::write(&sink, "t0").unwrap();
    let mut watcher = bench.watch("c.yaml");
    assert_eq!(next_token(&mut watcher).await, "t0");
    fs::write(bench.path("new"), "t1").unwrap();
    fs::rename(bench.path("new"), &sink).unwrap();
    assert_eq!(next_token(&mut watcher).await, "t1");
    fs::remove_file(&sink).unwrap();
    assert_eq!(next_error(&mut watcher).await, ConfigErrorKind::Unreadable);
}
