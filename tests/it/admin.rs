//! The admin listener: paths, metrics, and their documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use kms_plugin::v2::{DecryptRequest, EncryptRequest};
use serde_json::json;
use sha2::{Digest, Sha256};
use testkit::{Caller, Daemon, KEY, RELOAD_TIMEOUT, TestEnv, eventually, login};

#[tokio::test]
async fn only_the_documented_paths_answer() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let (status, words) = daemon.admin("/livez").await;
    assert_eq!((status, words.trim()), (200, "ok"));
    let (status, words) = daemon.admin("/readyz").await;
    assert_eq!(status, 200);
    let key_id = caller.key_id().await;
    for part in ["ok", "session 1", "key kms version 1", key_id.as_str(), hash(&key_id).as_str()] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let (status, text) = daemon.admin("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("# TYPE transit_kms_health gauge"), "{text}");
    for path in ["/health", "/livez/", "/metrics/x", "/readyzz"] {
        assert_eq!(daemon.admin(path).await.0, 404, "{path}");
    }
    for path in ["/livez", "/metrics", "/readyz"] {
        for method in ["DELETE", "POST", "PUT"] {
            assert_eq!(daemon.admin_as(method, path).await.0, 405, "{method} {path}");
        }
        assert_eq!(daemon.admin_as("HEAD", path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn the_key_id_hash_is_the_same_as_in_kube_apiserver() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    let of_metric = async || {
        let (_, text) = daemon.admin("/metrics").await;
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("transit_kms_key_id_hash_info{"))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 1, "only the hash of the current key_id may remain: {lines:?}");
        lines[0].clone()
    };
    let key_id = caller.key_id().await;
    assert_eq!(
        of_metric().await,
        format!("transit_kms_key_id_hash_info{{key_id_hash=\"{}\"}} 1", hash(&key_id))
    );
    env.bao.rotate_key(KEY).await;
    let newer = caller.wait_key_id_after(&key_id, RELOAD_TIMEOUT).await;
    assert_eq!(
        of_metric().await,
        format!("transit_kms_key_id_hash_info{{key_id_hash=\"{}\"}} 1", hash(&newer))
    );
    assert_eq!(daemon.metric("transit_kms_key_version", &[("key", "transit/kms")]).await, 2.0);
    assert_eq!(daemon.metric("transit_kms_key_version", &[]).await, 2.0);
}

/// Every metric is documented with its labels, and every documented metric exists.
#[tokio::test]
async fn the_docs_list_exactly_the_metrics_that_exist() {
    // Only a login has the metric of logins.
    let mut env = TestEnv::without_file().await;
    let cidrs = json!({ "bind_secret_id": false, "token_bound_cidrs": ["127.0.0.0/8"] });
    login::approle_without_secret_id(&env.bao, env.dir(), &cidrs).await;
    let role_id = env.dir().join("role_id");
    let state_dir = env.dir().join("state");
    env.render_auth(json!({ "method": "approle", "role_id_file": role_id, "state_dir": state_dir }));
    let (daemon, caller) = env.ready([]).await;
    caller.round_trip().await;

    let documented = documented_metrics();
    let shown = exported_metrics(&daemon).await;
    // The documentation does not list the standard process metrics.
    let exported: BTreeMap<_, _> =
        shown.into_iter().filter(|(name, _)| !name.starts_with("process_")).collect();
    assert_eq!(exported, documented, "left: on /metrics; right: in docs/metrics.md");
    let (_, text) = daemon.admin("/metrics").await;
    for standard in ["process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"] {
        assert!(text.contains(standard), "{standard}");
    }
}

/// The age of a local KEK grows while Vault is unreachable, and its expiry does not change.
#[tokio::test]
async fn metrics_show_the_last_unwrap_and_the_expiry_of_a_local_kek() {
    let mut env = TestEnv::start().await;
    let (daemon, _) = env.ready([]).await;
    let life = async || {
        let metric = |name| daemon.metric(name, &[]);
        let unwrapped = metric("transit_kms_local_kek_unwrapped_timestamp_seconds").await;
        (unwrapped, metric("transit_kms_local_kek_expiry_timestamp_seconds").await)
    };
    assert_eq!(life().await, (0.0, 0.0), "there is none in mode transit");
    let token = env.token().to_owned();
    env.rendered.local_kek = true;
    env.render_and_wait(&daemon, &token).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let (unwrapped, until) = life().await;
    assert!((now() - 20.0..=now()).contains(&unwrapped), "{unwrapped}");
    let a_day = 24.0 * 3600.0;
    assert!((until - unwrapped - a_day).abs() < 0.1, "{unwrapped} {until}");
    env.bao.stop();
    eventually("the outage is noticed", RELOAD_TIMEOUT, async || {
        daemon.admin("/readyz").await.1.contains("does not answer")
    })
    .await;
    let (later, end) = life().await;
    assert!((later - unwrapped).abs() < 0.1 && (end - until).abs() < 0.1, "{later} {end}");
    eventually("the nodes are unreachable", RELOAD_TIMEOUT, async || {
        daemon.metric("transit_kms_vault_node_up", &[]).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn clients_cannot_create_metric_series() {
    let env = TestEnv::start().await;
    let (daemon, caller) = env.ready([]).await;
    // One call of each kind creates the series that may exist.
    calls_with_arbitrary_names(&caller, &daemon, 1).await;
    let before = series(&daemon).await;
    calls_with_arbitrary_names(&caller, &daemon, 50).await;
    let after = series(&daemon).await;
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:#?}");
    assert!(!after.iter().any(|series| series.contains("strange")), "{after:#?}");
}

/// Calls with arbitrary names wherever a client may choose one.
async fn calls_with_arbitrary_names(caller: &Caller, daemon: &Daemon, times: usize) {
    let sealed = caller.round_trip().await;
    let mut kms = daemon.kms().await;
    for _ in 0..times {
        let strange = format!("strange-{:016x}", rand::random::<u64>());
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: strange.clone() };
        kms.encrypt(request).await.unwrap();
        // A valid ciphertext with a foreign key_id counts as one of another provider.
        for key_id in [strange.clone(), format!("tk1.{strange}"), String::new()] {
            let request = DecryptRequest {
                annotations: [(strange.clone(), Bytes::from_static(b"x"))].into(),
                ciphertext: sealed.ciphertext.clone(),
                key_id,
                uid: strange.clone(),
            };
            drop(kms.decrypt(request).await);
        }
        let request = DecryptRequest {
            annotations: [].into(),
            ciphertext: strange.clone().into_bytes().into(),
            key_id: sealed.key_id.clone(),
            uid: strange.clone(),
        };
        kms.decrypt(request).await.unwrap_err();
        assert_eq!(daemon.admin(&format!("/{strange}")).await.0, 404);
    }
}

/// The hash that kube-apiserver uses as a label.
fn hash(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key_id)))
}

