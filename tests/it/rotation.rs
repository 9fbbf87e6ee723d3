//! Changes of tokens and rotations of keys under load, without a failed call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_plugin::v2::EncryptResponse;
use rustix::process::Signal;
use serde_json::json;
use testkit::{
    Agent, AgentOptions, Bao, Caller, Daemon, DaemonOptions, KEY, Load, MOUNT, RELOAD_TIMEOUT, TestEnv,
    eventually, full, health_checks, temp_dir, version_of_ciphertext, version_of_key_id,
    wait_for_session_after,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const LOADS: usize = 4;
/// The pause between two rounds of a load task, which leaves processor time for other tests.
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn no_call_fails_during_many_token_changes_under_load() {
    let rounds = if full() { 1000 } else { 200 };
    let mut env = TestEnv::start().await;
    // At level trace the test would keep hundreds of megabytes of output.
    let (mut daemon, _) = env.ready(["--log-level", "info"]).await;
    let started = daemon.metric("process_start_time_seconds", &[]).await;
    let load = Load::start(&daemon, LOADS, PAUSE).await;

    let mut connections = BTreeSet::new();
    let mut memory = 0.0;
    for round in 1..=rounds {
        let old = env.token().to_owned();
        let new = env.bao.token().await;
        let calls = load.calls();
        let before = daemon.generation().await;
        env.render(&new);
        if round % 4 != 0 {
            // SIGHUP reloads at once, without the debounce of the watcher.
            daemon.signal(Signal::HUP);
        }
        wait_for_session_after(&daemon, before).await;
        // Calls with the old token can still be in flight.
        env.bao.revoke(&old).await;
        eventually("further calls", RELOAD_TIMEOUT, async || load.calls() > calls).await;
        connections.extend(connections_to(&daemon, &env.bao));
        if round == rounds / 4 {
            memory = daemon.metric("process_resident_memory_bytes", &[]).await;
        }
    }

    let report = load.stop().await;
    report.assert_nothing_failed();
    let grown = daemon.metric("process_resident_memory_bytes", &[]).await - memory;
    println!(
        "{rounds} tokens, {} calls, the longest {:?}; {} connections, {:.1} MiB more memory",
        report.calls,
        report.longest,
        connections.len(),
        grown / 1048576.0,
    );
    let taken = daemon.metric("transit_kms_config_reloads_total", &[("result", "success")]).await;
    assert_eq!(taken, f64::from(rounds) + 1.0);
    for result in ["pending", "refused", "invalid"] {
        assert_eq!(
            daemon.metric("transit_kms_config_reloads_total", &[("result", result)]).await,
            0.0,
            "{result}"
        );
    }
    // One connection for each load task, one for the health checker and one for the session manager. A call that finds
    // all of them busy may add one. If the pool ended with its session, there would be hundreds.
    assert!(connections.len() <= 2 * (LOADS + 2), "{connections:?}");
    assert!(grown < 4.0 * 1024.0 * 1024.0, "{grown} bytes more in the last three quarters");
    assert_eq!(daemon.exited(), None);
    assert_eq!(daemon.metric("process_start_time_seconds", &[]).await, started);
}

#[tokio::test]
async fn calls_wait_for_the_next_token_when_theirs_is_revoked() {
    const ROUNDS: u32 = 20;
    let mut env = TestEnv::start().await;
    let (daemon, _) = env.ready(["--log-level", "info"]).await;
    // Status must report an invalid token; the other calls must succeed.
    let wrapping = EncryptLoad::start(&daemon, LOADS).await;
    for _ in 0..ROUNDS {
        let refused =
            daemon.metric("transit_kms_vault_requests_total", &[("outcome", "token_invalid")]).await;
        let (before, old) = (daemon.generation().await, env.token().to_owned());
        let new = env.bao.token().await;
        env.bao.revoke(&old).await;
        eventually("a call is refused with the revoked token", RELOAD_TIMEOUT, async || {
            daemon.metric("transit_kms_vault_requests_total", &[("outcome", "token_invalid")]).await > refused
        })
        .await;
        env.render(&new);
        wait_for_session_after(&daemon, before).await;
        let calls = wrapping.calls();
        eventually("further calls", RELOAD_TIMEOUT, async || wrapping.calls() > calls).await;
    }
    let (calls, failures) = wrapping.stop().await;
    assert!(failures.is_empty(), "of {calls} calls these failed: {failures:#?}");
    assert!(daemon.metric("transit_kms_retries_total", &[("reason", "token_invalid")]).await >= 1.0);
    // One refusal for each task and each health check: no call is sent twice.
    let refused = daemon.metric("transit_kms_vault_requests_total", &[("outcome", "token_invalid")]).await;
    let most = f64::from(ROUNDS) * 10.0;
    assert!(refused <= most, "{refused} refusals, more than {most}");
}

#[tokio::test]
async fn no_call_fails_while_an_agent_logs_in_repeatedly_under_load() {
    let bao = Bao::start().await;
    let dir = temp_dir("agent-config-");
    let mut agent = Agent::start(&bao, &dir.path().join("config.yaml"), AgentOptions::default()).await;
    let options = DaemonOptions::arguments(["--log-level", "info", "--health-check-interval", "1s"]);
    let daemon = Daemon::start_with(agent.config(), options).await;
    daemon.wait_ready().await;
    let load = Load::start(&daemon, LOADS, PAUSE).await;
    for _ in 0..8 {
        let (before, old) = (daemon.generation().await, agent.token());
        agent.log_in_again().await;
        wait_for_session_after(&daemon, before).await;
        bao.revoke(&old).await;
        let calls = load.calls();
        eventually("further calls", RELOAD_TIMEOUT, async || load.calls() > calls + 20).await;
    }
    load.stop().await.assert_nothing_failed();
}

#[tokio::test]
async fn status_encrypt_and_ciphertext_agree_while_keys_rotate_under_load() {
    let rotations = if full() { 200 } else { 30 };
    let env = TestEnv::start().await;
    // Two daemons, as for two API servers: one of them sees a new version first, and the other must decrypt ciphertexts of
    // a version that it does not know yet.
    let (one, ask_one) = env.ready(["--log-level", "info"]).await;
    let (other, ask_other) = env.ready(["--log-level", "info"]).await;
    let rotating = MultiDaemonLoad::start(&[&one, &other], 2).await;
    for _ in 0..rotations {
        let version = env.bao.rotate_key(KEY).await;
        for caller in [&ask_one, &ask_other] {
            let what = format!("version {version} is published");
            eventually(&what, Duration::from_secs(5), async || {
                let published = caller.key_id().await;
                if version_of_key_id(&published) == version { Ok(()) } else { Err(published) }
            })
            .await;
        }
        eventually("a ciphertext of the new version", RELOAD_TIMEOUT, async || rotating.has_version(version))
            .await;
    }
    let outcome = rotating.stop().await;
    assert!(outcome.failures.is_empty(), "{} rounds; {:#?}", outcome.rounds, outcome.failures);
    println!("{} rounds, {} of them astride a rotation", outcome.rounds, outcome.status_changed);

    // All ciphertexts of both daemons can be decrypted.
    assert_eq!(outcome.kept.len(), rotations + 1, "something was encrypted with each version");
    for (sealed, seed) in outcome.kept.values().flatten() {
        for caller in [&ask_one, &ask_other] {
            assert_eq!(caller.decrypt(sealed).await.unwrap(), seed[..]);
        }
    }
}

#[tokio::test]
async fn after_a_raised_min_encryption_version_one_call_fails_and_the_next_use_the_new_version() {
    let env = TestEnv::start().await;
    // The call must trigger a health check.
    let (_daemon, caller) = env.ready_without_health_checks().await;
    let old = caller.round_trip().await;
    env.bao.rotate_key(KEY).await;
    configure_key(&env.bao, json!({"min_encryption_version": 2})).await;
    assert_eq!(version_of_key_id(&caller.key_id().await), 1, "no health check has run yet");

    let error = caller.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("min_encryption_version"), "{error}");
    let began = Instant::now();
    let new = eventually("Encrypt works again", Duration::from_secs(3), async || {
        caller.encrypt(b"seed").await.map_err(|error| {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            error
        })
    })
    .await;
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    assert_eq!(version_of_ciphertext(&new.ciphertext), 2);
    assert_eq!(new.key_id, caller.key_id().await);
    assert_eq!(caller.health().await, "ok");
    caller.decrypt(&old).await.unwrap();
}

