//! Broken and malicious clients use the same socket as kube-apiserver.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use bytes::Bytes;
use kms_plugin::v2::{DecryptRequest, EncryptRequest};
use testkit::{
    Caller, Daemon, DaemonOptions, KEY, Load, RELOAD_TIMEOUT, TestEnv,
    calls::timed,
    cli,
    cluster::{ApiLoad, Cluster, EncryptionConfig, record_measurement},
    kms_client,
    raw::{self, PREFACE, RawClient, SETTINGS},
    temp_dir, unix_url,
};

/// Twice the limit of open connections.
const IDLE_CONNECTIONS: usize = 1000;
/// The user `nobody`, which may not call the plugin.
const OTHER_UID: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn kube_apiserver_is_served_while_other_clients_misbehave() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("clients-"));
    // Every user may connect, so that the daemon itself has to reject them.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = dir.path().join("kms.sock");
    let options = DaemonOptions::arguments([
        "--log-level",
        "debug",
        "--health-check-interval",
        "1s",
        "--socket-mode",
        "0666",
    ]);
    let daemon =
        Daemon::start_with(&env.config, DaemonOptions { socket: Some(socket.clone()), ..options }).await;
    daemon.wait_ready().await;
    let server = cluster.ready(&EncryptionConfig::with_kms(&socket)).await;
    let api_load = ApiLoad::start(&[server.api().clone(), server.api().clone()], "load");
    let load = Load::start_on(&socket, 2, Duration::from_millis(10)).await;

    send_random_bytes(&socket).await;
    send_oversize_messages(&socket).await;
    connect_as_wrong_uid(&socket, dir.path(), &daemon).await;
    let mut idle = Vec::new();
    for number in 0..IDLE_CONNECTIONS {
        // Half of them send a complete HTTP/2 preface, half only a part of it.
        let mut client = RawClient::silent(&socket).await;
        client.send(if number % 2 == 0 { &PREFACE[..12] } else { PREFACE }).await;
        idle.push(client);
    }

    // kube-apiserver learns of a rotation meanwhile, so it is connected.
    let caller = Caller::of(&daemon).await;
    let before = caller.key_id().await;
    env.bao.rotate_key(KEY).await;
    let key_id = caller.wait_key_id_after(&before, RELOAD_TIMEOUT).await;
    cluster.wait_for_key_id(server.api(), &key_id, "after").await;
    let (api, calls) = (api_load.stop().await, load.stop().await);
    api.requests.assert_nothing_failed();
    calls.assert_nothing_failed();
    assert!(!daemon.log().contains("a panic: "), "{}", daemon.log());
    drop(idle);
    record_measurement(
        "13 misbehaving clients",
        &format!(
            "beside random bytes, oversize messages, a wrong uid and {IDLE_CONNECTIONS} idle connections: {} requests to kube-apiserver \
             and {} KMS calls, 0 failed, the longest {:.3} s and {:.3} s",
            api.requests.calls,
            calls.calls,
            api.requests.longest.as_secs_f64(),
            calls.longest.as_secs_f64(),
        ),
    );
}

/// Sends random bytes, other protocols, random bytes after a preface, and half a preface.
async fn send_random_bytes(socket: &Path) {
    let mut noise = vec![0; 100_000];
    rand::fill(&mut noise[..]);
    for bytes in [&noise[..], b"GET / HTTP/1.1\r\n\r\n", &[PREFACE, SETTINGS, &noise].concat()] {
        for _ in 0..5 {
            let mut client = RawClient::silent(socket).await;
            client.send(bytes).await;
            if bytes.len() > PREFACE.len() {
                client.closed(PATIENCE).await;
            }
        }
    }
    let mut half = RawClient::silent(socket).await;
    half.send(&PREFACE[..PREFACE.len() / 2]).await;
    half.closed(PATIENCE).await;
}

/// Sends messages beyond the size limits: some completely, and one as its length only.
async fn send_oversize_messages(socket: &Path) {
    let mut kms = kms_client(socket).await;
    for bytes in [1000, 100_000, 3_000_000] {
        let plaintext = Bytes::from(vec![7; bytes]);
        let request = EncryptRequest { plaintext: plaintext.clone(), uid: "oversize".into() };
        kms.encrypt(timed(request)).await.unwrap_err();
        let annotations = [("a.example".to_owned(), plaintext.clone())].into();
        let request = DecryptRequest { annotations, ciphertext: plaintext, ..DecryptRequest::default() };
        kms.decrypt(timed(request)).await.unwrap_err();
    }
    let mut client = RawClient::greeted(socket).await;
    client.send(&raw::call_headers("Encrypt", "localhost").bytes()).await;
    // The length says 4 GiB, but no data follows.
    client
        .send(
            &raw::Frame { kind: raw::DATA, flags: 0, stream: 1, payload: vec![0, 255, 255, 255, 255] }
                .bytes(),
        )
        .await;
    while client.frame().await.expect("an answer").kind != raw::HEADERS {}
}

/// Calls as a user that may connect to the socket, but is not allowed to call.
async fn connect_as_wrong_uid(socket: &Path, dir: &Path, daemon: &Daemon) {
    if !rustix::process::geteuid().is_root() {
        // Only root can become another user. `tests/it/socket.rs` has a test that needs no root.
        return;
    }
    let url = unix_url(socket).into_string().unwrap();
    let ran = cli::run_as(OTHER_UID, dir, &["probe", "status", "--socket", &url]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    daemon.wait_printed(&format!("--allow-uid 0,{OTHER_UID} ")).await;
}