/// The names and labels of all series on /metrics.
async fn series(daemon: &Daemon) -> BTreeSet<String> {
    let (status, text) = daemon.admin("/metrics").await;
    assert_eq!(status, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// The metrics on /metrics and their label names.
async fn exported_metrics(daemon: &Daemon) -> BTreeMap<String, BTreeSet<String>> {
    let (_, text) = daemon.admin("/metrics").await;
    let histograms: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram").map(str::to_owned))
        .collect();
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for series in series(daemon).await {
        let (name, labels) = series.split_once('{').unwrap_or((&series, ""));
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let of_histogram = family.filter(|family| histograms.contains(*family));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|pair| Some(pair.split_once('=')?.0));
        let labels = labels.filter(|label| of_histogram.is_none() || *label != "le").map(str::to_owned);
        shown.entry(of_histogram.unwrap_or(name).to_owned()).or_default().extend(labels);
    }
    shown
}

/// The metrics in the table of docs/metrics.md and their label names.
fn documented_metrics() -> BTreeMap<String, BTreeSet<String>> {
    let path = testkit::repository::path("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut documented = BTreeMap::new();
    // The table of alerts follows.
    let metrics = text.lines().take_while(|line| *line != "## Alerts");
    // Other tables list values of labels.
    for row in metrics.filter(|line| line.starts_with("| `transit_kms_") || line.starts_with("| `process_")) {
        let cells: Vec<_> = row.split('|').collect();
        let labels: BTreeSet<String> = quoted(cells[2]).into_iter().collect();
        for name in quoted(cells[1]) {
            if name != "process_*" {
                assert_eq!(
                    documented.insert(name.clone(), labels.clone()),
                    None,
                    "{name} is documented twice"
                );
            }
        }
    }
    assert!(documented.len() > 10, "the table of metrics was not found: {documented:?}");
    documented
}
