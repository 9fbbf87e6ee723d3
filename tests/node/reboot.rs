//! The node loses power and boots again. `static_pod` has the same test for the static pod.

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
    node_env::{NodeEnv, transit_kms_first},
};

/// Long, because kubelet and kube-apiserver back off while they wait for the plugin.
const PATIENCE: Duration = Duration::from_secs(240);
const CONFIG: &str = "/run/transit-kms-config/config.yaml";

/// What systemd starts before kubelet: the socket unit, and the services of the agent and of transit-kms.
struct SystemdServices {
    _agent: Agent,
    daemon: Daemon,
    _listener: UnixListener,
}

impl SystemdServices {
    async fn start(env: &NodeEnv) -> Self {
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
        let agent = Agent::start(&env.bao, Path::new(CONFIG), AgentOptions::default()).await;
        Self { _agent: agent, daemon, _listener: listener }
    }
}

#[tokio::test]
async fn with_systemd_units_the_node_recovers_from_a_reboot() {
    let mut env = NodeEnv::powered_off(&json!({})).await;
    let services = SystemdServices::start(&env).await;
    env.control_plane.run_api_server(&env.node, &transit_kms_first());
    env.node.boot().await;
    env.control_plane.wait_ready().await;
    let name = env.wait_encrypted("before").await;
    env.power_off().await;
    drop(services);
    assert!(!Path::new(SOCKETS).exists(), "/run is in memory");

    let begun = Instant::now();
    let services = SystemdServices::start(&env).await;
    env.boot().await;
    env.control_plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(env.control_plane.api().secret(&name).await.unwrap(), name);
    env.wait_encrypted("after").await;
    assert!(services.daemon.log().contains("inherited a listener"));
    record_measurement(
        "node: reboot",
        &format!("socket units: the API server is ready {:.1} s after the boot", ready.as_secs_f64()),
    );
}

#[tokio::test]
async fn with_the_daemon_set_alone_the_node_recovers_once_kubelet_has_the_pod() {
    let (mut env, _helm) = NodeEnv::installed(4, &json!({})).await;
    let name = env.wait_encrypted("before").await;
    env.power_off().await;
    let begun = Instant::now();
    env.boot().await;
    let api = env.control_plane.api();
    eventually("kube-apiserver answers", PATIENCE, async || {
        let (status, text) = api.text("/version").await;
        if status == 200 { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    let answers = begun.elapsed();
    let socket = answers + env.wait_socket().await;
    env.control_plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(api.secret(&name).await.unwrap(), name);
    env.wait_encrypted("after").await;
    record_measurement(
        "node: reboot",
        &format!(
            "the DaemonSet alone: kube-apiserver answers after {:.1} s and is not ready, the socket exists after \
             {:.1} s, kube-apiserver is ready after {:.1} s",
            answers.as_secs_f64(),
            socket.as_secs_f64(),
            ready.as_secs_f64(),
        ),
    );
}
