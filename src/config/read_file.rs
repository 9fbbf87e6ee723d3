//! Reads regular files of a limited size, and wipes what it has read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::{fs::OFlags, process::geteuid};
use zeroize::Zeroizing;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("does not exist (yet); it is read as soon as it appears")]
    Absent,
    /// For readers that do not accept an empty file.
    #[error("is empty; the file may be half written")]
    Empty,
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    #[error("is not a regular file")]
    NotRegular,
    #[error("cannot be read by uid {}: permission denied", geteuid().as_raw())]
    PermissionDenied(#[source] io::Error),
    /// The maximum size in bytes.
    #[error("is larger than {} KiB", .0 / 1024)]
    TooLarge(usize),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied(error),
            _ => Self::Io(error),
        }
    }
}

/// Reads a regular file of at most `limit` bytes. No copy of its contents stays in memory without being wiped.
pub(super) fn read_regular(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    // Checked before the file is opened, because opening a device can have side effects, and again afterwards,
    // because the file may have been replaced. Without NONBLOCK, opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    // A vector that grows leaves copies in memory, so its size is fixed: the file's size, and one byte that
    // shows whether the file has grown.
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(vec![0; expected.min(limit) + 1]);
    let mut length = fill(&mut file, &mut bytes)?;
    if length == bytes.len() && length <= limit {
        let mut larger = Zeroizing::new(vec![0; limit + 1]);
        for (to, from) in larger.iter_mut().zip(bytes.iter()) {
            *to = *from;
        }
        length += fill(&mut file, larger.get_mut(length..).unwrap_or_default())?;
        bytes = larger;
    }
    if length > limit {
        return Err(ReadError::TooLarge(limit));
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
