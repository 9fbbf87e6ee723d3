//! Input and output of commands: files, standard input and standard output.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::command_error::CommandError;

/// Standard input or standard output.
const STANDARD: &str = "-";
/// Only the owner can read the output.
const MODE: u32 = 0o600;

/// Reads a file, or standard input if the path is `-`. Reads at most one byte more than `limit`, so that the caller can
/// detect longer input.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    // With the right capacity from the start, no part is copied and left in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit.saturating_add(1)));
    let most = u64::try_from(limit.saturating_add(1)).unwrap_or(u64::MAX);
    let read = if path == Path::new(STANDARD) {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|source| CommandError::Read { what: name(path, "standard input"), source })?;
    Ok(bytes)
}

/// The output of a command. A file gets its content at once, or stays as it was.
pub(crate) enum Output {
    /// A device or a pipe, such as /dev/stdout. It is not replaced.
    Device {
        file: File,
        target: PathBuf,
    },
    /// A new file beside the target, which replaces it at the end.
    File {
        new: NewFile,
        target: PathBuf,
    },
    Standard,
}

impl Output {
    /// Prepares the output. A command that changes something in Vault calls this first, so that its result is not lost
    /// because of a path that cannot be written.
    pub(crate) fn prepare(path: &Path) -> Result<Self, CommandError> {
        if path == Path::new(STANDARD) {
            return Ok(Self::Standard);
        }
        let is_device = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
        if is_device {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.map_err(|source| write_error(path, source))?;
            return Ok(Self::Device { file, target: path.to_owned() });
        }
        let new = NewFile::beside(path).map_err(|source| write_error(path, source))?;
        Ok(Self::File { new, target: path.to_owned() })
    }

    /// Writes the content.
    pub(crate) fn write(self, content: &[u8]) -> Result<(), CommandError> {
        match self {
            Self::Device { mut file, target } => {
                file.write_all(content).map_err(|source| write_error(&target, source))
            }
            Self::File { new, target } => {
                new.replace(&target, content).map_err(|source| write_error(&target, source))
            }
            Self::Standard => {
                let mut out = io::stdout().lock();
                let written = out.write_all(content).and_then(|()| out.flush());
                written.map_err(|source| write_error(Path::new(STANDARD), source))
            }
        }
    }
}

/// A temporary file, which is removed unless it replaces another one.
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let path = path.with_file_name(format!(".{}.{:016x}", name.display(), rand::random::<u64>()));
        let file = OpenOptions::new().create_new(true).mode(MODE).write(true).open(&path)?;
        Ok(Self { file, path })
    }

    fn replace(mut self, target: &Path, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)?;
        self.file.sync_all()?;
        fs::rename(&self.path, target)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `replace`, there is no such file any more.
        drop(fs::remove_file(&self.path));
    }
}

fn name(path: &Path, standard: &str) -> String {
    if path == Path::new(STANDARD) { standard.to_owned() } else { path.display().to_string() }
}

fn write_error(path: &Path, source: io::Error) -> CommandError {
    CommandError::Write { what: name(path, "standard output"), source }
}
