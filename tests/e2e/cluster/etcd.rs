//! A real etcd, and a look at what it holds.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    api::{CONFIG_MAPS, SECRETS},
    stored::Stored,
    tools::tool,
};
use crate::support::{eventually, port, process::Process, scratch};

/// It takes a third of a second.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// An etcd of one member; it ends, and its data go, with this value.
pub(crate) struct Etcd {
    dir: TempDir,
    http: reqwest::Client,
    port: u16,
    _process: Process,
}

impl Etcd {
    pub(super) async fn start() -> Self {
        let dir = scratch("etcd-");
        let (port, peer) = (port::unused(), port::unused());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(tool("etcd"));
        command
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // What is lost with the machine is not missed.
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        let process = Process::spawn("etcd", &mut command);
        let http = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        let etcd = Self { dir, http, port, _process: process };
        eventually("etcd is up", UP_WITHIN, async || {
            let answer = etcd.http.get(format!("{}/health", etcd.address())).send().await;
            answer.and_then(reqwest::Response::error_for_status)
        })
        .await;
        etcd
    }

    /// `http://127.0.0.1:port`.
    pub(super) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What is stored for an object of the API.
    ///
    /// # Panics
    /// If there is nothing.
    pub(crate) async fn stored(&self, resource: &str, name: &str) -> Stored {
        let key = format!("/registry/{resource}/default/{name}");
        let found = self.range(json!({"key": BASE64.encode(&key)})).await;
        let (_, value) = found.into_iter().next().unwrap_or_else(|| panic!("nothing at {key}"));
        Stored(value)
    }

    /// What is stored for all objects of a resource in the namespace `default`, by name.
    pub(crate) async fn all_stored(&self, resource: &str) -> Vec<(String, Stored)> {
        let prefix = format!("/registry/{resource}/default/");
        // "0" comes right after "/".
        let end = format!("/registry/{resource}/default0");
        let found = self.range(json!({"key": BASE64.encode(&prefix), "range_end": BASE64.encode(end)})).await;
        let name = |key: &str| key.strip_prefix(&prefix).unwrap().to_owned();
        found.into_iter().map(|(key, value)| (name(&key), Stored(value))).collect()
    }

    /// The wrapped seeds of all Secrets and ConfigMaps, each once.
    pub(crate) async fn seeds(&self) -> BTreeSet<Vec<u8>> {
        let mut seeds = BTreeSet::new();
        for resource in [SECRETS, CONFIG_MAPS] {
            let ends = ["/", "0"].map(|end| BASE64.encode(format!("/registry/{resource}{end}")));
            let stored = self.range(json!({"key": ends[0], "range_end": ends[1]})).await;
            seeds.extend(stored.into_iter().map(|(_, value)| Stored(value).object().encrypted_dek_source));
        }
        seeds
    }

    /// # Panics
    /// If one of these stands anywhere in what etcd holds or has written to its files, plain or in
    /// base64.
    pub(crate) async fn assert_nowhere(&self, plaintexts: &[&str]) {
        let everything = json!({"key": "AA==", "range_end": "AA=="});
        let mut places: Vec<(String, Vec<u8>)> = self.range(everything).await;
        assert!(places.len() > 10, "that is not all");
        read_files(self.dir.path(), &mut places);
        for plaintext in plaintexts {
            for form in [(*plaintext).to_owned(), BASE64.encode(plaintext)] {
                let found = places.iter().find(|(_, content)| contains(content, form.as_bytes()));
                assert!(found.is_none(), "{form} stands in {:?}", found.map(|(place, _)| place));
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

fn read_files(below: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, into);
        } else {
            // Its log is 64 MiB of mostly nothing.
            let mut content = fs::read(&path).unwrap();
            content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            into.push((path.display().to_string(), content));
        }
    }
}

fn contains(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}
