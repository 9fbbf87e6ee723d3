//! Nodes of Vault with wrong answers: a proxy in front of a real server, or another real server. A working node is always
//! preferred to them.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{
    Bao, ConfigFile, Daemon, DaemonOptions, Fault, FaultProxy, KEY, Load, MOUNT, ThreeNodeVault,
    calls::{encrypt, round_trip, status},
    config_file, eventually,
    measurements::record_measurement,
    policy, temp_dir,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tonic::Code;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A server, a config, and a daemon that may use plain HTTP to the proxies.
struct Setup {
    bao: Bao,
    config: std::path::PathBuf,
    daemon: Daemon,
    rendered: ConfigFile,
    _dir: tempfile::TempDir,
}

impl Setup {
    /// Starts a daemon whose config has these addresses.
    async fn start(bao: Bao, token: &str, addresses: Vec<String>) -> Self {
        let rendered = ConfigFile { addresses, ..ConfigFile::of(&bao, token) };
        let dir = temp_dir("faults-");
        let config = dir.path().join("config.yaml");
        config_file::by_rename(&config, &rendered.yaml());
        let arguments = ["--allow-http", "--log-level", "debug", "--health-check-interval", "1s"];
        let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
        daemon.wait_ready().await;
        Self { bao, config, daemon, rendered, _dir: dir }
    }

    /// The log lines about ejected nodes.
    fn ejections(&self) -> Vec<String> {
        let log = self.daemon.log();
        log.lines().filter(|line| line.contains("a Vault node was ejected")).map(str::to_owned).collect()
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.daemon.metric(name, labels).await
    }
}

async fn more_calls(load: &Load, count: u64) {
    let before = load.calls();
    eventually("further calls", Duration::from_secs(60), async || load.calls() >= before + count).await;
}