#[tokio::test]
async fn the_error_for_a_raised_min_decryption_version_names_the_remedy() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let old = caller.round_trip().await;
    env.bao.rotate_key(KEY).await;
    wait_for_version(&caller, 2).await;
    let new = caller.round_trip().await;
    configure_key(&env.bao, json!({"min_decryption_version": 2})).await;

    let refused = async || {
        let error = caller.decrypt(&old).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("min_decryption_version of the key: lower it"), "{error}");
    };
    refused().await;
    // The same after a health check, when Transit no longer reports the creation time of version 1.
    wait_for_health_checks(&daemon, 3.0).await;
    refused().await;
    let warnings = daemon.log().matches("older versions of the key are excluded from decryption").count();
    assert_eq!(warnings, 1, "once, not at every health check");
    caller.decrypt(&new).await.unwrap();
    assert_eq!(caller.health().await, "ok", "one value that is too old is no reason to stop writing");

    configure_key(&env.bao, json!({"min_decryption_version": 1})).await;
    assert_eq!(caller.decrypt(&old).await.unwrap().len(), 32);
}

#[tokio::test]
async fn the_key_id_is_the_same_after_a_restart_and_on_another_node() {
    let env = TestEnv::start().await;
    let (mut daemon, caller) = env.ready([]).await;
    let first = caller.round_trip().await;
    env.bao.rotate_key(KEY).await;
    wait_for_version(&caller, 2).await;
    let second = caller.round_trip().await;
    assert!(daemon.terminate().await.success());

    // The key_id stays the same without a rotation, and is the same everywhere after a rotation.
    let (mut daemon, caller) = env.ready([]).await;
    assert_eq!(caller.key_id().await, second.key_id);
    caller.decrypt(&first).await.unwrap();
    assert!(daemon.terminate().await.success());
    assert_eq!(env.bao.rotate_key(KEY).await, 3);
    configure_key(&env.bao, json!({"min_decryption_version": 2, "min_encryption_version": 2})).await;
    let trim = json!({"min_available_version": 2});
    env.bao.api("POST", &format!("{MOUNT}/keys/{KEY}/trim"), trim).await;

    let (_daemon, one) = env.ready([]).await;
    let (_other_daemon, other) = env.ready([]).await;
    let key_id = one.key_id().await;
    assert_eq!(version_of_key_id(&key_id), 3);
    assert_eq!(other.key_id().await, key_id);
    let third = one.round_trip().await;
    for sealed in [&second, &third] {
        assert_eq!(one.decrypt(sealed).await.unwrap(), other.decrypt(sealed).await.unwrap());
    }
    let error = one.decrypt(&first).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

async fn configure_key(bao: &Bao, settings: serde_json::Value) {
    bao.api("POST", &format!("{MOUNT}/keys/{KEY}/config"), settings).await;
}

async fn wait_for_version(caller: &Caller, version: u64) {
    eventually("a new version", Duration::from_secs(5), async || {
        version_of_key_id(&caller.key_id().await) == version
    })
    .await;
}

/// Waits for this number of further health checks.
async fn wait_for_health_checks(daemon: &Daemon, more: f64) {
    let before = health_checks(daemon).await;
    eventually("further health checks", RELOAD_TIMEOUT, async || {
        health_checks(daemon).await >= before + more
    })
    .await;
}

/// The local ports of the daemon's connections to this server.
fn connections_to(daemon: &Daemon, bao: &Bao) -> BTreeSet<u16> {
    let (_, server) =
        bao.address().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
    let server: u16 = server.parse().unwrap();
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        // A descriptor may be closed while this loop runs.
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':').unwrap().1, 16).unwrap();
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", daemon.pid())).unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| port(row[2]) == server && sockets.contains(row[9])).map(|row| port(row[1])).collect()
}

