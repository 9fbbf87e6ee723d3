//! Benchmarks of the daemon: `cargo bench -p integration-tests`.
//!
//! Absolute numbers depend on the machine. Variants that are compared are measured alternately in one run. No benchmark
//! passes or fails.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, on the harness of the tests"
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
const LATENCY_ROUNDS: usize = 5000;
const MANY_CALLS: usize = 100_000;
const CALLERS: usize = 16;
const ROUNDS: usize = 50;
const TURNS: usize = 5;

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
    println!("start to listening: {}", Spread::of(starts));

    let daemon = Daemon::start_with(&config, quiet()).await;
    daemon.wait_ready().await;
    println!("resident when ready: {}", resident(&daemon));

    latencies(&bao, &daemon).await;
    together(&bao, &config).await;

    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let mut kms = daemon.kms().await;
        let request = sealed(&mut kms).await;
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

async fn sealed(kms: &mut Kms) -> DecryptRequest {
    let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "figures".into() };
    let answer = kms.encrypt(request).await.unwrap().into_inner();
    DecryptRequest {
        ciphertext: answer.ciphertext,
        uid: "figures".into(),
        key_id: answer.key_id,
        annotations: answer.annotations,
    }
}

/// The same Decrypt through the socket and directly over a kept connection, in turns.
async fn latencies(bao: &Bao, daemon: &Daemon) {
    let mut kms = daemon.kms().await;
    let request = sealed(&mut kms).await;
    let token = bao.token().await;
    let ca = reqwest::Certificate::from_pem(&fs::read(bao.ca_file()).unwrap()).unwrap();
    let http = testkit::http::client().tls_certs_only([ca]).http1_only().build().unwrap();
    let url = format!("{}/v1/{MOUNT}/decrypt/{KEY}", bao.address());
    let body = json!({ "ciphertext": str::from_utf8(&request.ciphertext).unwrap() }).to_string();

    let (mut through, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..LATENCY_ROUNDS {
        let began = Instant::now();
        kms.decrypt(request.clone()).await.unwrap();
        through.push(began.elapsed());

        let began = Instant::now();
        let answer = http.post(&url).header("X-Vault-Token", &token).body(body.clone()).send().await.unwrap();
        assert!(answer.status().is_success());
        answer.bytes().await.unwrap();
        direct.push(began.elapsed());
    }
    let (through, direct) = (Spread::of(through), Spread::of(direct));
    println!("Decrypt through the socket: {through}");
    println!("Decrypt directly:           {direct}");
    println!(
        "ratio: p50 {:.2}, p99 {:.2}",
        through.p50.as_secs_f64() / direct.p50.as_secs_f64(),
        through.p99.as_secs_f64() / direct.p99.as_secs_f64()
    );
}

/// Different Decrypts at once, with and without coalescing, in turns.
async fn together(bao: &Bao, config: &std::path::Path) {
    let mut deks = Vec::new();
    for _ in 0..256 {
        deks.push(bao.encrypt(KEY, &[7; 32]).await);
    }
    let single = ["--log-level", "info", "--no-coalescing"];
    let daemons = [
        Daemon::start_with(config, quiet()).await,
        Daemon::start_with(config, DaemonOptions::arguments(single)).await,
    ];
    for daemon in &daemons {
        daemon.wait_ready().await;
    }
    for callers in [1, 8, 64, deks.len()] {
        let mut took = [Duration::ZERO; 2];
        for _ in 0..TURNS {
            for (daemon, took) in daemons.iter().zip(&mut took) {
                *took += all_by(daemon, &deks, callers).await;
            }
        }
        let rate = took.map(|took| (TURNS * ROUNDS * callers) as f64 / took.as_secs_f64());
        println!(
            "{callers} callers of different Decrypts: {:.0}/s together, {:.0}/s each alone, ratio {:.1}",
            rate[0],
            rate[1],
            rate[0] / rate[1]
        );
    }
}

/// Returns how long `callers` concurrent callers take for `ROUNDS` Decrypts each. No two Decrypts that run at the same
/// time are equal.
async fn all_by(daemon: &Daemon, deks: &[String], callers: usize) -> Duration {
    let kms = daemon.kms().await;
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for ciphertext in deks.iter().take(callers) {
        let (mut kms, ciphertext) = (kms.clone(), bytes::Bytes::from(ciphertext.clone()));
        running.spawn(async move {
            for _ in 0..ROUNDS {
                let request = DecryptRequest {
                    ciphertext: ciphertext.clone(),
                    uid: "figures".into(),
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

fn resident(daemon: &Daemon) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    format!("{:.1} MiB", kib / 1024.0)
}

struct Spread {
    p50: Duration,
    p99: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "p50 {:.0} µs, p99 {:.0} µs", micros(self.p50), micros(self.p99))
    }
}
