//! Benchmarks of the daemon: `cargo bench -p integration-tests`.
//!
//! Absolute numbers depend on the machine, so compare the ratios only. The two sides of a ratio are measured in
//! alternation within one run. No benchmark fails.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints results, with the helpers of the tests"
)]

use std::{
    fs,
    time::{Duration, Instant},
};

use kms_plugin::v2::{DecryptRequest, EncryptRequest};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Bao, ConfigFile, Daemon, DaemonOptions, KEY, Kms, MOUNT};

const STARTS: usize = 20;
const LATENCY_CALLS: usize = 5000;
const MANY_CALLS: usize = 100_000;
const CALLERS: usize = 16;
/// Decrypts of each caller in a measurement of throughput.
const CALLS_PER_CALLER: usize = 50;
/// Alternations between the daemons with and without coalescing.
const ALTERNATIONS: usize = 5;

#[tokio::main]
async fn main() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let bao = Bao::start().await;
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("config.yaml");
    fs::write(&config, ConfigFile::with_new_token(&bao).await.yaml()).unwrap();

    let binary = fs::metadata(testkit::repository::daemon()).unwrap().len();
    println!("binary: {:.1} MiB", binary as f64 / f64::from(1 << 20));

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(start_to_listening(&config).await);
    }
    println!("start to listening: {}", Percentiles::of(starts));

    let daemon = Daemon::start_with(&config, quiet()).await;
    daemon.wait_ready().await;
    println!("resident when ready: {}", resident(&daemon));

    latencies(&bao, &daemon).await;
    throughputs(&bao, &config).await;

    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let mut kms = daemon.kms().await;
        let request = decrypt_request(&mut kms).await;
        callers.spawn(async move {
            for _ in 0..MANY_CALLS / CALLERS {
                kms.decrypt(request.clone()).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    println!(
        "{MANY_CALLS} Decrypts by {CALLERS} callers: {:.0}/s; resident afterwards: {}",
        MANY_CALLS as f64 / began.elapsed().as_secs_f64(),
        resident(&daemon)
    );
}

fn quiet() -> DaemonOptions {
    DaemonOptions::arguments(["--log-level", "info"])
}

async fn start_to_listening(config: &std::path::Path) -> Duration {
    let began = Instant::now();
    let daemon = Daemon::spawn(config, quiet());
    while std::os::unix::net::UnixStream::connect(daemon.socket()).is_err() {
        std::hint::spin_loop();
    }
    began.elapsed()
}

/// Encrypts a DEK seed and returns the request that decrypts it.
async fn decrypt_request(kms: &mut Kms) -> DecryptRequest {
    let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "benchmark".into() };
    let answer = kms.encrypt(request).await.unwrap().into_inner();
    DecryptRequest {
        ciphertext: answer.ciphertext,
        uid: "benchmark".into(),
        key_id: answer.key_id,
        annotations: answer.annotations,
    }
}

/// Compares a Decrypt through the daemon's socket with the same request to Vault over an open connection.
async fn latencies(bao: &Bao, daemon: &Daemon) {
    let mut kms = daemon.kms().await;
    let request = decrypt_request(&mut kms).await;
    let token = bao.token().await;
    let ca = reqwest::Certificate::from_pem(&fs::read(bao.ca_file()).unwrap()).unwrap();
    let http = testkit::http::client().tls_certs_only([ca]).http1_only().build().unwrap();
    let url = format!("{}/v1/{MOUNT}/decrypt/{KEY}", bao.address());
    let body = json!({ "ciphertext": str::from_utf8(&request.ciphertext).unwrap() }).to_string();

    let (mut through, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..LATENCY_CALLS {
        let began = Instant::now();
        kms.decrypt(request.clone()).await.unwrap();
        through.push(began.elapsed());

        let began = Instant::now();
        let answer = http.post(&url).header("X-Vault-Token", &token).body(body.clone()).send().await.unwrap();
        assert!(answer.status().is_success());
        answer.bytes().await.unwrap();
        direct.push(began.elapsed());
    }
    let (through, direct) = (Percentiles::of(through), Percentiles::of(direct));
    println!("Decrypt through the socket: {through}");
    println!("Decrypt directly by Vault:  {direct}");
    println!(
        "ratio: p50 {:.2}, p99 {:.2}",
        through.p50.as_secs_f64() / direct.p50.as_secs_f64(),
        through.p99.as_secs_f64() / direct.p99.as_secs_f64()
    );
}

/// Compares the throughput of concurrent, different Decrypts with and without coalescing.
async fn throughputs(bao: &Bao, config: &std::path::Path) {
    let mut deks = Vec::new();
    for _ in 0..256 {
        deks.push(bao.encrypt(KEY, &[7; 32]).await);
    }
    let without_coalescing = ["--log-level", "info", "--no-coalescing"];
    let daemons = [
        Daemon::start_with(config, quiet()).await,
        Daemon::start_with(config, DaemonOptions::arguments(without_coalescing)).await,
    ];
    for daemon in &daemons {
        daemon.wait_ready().await;
    }
    for callers in [1, 8, 64, deks.len()] {
        let mut took = [Duration::ZERO; 2];
        for _ in 0..ALTERNATIONS {
            for (daemon, took) in daemons.iter().zip(&mut took) {
                *took += time_of_calls(daemon, &deks, callers).await;
            }
        }
        let rate = took.map(|took| (ALTERNATIONS * CALLS_PER_CALLER * callers) as f64 / took.as_secs_f64());
        println!(
            "{callers} callers with different Decrypts: {:.0}/s with coalescing, {:.0}/s without, ratio {:.1}",
            rate[0],
            rate[1],
            rate[0] / rate[1]
        );
    }
}

/// Measures how long `callers` concurrent callers need for `CALLS_PER_CALLER` Decrypts each. Each caller has its own
/// ciphertext.
async fn time_of_calls(daemon: &Daemon, deks: &[String], callers: usize) -> Duration {
    let kms = daemon.kms().await;
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for ciphertext in deks.iter().take(callers) {
        let (mut kms, ciphertext) = (kms.clone(), bytes::Bytes::from(ciphertext.clone()));
        running.spawn(async move {
            for _ in 0..CALLS_PER_CALLER {
                let request = DecryptRequest {
                    ciphertext: ciphertext.clone(),
                    uid: "benchmark".into(),
                    key_id: "1".into(),
                    annotations: [].into(),
                };
                kms.decrypt(request).await.unwrap();
            }
        });
    }
    running.join_all().await;
    began.elapsed()
}

/// Returns the resident memory of the daemon.
fn resident(daemon: &Daemon) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    format!("{:.1} MiB", kib / 1024.0)
}

struct Percentiles {
    p50: Duration,
    p99: Duration,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "p50 {:.0} µs, p99 {:.0} µs", micros(self.p50), micros(self.p99))
    }
}
