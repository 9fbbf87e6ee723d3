//! `transit-kms keygen`: the RSA key of this node, for sealed payloads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use sealed_payload::{NodeKey, SealedPayloadError};
use zeroize::Zeroizing;

use super::exit::{Exit, after_help};
use crate::{exposure, hardening};

/// Only the owner can read the private key.
const MODE: u32 = 0o600;
/// An RSA key with 8192 bits has about 6 KiB.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Makes the RSA key of this node once, and prints its public key
///
/// Use it with `delivery: sealed` of the login method `approle`: a payload that is sealed for this key can be opened on
/// this node only, so any courier may carry it.
///
/// The command can run at each start, such as in an init container or as ExecStartPre. If the file exists, it is never
/// changed: the command prints the public key of the existing key and succeeds. The private key does not leave the file.
#[derive(Args, Debug)]
#[command(after_help = after_help(
    &[Exit::Success, Exit::Usage, Exit::System, Exit::CannotCreate],
    "Examples:\n  \
     transit-kms keygen > node.pub\n  \
     transit-kms keygen --out /etc/transit-kms/node-key.pem\n\n\
     Then seal a secret_id for this node, where you have access to Vault:\n  \
     transit-kmsctl secret-id issue --role transit-kms --node cp-1 --seal node.pub --out secret-id.pem",
))]
pub struct KeygenArgs {
    /// The file with the private key, in PEM with mode 0600. Its directory must exist.
    ///
    /// Run the command as the user of transit-kms, because only the owner can read the file. The config file names it
    /// as vault.auth.private_key_file.
    #[arg(long, value_name = "PATH", default_value = "/var/lib/transit-kms/node-key.pem")]
    out: PathBuf,
}

/// Why the key cannot be printed.
#[derive(Debug, thiserror::Error)]
enum KeygenError {
    #[error(transparent)]
    Generate(#[from] SealedPayloadError),
    #[error("cannot read {}: {source}. Run keygen as the user of transit-kms", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} exists, but {source}. The file was not changed. To make a new key, move it away first; payloads that are \
         sealed for a lost key cannot be opened",
        path.display()
    )]
    Unusable { path: PathBuf, source: SealedPayloadError },
    #[error(
        "cannot write {}: {source}. Its directory must exist, and the user of transit-kms must be able to write to it: \
         install -d -m 0700 -o transit-kms {}",
        path.display(),
        directory.display()
    )]
    Write { directory: PathBuf, path: PathBuf, source: io::Error },
}

impl KeygenError {
    const fn exit(&self) -> Exit {
        match self {
            Self::Generate(_) | Self::Read { .. } => Exit::System,
            Self::Unusable { .. } => Exit::Usage,
            Self::Write { .. } => Exit::CannotCreate,
        }
    }
}

/// Runs the command.
#[must_use]
pub fn main(args: &KeygenArgs) -> ExitCode {
    hardening::harden();
    let path = args.out.as_path();
    let (key, is_new) = match existing_or_new(path) {
        Ok(found) => found,
        Err(error) => {
            drop(writeln!(io::stderr(), "error: {error}"));
            return error.exit().into();
        }
    };
    let mut notes = exposure::secret_file_warnings(path, "the private key", "chmod 0600 the file");
    notes.push(if is_new {
        format!(
            "a new RSA key is in {}. Its public key follows: seal payloads for this node with it",
            path.display()
        )
    } else {
        format!("{} exists and was not changed. Its public key follows", path.display())
    });
    for note in notes {
        drop(writeln!(io::stderr(), "{note}"));
    }
    // Without its output, the command has not done its work, even if the key exists.
    match io::stdout().write_all(key.public_key().to_pem().as_bytes()) {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            drop(writeln!(io::stderr(), "error: cannot print the public key: {error}"));
            Exit::System.into()
        }
    }
}

/// Returns the key in the file, and whether this call has made it.
fn existing_or_new(path: &Path) -> Result<(NodeKey, bool), KeygenError> {
    if let Some(key) = existing(path)? {
        return Ok((key, false));
    }
    let key = NodeKey::generate()?;
    let text = key.to_pem()?;
    match create(path, text.as_bytes()) {
        Ok(()) => Ok((key, true)),
        // Another process was faster: its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match existing(path)? {
            Some(key) => Ok((key, false)),
            None => Err(KeygenError::Read { path: path.to_owned(), source: error }),
        },
        Err(source) => {
            Err(KeygenError::Write { directory: directory(path).to_owned(), path: path.to_owned(), source })
        }
    }
}

/// Reads the key, or returns `None` if there is no file.
fn existing(path: &Path) -> Result<Option<NodeKey>, KeygenError> {
    let mut text = Zeroizing::new(Vec::with_capacity(16 * 1024));
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_BYTES).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeygenError::Read { path: path.to_owned(), source }),
        Ok(_) => match NodeKey::from_pem(&text) {
            Ok(key) => Ok(Some(key)),
            Err(source) => Err(KeygenError::Unusable { path: path.to_owned(), source }),
        },
    }
}

/// Creates a file with this content, all at once: it exists with the whole content or not at all, also after a power
/// failure. An existing file is an error.
fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    // Random, because two containers that share the directory may have the same process id.
    let new = directory(path).join(format!(".{}.{:016x}", name.display(), rand::random::<u64>()));
    let written = write_new(&new, content).and_then(|()| {
        // In contrast to a rename, a link does not replace a file that another process has made meanwhile.
        fs::hard_link(&new, path)
    });
    drop(fs::remove_file(&new));
    written?;
    File::open(directory(path))?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create_new(true).mode(MODE).write(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process may have made the file after this one looked.
    #[test]
    fn an_existing_file_is_an_error_and_keeps_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first").unwrap();
        assert_eq!(create(&path, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
