//! The config that an agent renders, and the ways in which such a file is replaced.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

use crate::vault::server::{Bao, KEY, MOUNT};

/// The content of the file.
#[derive(Clone)]
pub struct ConfigFile {
    pub addresses: Vec<String>,
    /// The block `auth`, instead of the token.
    pub auth: Option<Value>,
    pub ca_file: PathBuf,
    /// The paths of a client certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Entries of `keynames`: names, or objects with a name and a mount or namespace.
    pub keys: Vec<Value>,
    /// Whether the mode is `local-kek`.
    pub local_kek: bool,
    pub mount: String,
    pub namespace: Option<String>,
    /// The name in the server's certificate, if it is not the host of the address.
    pub server_name: Option<String>,
    pub token: String,
}

impl ConfigFile {
    /// A config for this server, with [`KEY`] and this token.
    pub fn of(bao: &Bao, token: &str) -> Self {
        Self {
            addresses: vec![bao.address()],
            auth: None,
            ca_file: bao.ca_file(),
            client_certificate: None,
            keys: vec![KEY.into()],
            local_kek: false,
            mount: MOUNT.into(),
            namespace: None,
            server_name: None,
            token: token.into(),
        }
    }

    /// Like [`ConfigFile::of`], with a new token that has only the needed policy.
    pub async fn with_new_token(bao: &Bao) -> Self {
        Self::of(bao, &bao.token().await)
    }

    /// The same config with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    /// The file as YAML.
    pub fn yaml(&self) -> String {
        // JSON strings and lists are YAML.
        let mut yaml = format!("provider: vault\nvault:\n  addresses: {}\n", json!(self.addresses));
        if let Some(namespace) = &self.namespace {
            yaml += &format!("  namespace: {}\n", json!(namespace));
        }
        if self.local_kek {
            yaml = format!("encryption:\n  mode: local-kek\n{yaml}");
        }
        yaml += &format!("  transitpath: {}\n  keynames: {}\n", json!(self.mount), json!(self.keys));
        yaml += &format!("  tls:\n    ca_file: {}\n", json!(self.ca_file));
        if let Some((chain, key)) = &self.client_certificate {
            yaml += &format!("    client_cert_file: {}\n    client_key_file: {}\n", json!(chain), json!(key));
        }
        if let Some(server_name) = &self.server_name {
            yaml += &format!("    server_name: {}\n", json!(server_name));
        }
        if let Some(auth) = &self.auth {
            return yaml + &format!("  auth: {auth}\n");
        }
        // In single quotes: an agent's template may stand here, and it has double ones.
        yaml + &format!("  token: '{}'\n", self.token)
    }
}

/// Replaces the file as the agent does: writes and syncs a new file beside it, and renames it over the old one.
pub fn by_rename(path: &Path, text: &str) {
    let new = beside(path);
    let mut file = private(&new);
    file.write_all(text.as_bytes()).unwrap();
    file.sync_all().unwrap();
    fs::rename(&new, path).unwrap();
}

/// Replaces the file as a shell does: truncates and writes it at once.
pub fn in_place(path: &Path, text: &str) {
    private(path).write_all(text.as_bytes()).unwrap();
}

/// Like [`in_place`], but writes only the first half.
pub fn in_place_first_half(path: &Path, text: &str) -> HalfWritten {
    let (first, rest) = text.as_bytes().split_at(text.len() / 2);
    let mut file = private(path);
    file.write_all(first).unwrap();
    HalfWritten { file, rest: rest.to_vec() }
}

/// A half-written file.
#[must_use = "the other half is still to be written"]
pub struct HalfWritten {
    file: File,
    rest: Vec<u8>,
}

impl HalfWritten {
    /// Writes the rest, and closes the file.
    pub fn finish(mut self) {
        self.file.write_all(&self.rest).unwrap();
    }
}

/// A volume of kubelet for a ConfigMap, Secret or projection: the file is a symlink into `..data`, which is a symlink
/// to a folder that is replaced as a whole.
pub struct KubeletVolume {
    dir: PathBuf,
    name: String,
}

impl KubeletVolume {
    /// Creates the folder `dir` as a volume with one file.
    pub fn new(dir: &Path, name: &str, text: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let volume = Self { dir: dir.to_owned(), name: name.to_owned() };
        volume.swap(text);
        symlink(Path::new("..data").join(name), volume.path()).unwrap();
        volume
    }

    /// The path of the file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Replaces the folder and with it the content of the file.
    pub fn swap(&self, text: &str) {
        let data = self.dir.join("..data");
        let old = fs::read_link(&data).ok();
        let new = beside(&self.dir.join(".."));
        fs::create_dir(&new).unwrap();
        private(&new.join(&self.name)).write_all(text.as_bytes()).unwrap();
        let link = self.dir.join("..data_tmp");
        symlink(new.file_name().unwrap(), &link).unwrap();
        fs::rename(&link, &data).unwrap();
        if let Some(old) = old {
            fs::remove_dir_all(self.dir.join(old)).unwrap();
        }
    }
}

/// Opens an empty file of mode 0600 for writing.
fn private(path: &Path) -> File {
    File::options().create(true).mode(0o600).truncate(true).write(true).open(path).unwrap()
}

/// An unused name in the same folder.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{}", 1_000_000 + NEXT.fetch_add(1, Ordering::Relaxed)));
    name.into()
}