/// Load of Encrypt and Decrypt, without Status.
struct EncryptLoad {
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: JoinSet<Vec<String>>,
}

impl EncryptLoad {
    async fn start(daemon: &Daemon, tasks: usize) -> Self {
        let mut all = Self { calls: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        for _ in 0..tasks {
            let (caller, calls, stop) = (Caller::of(daemon).await, all.calls.clone(), all.stop.clone());
            all.tasks.spawn(async move {
                let mut failures = Vec::new();
                let mut failed = |what: &str, error: tonic::Status| {
                    failures.push(format!("{what}: {:?}: {}", error.code(), error.message()));
                };
                while !stop.is_cancelled() {
                    let seed: [u8; 32] = rand::random();
                    match caller.encrypt(&seed).await {
                        Ok(sealed) => match caller.decrypt(&sealed).await {
                            Ok(opened) => assert_eq!(opened, seed[..]),
                            Err(error) => failed("Decrypt", error),
                        },
                        Err(error) => failed("Encrypt", error),
                    }
                    calls.fetch_add(2, Ordering::Relaxed);
                    drop(tokio::time::timeout(PAUSE, stop.cancelled()).await);
                }
                failures
            });
        }
        all
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Stops, and returns the number of calls and the messages of the failures.
    async fn stop(self) -> (u64, Vec<String>) {
        self.stop.cancel();
        let failures = self.tasks.join_all().await.concat();
        (self.calls.load(Ordering::Relaxed), failures)
    }
}

/// The number of ciphertexts of each version that are kept.
const KEPT_PER_VERSION: usize = 10;

/// Ciphertexts with their plaintexts, by version.
type Ciphertexts = BTreeMap<u64, Vec<(EncryptResponse, [u8; 32])>>;

/// Load on several daemons with one key: compares Status, Encrypt and Status of a round, and decrypts ciphertexts of all
/// daemons.
struct MultiDaemonLoad {
    kept: Arc<Mutex<Ciphertexts>>,
    stop: CancellationToken,
    tasks: JoinSet<Outcome>,
}

#[derive(Default)]
struct Outcome {
    /// Rounds in which Status changed.
    status_changed: u64,
    failures: Vec<String>,
    kept: Ciphertexts,
    rounds: u64,
}

impl MultiDaemonLoad {
    async fn start(daemons: &[&Daemon], tasks: usize) -> Self {
        let mut all = Self { kept: Arc::default(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        for daemon in daemons {
            for _ in 0..tasks {
                let (caller, kept, stop) = (Caller::of(daemon).await, all.kept.clone(), all.stop.clone());
                all.tasks.spawn(async move {
                    let mut outcome = Outcome::default();
                    while !stop.is_cancelled() {
                        if let Err(what) = outcome.round(&caller, &kept).await {
                            outcome.failures.push(what);
                        }
                        drop(tokio::time::timeout(PAUSE, stop.cancelled()).await);
                    }
                    outcome
                });
            }
        }
        all
    }

    fn has_version(&self, version: u64) -> bool {
        self.kept.lock().unwrap().contains_key(&version)
    }

    async fn stop(self) -> Outcome {
        self.stop.cancel();
        let mut total = Outcome::default();
        for outcome in self.tasks.join_all().await {
            total.status_changed += outcome.status_changed;
            total.failures.extend(outcome.failures);
            total.rounds += outcome.rounds;
        }
        total.kept = std::mem::take(&mut *self.kept.lock().unwrap());
        total
    }
}

impl Outcome {
    async fn round(&mut self, caller: &Caller, kept: &Mutex<Ciphertexts>) -> Result<(), String> {
        self.rounds += 1;
        let failed =
            |what: &str, error: tonic::Status| format!("{what}: {:?}: {}", error.code(), error.message());
        let status = async || {
            let status = caller.status().await.map_err(|error| failed("Status", error))?;
            if status.healthz == "ok" {
                Ok(status.key_id)
            } else {
                Err(format!("Status: {}", status.healthz))
            }
        };
        let seed: [u8; 32] = rand::random();
        let before = status().await?;
        let sealed = caller.encrypt(&seed).await.map_err(|error| failed("Encrypt", error))?;
        let after = status().await?;
        self.status_changed += u64::from(before != after);
        if sealed.key_id != before && sealed.key_id != after {
            return Err(format!("Encrypt: key_id {}, Status {before} and then {after}", sealed.key_id));
        }
        if version_of_key_id(&after) < version_of_key_id(&before) {
            return Err(format!("Status: back from {before} to {after}"));
        }
        let version = version_of_ciphertext(&sealed.ciphertext);
        if version != version_of_key_id(&sealed.key_id) {
            return Err(format!("Encrypt: key_id {}, ciphertext v{version}", sealed.key_id));
        }
        // The newest version may be unknown to the other daemon. Older versions must work, too.
        let (newest, any) = {
            let mut kept = kept.lock().unwrap();
            let same = kept.entry(version).or_default();
            if same.len() < KEPT_PER_VERSION {
                same.push((sealed, seed));
            }
            let newest = kept.values().next_back().and_then(|same| same.last()).cloned();
            let any =
                kept.values().nth(rand::random_range(0..kept.len())).and_then(|same| same.first()).cloned();
            (newest, any)
        };
        for (sealed, seed) in newest.into_iter().chain(any) {
            let opened = caller.decrypt(&sealed).await;
            let opened = opened.map_err(|error| failed(&format!("Decrypt of {}", sealed.key_id), error))?;
            if opened != seed[..] {
                return Err(format!("Decrypt of {}: another plaintext", sealed.key_id));
            }
        }
        Ok(())
    }
}
