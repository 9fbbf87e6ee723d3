//! kube-apiserver starts again, and asks for every seed that it has ever made.

use std::time::Instant;
use testkit::{
    cluster::{ControlPlane, READY_WITHIN, record_measurement},
    full,
};

/// How many objects of one resource it decodes at once, each of them asking for its seed if no other
/// has come back with it yet. There are two resources here.
///
/// Source: `processEventConcurrency` in k8s.io/apiserver `pkg/storage/etcd3/watcher.go`
const AT_ONCE: usize = 10;

/// How many requests to Vault Decrypts have made, without those of probes.
async fn asked(control_plane: &ControlPlane) -> f64 {
    control_plane.daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await
}

#[tokio::test]
async fn after_a_restart_every_seed_is_asked_for_and_all_is_readable() {
    let (restarts, each) = if full() { (20, 50) } else { (5, 30) };
    let mut control_plane = ControlPlane::ready([]).await;
    let mut written = Vec::new();
    for restart in 0..=restarts {
        if restart > 0 {
            control_plane.server.kill();
            control_plane.server.start_again();
            control_plane.server.wait_ready(READY_WITHIN).await;
        }
        for number in 0..each {
            let name = format!("secret-{restart}-{number}");
            control_plane.server.api().create_secret(&name, &format!("value of {name}")).await.unwrap();
            written.push((name.clone(), format!("value of {name}")));
        }
    }
    let seeds = control_plane.cluster.etcd.seeds().await.len();
    // One for each start.
    assert_eq!(seeds, restarts + 1);

    control_plane.server.kill();
    let before = [control_plane.calls("decrypt").await, control_plane.calls("encrypt").await];
    let asked_before = asked(&control_plane).await;
    let begun = Instant::now();
    control_plane.server.start_again();
    control_plane.server.wait_ready(READY_WITHIN).await;
    let ready = begun.elapsed();
    let mut read = control_plane.server.api().secrets().await.unwrap();
    let listed = begun.elapsed();
    let after = [control_plane.calls("decrypt").await, control_plane.calls("encrypt").await];
    read.sort();
    written.sort();
    assert_eq!(read, written);
    let (decrypts, encrypts) = (after[0] - before[0], after[1] - before[1]);
    // Not for every object, but for a seed as often as objects under it are decoded at once.
    assert!((seeds..=2 * AT_ONCE * seeds).contains(&(decrypts as usize)), "{decrypts} Decrypts");
    assert_eq!(encrypts as usize, 1, "Encrypts");
    // Those for the same seed at the same time are one to Vault.
    let asked = asked(&control_plane).await - asked_before;
    assert!(asked < decrypts, "{decrypts} Decrypts, of which Vault saw {asked}");
    record_measurement(
        "2 restart",
        &format!(
            "{} Secrets under {seeds} seeds: {decrypts} Decrypts and {encrypts} Encrypt, {asked} requests to Vault for the former, ready after {:.2} s, \
             all listed after {:.2} s, 0 failures",
            written.len(),
            ready.as_secs_f64(),
            listed.as_secs_f64(),
        ),
    );
}
