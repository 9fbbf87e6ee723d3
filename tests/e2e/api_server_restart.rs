//! kube-apiserver restarts and decrypts all DEK seeds in etcd.

use std::time::Instant;
use testkit::{
    cluster::{ControlPlane, READY_WITHIN, record_measurement},
    full,
};

/// How many objects of a resource kube-apiserver decodes concurrently. Each calls Decrypt for its DEK seed if the seed
/// is not cached yet. The test has two resources.
///
/// Source: `processEventConcurrency` in k8s.io/apiserver `pkg/storage/etcd3/watcher.go`
const CONCURRENT_DECODES: usize = 10;

/// The number of Vault requests for Decrypts, without those of health checks.
async fn vault_requests(control_plane: &ControlPlane) -> f64 {
    control_plane.daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await
}

#[tokio::test]
async fn a_restarted_api_server_decrypts_every_dek_seed_and_reads_everything() {
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
    // Each start makes a new DEK seed.
    assert_eq!(seeds, restarts + 1);

    control_plane.server.kill();
    let before = [control_plane.calls("decrypt").await, control_plane.calls("encrypt").await];
    let requests_before = vault_requests(&control_plane).await;
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
    // Not a Decrypt for each object: at most one for each concurrent decode of each seed.
    assert!((seeds..=2 * CONCURRENT_DECODES * seeds).contains(&(decrypts as usize)), "{decrypts} Decrypts");
    assert_eq!(encrypts as usize, 1, "Encrypts");
    // transit-kms coalesces concurrent Decrypts of the same seed.
    let vault_requests = vault_requests(&control_plane).await - requests_before;
    assert!(vault_requests < decrypts, "{decrypts} Decrypts made {vault_requests} Vault requests");
    record_measurement(
        "2 restart",
        &format!(
            "{} Secrets under {seeds} seeds: {decrypts} Decrypts and {encrypts} Encrypt, {vault_requests} Vault requests for the Decrypts, ready after {:.2} s, \
             all listed after {:.2} s, 0 failures",
            written.len(),
            ready.as_secs_f64(),
            listed.as_secs_f64(),
        ),
    );
}
