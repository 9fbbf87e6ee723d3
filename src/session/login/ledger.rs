//! Remembers, across restarts, which credentials were used up or refused, and when logins were sent.
//!
//! Without it, a restart forgets that this machine has opened a delivery itself, and takes its own use for an
//! interception. A storm of restarts would become a storm of logins, and lock the alias in Vault.
//!
//! The file holds hashes and times only. It has mode 0600.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::credential::CredentialHash;

/// The name of the file in `vault.auth.state_dir`.
const FILE_NAME: &str = "logins.json";
/// The largest file that is read. Each field has a fixed size.
const MAX_FILE_BYTES: u64 = 16 * 1024;
/// The number of deliveries that are remembered.
const MAX_CONSUMED: usize = 4;
/// A refusal is forgotten after this time: Vault resets its counter of bad logins then (`lockout_counter_reset`).
const REFUSAL_AGE: Duration = Duration::from_secs(15 * 60);
/// At most this many logins are sent within [`RATE_WINDOW`].
const MAX_LOGINS: usize = 6;
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What is remembered.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
struct Entries {
    /// The last deliveries that were opened, or may have been: one may lead to another.
    consumed: Vec<Entry>,
    /// Unix times.
    logins: Vec<u64>,
    refused: Option<Entry>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Entry {
    hash: String,
    /// How often; 1 for a delivery.
    count: u32,
    /// A Unix time.
    since: u64,
}

/// The memory of one identity.
pub(super) struct Ledger {
    /// The time of day: it must outlive the process.
    clock: Box<dyn Fn() -> SystemTime + Send>,
    entries: Entries,
    /// `None` if what is remembered ends with the process.
    path: Option<PathBuf>,
    /// The file could not be written, and a warning was logged.
    warned: bool,
}

impl Ledger {
    /// Reads the file in `state_dir`. A file that cannot be read is replaced at the next write. Blocks.
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let entries = match read(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::default(),
            Err(error) => {
                warn!(
                    path = %path.display(), %error,
                    "what is remembered of earlier logins cannot be read; it is started again"
                );
                Entries::default()
            }
        };
        Self { entries, path: Some(path), ..Self::in_memory() }
    }

    /// A memory that ends with the process.
    pub(super) fn in_memory() -> Self {
        #[expect(clippy::disallowed_methods, reason = "what is remembered outlives the process")]
        let clock = Box::new(SystemTime::now);
        Self { clock, entries: Entries::default(), path: None, warned: false }
    }

