//! A real OpenBao (or Vault), one a test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use reqwest::{Certificate, Client, Method, RequestBuilder, redirect};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    files::repository, files::small_disk::SmallDisk, files::temp_dir::scratch, net::authority::Authority,
    net::http::client, net::port, process::Process, process::command::command,
    vault::initialized_storage::Seed, wait::eventually,
};

/// The Transit key that every server has.
pub const KEY: &str = "kms";
/// Where Transit is mounted.
pub const MOUNT: &str = "transit";
/// The name of the policy that every server has: what the daemon needs with [`KEY`], no more.
pub const POLICY: &str = "transit-kms";

/// Enough for the log of a test.
const AUDIT_DISK: &str = "32m";
/// A server that has not answered by then is not there.
const SOON: Duration = Duration::from_secs(1);
/// How long a server may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(20);

/// The rules that the daemon needs to work with the key `key`, and nothing else.
pub fn policy(mount: &str, key: &str) -> String {
    format!(
        r#"
path "{mount}/encrypt/{key}"  {{ capabilities = ["update"] }}
path "{mount}/decrypt/{key}"  {{ capabilities = ["update"] }}
path "{mount}/keys/{key}"     {{ capabilities = ["read"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self"  {{ capabilities = ["update"] }}
"#
    )
}

/// What makes a server one of a cluster.
pub struct Member {
    /// Has its audit log on a disk of its own, `audit` in its folder.
    pub(crate) audit_disk: bool,
    /// That of all members.
    pub(crate) authority: Arc<Authority>,
    /// The address of the member to join, if it is not the first.
    pub(crate) leader: Option<String>,
    pub(crate) name: String,
}

/// How a server is to be.
pub struct BaoOptions {
    /// Write an audit log, for [`Bao::audit_log`].
    pub audit: bool,
    /// Further listeners on the loopback, as the server's config has them but for their address; see
    /// [`Bao::port_of_listener`].
    pub listeners: Vec<Value>,
    /// One of a cluster, rather than alone.
    pub member: Option<Member>,
    /// Refuse clients without a certificate of the server's authority; see
    /// [`Bao::client_certificate`].
    pub require_client_certificate: bool,
}

impl Default for BaoOptions {
    fn default() -> Self {
        Self { audit: true, listeners: Vec::new(), member: None, require_client_certificate: false }
    }
}

/// A server with TLS on the loopback, with Transit, AppRole and JWT mounted, and its storage on
/// disk. It ends, and its folder goes, with this value.
pub struct Bao {
    process: Option<Process>,
    audit_disk: Option<SmallDisk>,
    authority: Arc<Authority>,
    dir: TempDir,
    http: Client,
    options: BaoOptions,
    port: u16,
    /// Of [`BaoOptions::listeners`].
    ports: Vec<u16>,
    root_token: String,
    unseal_key: String,
}

impl Bao {
    /// A server that is up and unsealed, with [`KEY`] and [`POLICY`].
    pub async fn start() -> Self {
        Self::start_with(BaoOptions::default()).await
    }

    /// As [`Bao::start`], with choices.
    pub async fn start_with(options: BaoOptions) -> Self {
        let seed = Seed::of_this_process().await;
        let mut bao = Self::launch(options, Some(seed)).await;
        bao.adopt(&seed.root_token, &seed.unseal_key);
        bao.unseal().await;
        let own = bao.create_token(json!({"policies": ["root"]})).await;
        bao.adopt(&own, &seed.unseal_key);
        bao.revoke(&seed.root_token).await;
        if bao.options.audit && Program::found().is_vault {
            let device = json!({"type": "file", "options": {"file_path": bao.audit_file()}});
            bao.api("PUT", "sys/audit/main", device).await;
        }
        bao.api("POST", &format!("{MOUNT}/keys/{KEY}"), json!({})).await;
        bao.policy(POLICY, &policy(MOUNT, KEY)).await;
        bao
    }

    /// A server that listens: without a seed not initialised, with one sealed.
    pub(crate) async fn launch(options: BaoOptions, seed: Option<&Seed>) -> Self {
        let dir = scratch("bao-");
        let audit_disk = options.member.as_ref().filter(|member| member.audit_disk).and_then(|_| {
            let at = dir.path().join("audit");
            fs::create_dir(&at).unwrap();
            SmallDisk::mounted(&at, AUDIT_DISK)
        });
        let authority = match &options.member {
            Some(member) => Arc::clone(&member.authority),
            None => Arc::new(Authority::new(dir.path())),
        };
        let mut http = client()
            .tls_certs_only([Certificate::from_pem(authority.pem().as_bytes()).unwrap()])
            .redirect(redirect::Policy::none())
            // A connection that is kept does not outlive a restart; a new one costs 4 ms.
            .pool_max_idle_per_host(0)
            .timeout(PATIENCE);
        if options.require_client_certificate {
            let (chain, key) = authority.client("root");
            let identity = [fs::read(key).unwrap(), fs::read(chain).unwrap()].concat();
            http = http.identity(reqwest::Identity::from_pem(&identity).unwrap());
        }
        let mut bao = Self {
            process: None,
            audit_disk,
            authority,
            dir,
            http: http.build().unwrap(),
            options,
            port: 0,
            ports: Vec::new(),
            root_token: String::new(),
            unseal_key: String::new(),
        };
        fs::create_dir(bao.storage()).unwrap();
        if let Some(seed) = seed {
            seed.write(&bao.storage());
        }
        loop {
            bao.port = port::unused();
            bao.ports = bao.options.listeners.iter().map(|_| port::unused()).collect();
            bao.write_config();
            match bao.listen().await {
                Ok(()) => return bao,
                // Somebody outside of this process was faster.
                Err(said) if said.contains("address already in use") => {}
                Err(said) => panic!("the server ended at its start:\n{said}"),
            }
        }
    }

    /// What calls are made with from now on.
    pub(crate) fn adopt(&mut self, root_token: &str, unseal_key: &str) {
        root_token.clone_into(&mut self.root_token);
        unseal_key.clone_into(&mut self.unseal_key);
    }

    /// Whether this is Vault and not OpenBao.
    pub fn is_vault() -> bool {
        Program::found().is_vault
    }

    /// The program, which is the client, too.
    pub fn program() -> &'static Path {
        &Program::found().path
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A client that trusts this server.
    pub(crate) fn http(&self) -> &Client {
        &self.http
    }

    /// The certificate that the server's is signed by.
    pub fn ca_file(&self) -> PathBuf {
        self.authority.file()
    }

    /// The port of one of [`BaoOptions::listeners`].
    pub fn port_of_listener(&self, index: usize) -> u16 {
        self.ports[index]
    }

    /// A client certificate of the server's authority: the paths of the chain and of its key.
    pub fn client_certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        self.authority.client(name)
    }

    /// A token that may do everything, of this server only.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// What unseals it; the same for all servers of this process.
    pub fn unseal_key(&self) -> &str {
        &self.unseal_key
    }

    /// Calls the API as root: `api("POST", "transit/keys/other", json!({}))`; no body for `Null`.
    ///
    /// # Panics
    /// Unless the answer is 2xx.
    pub async fn api(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.api_as(&self.root_token, method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Calls the API with this token, and answers whatever comes.
    pub async fn api_as(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        match self.call(token, method, path, body).await {
            Ok(answered) => answered,
            Err(e) => panic!("{method} {path}: {e:?}"),
        }
    }

    /// Creates a token as `auth/token/create` is told to, such as
    /// `json!({"ttl": "1h", "renewable": false})`. What is not said: an orphan with [`POLICY`] and
    /// without the `default` policy.
    pub async fn create_token(&self, options: Value) -> String {
        let mut request = json!({"policies": [POLICY], "no_default_policy": true, "no_parent": true});
        for (name, value) in options.as_object().unwrap() {
            request[name] = value.clone();
        }
        let answer = self.api("POST", "auth/token/create", request).await;
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// A token as an operator would make it: [`POLICY`], renewable, for an hour.
    pub async fn token(&self) -> String {
        self.create_token(json!({"ttl": "1h"})).await
    }

    /// Ends this token.
    pub async fn revoke(&self, token: &str) {
        self.api("POST", "auth/token/revoke", json!({"token": token})).await;
    }

    /// Writes a policy.
    pub async fn policy(&self, name: &str, rules: &str) {
        self.api("PUT", &format!("sys/policies/acl/{name}"), json!({"policy": rules})).await;
    }

    /// The entries of the audit log for requests with this KMS uid; none unless the header is
    /// switched on (`docs/audit.md`).
    pub fn audited(&self, uid: &str) -> Vec<Value> {
        let of_uid = |entry: &Value| entry["request"]["headers"]["x-kms-uid"] == json!([uid]);
        self.audit_log().into_iter().filter(of_uid).collect()
    }

    /// Switches on that the audit log holds the KMS uid, as `docs/audit.md` says.
    pub async fn audit_uids(&self) {
        self.api("POST", "sys/config/auditing/request-headers/x-kms-uid", json!({"hmac": false})).await;
    }

    /// Makes a new version of this key and answers its number.
    pub async fn rotate_key(&self, key: &str) -> u64 {
        self.api("POST", &format!("{MOUNT}/keys/{key}/rotate"), json!({})).await;
        self.key_version(key).await
    }

    /// The latest version of this key.
    pub async fn key_version(&self, key: &str) -> u64 {
        let answer = self.api("GET", &format!("{MOUNT}/keys/{key}"), Value::Null).await;
        answer["data"]["latest_version"].as_u64().unwrap()
    }

    /// Encrypts with the latest version, as root and around the daemon.
    pub async fn encrypt(&self, key: &str, plaintext: &[u8]) -> String {
        let request = json!({"plaintext": BASE64.encode(plaintext)});
        let answer = self.api("POST", &format!("{MOUNT}/encrypt/{key}"), request).await;
        answer["data"]["ciphertext"].as_str().unwrap().to_owned()
    }

    /// Decrypts as root and around the daemon.
    pub async fn decrypt(&self, key: &str, ciphertext: &str) -> Vec<u8> {
        let request = json!({"ciphertext": ciphertext});
        let answer = self.api("POST", &format!("{MOUNT}/decrypt/{key}"), request).await;
        BASE64.decode(answer["data"]["plaintext"].as_str().unwrap()).unwrap()
    }

    /// Seals it and waits until it says so.
    pub async fn seal(&self) {
        self.api("PUT", "sys/seal", Value::Null).await;
        self.health_is(503).await;
    }

    /// Unseals it and waits until it serves.
    pub async fn unseal(&self) {
        self.api("PUT", "sys/unseal", json!({"key": self.unseal_key})).await;
        self.health_is(200).await;
    }

    /// Unseals one of a cluster and waits until it serves, as leader or not.
    pub async fn unseal_member(&self) {
        eventually("the member serves", PATIENCE, async || match self.health().await {
            Some(200 | 429) => Ok(()),
            found => {
                // Refused until it has found the leader.
                drop(self.call("", "PUT", "sys/unseal", json!({"key": self.unseal_key})).await);
                Err(format!("{found:?}"))
            }
        })
        .await;
    }

    /// The status of its health, if it answers at once.
    pub async fn health(&self) -> Option<u16> {
        let asked = timeout(SOON, self.call("", "GET", "sys/health", Value::Null)).await;
        Some(asked.ok()?.ok()?.0)
    }

    /// Kills it, as a crash would: connections are refused from now on. The storage stays.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again, with the same address and storage, and unseals it.
    pub async fn start_again(&mut self) {
        self.start_again_sealed().await;
        self.unseal().await;
    }

    /// Starts it again, with the same address and storage, and leaves it sealed.
    pub async fn start_again_sealed(&mut self) {
        assert!(self.process.is_none(), "stop it first");
        if let Err(said) = self.listen().await {
            panic!("the server ended at its start:\n{said}");
        }
    }

    /// Stops it from running: connections are accepted by the kernel, and nobody answers.
    pub async fn freeze(&mut self) {
        let process = self.process.as_mut().expect("it is stopped");
        process.signal(Signal::STOP);
        // The signal is on its way when `kill` returns; another core may still be answering.
        eventually("the server is frozen", PATIENCE, async || process.is_frozen()).await;
    }

    /// Lets it run on.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("it is stopped").signal(Signal::CONT);
    }

    /// All that it holds, as `bao operator raft snapshot save` has it.
    pub async fn snapshot(&self) -> Bytes {
        let answer = self.snapshots(Method::GET).send().await.unwrap();
        answer.error_for_status().unwrap().bytes().await.unwrap()
    }

    /// Goes back to what it held then, as by `bao operator raft snapshot restore`.
    pub async fn restore(&self, snapshot: &Bytes) {
        let answer = self.snapshots(Method::POST).body(snapshot.clone()).send().await.unwrap();
        answer.error_for_status().unwrap();
        self.health_is(200).await;
    }

    fn snapshots(&self, method: Method) -> RequestBuilder {
        let url = format!("{}/v1/sys/storage/raft/snapshot", self.address());
        self.http.request(method, url).header("X-Vault-Token", &self.root_token)
    }

    /// The disk that its audit log is on, if that is one of its own.
    pub fn audit_disk(&self) -> Option<&SmallDisk> {
        self.audit_disk.as_ref()
    }

    /// All entries of the audit log, requests and responses.
    pub fn audit_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.audit_file()).unwrap();
        // The last line may still be being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    fn audit_file(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn write_config(&self) {
        let path = |path: &Path| path.display().to_string();
        let (chain, key) = self.authority.server();
        let cluster = format!("127.0.0.1:{}", port::unused());
        let mut config = json!({
            "api_addr": self.address(),
            "cluster_addr": format!("https://{cluster}"),
            // Vault wants it said; OpenBao warns that it never locks memory.
            "disable_mlock": true,
            "listener": [{"tcp": {
                "address": format!("127.0.0.1:{}", self.port),
                "cluster_address": cluster,
                "tls_cert_file": path(&chain),
                "tls_key_file": path(&key),
            }}],
            "storage": {"raft": {
                "node_id": self.options.member.as_ref().map_or("one", |member| &member.name),
                "path": path(&self.storage()),
                "performance_multiplier": 1,
            }},
        });
        if let Some(leader) = self.options.member.as_ref().and_then(|member| member.leader.as_ref()) {
            config["storage"]["raft"]["retry_join"] =
                json!([{"leader_api_addr": leader, "leader_ca_cert_file": path(&self.ca_file())}]);
        }
        if self.options.require_client_certificate {
            let listener = &mut config["listener"][0]["tcp"];
            listener["tls_client_ca_file"] = json!(path(&self.ca_file()));
            listener["tls_require_and_verify_client_cert"] = json!(true);
        }
        for (options, port) in self.options.listeners.iter().zip(&self.ports) {
            let mut listener = options.clone();
            listener["address"] = json!(format!("127.0.0.1:{port}"));
            // Each needs one of its own, and only that of the first is used.
            listener["cluster_address"] = json!(format!("127.0.0.1:{}", port::unused()));
            config["listener"].as_array_mut().unwrap().push(json!({ "tcp": listener }));
        }
        if (self.options.audit || self.audit_disk.is_some()) && !Program::found().is_vault {
            // A cluster has one table of devices for all members, so the path is the same for all: it is
            // each one's own by the folder that it runs in.
            let file = self.audit_disk.as_ref().map_or(path(&self.audit_file()), |_| "audit/main.log".into());
            config["audit"] = json!([{"type": "file", "path": "main", "options": {"file_path": file}}]);
        }
        fs::write(self.dir.path().join("server.json"), config.to_string()).unwrap();
    }

    /// Runs it until it answers; if it ends before, what it said.
    async fn listen(&mut self) -> Result<(), String> {
        let mut command = command(Program::path());
        command.arg("server").arg("-config").arg(self.dir.path().join("server.json"));
        command.env("HOME", self.dir.path()).current_dir(self.dir.path());
        let mut process = Process::spawn("the server", &mut command);
        let result = eventually("the server listens", PATIENCE, async || {
            if process.exited().is_some() {
                return Some(Err(()));
            }
            self.call("", "GET", "sys/seal-status", Value::Null).await.is_ok().then_some(Ok(()))
        })
        .await;
        if result.is_err() {
            process.kill();
            return Err(process.output());
        }
        self.process = Some(process);
        Ok(())
    }

    async fn health_is(&self, wanted: u16) {
        eventually(&format!("health {wanted}"), PATIENCE, async || {
            match self.call("", "GET", "sys/health", Value::Null).await {
                Ok((status, _)) if status == wanted => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(e) => Err(e.to_string()),
            }
        })
        .await;
    }

    async fn call(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<(u16, Value), reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .http
            .request(method, format!("{}/v1/{path}", self.address()))
            .header("X-Vault-Request", "true")
            .header("X-Vault-Token", token);
        if !body.is_null() {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}

/// The binary that is server and agent.
pub struct Program {
    path: PathBuf,
    is_vault: bool,
}

impl Program {
    /// Where it is.
    pub fn path() -> &'static Path {
        &Self::found().path
    }

    /// `TRANSIT_KMS_TEST_SERVER`, else `bao` or `vault` on PATH, else what `scripts/tools` got.
    ///
    /// # Panics
    /// If there is none: a test without a server is a test that fails.
    fn found() -> &'static Self {
        static FOUND: OnceLock<Program> = OnceLock::new();
        FOUND.get_or_init(|| {
            let on_path = std::env::var_os("PATH").unwrap_or_default();
            let on_path: Vec<_> = std::env::split_paths(&on_path).collect();
            let mut candidates: Vec<PathBuf> = Vec::new();
            match std::env::var_os("TRANSIT_KMS_TEST_SERVER") {
                Some(given) if !given.is_empty() => candidates.push(given.into()),
                _ => {
                    candidates.extend(on_path.iter().map(|dir| dir.join("bao")));
                    candidates.extend(on_path.iter().map(|dir| dir.join("vault")));
                    candidates.push(repository::path("target/tools/bin/bao"));
                }
            }
            candidates.into_iter().find_map(Self::tried).unwrap_or_else(|| {
                panic!("no server to test against: run scripts/tools, or name one in TRANSIT_KMS_TEST_SERVER")
            })
        })
    }

    fn tried(path: PathBuf) -> Option<Self> {
        let version = command(&path).arg("version").output().ok()?;
        let is_vault = String::from_utf8_lossy(&version.stdout).starts_with("Vault");
        version.status.success().then_some(Self { path, is_vault })
    }
}
