//! Broken and hostile clients share the socket with kube-apiserver.

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

/// Twice what is let in.
const CROWD: usize = 1000;
/// A user that is nobody here.
const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn whatever_comes_on_the_socket_kube_apiserver_is_served_on() {
    let (cluster, env, dir) = (Cluster::start().await, TestEnv::start().await, temp_dir("hostile-"));
    // Anybody may knock, so that it is us who refuse.
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

    noise(&socket).await;
    oversize(&socket).await;
    wrong_uid(&socket, dir.path(), &daemon).await;
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        // Half of them greet, half stop in the middle of it.
        let mut client = RawClient::silent(&socket).await;
        client.send(if number % 2 == 0 { &PREFACE[..12] } else { PREFACE }).await;
        crowd.push(client);
    }

    // Through all of it, a rotation reaches kube-apiserver: it is still, or again, a client.
    let caller = Caller::of(&daemon).await;
    let before = caller.key_id().await;
    env.bao.rotate_key(KEY).await;
    let key_id = caller.wait_key_id_after(&before, RELOAD_TIMEOUT).await;
    cluster.wait_for_key_id(server.api(), &key_id, "after").await;
    let (api, calls) = (api_load.stop().await, load.stop().await);
    api.requests.assert_nothing_failed();
    calls.assert_nothing_failed();
    assert!(!daemon.log().contains("a panic: "), "{}", daemon.log());
    drop(crowd);
    record_measurement(
        "13 hostile clients",
        &format!(
            "beside noise, oversize messages, a wrong uid and {CROWD} idle connections: {} requests to kube-apiserver \
             and {} KMS calls, 0 failed, the longest {:.3} s and {:.3} s",
            api.requests.calls,
            calls.calls,
            api.requests.longest.as_secs_f64(),
            calls.longest.as_secs_f64(),
        ),
    );
}

/// Raw bytes, before a preface and behind one, and half of one.
async fn noise(socket: &Path) {
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

/// Messages beyond every limit, honest and announced only.
async fn oversize(socket: &Path) {
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
    // Of 4 GiB only the length comes.
    client
        .send(
            &raw::Frame { kind: raw::DATA, flags: 0, stream: 1, payload: vec![0, 255, 255, 255, 255] }
                .bytes(),
        )
        .await;
    while client.frame().await.expect("an answer").kind != raw::HEADERS {}
}

/// Somebody who may reach the socket, but not call.
async fn wrong_uid(socket: &Path, dir: &Path, daemon: &Daemon) {
    if !rustix::process::geteuid().is_root() {
        // Only root can become another user; `tests/it/socket.rs` has the test for others.
        return;
    }
    let url = unix_url(socket).into_string().unwrap();
    let ran = cli::run_as(NOBODY, dir, &["probe", "status", "--socket", &url]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    daemon.wait_printed(&format!("--allow-uid {NOBODY} ")).await;
}