    fn now(&self) -> u64 {
        (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// Reads what another process has written: during a takeover, two processes use one directory.
    fn refresh(&mut self) {
        // After a write that failed, the file is older than the memory.
        if self.warned {
            return;
        }
        if let Some(entries) = self.path.as_ref().and_then(|path| read(path).ok()) {
            self.entries = entries;
        }
    }

    /// Whether this machine has opened the delivery, or may have.
    pub(super) fn is_consumed(&mut self, credential: CredentialHash) -> bool {
        self.refresh();
        self.entries.consumed.iter().any(|entry| entry.hash == credential.to_hex())
    }

    /// Notes that the delivery is about to be opened. It is noted before the request is sent: otherwise, a crash
    /// in between would look like an interception.
    pub(super) fn consume(&mut self, credential: CredentialHash) {
        self.refresh();
        let entry = Entry { hash: credential.to_hex(), count: 1, since: self.now() };
        let consumed = &mut self.entries.consumed;
        consumed.retain(|earlier| earlier.hash != entry.hash);
        consumed.push(entry);
        consumed.drain(..consumed.len().saturating_sub(MAX_CONSUMED));
        self.write();
    }

    /// Notes that the request to open the delivery was provably not processed.
    pub(super) fn not_consumed(&mut self, credential: CredentialHash) {
        self.refresh();
        self.entries.consumed.retain(|entry| entry.hash != credential.to_hex());
        self.write();
    }

    /// Notes that Vault has refused the credential, and returns how often it has.
    pub(super) fn refuse(&mut self, credential: CredentialHash) -> u32 {
        let count = self.refusals(credential) + 1;
        self.entries.refused = Some(Entry { hash: credential.to_hex(), count, since: self.now() });
        self.write();
        count
    }

    /// How often Vault has refused the credential.
    pub(super) fn refusals(&mut self, credential: CredentialHash) -> u32 {
        self.refresh();
        let since = |entry: &Entry| self.now().saturating_sub(entry.since);
        self.entries
            .refused
            .as_ref()
            .filter(|entry| entry.hash == credential.to_hex() && since(entry) < REFUSAL_AGE.as_secs())
            .map_or(0, |entry| entry.count)
    }

    /// Notes that a login is sent, and returns true; or returns false if there were too many.
    pub(super) fn may_log_in(&mut self) -> bool {
        self.refresh();
        let now = self.now();
        // A time in the future was written with another clock, and must not delay the next login.
        self.entries.logins.retain(|time| *time <= now && now - time < RATE_WINDOW.as_secs());
        if self.entries.logins.len() >= MAX_LOGINS {
            return false;
        }
        self.entries.logins.push(now);
        self.write();
        true
    }

    fn write(&mut self) {
        let Some(path) = &self.path else { return };
        match write(path, &self.entries) {
            Ok(()) => self.warned = false,
            Err(_) if self.warned => {}
            Err(error) => {
                self.warned = true;
                warn!(
                    path = %path.display(), %error,
                    "what was used up or refused cannot be remembered across a restart: make vault.auth.state_dir \
                     a directory that transit-kms may write"
                );
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Entries> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file of transit-kms"));
    }
    serde_json::from_slice(&fs::read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// Replaces the file, so that a crash leaves the old one or the new one.
fn write(path: &Path, entries: &Entries) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // Not the process id: in containers, all processes have the same.
    let new = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(entries)?)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        drop(fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn hash(text: &str) -> CredentialHash {
        CredentialHash::of([text.as_bytes()])
    }

    /// A ledger whose clock stands at this Unix time.
    fn opened(state_dir: &Path, time: Duration) -> Ledger {
        Ledger { clock: Box::new(move || UNIX_EPOCH + time), ..Ledger::open(state_dir) }
    }

    #[test]
    fn what_is_remembered_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let mut ledger = opened(&state_dir, NOW);
        ledger.consume(hash("wrap"));
        assert_eq!(ledger.refuse(hash("bad")), 1);

        let mut later = opened(&state_dir, NOW);
        assert!(later.is_consumed(hash("wrap")) && !later.is_consumed(hash("other")));
        assert_eq!(later.refuse(hash("bad")), 2);
        assert_eq!(later.refusals(hash("other")), 0);
        let mut forgotten = opened(&state_dir, NOW + REFUSAL_AGE);
        assert_eq!(forgotten.refusals(hash("bad")), 0, "Vault has forgotten it too");
        later.not_consumed(hash("wrap"));
        assert!(!Ledger::open(&state_dir).is_consumed(hash("wrap")));

        let mode = fs::metadata(state_dir.join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state_dir).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn two_processes_share_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (mut old, mut new) = (opened(dir.path(), NOW), opened(dir.path(), NOW));
        new.consume(hash("of the new process"));
        old.consume(hash("of the old process"));
        assert!(new.is_consumed(hash("of the old process")));
        assert!(opened(dir.path(), NOW).is_consumed(hash("of the new process")));
    }

    #[test]
    fn logins_are_counted_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..MAX_LOGINS {
            assert!(opened(dir.path(), NOW).may_log_in());
        }
        assert!(!opened(dir.path(), NOW).may_log_in());
        assert!(opened(dir.path(), NOW + RATE_WINDOW).may_log_in());
        let before = NOW - Duration::from_secs(3600);
        assert!(opened(dir.path(), before).may_log_in(), "the clock was set back");
    }

    #[test]
    fn a_file_that_cannot_be_used_prevents_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for content in ["", "{", "[]", r#"{"consumed":7}"#] {
            fs::write(&path, content).unwrap();
            let mut ledger = Ledger::open(dir.path());
            ledger.consume(hash("wrap"));
            assert!(Ledger::open(dir.path()).is_consumed(hash("wrap")), "{content}");
        }
        let mut nowhere = Ledger::open(Path::new("/proc/transit-kms"));
        nowhere.consume(hash("wrap"));
        assert!(nowhere.is_consumed(hash("wrap")));
    }
}
