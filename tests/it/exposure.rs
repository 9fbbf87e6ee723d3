//! Warnings about files and directories that other users may read or write.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};
use testkit::{
    Bao, ConfigFile, Daemon,
    calls::round_trip,
    config_file::{self, KubeletVolume},
    eventually,
};

const WAIT_TIMEOUT: Duration = Duration::from_secs(15);

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Waits until `/readyz` is 200 and has exactly these warnings, each with the expected words.
async fn wait_warnings(daemon: &Daemon, expected: &[&str]) {
    eventually("the warnings", WAIT_TIMEOUT, async || {
        let (ready, text) = daemon.admin("/readyz").await;
        let named = expected.iter().all(|words| text.contains(words));
        let counted = text.matches("; warning: ").count() == expected.len();
        if ready == 200 && named && counted { Ok(()) } else { Err(format!("{ready} {text}")) }
    })
    .await;
}

#[tokio::test]
async fn a_config_or_directory_open_to_others_is_warned_about_until_its_mode_is_fixed() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let content = ConfigFile::with_new_token(&bao).await;
    config_file::by_rename(&config, &content.yaml());
    set_mode(&config, 0o644);
    let daemon = Daemon::start(&config).await;
    let readable = "config.yaml holds the token and can be read by all users (mode 0644)";
    wait_warnings(&daemon, &[readable]).await;
    daemon.wait_printed(readable).await;
    round_trip(&daemon.kms().await, "warned").await;

    // A change of the mode alone removes the warning and keeps the session.
    set_mode(&config, 0o600);
    wait_warnings(&daemon, &[]).await;
    assert_eq!((daemon.generation().await, daemon.reloads("success").await), (1, 1));

    // Each reload checks the modes again.
    let next = ConfigFile::with_new_token(&bao).await;
    config_file::by_rename(&config, &next.yaml());
    set_mode(&config, 0o666);
    daemon.wait_generation(2).await;
    let writable = "can be written by all users (mode 0666)";
    wait_warnings(&daemon, &["can be read by all users (mode 0666)", writable]).await;
    config_file::by_rename(&config, &content.yaml());
    daemon.wait_generation(3).await;
    wait_warnings(&daemon, &[]).await;

    let sockets = daemon.socket().parent().unwrap().to_owned();
    let before = fs::metadata(&sockets).unwrap().permissions();
    set_mode(&sockets, 0o777);
    let replaceable = "can be written by all users (mode 0777), who can replace it";
    wait_warnings(&daemon, &[replaceable]).await;
    daemon.wait_printed(replaceable).await;
    set_mode(&sockets, 0o1777);
    wait_warnings(&daemon, &["create another socket there while transit-kms is not running"]).await;
    fs::set_permissions(&sockets, before).unwrap();
    wait_warnings(&daemon, &[]).await;
    round_trip(&daemon.kms().await, "cured").await;
}

#[tokio::test]
async fn in_a_kubelet_volume_the_mode_of_the_link_target_counts() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let content = ConfigFile::with_new_token(&bao).await;
    let volume = KubeletVolume::new(&dir.path().join("volume"), "config.yaml", &content.yaml());
    let daemon = Daemon::start(&volume.path()).await;
    wait_warnings(&daemon, &[]).await;
    set_mode(&volume.path().canonicalize().unwrap(), 0o644);
    wait_warnings(&daemon, &["can be read by all users (mode 0644)"]).await;
    // The next rendering has the right mode.
    volume.swap(&ConfigFile::with_new_token(&bao).await.yaml());
    daemon.wait_generation(2).await;
    wait_warnings(&daemon, &[]).await;
}
