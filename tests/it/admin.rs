//! The admin listener: who asks is told the truth, and the documentation tells the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use kms_plugin::v2::{DecryptRequest, EncryptRequest};
use sha2::{Digest, Sha256};
use testkit::{Caller, Daemon, KEY, Stage, TAKEN_WITHIN, eventually};

#[tokio::test]
async fn each_path_answers_and_nothing_else_does() {
    let stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
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
async fn the_key_id_hash_is_that_of_kube_apiserver() {
    let stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    let of_metric = async || {
        let (_, text) = daemon.admin("/metrics").await;
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("transit_kms_key_id_hash_info{"))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 1, "the hash of a key_id that is gone must go: {lines:?}");
        lines[0].clone()
    };
    let key_id = caller.key_id().await;
    assert_eq!(
        of_metric().await,
        format!("transit_kms_key_id_hash_info{{key_id_hash=\"{}\"}} 1", hash(&key_id))
    );
    stage.bao.rotate_key(KEY).await;
    let newer = caller.wait_key_id_after(&key_id, TAKEN_WITHIN).await;
    assert_eq!(
        of_metric().await,
        format!("transit_kms_key_id_hash_info{{key_id_hash=\"{}\"}} 1", hash(&newer))
    );
    assert_eq!(daemon.metric("transit_kms_key_version", &[("key", "transit/kms")]).await, 2.0);
    assert_eq!(daemon.metric("transit_kms_key_version", &[]).await, 2.0);
}

/// Every metric is documented with its labels, and everything that is documented exists.
#[tokio::test]
async fn the_documentation_of_metrics_is_complete_and_true() {
    let stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    caller.round_trip().await;

    let documented = documented();
    let shown = shown(&daemon).await;
    // Of the standard ones the documentation says only that they are as everywhere.
    let ours: BTreeMap<_, _> = shown.into_iter().filter(|(name, _)| !name.starts_with("process_")).collect();
    assert_eq!(ours, documented, "left: on /metrics; right: in docs/metrics.md");
    let (_, text) = daemon.admin("/metrics").await;
    for standard in ["process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"] {
        assert!(text.contains(standard), "{standard}");
    }
}

/// The age of a local KEK grows while Vault is away, and its end stays where it is.
#[tokio::test]
async fn a_local_kek_tells_when_vault_saw_it_last_and_when_it_ends() {
    let mut stage = Stage::start().await;
    let (daemon, _) = stage.ready([]).await;
    let life = async || {
        let metric = |name| daemon.metric(name, &[]);
        let unwrapped = metric("transit_kms_local_kek_unwrapped_timestamp_seconds").await;
        (unwrapped, metric("transit_kms_local_kek_expiry_timestamp_seconds").await)
    };
    assert_eq!(life().await, (0.0, 0.0), "there is none in mode transit");
    let token = stage.token().to_owned();
    stage.rendered.local_kek = true;
    stage.render_and_wait(&daemon, &token).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let (unwrapped, until) = life().await;
    assert!((now() - 20.0..=now()).contains(&unwrapped), "{unwrapped}");
    let a_day = 24.0 * 3600.0;
    assert!((until - unwrapped - a_day).abs() < 0.1, "{unwrapped} {until}");
    stage.bao.stop();
    eventually("the outage is noticed", TAKEN_WITHIN, async || {
        daemon.admin("/readyz").await.1.contains("does not answer")
    })
    .await;
    let (later, end) = life().await;
    assert!((later - unwrapped).abs() < 0.1 && (end - until).abs() < 0.1, "{later} {end}");
    eventually("the nodes are known to be away", TAKEN_WITHIN, async || {
        daemon.metric("transit_kms_vault_node_up", &[]).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn clients_cannot_make_new_series() {
    let stage = Stage::start().await;
    let (daemon, caller) = stage.ready([]).await;
    // One of each kind first.
    strange_calls(&caller, &daemon, 1).await;
    let before = series(&daemon).await;
    strange_calls(&caller, &daemon, 50).await;
    let after = series(&daemon).await;
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:#?}");
    assert!(!after.iter().any(|series| series.contains("strange")), "{after:#?}");
}

/// Calls with names of the client's choice wherever it may choose one.
async fn strange_calls(caller: &Caller, daemon: &Daemon, times: usize) {
    let sealed = caller.round_trip().await;
    let mut kms = daemon.kms().await;
    for _ in 0..times {
        let strange = format!("strange-{:016x}", rand::random::<u64>());
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: strange.clone() };
        kms.encrypt(request).await.unwrap();
        // The ciphertext is a good one: with a foreign key_id it is another provider's.
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

/// As kube-apiserver labels it.
fn hash(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key_id)))
}

/// Everything on /metrics before its value, that is name and labels.
async fn series(daemon: &Daemon) -> BTreeSet<String> {
    let (status, text) = daemon.admin("/metrics").await;
    assert_eq!(status, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// The names of metrics on /metrics with the names of their labels.
async fn shown(daemon: &Daemon) -> BTreeMap<String, BTreeSet<String>> {
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

/// The names of metrics in the table of docs/metrics.md with the names of their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let path = testkit::repository::path("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut documented = BTreeMap::new();
    // Below that is the table of alerts.
    let metrics = text.lines().take_while(|line| *line != "## Alerts");
    for row in metrics.filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').collect();
        let labels: BTreeSet<String> = quoted(cells[2]).into_iter().collect();
        for name in quoted(cells[1]) {
            if name != "process_*" {
                assert_eq!(documented.insert(name.clone(), labels.clone()), None, "{name} is there twice");
            }
        }
    }
    assert!(documented.len() > 10, "the table is not where this test looks: {documented:?}");
    documented
}
