//! Starts and stops an etcd, and reads what it stores.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    api::{CONFIG_MAPS, SECRETS},
    stored::{EncryptedObject, Stored},
    tools::tool,
};
use crate::{command, eventually, http::client, port, process::Process, temp_dir};

/// A start takes a third of a second on an idle machine.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// An etcd with one member. Dropping this value kills it and removes its data.
pub struct Etcd {
    dir: TempDir,
    http: reqwest::Client,
    peer: u16,
    port: u16,
    process: Process,
}

impl Etcd {
    pub(super) async fn start() -> Self {
        let dir = temp_dir("etcd-");
        let (port, peer) = (port::unused(), port::unused());
        let process = spawn(dir.path(), port, peer);
        let http = client().tls_certs_only([]).build().unwrap();
        let etcd = Self { dir, http, peer, port, process };
        etcd.wait_up().await;
        etcd
    }

    /// Copies its data folder while it is stopped, and starts it again.
    pub async fn snapshot(&mut self) -> TempDir {
        let copy = temp_dir("etcd-copy-");
        self.process.kill();
        copy_files(self.dir.path(), copy.path());
        self.start_again().await;
        copy
    }

    /// Restores a snapshot. No API server may run: running API servers do not notice that etcd was restored.
    pub async fn restore(&mut self, copy: &TempDir) {
        self.process.kill();
        fs::remove_dir_all(data(self.dir.path())).unwrap();
        copy_files(copy.path(), self.dir.path());
        self.start_again().await;
    }

    /// Kills it, as in a crash.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with the same data, after [`Etcd::kill`].
    pub async fn start_again(&mut self) {
        self.process = spawn(self.dir.path(), self.port, self.peer);
        self.wait_up().await;
    }

    async fn wait_up(&self) {
        eventually("etcd is up", UP_WITHIN, async || {
            let answer = self.http.get(format!("{}/health", self.address())).send().await;
            answer.and_then(reqwest::Response::error_for_status)
        })
        .await;
    }

    /// `http://127.0.0.1:port`.
    pub(super) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The stored value of an API object.
    ///
    /// # Panics
    /// If the object does not exist.
    pub async fn stored(&self, resource: &str, name: &str) -> Stored {
        let key = format!("/registry/{resource}/default/{name}");
        let found = self.range(json!({"key": BASE64.encode(&key)})).await;
        let (_, value) = found.into_iter().next().unwrap_or_else(|| panic!("nothing at {key}"));
        Stored(value)
    }

    /// The names and stored values of all objects of a resource in the namespace `default`.
    pub async fn all_stored(&self, resource: &str) -> Vec<(String, Stored)> {
        let prefix = format!("/registry/{resource}/default/");
        // "0" comes right after "/".
        let end = format!("/registry/{resource}/default0");
        let found = self.range(json!({"key": BASE64.encode(&prefix), "range_end": BASE64.encode(end)})).await;
        let name = |key: &str| key.strip_prefix(&prefix).unwrap().to_owned();
        found.into_iter().map(|(key, value)| (name(&key), Stored(value))).collect()
    }

    /// Resource, namespace and name of all Secrets and ConfigMaps.
    pub async fn names(&self) -> Vec<(String, String, String)> {
        let named = |key: &str| {
            let mut parts = key.split('/').skip(2).map(str::to_owned);
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
        };
        self.all_encrypted().await.iter().map(|(key, _)| named(key)).collect()
    }

    /// The etcd keys and stored objects of all Secrets and ConfigMaps of all namespaces.
    async fn all_encrypted(&self) -> Vec<(String, EncryptedObject)> {
        let mut objects = Vec::new();
        for resource in [SECRETS, CONFIG_MAPS] {
            let ends = ["/", "0"].map(|end| BASE64.encode(format!("/registry/{resource}{end}")));
            let stored = self.range(json!({"key": ends[0], "range_end": ends[1]})).await;
            objects.extend(stored.into_iter().map(|(key, value)| (key, Stored(value).object())));
        }
        objects
    }

    /// The distinct encrypted DEK seeds of all Secrets and ConfigMaps.
    pub async fn seeds(&self) -> BTreeSet<Vec<u8>> {
        self.all_encrypted().await.into_iter().map(|(_, object)| object.encrypted_dek_source).collect()
    }

    /// The distinct key_ids of all Secrets and ConfigMaps.
    pub async fn key_ids(&self) -> BTreeSet<String> {
        self.all_encrypted().await.into_iter().map(|(_, object)| object.key_id).collect()
    }

    /// # Panics
    /// If etcd holds one of these in a value or in one of its files, plain or in base64.
    pub async fn assert_not_stored(&self, plaintexts: &[&str]) {
        let everything = json!({"key": "AA==", "range_end": "AA=="});
        let mut places: Vec<(String, Vec<u8>)> = self.range(everything).await;
        assert!(places.len() > 10, "etcd holds only {} values", places.len());
        read_files(self.dir.path(), &mut places);
        for plaintext in plaintexts {
            for form in [(*plaintext).to_owned(), BASE64.encode(plaintext)] {
                let found = places.iter().find(|(_, content)| contains(content, form.as_bytes()));
                assert!(found.is_none(), "{form} is in {:?}", found.map(|(place, _)| place));
            }
        }
    }

    /// Keys and values.
    ///
    /// Source: <https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>
    async fn range(&self, request: Value) -> Vec<(String, Vec<u8>)> {
        let url = format!("{}/v3/kv/range", self.address());
        let answer = self.http.post(url).body(request.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let text = |value: &Value| BASE64.decode(value.as_str().unwrap_or_default()).unwrap();
        let pairs = answer["kvs"].as_array().cloned().unwrap_or_default();
        let pair = |pair: &Value| (String::from_utf8(text(&pair["key"])).unwrap(), text(&pair["value"]));
        pairs.iter().map(pair).collect()
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn spawn(dir: &Path, port: u16, peer: u16) -> Process {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let mut command = command(tool("etcd"));
    command
        .arg("--data-dir")
        .arg(data(dir))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        // Tests need no data after a crash of the machine.
        .args(["--unsafe-no-fsync", "--log-level", "warn"]);
    Process::spawn("etcd", &mut command)
}

/// Copies files and folders recursively.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            // etcd refuses a folder that others may enter.
            DirBuilder::new().mode(0o700).create(&to).unwrap();
            copy_files(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

fn read_files(below: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, into);
        } else {
            // The write-ahead log has 64 MiB, mostly zeros at the end.
            let mut content = fs::read(&path).unwrap();
            content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            into.push((path.display().to_string(), content));
        }
    }
}

fn contains(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}
