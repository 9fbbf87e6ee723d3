//! The storage of an initialized server, which all servers of this process start with.
//!
//! A new raft cluster needs two seconds to elect a leader. A restarted one needs none.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use tokio::sync::OnceCell;

use crate::vault::server::{Bao, BaoOptions, MOUNT};

/// The storage files are sparse. Only blocks of this size with data are kept and written.
const BLOCK: usize = 4096;

static SEED: OnceCell<Seed> = OnceCell::const_new();

pub(crate) struct Seed {
    files: Vec<SparseFile>,
    /// Each server must replace it, otherwise this token would be valid on all servers.
    pub(super) root_token: String,
    pub(super) unseal_key: String,
}

impl Seed {
    pub(super) async fn of_this_process() -> &'static Self {
        SEED.get_or_init(Self::make).await
    }

    async fn make() -> Self {
        let mut bao = Bao::launch(BaoOptions { audit: false, ..BaoOptions::default() }, None).await;
        let keys = bao.api("PUT", "sys/init", json!({"secret_shares": 1, "secret_threshold": 1})).await;
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let (root_token, unseal_key) = (text(&keys["root_token"]), text(&keys["keys_base64"][0]));
        bao.set_credentials(&root_token, &unseal_key);
        bao.unseal().await;
        bao.api("POST", &format!("sys/mounts/{MOUNT}"), json!({"type": "transit"})).await;
        bao.api("POST", "sys/auth/approle", json!({"type": "approle"})).await;
        bao.api("POST", "sys/auth/jwt", json!({"type": "jwt"})).await;
        bao.stop();
        let mut files = Vec::new();
        read_folder(&bao.storage(), Path::new(""), &mut files);
        Self { files, root_token, unseal_key }
    }

    /// Writes the storage to the empty folder `to`.
    pub(super) fn write(&self, to: &Path) {
        for file in &self.files {
            let path = to.join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let written = File::create(path).unwrap();
            written.set_len(file.len).unwrap();
            for (offset, block) in &file.blocks {
                written.write_all_at(block, *offset).unwrap();
            }
        }
    }
}

struct SparseFile {
    path: PathBuf,
    len: u64,
    blocks: Vec<(u64, Vec<u8>)>,
}

fn read_folder(root: &Path, below: &Path, into: &mut Vec<SparseFile>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            read_folder(root, &path, into);
            continue;
        }
        let content = fs::read(entry.path()).unwrap();
        let blocks = content
            .chunks(BLOCK)
            .enumerate()
            .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
            .map(|(at, block)| (u64::try_from(at * BLOCK).unwrap(), block.to_vec()))
            .collect();
        into.push(SparseFile { path, len: u64::try_from(content.len()).unwrap(), blocks });
    }
}
