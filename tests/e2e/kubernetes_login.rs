//! The login `kubernetes`: OpenBao has the token of a ServiceAccount reviewed by a real kube-apiserver.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use testkit::{
    Caller, Daemon, Load, POLICY, RELOAD_TIMEOUT, TestEnv,
    cluster::{ApiServer, Cluster, EncryptionConfig, Kubectl, Provider, READY_WITHIN},
    config_file, eventually, wait_for_session_after,
};

const AUDIENCE: &str = "transit-kms";
const ACCOUNT: &str = "kube-apiserver";
/// The longest pause after a login that is not allowed is 60 s.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

/// A management cluster, and a server that trusts it. The daemon serves another cluster, which plays no part.
struct Site {
    _cluster: Cluster,
    env: TestEnv,
    kubectl: Kubectl,
    server: ApiServer,
    token: PathBuf,
}

impl Site {
    async fn new(ttl: &str, max_ttl: &str) -> Self {
        let (cluster, mut env) = (Cluster::start().await, TestEnv::without_file().await);
        let server = cluster.ready(&EncryptionConfig::new([Provider::identity()])).await;
        let kubectl = server.kubectl();
        for account in [ACCOUNT, "stranger", "reviewer"] {
            run(&kubectl, &["create", "serviceaccount", account]).await;
        }
        let binding = ["create", "clusterrolebinding", "reviewer", "--clusterrole=system:auth-delegator"];
        run(&kubectl, &[&binding[..], &["--serviceaccount=default:reviewer"]].concat()).await;
        let reviewer = run(&kubectl, &["create", "token", "reviewer"]).await;

        env.bao.api("POST", "sys/auth/kubernetes", json!({ "type": "kubernetes" })).await;
        let config = json!({
            "kubernetes_ca_cert": std::fs::read_to_string(server.ca_file()).unwrap(),
            "kubernetes_host": server.address(), "token_reviewer_jwt": reviewer.trim(),
        });
        env.bao.api("POST", "auth/kubernetes/config", config).await;
        let role = json!({
            "audience": AUDIENCE, "bound_service_account_names": [ACCOUNT],
            "bound_service_account_namespaces": ["default"], "token_max_ttl": max_ttl,
            "token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": ttl,
        });
        env.bao.api("POST", "auth/kubernetes/role/node", role).await;
        let token = env.dir().join("projected");
        env.render_auth(json!({ "method": "kubernetes", "role": "node", "jwt_file": token }));
        let site = Self { _cluster: cluster, env, kubectl, server, token };
        site.project(ACCOUNT, AUDIENCE).await;
        site
    }

    /// Requests a token (TokenRequest API), and puts it where kubelet projects it. Returns it.
    async fn project(&self, account: &str, audience: &str) -> String {
        let audience = format!("--audience={audience}");
        let token = run(&self.kubectl, &["create", "token", account, &audience, "--duration=10m"]).await;
        let token = token.trim().to_owned();
        config_file::by_rename(&self.token, &token);
        token
    }
}

async fn run(kubectl: &Kubectl, arguments: &[&str]) -> String {
    let ran = kubectl.run(arguments).await;
    assert!(ran.good, "kubectl {arguments:?}: {}", ran.stderr);
    ran.stdout
}

async fn logins(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_logins_total", &[("method", "kubernetes"), ("result", result)]).await
}

async fn explained(daemon: &Daemon, words: &[&str]) {
    eventually(&format!("/readyz says {words:?}"), RELOAD_TIMEOUT * 2, async || {
        let (status, said) = daemon.admin("/readyz").await;
        if status == 503 && words.iter().all(|words| said.contains(words)) { Ok(()) } else { Err(said) }
    })
    .await;
}

async fn revoke_tokens(env: &TestEnv) {
    env.bao.api("PUT", "sys/leases/revoke-prefix/auth/kubernetes", json!({})).await;
}

