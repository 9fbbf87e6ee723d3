//! The node loses its power. With the static pod: `static_pod`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use testkit::{Agent, AgentOptions, Daemon, DaemonOptions, cluster::record_measurement, eventually};

use crate::{
    machine::{SOCKET, SOCKETS},
    node_env::{Site, ours},
};

/// Whoever waits for us does so for long.
const PATIENCE: Duration = Duration::from_secs(240);
const CONFIG: &str = "/run/transit-kms-config/config.yaml";

/// What systemd starts before kubelet: the socket unit, the agent's service and ours.
struct Services {
    _agent: Agent,
    daemon: Daemon,
    _listener: UnixListener,
}

impl Services {
    async fn start(site: &Site) -> Self {
        for folder in [Path::new(SOCKETS), Path::new(CONFIG).parent().unwrap()] {
            fs::create_dir_all(folder).unwrap();
        }
        let listener = UnixListener::bind(SOCKET).unwrap();
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600)).unwrap();
        let options = DaemonOptions {
            listener: Some(listener.try_clone().unwrap()),
            socket: Some(SOCKET.into()),
            ..DaemonOptions::arguments(["--log-level", "debug"])
        };
        let daemon = Daemon::start_with(Path::new(CONFIG), options).await;
        let agent = Agent::start(&site.bao, Path::new(CONFIG), AgentOptions::default()).await;
        Self { _agent: agent, daemon, _listener: listener }
    }
}

#[tokio::test]
async fn with_systemd_it_comes_back_alone() {
    let mut site = Site::dark(&json!({})).await;
    let services = Services::start(&site).await;
    site.plane.give_api_server(&site.node, &ours());
    site.node.boot().await;
    site.plane.wait_ready().await;
    let name = site.wait_encrypted("before").await;
    site.power_off().await;
    drop(services);
    assert!(!Path::new(SOCKETS).exists(), "it is in memory");

    let begun = Instant::now();
    let services = Services::start(&site).await;
    site.boot().await;
    site.plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(site.plane.api().secret(&name).await.unwrap(), name);
    site.wait_encrypted("after").await;
    assert!(services.daemon.log().contains("inherited a listener"));
    record_measurement(
        "node: reboot",
        &format!("socket units: the API server is ready {:.1} s after the boot", ready.as_secs_f64()),
    );
}

#[tokio::test]
async fn with_the_daemon_set_alone_it_comes_back_once_kubelet_is_served() {
    let (mut site, _helm) = Site::installed(4, &json!({})).await;
    let name = site.wait_encrypted("before").await;
    site.power_off().await;
    let begun = Instant::now();
    site.boot().await;
    let api = site.plane.api();
    eventually("kube-apiserver answers", PATIENCE, async || {
        let (status, text) = api.text("/version").await;
        if status == 200 { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    let answers = begun.elapsed();
    let socket = answers + site.wait_socket().await;
    site.plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(api.secret(&name).await.unwrap(), name);
    site.wait_encrypted("after").await;
    record_measurement(
        "node: reboot",
        &format!(
            "the DaemonSet alone: kube-apiserver answers after {:.1} s and is not ready, kubelet learns of the pod and has \
             the socket after {:.1} s, ready after {:.1} s",
            answers.as_secs_f64(),
            socket.as_secs_f64(),
            ready.as_secs_f64(),
        ),
    );
}
