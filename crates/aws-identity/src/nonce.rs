//! The nonce of an EC2 instance, in a file that is never overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// A nonce of another program, such as an agent, may be longer than those that are created here. Vault refuses a longer
/// one (`builtin/credential/aws/path_login.go`).
const MAX_BYTES: usize = 128;
/// The permissions of a new file, and the bits that give access to others.
const MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;
const RANDOM_BYTES: usize = 16;

/// Why there is no nonce. Each message has the next step: a new nonce would lock the instance out of Vault.
#[derive(Debug, thiserror::Error)]
pub enum NonceError {
    /// The file cannot be created.
    #[error("the nonce file {} cannot be created: {error}", .path.display())]
    Create {
        /// The error of the operating system.
        #[source]
        error: io::Error,
        /// The file.
        path: PathBuf,
    },
    /// The content is not a nonce.
    #[error(
        "the nonce file {} {rule}. It is not replaced, because Vault accepts this instance only with its first nonce. \
         Restore the file. If it is lost, run vault delete auth/aws/identity-accesslist/INSTANCE_ID, and delete the file",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        rule: &'static str,
    },
    /// The file exists, and cannot be read.
    #[error(
        "the nonce file {} cannot be read: {error}. It is not replaced, because Vault accepts this instance only with its \
         first nonce. Make it readable for the user of transit-kms", .path.display()
    )]
    Read {
        /// The error of the operating system.
        #[source]
        error: io::Error,
        /// The file.
        path: PathBuf,
    },
}

/// The nonce of this instance. It has no `Debug`, and is wiped: with it, each user of the instance can log in.
pub struct Nonce {
    is_exposed: bool,
    text: Zeroizing<String>,
}

impl Nonce {
    /// Reads the nonce, or creates a random one if the file does not exist. Once this returns, the file is on disk: it
    /// must be there before the first login, because Vault keeps the nonce of that login.
    ///
    /// This blocks on the disk.
    ///
    /// # Errors
    /// If the file exists, but is not a readable nonce, or if it cannot be created. The file is never overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, NonceError> {
        match Self::load(path) {
            Err(NonceError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        match create(path) {
            // Another process has created it meanwhile: the nonce of that process counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(error) => Err(NonceError::Create { error, path: path.to_owned() }),
            Ok(()) => Self::load(path),
        }
    }

    /// Whether users other than the owner have access to the file.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.is_exposed
    }

    pub(crate) fn expose(&self) -> &str {
        &self.text
    }

    fn load(path: &Path) -> Result<Self, NonceError> {
        let unreadable = |error| NonceError::Read { error, path: path.to_owned() };
        let damaged = |rule| NonceError::Damaged { path: path.to_owned(), rule };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(damaged("is not a file"));
        }
        // One byte more than allowed, so that the buffer does not grow.
        let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES + 2));
        match file.take(MAX_BYTES as u64 + 2).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged("is not text")),
            read => read.map_err(unreadable)?,
        };
        let nonce = text.trim();
        if nonce.is_empty() {
            return Err(damaged("is empty"));
        }
        if nonce.len() > MAX_BYTES || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(damaged("is not one line of at most 128 visible ASCII characters"));
        }
        Ok(Self { is_exposed: metadata.mode() & OTHERS != 0, text: Zeroizing::new(nonce.to_owned()) })
    }
}

/// Creates the file with its content at once: a crash leaves no part of it, and two processes do not overwrite each
/// other, because a link fails if the path exists.
fn create(path: &Path) -> io::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(2 * RANDOM_BYTES + 1));
    let random = Zeroizing::new(rand::random::<[u8; RANDOM_BYTES]>());
    text.push_str(&Zeroizing::new(hex::encode(*random)));
    text.push('\n');
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".nonce-{:016x}", rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)
    })();
    // If it remains, it is a file that is never read.
    drop(fs::remove_file(&temporary));
    written?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_nonce_is_created_once_with_access_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nonce");
        let first = Nonce::load_or_create(&path).unwrap_or_else(|error| panic!("{error}"));
        let text = first.expose().to_owned();
        assert_eq!(text.len(), 2 * RANDOM_BYTES);
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!((mode(&path), first.is_exposed()), (0o600, false));
        let again = Nonce::load_or_create(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again.expose(), text);
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1, "a temporary file is left");
        let other =
            Nonce::load_or_create(&dir.path().join("other")).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(other.expose(), text);
    }

    #[test]
    fn processes_that_start_together_agree_on_one_nonce() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nonce");
        let nonces: Vec<String> = std::thread::scope(|scope| {
            let load =
                || Nonce::load_or_create(&path).unwrap_or_else(|error| panic!("{error}")).expose().to_owned();
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(nonces.iter().all(|nonce| *nonce == nonces[0]), "{nonces:?}");
    }

    #[test]
    fn an_unusable_file_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nonce");
        let long = "x".repeat(MAX_BYTES + 1);
        for content in [b"".as_slice(), b"\n", b"a b", b"\xff\xfe", long.as_bytes()] {
            fs::write(&path, content).unwrap();
            let error = Nonce::load_or_create(&path).err().unwrap();
            assert!(matches!(error, NonceError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("identity-accesslist"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Nonce::load_or_create(&path).is_err());
        let missing = dir.path().join("missing/nonce");
        assert!(matches!(Nonce::load_or_create(&missing), Err(NonceError::Create { .. })));
        // A link to a file that is gone is an error too: the file may be on a disk that is not mounted yet.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("unmounted/nonce"), &link).unwrap();
        assert!(Nonce::load_or_create(&link).is_err());
    }

    #[test]
    fn a_nonce_of_another_program_is_used_and_its_mode_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nonce");
        fs::write(&path, "5defbf9e-a8f9-3063-bdfc-54b7a42a1f95\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let nonce = Nonce::load_or_create(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((nonce.expose(), nonce.is_exposed()), ("5defbf9e-a8f9-3063-bdfc-54b7a42a1f95", true));
    }
}
