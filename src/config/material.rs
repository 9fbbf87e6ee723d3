//! Login material: the contents of the files that the `auth:` block names.
//!
//! A file that cannot be read does not fail the load of the config, because the session in use does not need it.
//! Only the login that needs it fails, and names it.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    fingerprint::Fingerprint,
    read_file::{ReadError, read_regular},
    settings::auth::MaterialFile,
};

/// The maximum size of a file in bytes.
pub const MAX_MATERIAL_BYTES: usize = 64 * 1024;

type Contents = Result<Zeroizing<Vec<u8>>, Arc<ReadError>>;

/// The contents of files by path. It is cheap to clone. `Debug` shows no contents.
#[derive(Clone, Default)]
pub struct LoginMaterial(Arc<BTreeMap<PathBuf, Contents>>);

impl LoginMaterial {
    /// Reads each file once. Blocks.
    #[must_use]
    pub fn read<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut contents = BTreeMap::new();
        for path in files {
            if !contents.contains_key(path) {
                let result = match read_regular(path, MAX_MATERIAL_BYTES) {
                    Ok(bytes) if bytes.is_empty() => Err(ReadError::Empty),
                    result => result,
                };
                contents.insert(path.to_owned(), result.map_err(Arc::new));
            }
        }
        Self(Arc::new(contents))
    }

    /// Returns the contents of a file.
    ///
    /// # Errors
    /// If the file could not be read, or is empty. The message names the setting and the path.
    pub fn get(&self, file: &MaterialFile) -> Result<&[u8], MaterialError> {
        match self.0.get(&file.path) {
            Some(Ok(contents)) => Ok(contents),
            Some(Err(cause)) => Err(MaterialError { cause: Arc::clone(cause), file: file.clone() }),
            None => Err(MaterialError { cause: Arc::new(ReadError::Absent), file: file.clone() }),
        }
    }

    /// Changes with each byte of each file, and with the reason why a file cannot be read.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let reasons: Vec<_> =
            self.0.values().map(|result| result.as_ref().err().map(ToString::to_string)).collect();
        Fingerprint::of(self.0.iter().zip(&reasons).flat_map(|((path, result), reason)| {
            let contents = result.as_ref().ok().map(|contents| contents.as_slice());
            [Some(path.as_os_str().as_encoded_bytes()), contents, reason.as_ref().map(String::as_bytes)]
        }))
    }
}

impl fmt::Debug for LoginMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(path, contents)| (path, contents.as_ref().map(|_| "***"))))
            .finish()
    }
}

/// Why a login cannot use a file, such as `vault.auth.secret_id_file: /x does not exist (yet); it is read as soon as
/// it appears`.
#[derive(Clone, Debug)]
pub struct MaterialError {
    /// The file, and the setting that names it.
    pub file: MaterialFile,
    cause: Arc<ReadError>,
}

impl fmt::Display for MaterialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.file.setting, self.file.path.display(), self.cause)
    }
}

impl Error for MaterialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.cause.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| MaterialFile {
            path: dir.path().join(name),
            setting: "vault.auth.secret_id_file".into(),
        };
        fs::write(dir.path().join("good"), "SENTINEL").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        fs::write(dir.path().join("large"), "x".repeat(MAX_MATERIAL_BYTES + 1)).unwrap();
        let names = ["good", "empty", "large", "absent"];
        let files = names.map(file);
        let material = LoginMaterial::read(files.iter().map(|file| file.path.as_path()));
        assert_eq!(material.get(&files[0]).unwrap(), b"SENTINEL");
        assert!(!format!("{material:?}").contains("SENTINEL") && !format!("{material:?}").contains("83, 69"));
        for (file, words) in files[1..].iter().zip([
            "is empty; the file may be half written",
            "is larger than 64 KiB",
            "does not exist (yet); it is read as soon as it appears",
        ]) {
            let error = material.get(file).unwrap_err();
            let expected = format!("vault.auth.secret_id_file: {} {words}", file.path.display());
            assert_eq!(error.to_string(), expected);
            assert!(error.source().is_some());
        }
        let not_loaded = LoginMaterial::default().get(&files[0]).unwrap_err();
        assert!(not_loaded.to_string().contains("good does not exist"), "{not_loaded}");
    }

    #[test]
    fn the_fingerprint_covers_contents_and_reasons() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret_id");
        let fingerprint = || LoginMaterial::read([path.as_path(), path.as_path()]).fingerprint();
        let absent = fingerprint();
        assert_eq!(absent, fingerprint());
        fs::write(&path, "").unwrap();
        let empty = fingerprint();
        fs::write(&path, "a").unwrap();
        let first = fingerprint();
        fs::write(&path, "b").unwrap();
        let all = [absent, empty, first, fingerprint()];
        assert!((1..all.len()).all(|index| !all[..index].contains(&all[index])));
        assert_ne!(fingerprint(), LoginMaterial::default().fingerprint());
    }
}