/// The good node is sealed for a moment. Afterwards all calls succeed, whatever the other node answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_wrong_answers_never_replaces_a_working_one() {
    type Wrong = (&'static str, fn(&FaultProxy));
    let wrongs: [Wrong; 7] = [
        ("200 with HTML", |proxy| proxy.inject("", Fault::html(200))),
        ("401", |proxy| proxy.inject("", Fault::Answer(401, vec![], String::new()))),
        ("a bare 403", |proxy| proxy.inject("/v1/transit", Fault::token_refused())),
        ("403 by policy", |proxy| proxy.inject("/v1/transit", Fault::policy_refused())),
        ("404 in Vault's words", |proxy| proxy.inject("/v1/transit", Fault::errors(404, &["no handler"]))),
        ("a DR secondary", FaultProxy::act_as_dr_secondary),
        ("502 with HTML", |proxy| proxy.inject("", Fault::html(502))),
    ];
    for (name, inject) in wrongs {
        let bao = Bao::start().await;
        let token = bao.token().await;
        let wrong = FaultProxy::in_front_of(&bao).await;
        let addresses = vec![bao.address(), wrong.address()];
        let setup = Setup::start(bao, &token, addresses).await;
        inject(&wrong);
        let kms = setup.daemon.kms().await;
        round_trip(&kms, "before").await;

        setup.bao.seal().await;
        // While it is sealed, calls go to the other node.
        let seen = wrong.calls();
        let calls = (0..10).map(|number| {
            let kms = kms.clone();
            async move { drop(encrypt(&kms, b"seed", &format!("sealed-{number}")).await) }
        });
        futures_util::future::join_all(calls).await;
        assert!(wrong.calls() > seen, "{name}: the other node got no call");
        setup.bao.unseal().await;
        eventually(name, WAIT_TIMEOUT, async || {
            encrypt(&kms, b"seed", "again").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        for number in 0..50 {
            round_trip(&kms, &format!("after-{number}")).await;
        }
        let answer = status(&kms).await.unwrap();
        assert_eq!(answer.healthz, "ok", "{name}");
    }
}

/// Each node of a cluster of three in turn returns each kind of wrong answer. No call of a client without retries fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_one_node_of_three_answers_wrongly() {
    let vault = ThreeNodeVault::start().await;
    let mut proxies = Vec::new();
    for member in &vault.members {
        proxies.push(FaultProxy::in_front_of(member).await);
    }
    let dir = temp_dir("faults-");
    let config = dir.path().join("config.yaml");
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    config_file::by_rename(&config, &ConfigFile { addresses, ..vault.rendered().await }.yaml());
    let arguments = ["--allow-http", "--log-level", "debug", "--health-check-interval", "1s"];
    let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
    daemon.wait_ready().await;
    let load = Load::at_rate(&daemon, 50);
    more_calls(&load, 25).await;
    let faults = [
        Fault::html(200),
        Fault::Answer(401, vec![], String::new()),
        Fault::html(403),
        Fault::html(404),
        Fault::errors(400, &["path disabled in replication DR secondary mode"]),
        Fault::errors(500, &["internal error"]),
        Fault::html(502),
        Fault::errors(503, &["Vault is sealed"]),
        Fault::NoAnswer,
        Fault::Delay(Duration::from_millis(1500)),
    ];
    for fault in faults {
        for proxy in &proxies {
            let before = proxy.calls();
            proxy.inject("/v1/transit", fault.clone());
            more_calls(&load, 40).await;
            proxy.clear();
            // Each node is the preferred one at some point.
            println!("{fault:?}: {} requests", proxy.calls() - before);
        }
    }
    let report = load.stop().await;
    report.assert_nothing_failed();
    record_measurement(
        "faults",
        &format!("one node of three answers wrongly: {} calls, none failed", report.calls),
    );
    let retries = daemon.metric("transit_kms_retries_total", &[]).await;
    assert!(retries >= 7.0, "only {retries} retries");
    assert_eq!(daemon.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// As with a stale DNS record or a performance secondary: another Vault that does not know the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_by_another_vault_does_not_count_while_the_own_vault_accepts() {
    let (bao, other) = (Bao::start().await, Bao::start().await);
    let token = bao.token().await;
    // The own Vault is slow at times, so that calls are hedged.
    let (slow, foreign) = (FaultProxy::in_front_of(&bao).await, FaultProxy::in_front_of(&other).await);
    let setup = Setup::start(bao, &token, vec![slow.address(), foreign.address()]).await;
    slow.inject("/encrypt/", Fault::Delay(Duration::from_millis(700)));
    let load = Load::start(&setup.daemon, 2, Duration::from_millis(50)).await;
    eventually("the other Vault is asked", WAIT_TIMEOUT, async || foreign.requests("/encrypt/") > 0).await;
    more_calls(&load, 20).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(status(&setup.daemon.kms().await).await.unwrap().healthz, "ok");
    assert!(!setup.daemon.log().contains("the token is invalid"));
}

/// A candidate on a mount with a quota, and a 500 to every renewal: neither affects the health of the nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_candidates_and_renewals_eject_no_node() {
    let bao = Bao::start().await;
    bao.api("POST", "sys/mounts/limited", json!({ "type": "transit" })).await;
    bao.api("POST", &format!("limited/keys/{KEY}"), json!({})).await;
    bao.policy("limited", &policy("limited", KEY)).await;
    let proxies = [FaultProxy::in_front_of(&bao).await, FaultProxy::in_front_of(&bao).await];
    for proxy in &proxies {
        proxy.inject("/v1/limited/", Fault::quota(5));
        proxy.inject("renew-self", Fault::errors(500, &["policies have changed, not renewing"]));
    }
    let token = bao.create_token(json!({"policies": ["transit-kms", "limited"], "ttl": "30s"})).await;
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    let setup = Setup::start(bao, &token, addresses).await;
    let load = Load::start(&setup.daemon, 4, Duration::from_millis(20)).await;
    let keys: Vec<Value> = vec![KEY.into(), json!({ "name": KEY, "mount": MOUNT })];
    let candidate = ConfigFile { mount: "limited".into(), keys, ..setup.rendered.clone() };
    config_file::by_rename(&setup.config, &candidate.yaml());
    let asked = |part: &str| proxies.iter().map(|proxy| proxy.requests(part)).sum::<usize>();
    eventually("the candidate is tried", WAIT_TIMEOUT, async || asked("/v1/limited/") > 1).await;
    eventually("the token is to be renewed", Duration::from_secs(40), async || asked("renew-self") > 0).await;
    more_calls(&load, 50).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(setup.ejections(), Vec::<String>::new());
    assert_eq!(setup.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// A real quota. Calls above it fail and are not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_is_returned_to_the_caller_without_a_retry() {
    let bao = Bao::start().await;
    let token = bao.token().await;
    let proxies = [FaultProxy::in_front_of(&bao).await, FaultProxy::in_front_of(&bao).await];
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    let setup = Setup::start(bao, &token, addresses).await;
    let quota = json!({ "path": format!("{MOUNT}/"), "rate": 25, "interval": "1s" });
    setup.bao.api("POST", "sys/quotas/rate-limit/transit", quota).await;
    let asked = || proxies.iter().map(|proxy| proxy.requests("/encrypt/")).sum::<usize>();
    let before = asked();
    let kms = setup.daemon.kms().await;
    let calls = 200;
    let outcomes = futures_util::future::join_all((0..calls).map(|number| {
        let kms = kms.clone();
        async move { encrypt(&kms, b"seed", &format!("limited-{number}")).await.map(drop) }
    }))
    .await;
    let limited: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(limited.len() > calls / 2, "only {} calls were above the quota", limited.len());
    for error in &limited {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("429") && error.message().contains("quota"), "{error}");
    }
    let mut hedges = 0;
    for result in ["won", "lost"] {
        hedges += setup.metric("transit_kms_hedges_total", &[("result", result)]).await as usize;
    }
    let requests = asked() - before;
    record_measurement(
        "faults",
        &format!(
            "a quota of 25/s: {requests} requests for {calls} calls, of which {hedges} hedges, {} calls refused",
            limited.len()
        ),
    );
    // Health checks encrypt a few times, too.
    assert!(requests <= calls + hedges + 10, "{requests} requests for {calls} calls, {hedges} hedges");
    assert_eq!(setup.ejections(), Vec::<String>::new());
}

/// A Vault with a latency of 300 ms, where a connection takes longer than a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_to_a_distant_vault_succeed() {
    let bao = Bao::start().await;
    let token = bao.token().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let to = bao.address().trim_start_matches("https://").to_owned();
    let distance = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let to = to.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1300)).await;
                let mut far = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    let setup = Setup::start(bao, &token, vec![address]).await;
    round_trip(&setup.daemon.kms().await, "far").await;

    // The setting of the timeout is used.
    let yaml = setup.rendered.yaml().replace("vault:\n", "vault:\n  connect_timeout: 500ms\n");
    config_file::by_rename(&setup.config, &yaml);
    eventually("the candidate cannot connect", WAIT_TIMEOUT, async || {
        let (_, text) = setup.daemon.admin("/readyz").await;
        if text.contains("the newest config is not in use") { Ok(()) } else { Err(text) }
    })
    .await;
    distance.abort();
}
