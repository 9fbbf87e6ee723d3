//! Coalescing: concurrent Decrypts become few Vault requests.

use testkit::{Bao, KEY, MOUNT, POLICY, RELOAD_TIMEOUT, TestEnv, calls, eventually};
use tokio::task::JoinSet;
use tonic::Code;

const SEEDS: u8 = 200;

/// Ciphertexts of seeds, as another provider has left them.
async fn existing_ciphertexts(bao: &Bao) -> Vec<String> {
    let mut sealed = Vec::new();
    for number in 0..SEEDS {
        sealed.push(bao.encrypt(KEY, &[number; 32]).await);
    }
    sealed
}

#[tokio::test]
async fn concurrent_decrypts_become_few_requests_and_a_damaged_one_fails_alone() {
    let env = TestEnv::start().await;
    env.bao.enable_uid_audit().await;
    let (daemon, _) = env.ready_without_health_checks().await;
    let sealed = existing_ciphertexts(&env.bao).await;
    let damaged = format!("vault:v1:{}", "A".repeat(64));
    let kms = daemon.kms().await;
    let mut running = JoinSet::new();
    for (number, ciphertext) in (0..SEEDS).zip(sealed.clone()) {
        let kms = kms.clone();
        running.spawn(async move {
            assert_eq!(calls::decrypt(&kms, ciphertext, "1", "many").await.unwrap(), [number; 32]);
        });
    }
    for ciphertext in [&damaged; 3] {
        let (kms, ciphertext) = (kms.clone(), ciphertext.clone());
        running.spawn(async move {
            let error = calls::decrypt(&kms, ciphertext, "1", "damaged").await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        });
    }
    running.join_all().await;
    let requests = daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await;
    let items = daemon.metric("transit_kms_decrypt_batch_size_sum", &[]).await;
    let shared = daemon.metric("transit_kms_decrypts_deduplicated_total", &[]).await;
    assert_eq!((items + shared) as u8, SEEDS + 3);
    assert!(requests < 40.0, "{items} items in {requests} requests");

    // The audit log of Vault names each batch, and the log of the daemon has the request id beside each call.
    let audited = env.bao.audit_log();
    let of_batch = audited.iter().find(|entry| {
        let uid = &entry["request"]["headers"]["x-kms-uid"][0];
        entry["type"] == "response" && uid.as_str().is_some_and(|uid| uid.starts_with("batch-"))
    });
    let id = of_batch.expect("a batch")["request"]["id"].as_str().unwrap();
    eventually("the log has its request beside several calls", RELOAD_TIMEOUT, async || {
        let log = daemon.log();
        log.lines().filter(|line| line.contains("uid=\"many\"") && line.contains(id)).count() > 1
    })
    .await;
}

#[tokio::test]
async fn without_coalescing_each_decrypt_is_one_request() {
    let env = TestEnv::start().await;
    let (daemon, _) = env.ready(["--no-coalescing"]).await;
    let ciphertext = env.bao.encrypt(KEY, b"seed").await;
    let before = requests(&env.bao);
    let kms = daemon.kms().await;
    let mut running = JoinSet::new();
    for _ in 0..20 {
        let (kms, ciphertext) = (kms.clone(), ciphertext.clone());
        running.spawn(async move {
            assert_eq!(calls::decrypt(&kms, ciphertext, "1", "single").await.unwrap(), b"seed");
        });
    }
    running.join_all().await;
    // Health checks send requests, too.
    assert!(requests(&env.bao) - before >= 20);
    assert_eq!(daemon.metric("transit_kms_decrypt_batch_size_count", &[]).await as usize, 0);
}

fn requests(bao: &Bao) -> usize {
    let path = format!("{MOUNT}/decrypt/{KEY}");
    let of_path =
        |entry: &&serde_json::Value| entry["type"] == "request" && entry["request"]["path"] == *path;
    bao.audit_log().iter().filter(of_path).count()
}

#[tokio::test]
async fn decrypts_succeed_when_the_policy_forbids_batches() {
    let env = TestEnv::start().await;
    let policy = testkit::policy(MOUNT, KEY).replace(
        &format!("path \"{MOUNT}/decrypt/{KEY}\"  {{ "),
        &format!("path \"{MOUNT}/decrypt/{KEY}\"  {{ allowed_parameters = {{ \"ciphertext\" = [] }}\n"),
    );
    assert!(policy.contains("allowed_parameters"), "{policy}");
    env.bao.policy(POLICY, &policy).await;
    let (daemon, caller) = env.ready_without_health_checks().await;
    let kms = daemon.kms().await;
    let mut running = JoinSet::new();
    for (number, ciphertext) in (0..SEEDS).zip(existing_ciphertexts(&env.bao).await) {
        let kms = kms.clone();
        running.spawn(async move {
            assert_eq!(calls::decrypt(&kms, ciphertext, "1", "many").await.unwrap(), [number; 32]);
        });
    }
    running.join_all().await;
    assert_eq!(caller.health().await, "ok");
    daemon.wait_printed("does the policy allow `batch_input`?").await;
}
