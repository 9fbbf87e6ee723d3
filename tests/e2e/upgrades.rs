//! One daemon follows another under load: beside it, through systemd's listener, or after a stop.

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

/// Of the kube-apiserver that is started again and again, at least.
const STARTS: usize = 3;

fn upgrades() -> usize {
    if full() { 50 } else { 10 }
}

/// A control plane on a socket whose daemons come and go.
struct Scene {
    api_load: ApiLoad,
    load: Load,
    /// Asks `/readyz` all the time, which makes kube-apiserver ask for Status; what was amiss.
    ready: JoinHandle<Vec<String>>,
    server: ApiServer,
    stop: CancellationToken,
    cluster: Cluster,
    config: EncryptionConfig,
}

impl Scene {
    async fn set(place: &Place) -> Self {
        let cluster = Cluster::start().await;
        let config = EncryptionConfig::with_kms(&place.socket);
        let server = cluster.ready(&config).await;
        let (api, stop) = (server.api().clone(), CancellationToken::new());
        let stopping = stop.clone();
        let ready = tokio::spawn(async move {
            let mut amiss = Vec::new();
            while timeout(Duration::from_millis(500), stopping.cancelled()).await.is_err() {
                let (status, text) = api.text("/readyz?verbose").await;
                if status != 200 {
                    amiss.push(text);
                }
            }
            amiss
        });
        Self {
            api_load: ApiLoad::start(&[server.api().clone(), server.api().clone()], "load"),
            load: Load::start_on(&place.socket, 2, Duration::from_millis(10)).await,
            ready,
            server,
            stop,
            cluster,
            config,
        }
    }

    async fn goes_on(&self) {
        let (requests, calls) = (self.api_load.calls(), self.load.calls());
        eventually("load goes on", PATIENCE, async || {
            self.api_load.calls() >= requests + 6 && self.load.calls() >= calls + 40
        })
        .await;
    }

    /// Has `upgrades` done while another kube-apiserver is started again and again: each start asks for
    /// Status, for an Encrypt, and for every seed so far. One that runs asks for little.
    async fn restarting<T>(&self, upgrades: impl Future<Output = T>) -> (KmsCalls, T) {
        let done = CancellationToken::new();
        let mut other = self.cluster.api_server(&self.config, ApiServerOptions::default());
        let restarts = async {
            let (mut calls, mut starts) = (KmsCalls::default(), 0);
            loop {
                starts += 1;
                other.wait_ready(READY_WITHIN).await;
                calls = calls.and(KmsCalls::of(other.api()).await);
                if starts >= STARTS && done.is_cancelled() {
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

    /// Requests to kube-apiserver, of which none failed, its own KMS calls with those of the other one,
    /// and what became of ours.
    async fn end(self, of_other: KmsCalls) -> (u64, KmsCalls, LoadReport) {
        self.stop.cancel();
        let (of_api, calls) = (self.api_load.stop().await, self.load.stop().await);
        of_api.requests.assert_nothing_failed();
        assert_eq!(self.ready.await.unwrap(), [""; 0], "kube-apiserver was not ready");
        let api = self.server.api();
        let kms = KmsCalls::of(api).await.and(of_other);
        for (name, value) in &of_api.written {
            assert_eq!(api.secret(name).await.unwrap(), *value);
        }
        (of_api.requests.calls, kms, calls)
    }
}

/// Where the daemons listen, one after the other, and what they serve.
struct Place {
    _dir: TempDir,
    socket: PathBuf,
    env: TestEnv,
}

impl Place {
    async fn new() -> Self {
        let dir = temp_dir("upgrades-");
        Self { socket: dir.path().join("kms.sock"), env: TestEnv::start().await, _dir: dir }
    }

    async fn daemon(&self, more: &[&str], listener: Option<&UnixListener>) -> Daemon {
        let mut options = DaemonOptions::arguments(["--log-level", "debug", "--health-check-interval", "1s"]);
        options.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        options.listener = listener.map(|listener| listener.try_clone().unwrap());
        options.socket = Some(self.socket.clone());
        Daemon::start_with(&self.env.config, options).await
    }
}

#[tokio::test]
async fn no_request_fails_when_one_daemon_takes_over_from_another() {
    let place = Place::new().await;
    let mut daemon = place.daemon(&["--takeover"], None).await;
    daemon.wait_ready().await;
    let scene = Scene::set(&place).await;
    let (kms, _last) = scene
        .restarting(async {
            for _ in 0..upgrades() {
                scene.goes_on().await;
                // As a rollout that surges: the old one is stopped once the new one is ready.
                let next = place.daemon(&["--takeover"], None).await;
                next.wait_ready().await;
                scene.goes_on().await;
                assert!(daemon.terminate().await.success());
                daemon = next;
            }
            scene.goes_on().await;
            daemon
        })
        .await;
    tell("--takeover", scene, kms).await;
}

#[tokio::test]
async fn no_request_fails_when_systemd_restarts_the_daemon() {
    let place = Place::new().await;
    let listener = UnixListener::bind(&place.socket).unwrap();
    let mut daemon = place.daemon(&[], Some(&listener)).await;
    daemon.wait_ready().await;
    let scene = Scene::set(&place).await;
    let (kms, _last) = scene
        .restarting(async {
            for _ in 0..upgrades() {
                scene.goes_on().await;
                assert!(daemon.terminate().await.success());
                daemon = place.daemon(&[], Some(&listener)).await;
            }
            scene.goes_on().await;
            daemon
        })
        .await;
    tell("socket activation", scene, kms).await;
}

async fn tell(way: &str, scene: Scene, of_other: KmsCalls) {
    let (requests, KmsCalls { all, failed }, calls) = scene.end(of_other).await;
    calls.assert_nothing_failed();
    // Status and Encrypt at each start, at least.
    assert!(all >= 2.0 * (1 + STARTS) as f64, "kube-apiserver made {all} calls");
    assert_eq!(failed, 0.0, "of {all} calls of kube-apiserver");
    record_measurement(
        "8 upgrades",
        &format!(
            "{} in a row by {way}, nothing tried again: of {requests} requests to kube-apiserver 0 failed, of its own \
             {all} KMS calls 0, of {} made directly 0; the longest of these took {:.0} ms",
            upgrades(),
            calls.calls,
            calls.longest.as_secs_f64() * 1000.0,
        ),
    );
}

/// What a static pod gets: kubelet stops the old one before it starts the new one.
#[tokio::test]
async fn a_stop_and_a_start_leave_a_gap_that_kube_apiserver_does_not_notice() {
    let place = Place::new().await;
    let mut daemon = place.daemon(&[], None).await;
    daemon.wait_ready().await;
    let scene = Scene::set(&place).await;
    let gaps = Gaps::measure(&place.socket);
    let (mut ends, mut starts) = (Vec::new(), Vec::new());
    let (kms, _last) = scene
        .restarting(async {
            for _ in 0..upgrades() {
                scene.goes_on().await;
                let told = Instant::now();
                assert!(daemon.terminate().await.success());
                ends.push(told.elapsed());
                let begun = Instant::now();
                daemon = place.daemon(&[], None).await;
                starts.push(begun.elapsed());
            }
            scene.goes_on().await;
            daemon
        })
        .await;
    let mut gaps = gaps.stop(upgrades()).await;
    let (requests, KmsCalls { all, failed }, calls) = scene.end(kms).await;
    gaps.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let longest = |times: &[Duration]| milliseconds(times.iter().copied().max().unwrap());
    record_measurement(
        "8 upgrades",
        &format!(
            "{} plain stops and starts at once: for {:.0} ms (median; {:.0} at most) no new call is answered, of which \
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
