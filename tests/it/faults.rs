//! Nodes of Vault that answer wrongly: a proxy in front of a real server, or another real server. None
//! wins over a node that works, and none takes it away from live calls.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{
    Bao, Daemon, DaemonOptions, Fault, FaultProxy, KEY, Load, MOUNT, Rendered, Trio,
    calls::{encrypt, round_trip, status},
    eventually,
    figures::figure,
    policy, rendered, scratch,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server, a file and a daemon that may speak plain HTTP to the proxies.
struct Scene {
    bao: Bao,
    config: std::path::PathBuf,
    daemon: Daemon,
    rendered: Rendered,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// Whose file names the addresses that `addresses` makes of the server.
    async fn start(bao: Bao, token: &str, addresses: Vec<String>) -> Self {
        let rendered = Rendered { addresses, ..Rendered::of(&bao, token) };
        let dir = scratch("faults-");
        let config = dir.path().join("config.yaml");
        rendered::by_rename(&config, &rendered.yaml());
        let arguments = ["--allow-http", "--log-level", "debug", "--health-check-interval", "1s"];
        let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
        daemon.wait_ready().await;
        Self { bao, config, daemon, rendered, _dir: dir }
    }

    /// Whether a node was ever taken away from calls.
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
    eventually("calls go on", Duration::from_secs(60), async || load.calls() >= before + count).await;
}