#[tokio::test]
async fn reviewed_tokens_are_renewed_replaced_and_rotated() {
    let site = Site::new("6s", "12s").await;
    let mut secrets = vec![std::fs::read_to_string(&site.token).unwrap()];
    let (mut daemon, caller) = site.env.ready(["--log-level", "trace"]).await;
    let sealed = caller.round_trip().await;
    let load = Load::start(&daemon, 1, PAUSE).await;
    let before = logins(&daemon, "ok").await;
    secrets.push(site.project(ACCOUNT, AUDIENCE).await);
    eventually("two more logins", BLOCKED_TIMEOUT, async || logins(&daemon, "ok").await >= before + 2.0)
        .await;
    load.stop().await.assert_nothing_failed();
    assert!(daemon.metric("transit_kms_token_renewals_total", &[]).await >= 1.0);
    caller.decrypt(&sealed).await.unwrap();
    assert!(daemon.terminate().await.success());
    let secrets: Vec<_> = secrets.iter().map(String::as_str).collect();
    daemon.assert_never_printed(&secrets);
}

#[tokio::test]
async fn a_wrong_service_account_and_a_wrong_audience_are_explained() {
    let site = Site::new("1h", "2h").await;
    site.project("stranger", AUDIENCE).await;
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    explained(&daemon, &["bound_service_account_names", "service account name not authorized"]).await;
    site.project(ACCOUNT, "other").await;
    explained(&daemon, &["`audience` of the role"]).await;
    let token = site.project(ACCOUNT, AUDIENCE).await;
    daemon.wait_ready_within(BLOCKED_TIMEOUT).await;
    Caller::of(&daemon).await.round_trip().await;

    // The tokens of a deleted account are not valid any more, also if there is another one of its name.
    let before = daemon.generation().await;
    let refused = async || logins(&daemon, "blocked").await + logins(&daemon, "refused").await;
    let refused_before = refused().await;
    run(&site.kubectl, &["delete", "serviceaccount", ACCOUNT]).await;
    run(&site.kubectl, &["create", "serviceaccount", ACCOUNT]).await;
    // The API server keeps the result of a review for some seconds.
    let login = json!({ "role": "node", "jwt": token });
    eventually("the API server has noticed it", BLOCKED_TIMEOUT, async || {
        let (status, answer) = site.env.bao.api_as("", "POST", "auth/kubernetes/login", login.clone()).await;
        if status == 403 { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    revoke_tokens(&site.env).await;
    eventually("the deleted account is refused", BLOCKED_TIMEOUT, async || refused().await > refused_before)
        .await;
    let next = site.project(ACCOUNT, AUDIENCE).await;
    wait_for_session_after(&daemon, before).await;
    daemon.assert_never_printed(&[&token, &next]);
}

#[tokio::test]
async fn a_login_waits_for_the_api_server_that_reviews() {
    let mut site = Site::new("1h", "2h").await;
    site.server.kill();
    let daemon = site.env.daemon(["--log-level", "trace"]).await;
    explained(&daemon, &["does not answer", "docs/auth/kubernetes.md"]).await;
    assert!(logins(&daemon, "blocked").await >= 1.0);
    site.server.start_again();
    site.server.wait_ready(READY_WITHIN).await;
    daemon.wait_ready_within(BLOCKED_TIMEOUT).await;
    assert_eq!(logins(&daemon, "refused").await, 0.0, "the token was good all the time");
    Caller::of(&daemon).await.round_trip().await;
}

#[tokio::test]
async fn the_pods_own_token_is_warned_about() {
    let site = Site::new("1h", "2h").await;
    let mut env = site.env;
    env.render_auth(json!({ "method": "kubernetes", "role": "node" }));
    let daemon = env.daemon([]).await;
    daemon.wait_printed("neither can start after an outage").await;
    let (_, said) = daemon.admin("/readyz").await;
    assert!(
        said.contains("neither can start after an outage") && said.contains("auth.method: jwt"),
        "{said}"
    );
}
