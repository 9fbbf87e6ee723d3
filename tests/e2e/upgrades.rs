//! Upgrades of the daemon under load: with `--takeover`, with socket activation, and as a stop and a start.

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use testkit::{
    Daemon, DaemonOptions, Gaps, Load, LoadReport, TestEnv,
    cluster::{
        ApiLoad, ApiServer, ApiServerOptions, Cluster, EncryptionConfig, KmsCalls, READY_WITHIN,
        record_measurement,
    },
    eventually, full, temp_dir,
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// How often the second kube-apiserver starts at least.
const MIN_STARTS: usize = 3;

fn upgrades() -> usize {
    if full() { 50 } else { 10 }
}

/// A control plane under load, on a socket whose daemon is replaced.
struct LoadedControlPlane {
    api_load: ApiLoad,
    load: Load,
    /// Gets `/readyz` all the time, which makes kube-apiserver call Status. Returns the failed responses.
    readyz: JoinHandle<Vec<String>>,
    server: ApiServer,
    stop: CancellationToken,
    cluster: Cluster,
    config: EncryptionConfig,
}

impl LoadedControlPlane {
    async fn start(daemons: &DaemonStarter) -> Self {
        let cluster = Cluster::start().await;
        let config = EncryptionConfig::with_kms(&daemons.socket);
        let server = cluster.ready(&config).await;
        let (api, stop) = (server.api().clone(), CancellationToken::new());
        let stopping = stop.clone();
        let readyz = tokio::spawn(async move {
            let mut failures = Vec::new();
            while timeout(Duration::from_millis(500), stopping.cancelled()).await.is_err() {
                let (status, text) = api.text("/readyz?verbose").await;
                if status != 200 {
                    failures.push(text);
                }
            }
            failures
        });
        Self {
            api_load: ApiLoad::start(&[server.api().clone(), server.api().clone()], "load"),
            load: Load::start_on(&daemons.socket, 2, Duration::from_millis(10)).await,
            readyz,
            server,
            stop,
            cluster,
            config,
        }
    }

    async fn wait_for_more_load(&self) {
        let (requests, calls) = (self.api_load.calls(), self.load.calls());
        eventually("the load continues", PATIENCE, async || {
            self.api_load.calls() >= requests + 6 && self.load.calls() >= calls + 40
        })
        .await;
    }

    /// Runs `upgrades` while a second kube-apiserver restarts repeatedly. Each start calls Status, Encrypt, and Decrypt
    /// for all DEK seeds; a running kube-apiserver makes few calls.
    async fn with_restarting_server<T>(&self, upgrades: impl Future<Output = T>) -> (KmsCalls, T) {
        let done = CancellationToken::new();
        let mut other = self.cluster.api_server(&self.config, ApiServerOptions::default());
        let restarts = async {
            let (mut calls, mut starts) = (KmsCalls::default(), 0);
            loop {
                starts += 1;
                other.wait_ready(READY_WITHIN).await;
                calls = calls.and(KmsCalls::of(other.api()).await);
                if starts >= MIN_STARTS && done.is_cancelled() {
                    return calls;
                }
                other.kill();
                other.start_again();
            }
        };
        let upgrades = async {
            let last = upgrades.await;
            done.cancel();
            last
        };
        tokio::join!(restarts, upgrades)
    }

    /// Stops the load and asserts that no request to kube-apiserver failed. Returns the number of these requests, the
    /// KMS calls of both API servers, and the report of the calls that the test made itself.
    async fn finish(self, of_other: KmsCalls) -> (u64, KmsCalls, LoadReport) {
        self.stop.cancel();
        let (of_api, calls) = (self.api_load.stop().await, self.load.stop().await);
        of_api.requests.assert_nothing_failed();
        assert_eq!(self.readyz.await.unwrap(), [""; 0], "kube-apiserver was not ready");
        let api = self.server.api();
        let kms = KmsCalls::of(api).await.and(of_other);
        for (name, value) in &of_api.written {
            assert_eq!(api.secret(name).await.unwrap(), *value);
        }
        (of_api.requests.calls, kms, calls)
    }
}

/// Starts daemons with the same socket and config.
struct DaemonStarter {
    _dir: TempDir,
    socket: PathBuf,
    env: TestEnv,
}

impl DaemonStarter {
    async fn new() -> Self {
        let dir = temp_dir("upgrades-");
        Self { socket: dir.path().join("kms.sock"), env: TestEnv::start().await, _dir: dir }
    }

    async fn start(&self, more: &[&str], listener: Option<&UnixListener>) -> Daemon {
        let mut options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
        options.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        options.listener = listener.map(|listener| listener.try_clone().unwrap());
        options.socket = Some(self.socket.clone());
        Daemon::start_with(&self.env.config, options).await
    }
}

#[tokio::test]
async fn no_request_fails_when_one_daemon_takes_over_from_another() {
    let daemons = DaemonStarter::new().await;
    let mut daemon = daemons.start(&["--takeover"], None).await;
    daemon.wait_ready().await;
    let control_plane = LoadedControlPlane::start(&daemons).await;
    let (kms, _last) = control_plane
        .with_restarting_server(async {
            for _ in 0..upgrades() {
                control_plane.wait_for_more_load().await;
                // As in a rollout with `maxSurge`: the old daemon stops once the new one is ready.
                let next = daemons.start(&["--takeover"], None).await;
                next.wait_ready().await;
                control_plane.wait_for_more_load().await;
                assert!(daemon.terminate().await.success());
                daemon = next;
            }
            control_plane.wait_for_more_load().await;
            daemon
        })
        .await;
    assert_and_record("--takeover", control_plane, kms).await;
}

#[tokio::test]
async fn no_request_fails_when_systemd_restarts_the_daemon() {
    let daemons = DaemonStarter::new().await;
    let listener = UnixListener::bind(&daemons.socket).unwrap();
    let mut daemon = daemons.start(&[], Some(&listener)).await;
    daemon.wait_ready().await;
    let control_plane = LoadedControlPlane::start(&daemons).await;
    let (kms, _last) = control_plane
        .with_restarting_server(async {
            for _ in 0..upgrades() {
                control_plane.wait_for_more_load().await;
                assert!(daemon.terminate().await.success());
                daemon = daemons.start(&[], Some(&listener)).await;
            }
            control_plane.wait_for_more_load().await;
            daemon
        })
        .await;
    assert_and_record("socket activation", control_plane, kms).await;
}

async fn assert_and_record(way: &str, control_plane: LoadedControlPlane, of_other: KmsCalls) {
    let (requests, KmsCalls { all, failed }, calls) = control_plane.finish(of_other).await;
    calls.assert_nothing_failed();
    // Each start makes at least a Status call and an Encrypt.
    assert!(all >= 2.0 * (1 + MIN_STARTS) as f64, "kube-apiserver made {all} calls");
    assert_eq!(failed, 0.0, "of {all} calls of kube-apiserver");
    record_measurement(
        "8 upgrades",
        &format!(
            "{} in a row with {way}, without retries: of {requests} requests to kube-apiserver 0 failed, of its own \
             {all} KMS calls 0, of {} made directly 0; the longest of these took {:.0} ms",
            upgrades(),
            calls.calls,
            calls.longest.as_secs_f64() * 1000.0,
        ),
    );
}

/// Upgrades of a static pod: kubelet stops the old pod before it starts the new one.
#[tokio::test]
async fn no_api_request_fails_when_the_daemon_is_stopped_and_started() {
    let daemons = DaemonStarter::new().await;
    let mut daemon = daemons.start(&[], None).await;
    daemon.wait_ready().await;
    let control_plane = LoadedControlPlane::start(&daemons).await;
    let gaps = Gaps::measure(&daemons.socket);
    let (mut ends, mut starts) = (Vec::new(), Vec::new());
    let (kms, _last) = control_plane
        .with_restarting_server(async {
            for _ in 0..upgrades() {
                control_plane.wait_for_more_load().await;
                let stopping = Instant::now();
                assert!(daemon.terminate().await.success());
                ends.push(stopping.elapsed());
                let begun = Instant::now();
                daemon = daemons.start(&[], None).await;
                starts.push(begun.elapsed());
            }
            control_plane.wait_for_more_load().await;
            daemon
        })
        .await;
    let mut gaps = gaps.stop(upgrades()).await;
    let (requests, KmsCalls { all, failed }, calls) = control_plane.finish(kms).await;
    gaps.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let longest = |times: &[Duration]| milliseconds(times.iter().copied().max().unwrap());
    record_measurement(
        "8 upgrades",
        &format!(
            "{} stops with an immediate start: for {:.0} ms (median; {:.0} at most) no new call is answered, of which \
             the end takes {:.0} and the start until it listens {:.0} at most; of {requests} requests to kube-apiserver \
             0 failed, of its own {all} KMS calls {failed}, of {} made directly without a pause {}",
            upgrades(),
            milliseconds(gaps[gaps.len() / 2]),
            longest(&gaps),
            longest(&ends),
            longest(&starts),
            calls.calls,
            calls.failed,
        ),
    );
}