/// The good node is sealed for a second, and calls go on afterwards, whatever the other one answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_wrongly_never_takes_the_place_of_one_that_works() {
    type Wrong = (&'static str, fn(&FaultProxy));
    let wrongs: [Wrong; 7] = [
        ("200 with HTML", |proxy| proxy.spoil("", Fault::html(200))),
        ("401", |proxy| proxy.spoil("", Fault::Answer(401, vec![], String::new()))),
        ("a bare 403", |proxy| proxy.spoil("/v1/transit", Fault::token_refused())),
        ("403 by policy", |proxy| proxy.spoil("/v1/transit", Fault::policy_refused())),
        ("404 in Vault's words", |proxy| proxy.spoil("/v1/transit", Fault::errors(404, &["no handler"]))),
        ("a DR secondary", FaultProxy::be_a_dr_secondary),
        ("502 with HTML", |proxy| proxy.spoil("", Fault::html(502))),
    ];
    for (name, spoil) in wrongs {
        let bao = Bao::start().await;
        let token = bao.token().await;
        let wrong = FaultProxy::before(&bao).await;
        let addresses = vec![bao.address(), wrong.address()];
        let scene = Scene::start(bao, &token, addresses).await;
        spoil(&wrong);
        let kms = scene.daemon.kms().await;
        round_trip(&kms, "before").await;

        scene.bao.seal().await;
        // Calls come while it is sealed, and ask the other one.
        let seen = wrong.calls();
        let calls = (0..10).map(|number| {
            let kms = kms.clone();
            async move { drop(encrypt(&kms, b"seed", &format!("sealed-{number}")).await) }
        });
        futures_util::future::join_all(calls).await;
        assert!(wrong.calls() > seen, "{name}: it was asked");
        scene.bao.unseal().await;
        eventually(name, PATIENCE, async || {
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

/// Every node of a cluster of three in turn answers wrongly, in every way, and no call fails: by a caller
/// that tries nothing again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_one_node_of_three_answers_wrongly() {
    let trio = Trio::start().await;
    let mut proxies = Vec::new();
    for member in &trio.members {
        proxies.push(FaultProxy::before(member).await);
    }
    let dir = scratch("faults-");
    let config = dir.path().join("config.yaml");
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    rendered::by_rename(&config, &Rendered { addresses, ..trio.rendered().await }.yaml());
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
        Fault::Silence,
        Fault::Late(Duration::from_millis(1500)),
    ];
    for fault in faults {
        for proxy in &proxies {
            let before = proxy.calls();
            proxy.spoil("/v1/transit", fault.clone());
            more_calls(&load, 40).await;
            proxy.mend();
            // Whether it was the one in use or not: each is, in its turn.
            println!("{fault:?}: {} requests", proxy.calls() - before);
        }
    }
    let report = load.stop().await;
    report.assert_nothing_failed();
    figure("faults", &format!("one node of three answers wrongly: {} calls, none failed", report.calls));
    let retries = daemon.metric("transit_kms_retries_total", &[]).await;
    assert!(retries >= 7.0, "the faults were felt: {retries}");
    assert_eq!(daemon.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// A stale DNS record, or a performance secondary: it is a Vault, and does not know the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refusal_of_another_vault_does_not_outvote_the_acceptance_of_the_own() {
    let (bao, other) = (Bao::start().await, Bao::start().await);
    let token = bao.token().await;
    // The own one is slow at times, so that calls are hedged.
    let (slow, foreign) = (FaultProxy::before(&bao).await, FaultProxy::before(&other).await);
    let scene = Scene::start(bao, &token, vec![slow.address(), foreign.address()]).await;
    slow.spoil("/encrypt/", Fault::Late(Duration::from_millis(700)));
    let load = Load::start(&scene.daemon, 2, Duration::from_millis(50)).await;
    eventually("the other Vault is asked", PATIENCE, async || foreign.requests("/encrypt/") > 0).await;
    more_calls(&load, 20).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(status(&scene.daemon.kms().await).await.unwrap().healthz, "ok");
    assert!(!scene.daemon.log().contains("the token is invalid"));
}

/// A candidate on a mount under a quota, a 500 to every renewal: neither is news of the nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_candidates_and_renewals_meet_takes_no_node_away_from_calls() {
    let bao = Bao::start().await;
    bao.api("POST", "sys/mounts/limited", json!({ "type": "transit" })).await;
    bao.api("POST", &format!("limited/keys/{KEY}"), json!({})).await;
    bao.policy("limited", &policy("limited", KEY)).await;
    let proxies = [FaultProxy::before(&bao).await, FaultProxy::before(&bao).await];
    for proxy in &proxies {
        proxy.spoil("/v1/limited/", Fault::quota(5));
        proxy.spoil("renew-self", Fault::errors(500, &["policies have changed, not renewing"]));
    }
    let token = bao.create_token(json!({"policies": ["transit-kms", "limited"], "ttl": "30s"})).await;
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    let scene = Scene::start(bao, &token, addresses).await;
    let load = Load::start(&scene.daemon, 4, Duration::from_millis(20)).await;
    let keys: Vec<Value> = vec![KEY.into(), json!({ "name": KEY, "mount": MOUNT })];
    let candidate = Rendered { mount: "limited".into(), keys, ..scene.rendered.clone() };
    rendered::by_rename(&scene.config, &candidate.yaml());
    let asked = |part: &str| proxies.iter().map(|proxy| proxy.requests(part)).sum::<usize>();
    eventually("the candidate is tried", PATIENCE, async || asked("/v1/limited/") > 1).await;
    eventually("the token is to be renewed", Duration::from_secs(40), async || asked("renew-self") > 0).await;
    more_calls(&load, 50).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(scene.ejections(), Vec::<String>::new());
    assert_eq!(scene.metric("transit_kms_retry_budget_exhausted_total", &[]).await, 0.0);
}

/// A real quota, at which calls fail: they are not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_is_passed_on_and_not_gone_round() {
    let bao = Bao::start().await;
    let token = bao.token().await;
    let proxies = [FaultProxy::before(&bao).await, FaultProxy::before(&bao).await];
    let addresses = proxies.iter().map(FaultProxy::address).collect();
    let scene = Scene::start(bao, &token, addresses).await;
    let quota = json!({ "path": format!("{MOUNT}/"), "rate": 25, "interval": "1s" });
    scene.bao.api("POST", "sys/quotas/rate-limit/transit", quota).await;
    let asked = || proxies.iter().map(|proxy| proxy.requests("/encrypt/")).sum::<usize>();
    let before = asked();
    let kms = scene.daemon.kms().await;
    let calls = 200;
    let outcomes = futures_util::future::join_all((0..calls).map(|number| {
        let kms = kms.clone();
        async move { encrypt(&kms, b"seed", &format!("limited-{number}")).await.map(drop) }
    }))
    .await;
    let limited: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(limited.len() > calls / 2, "the quota was felt by {} calls only", limited.len());
    for error in &limited {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("429") && error.message().contains("quota"), "{error}");
    }
    let mut hedges = 0;
    for result in ["won", "lost"] {
        hedges += scene.metric("transit_kms_hedges_total", &[("result", result)]).await as usize;
    }
    let requests = asked() - before;
    figure(
        "faults",
        &format!(
            "a quota of 25/s: {requests} requests for {calls} calls, of which {hedges} hedges, {} calls refused",
            limited.len()
        ),
    );
    // Probes encrypt too, a few times.
    assert!(requests <= calls + hedges + 10, "{requests} requests for {calls} calls, {hedges} hedges");
    assert_eq!(scene.ejections(), Vec::<String>::new());
}

/// A Vault 300 ms away, on a bad day: connections take longer than a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_is_far_away_connects() {
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
    let scene = Scene::start(bao, &token, vec![address]).await;
    round_trip(&scene.daemon.kms().await, "far").await;

    // And the setting is heeded.
    let yaml = scene.rendered.yaml().replace("vault:\n", "vault:\n  connect_timeout: 500ms\n");
    rendered::by_rename(&scene.config, &yaml);
    eventually("the candidate cannot connect", PATIENCE, async || {
        let (_, text) = scene.daemon.admin("/readyz").await;
        if text.contains("the newest config is not in use") { Ok(()) } else { Err(text) }
    })
    .await;
    distance.abort();
}
