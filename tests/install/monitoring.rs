//! The alerting rules and the dashboard, with the metrics of real daemons.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use kms_plugin::v2::EncryptResponse;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    Caller, ConfigFile, Daemon, DaemonOptions, KEY, Load, RELOAD_TIMEOUT, TestEnv,
    cluster::{Api, ApiServer, Cluster, EncryptionConfig},
    command, config_file, eventually,
    http::{HttpServer, answer, client},
    login, port,
    process::Process,
    temp_dir,
};
use transit_client::key_id::key_id_hash;

const RULES: &str = "charts/transit-kms/files/rules.yaml";
const DASHBOARD: &str = "charts/transit-kms/files/dashboard.json";
const RULE_TESTS: &str = "tests/install/rules";

/// The metrics that Prometheus itself makes.
const PROMETHEUS_METRICS: [&str; 2] = ["ALERTS", "up"];

/// How long a few scrapes may take on a busy machine.
const SCRAPED_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    promtool(&["check", "rules", RULES]);
    let tests = rule_tests();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(tests.iter().map(|path| path.to_str().unwrap()));
    promtool(&arguments);
}

#[test]
fn each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let mut fires: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for path in rule_tests() {
        for test in yaml(&path)["tests"].as_array().unwrap() {
            let name = test["name"].as_str().unwrap();
            let alert = name.split(':').next().unwrap();
            for check in test["promql_expr_test"].as_array().unwrap() {
                let expr = check["expr"].as_str().unwrap();
                assert!(expr.contains(&format!("alertname=\"{alert}\"")), "{name}: {expr}");
                let fired = !check["exp_samples"].as_array().unwrap().is_empty();
                fires.entry(alert.to_owned()).or_default().insert(fired);
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().iter().map(|rule| text(rule, "alert")).collect();
    assert_eq!(alerts, fires.keys().cloned().collect());
    for (alert, outcomes) in fires {
        assert_eq!(outcomes.len(), 2, "{alert} is tested with one outcome only: {outcomes:?}");
    }
}

#[test]
fn each_alert_has_a_severity_a_summary_a_description_and_a_runbook() {
    for rule in alerts() {
        let alert = text(&rule, "alert");
        assert!(["critical", "warning"].contains(&text(&rule["labels"], "severity").as_str()), "{alert}");
        let annotations = &rule["annotations"];
        let expected = format!("docs/troubleshooting.md#{}", alert.to_lowercase());
        assert_eq!(text(annotations, "runbook"), expected);
        assert!(text(annotations, "summary").len() < 120, "{alert}: the summary is longer than a line");
        assert!(
            text(annotations, "description").len() > 80,
            "{alert}: the description is too short for the cause and the next step"
        );
        let documented = fs::read_to_string(repository_path("docs/metrics.md")).unwrap();
        assert!(documented.contains(&format!("| `{alert}` |")), "{alert} is not in docs/metrics.md");
    }
}

/// Runs the query of each panel in a real Prometheus that scrapes two real daemons and a real kube-apiserver, under
/// load and during a rotation.
#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_data_and_every_metric_of_rules_and_panels_exists() {
    let mut monitored = MonitoredCluster::start().await;
    let prometheus = Prometheus::start(vec![
        Target::daemon("one", &monitored.daemons[0]).await,
        Target::daemon("other", &monitored.daemons[1]).await,
        Target::api_server("one", monitored.api_server.api()).await,
    ])
    .await;
    let _loads = [
        Load::start(&monitored.daemons[0], 2, Duration::from_millis(20)).await,
        Load::start(&monitored.daemons[1], 2, Duration::from_millis(20)).await,
    ];
    let caller = Caller::of(&monitored.daemons[0]).await;
    let old = caller.key_id().await;
    prometheus.wait(&query_of_panel("API servers by key_id"), 1).await;
    monitored.env.bao.rotate_key(KEY).await;
    let new = caller.wait_key_id_after(&old, RELOAD_TIMEOUT).await;
    monitored.cluster.wait_for_key_id(monitored.api_server.api(), &new, "after").await;
    let later = monitored.env.bao.token().await;
    config_file::by_rename(&monitored.env.config, &monitored.env.rendered.with_token(&later).yaml());
    let unreadable =
        EncryptResponse { ciphertext: "vault:v1:bm9uc2Vuc2U=".into(), ..caller.round_trip().await };
    let mut known = monitored.metrics().await;
    known.extend(PROMETHEUS_METRICS.map(str::to_owned));

    for (title, expr) in panels() {
        let named = metrics_in(&expr);
        assert!(!named.is_empty(), "{title} has no metric: {expr}");
        let missing: Vec<_> = named.difference(&known).collect();
        assert!(missing.is_empty(), "{title}: nothing exposes {missing:?}");
        eventually(&format!("`{title}` shows data: {expr}"), SCRAPED_WITHIN, async || {
            // Make a call fail, for the panels of failed calls.
            caller.decrypt(&unreadable).await.unwrap_err();
            let found = prometheus.query(&expr).await?;
            if found.iter().any(|(_, value)| value.is_finite()) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    for rule in alerts() {
        let expr = text(&rule, "expr");
        let missing: Vec<_> = metrics_in(&expr).difference(&known).cloned().collect();
        assert!(missing.is_empty(), "{}: nothing exposes {missing:?}", text(&rule, "alert"));
    }
    // After the rotation, both nodes and kube-apiserver have the new key_id.
    let hash = key_id_hash(&new);
    for (title, many) in [("Nodes by key_id", 2.0), ("API servers by key_id", 1.0)] {
        let expr = query_of_panel(title);
        eventually(title, SCRAPED_WITHIN, async || {
            let found = prometheus.query(&expr).await?;
            let matches = found.iter().any(|(labels, value)| labels["key_id_hash"] == hash && *value == many);
            if matches { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    prometheus.assert_rules_are_healthy().await;

    // Alerts become pending for a config that does not parse, and for an unreachable Vault: also for the daemon with a
    // local KEK, whose Status stays `ok`.
    config_file::by_rename(&monitored.env.config, "vault: [");
    prometheus.wait_pending("TransitKMSReloadRefused", 1).await;
    monitored.env.bao.stop();
    prometheus.wait_pending("TransitKMSVaultUnreachable", 2).await;
    let ok = "transit_kms_health{instance=\"other\", state=\"ok\"} == 1";
    assert_eq!(prometheus.query(ok).await.unwrap().len(), 1);
}

/// Returns all metrics in the expression of a rule or panel.
fn metrics_in(expr: &str) -> BTreeSet<String> {
    // Skip label values.
    let outside: String = expr.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    outside
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| {
            ["apiserver_", "process_", "transit_kms_"].iter().any(|prefix| word.starts_with(prefix))
                || PROMETHEUS_METRICS.contains(word)
        })
        .map(str::to_owned)
        .collect()
}

/// Returns the title and each query of all panels, with the variables replaced.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(repository_path(DASHBOARD)).unwrap()).unwrap();
    let mut found = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: duplicate id");
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(panel, "description").len() > 8, "{title} has no description");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for target in panel["targets"].as_array().unwrap() {
            let expr = text(target, "expr");
            let filled = expr
                .replace("$__rate_interval", "10s")
                .replace("$cluster", ".*")
                .replace("$job", "transit-kms")
                .replace("$instance", ".*");
            assert!(!filled.contains('$'), "{title}: {expr}");
            found.push((title.clone(), filled));
        }
    }
    // Every program has `process_…` metrics, so "All" must mean the jobs that have metrics of transit-kms.
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let job = variables.iter().find(|variable| variable["name"] == "job").unwrap();
    assert_eq!((&job["allValue"], &job["includeAll"]), (&Value::Null, &json!(true)), "{job}");
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        assert!(!metrics_in(&text(annotation, "expr")).is_empty());
    }
    found
}

fn query_of_panel(title: &str) -> String {
    panels().into_iter().find(|(found, _)| found == title).unwrap_or_else(|| panic!("no panel {title}")).1
}

fn alerts() -> Vec<Value> {
    let rules = yaml(&repository_path(RULES));
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn rule_tests() -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(repository_path(RULE_TESTS)).unwrap().map(|it| it.unwrap().path()).collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn repository_path(path: &str) -> PathBuf {
    testkit::repository::path(path)
}

fn yaml(path: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn text(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_else(|| panic!("no {key} in {of}")).to_owned()
}

fn promtool(arguments: &[&str]) {
    let output = command("promtool")
        .args(arguments)
        .current_dir(repository_path(""))
        .output()
        .unwrap_or_else(|error| panic!("promtool: {error}: scripts/install-tools gets it"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

/// Two daemons, of which the second logs in by itself and has a local KEK, and an API server that uses the first.
struct MonitoredCluster {
    api_server: ApiServer,
    cluster: Cluster,
    daemons: [Arc<Daemon>; 2],
    env: TestEnv,
    _other: TempDir,
}

impl MonitoredCluster {
    async fn start() -> Self {
        let (cluster, env) = (Cluster::start().await, TestEnv::start().await);
        let other = temp_dir("other-config-");
        let file = other.path().join("config.yaml");
        login::approle(&env.bao, other.path(), &json!({})).await;
        let auth = json!({
            "method": "approle", "role_id_file": other.path().join("role_id"),
            "secret_id_file": other.path().join("secret_id"), "state_dir": other.path().join("state"),
        });
        let content = ConfigFile { auth: Some(auth), local_kek: true, ..env.rendered.clone() };
        config_file::by_rename(&file, &content.yaml());
        let (first, _) = env.ready(["--log-level", "info"]).await;
        let options = DaemonOptions::arguments(["--log-level", "info", "--health-check-interval", "1s"]);
        let second = Daemon::start_with(&file, options).await;
        second.wait_ready().await;
        let api_server = cluster.ready(&EncryptionConfig::with_kms(first.socket())).await;
        let daemons = [Arc::new(first), Arc::new(second)];
        Self { api_server, cluster, daemons, env, _other: other }
    }

    /// Returns the names of all metrics of the daemons and the API server.
    async fn metrics(&self) -> BTreeSet<String> {
        let mut pages = vec![self.api_server.api().text("/metrics").await.1];
        for daemon in &self.daemons {
            pages.push(daemon.admin("/metrics").await.1);
        }
        let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
        let lines = pages.iter().flat_map(|page| page.lines());
        lines.filter(|line| !line.starts_with('#')).map(name).collect()
    }
}

/// A scrape target: its job, its instance, and its server.
struct Target(&'static str, String, HttpServer);

impl Target {
    /// Forwards to the daemon's admin listener, which is a unix socket that Prometheus cannot scrape.
    async fn daemon(instance: &str, daemon: &Arc<Daemon>) -> Self {
        let daemon = Arc::clone(daemon);
        let server = HttpServer::start(move |_| {
            let daemon = Arc::clone(&daemon);
            async move { page(daemon.admin("/metrics").await) }
        });
        Self("transit-kms", instance.to_owned(), server.await)
    }

    async fn api_server(instance: &str, api: &Api) -> Self {
        let api = api.clone();
        let server = HttpServer::start(move |_| {
            let api = api.clone();
            async move { page(api.text("/metrics").await) }
        });
        Self("apiserver", instance.to_owned(), server.await)
    }

    fn config(&self) -> Value {
        let Self(job, instance, server) = self;
        let address = server.address();
        json!({
            "targets": [address.trim_start_matches("http://")],
            "labels": {"instance": instance, "job": job},
        })
    }
}

/// A real Prometheus with the alerting rules. It stops when it is dropped.
struct Prometheus {
    address: String,
    http: reqwest::Client,
    _dir: TempDir,
    _process: Process,
    _targets: Vec<Target>,
}

impl Prometheus {
    /// Starts Prometheus with a scrape interval of a second, and waits until it is ready.
    async fn start(targets: Vec<Target>) -> Self {
        let dir = temp_dir("prometheus-");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [repository_path(RULES)],
            "scrape_configs": [{
                "job_name": "node",
                "static_configs": targets.iter().map(Target::config).collect::<Vec<_>>(),
            }],
        });
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();
        let port = port::unused();
        let mut command = command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let http = client().tls_certs_only([]).build().unwrap();
        let process = Process::spawn("prometheus", &mut command);
        let address = format!("http://127.0.0.1:{port}");
        let prometheus = Self { address, http, _dir: dir, _process: process, _targets: targets };
        eventually("Prometheus is ready", SCRAPED_WITHIN, async || {
            let answer = prometheus.http.get(format!("{}/-/ready", prometheus.address)).send().await;
            answer.and_then(reqwest::Response::error_for_status)
        })
        .await;
        prometheus
    }

    /// Returns the labels and the value of each element of an instant vector.
    async fn query(&self, expr: &str) -> Result<Vec<(Value, f64)>, String> {
        let answer = self.get("query", &[("query", expr)]).await?;
        let found = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
        let element = |it: &Value| (it["metric"].clone(), it["value"][1].as_str().unwrap().parse().unwrap());
        Ok(found.iter().map(element).collect())
    }

    /// Waits until the result of `expr` has `many` elements.
    async fn wait(&self, expr: &str, many: usize) {
        eventually(&format!("{many} of {expr}"), SCRAPED_WITHIN, async || {
            let found = self.query(expr).await?;
            if found.len() == many { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Waits until `many` alerts of this name are pending.
    async fn wait_pending(&self, alert: &str, many: usize) {
        self.wait(&format!("ALERTS{{alertname=\"{alert}\", alertstate=\"pending\"}}"), many).await;
    }

    /// Asserts that all rules can be evaluated and that none fires.
    async fn assert_rules_are_healthy(&self) {
        let answer = self.get("rules", &[]).await.unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert_eq!(rules.len(), alerts().len());
        for rule in rules {
            assert_eq!(rule["health"], "ok", "{rule}");
            assert_ne!(rule["state"], "firing", "{rule}");
        }
    }

    async fn get(&self, what: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let mut url = url::Url::parse(&format!("{}/api/v1/{what}", self.address)).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        let answer = self.http.get(url).send().await.map_err(|error| error.to_string())?;
        let body = answer.text().await.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer) } else { Err(answer.to_string()) }
    }
}

fn page((status, body): (u16, String)) -> testkit::http::Answer {
    answer(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), body)
}
