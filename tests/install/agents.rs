//! The agents' configs of `manifests/agent`: each is run by the real agent, logs in to a real server, and keeps the
//! real daemon in tokens.
//!
//! They are run as they are written, but for the address and the folders. Those for Vault's agent are read by
//! OpenBao's here, which knows all that is in them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    Agent, Bao, Daemon, DaemonOptions, Load,
    cluster::{ApiServer, Cluster, EncryptionConfig, Provider},
    eventually,
    login::{self, Jwt, ROLE},
    temp_dir,
};

use crate::units::manifest;

/// A renewal and a new login by then.
const PATIENCE: Duration = Duration::from_secs(60);
const KINDS: [&str; 2] = ["openbao", "vault"];

/// Tokens that are renewed a few times, and then replaced.
fn short_lived() -> Value {
    json!({"token_ttl": "4s", "token_max_ttl": "8s"})
}

/// The files of one method on a node, with what it logs in with still to come.
struct Node {
    dir: TempDir,
}

impl Node {
    fn new(bao: &Bao, kind: &str, method: &str) -> Self {
        let node = Self { dir: temp_dir("node-") };
        for folder in ["etc", "run", "credentials"] {
            fs::create_dir(node.dir.path().join(folder)).unwrap();
        }
        let ca = node.placed(bao, "ca_cert = \"/etc/transit-kms/ca/ca.pem\"");
        let ca = Path::new(ca.split('"').nth(1).unwrap());
        fs::create_dir_all(ca.parent().unwrap()).unwrap();
        fs::copy(bao.ca_file(), ca).unwrap();
        for (manifest_of, file) in [
            (format!("agent/{kind}/{method}.hcl"), "agent.hcl"),
            ("agent/config.yaml.ctmpl".into(), "config.yaml.ctmpl"),
        ] {
            fs::write(node.etc().join(file), node.placed(bao, &manifest(&manifest_of))).unwrap();
        }
        node
    }

    /// A manifest, with this node's folders and this server.
    fn placed(&self, bao: &Bao, text: &str) -> String {
        let folder = |name: &str| format!("{}/{name}/", self.dir.path().display());
        text.replace("/etc/transit-kms/", &folder("etc"))
            .replace("/run/transit-kms-config/", &folder("run"))
            .replace("/run/transit-kms-credentials/", &folder("credentials"))
            .replace("https://vault.example.com:8200", &bao.address())
    }

    fn etc(&self) -> PathBuf {
        self.dir.path().join("etc")
    }

    fn rendered(&self) -> PathBuf {
        self.dir.path().join("run/config.yaml")
    }

    async fn agent(&self) -> Agent {
        Agent::of_file(&self.etc().join("agent.hcl"), &self.rendered()).await
    }

    async fn daemon(&self) -> Daemon {
        let daemon =
            Daemon::start_with(&self.rendered(), DaemonOptions::arguments(["--health-check-interval=1s"]))
                .await;
        daemon.wait_ready().await;
        daemon
    }

    /// An agent that renders for a daemon with load on it, until the first token has been replaced: nothing fails, and
    /// neither is started anew.
    async fn lives_through_a_change_of_tokens(&self) -> (Agent, Daemon) {
        let mut agent = self.agent().await;
        let mode = fs::metadata(self.rendered()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "nobody else may read the token");
        let daemon = self.daemon().await;
        let load = Load::start(&daemon, 2, Duration::from_millis(20)).await;
        let first = agent.token();
        let renewals = || agent.output().matches("renewed auth token").count();
        eventually("the token is renewed", PATIENCE, async || renewals() > 1).await;
        assert_eq!(agent.token(), first, "a renewal changes nothing");
        let second = agent.wait_for_another_token(&first, PATIENCE).await;
        eventually("the daemon uses the new token", PATIENCE, async || daemon.generation().await > 1).await;
        let calls = load.calls();
        eventually("load goes on", PATIENCE, async || load.calls() > calls + 20).await;
        load.stop().await.assert_nothing_failed();
        assert_eq!(agent.exited(), None);
        daemon.assert_never_printed(&[&first, &second]);
        (agent, daemon)
    }
}

#[tokio::test]
async fn approle() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let node = Node::new(&bao, kind, "approle");
        login::approle(&bao, &node.etc(), &short_lived()).await;
        node.lives_through_a_change_of_tokens().await;
        assert!(node.etc().join("secret_id").exists(), "it must work after a restart too");
    }
}

#[tokio::test]
async fn jwt() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let node = Node::new(&bao, kind, "jwt");
        let mut jwt = Jwt::issued(&bao, &node.etc().join("token"), &short_lived()).await;
        let (mut agent, _daemon) = node.lives_through_a_change_of_tokens().await;
        // As whoever issues them does; the next login is with it.
        jwt.renew();
        let token = agent.token();
        agent.wait_for_another_token(&token, PATIENCE).await;
        assert!(node.etc().join("token").exists(), "it must work after a restart too");
    }
}

#[tokio::test]
async fn cert() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let node = Node::new(&bao, kind, "cert");
        bao.api("POST", "sys/auth/cert", json!({"type": "cert"})).await;
        let certified = async |name: &str| {
            let (chain, key) = bao.client_certificate(name);
            fs::copy(key, node.etc().join("client-key.pem")).unwrap();
            fs::copy(chain, node.etc().join("client.pem")).unwrap();
            let mut role = login::role(&short_lived());
            role["certificate"] = fs::read_to_string(bao.ca_file()).unwrap().into();
            role["allowed_common_names"] = json!([name]);
            bao.api("POST", &format!("auth/cert/certs/{ROLE}"), role).await;
        };
        certified("first").await;
        let (mut agent, _daemon) = node.lives_through_a_change_of_tokens().await;
        // From here on the old certificate is good for nothing, and the agent has read it long ago.
        certified("second").await;
        let token = agent.token();
        agent.wait_for_another_token(&token, PATIENCE).await;
    }
}

#[tokio::test]
async fn kubernetes() {
    let cluster = Cluster::start().await;
    let server = cluster.ready(&EncryptionConfig::new([Provider::identity()])).await;
    for kind in KINDS {
        let bao = Bao::start().await;
        let node = Node::new(&bao, kind, "kubernetes");
        trust(&bao, &server).await;
        let token = service_account_token(&server, &["--audience", "transit-kms"]).await;
        fs::write(node.dir.path().join("credentials/token"), token).unwrap();
        node.lives_through_a_change_of_tokens().await;
    }
}

/// Has this server ask the API server whose a service account's token is.
async fn trust(bao: &Bao, server: &ApiServer) {
    let kubectl = server.kubectl();
    for create in [
        &["create", "serviceaccount", ROLE][..],
        &[
            "create",
            "clusterrolebinding",
            ROLE,
            "--clusterrole=system:auth-delegator",
            "--serviceaccount=default:transit-kms",
        ],
    ] {
        let ran = kubectl.run(create).await;
        assert!(ran.good || ran.stderr.contains("already exists"), "{ran:?}");
    }
    let config = kubectl.json(&["config", "view", "--raw"]).await;
    let cluster = &config["clusters"][0]["cluster"];
    bao.api("POST", "sys/auth/kubernetes", json!({"type": "kubernetes"})).await;
    let ca = fs::read_to_string(cluster["certificate-authority"].as_str().unwrap()).unwrap();
    let reviewer = service_account_token(server, &[]).await;
    let settings = json!({
        "kubernetes_host": cluster["server"], "kubernetes_ca_cert": ca, "token_reviewer_jwt": reviewer,
    });
    bao.api("POST", "auth/kubernetes/config", settings).await;
    let mut role = login::role(&short_lived());
    role["audience"] = json!("transit-kms");
    role["bound_service_account_names"] = json!([ROLE]);
    role["bound_service_account_namespaces"] = json!(["default"]);
    bao.api("POST", &format!("auth/kubernetes/role/{ROLE}"), role).await;
}

async fn service_account_token(server: &ApiServer, more: &[&str]) -> String {
    let ran = server.kubectl().run(&[&["create", "token", ROLE], more].concat()).await;
    assert!(ran.good, "{ran:?}");
    ran.stdout.trim().to_owned()
}

#[tokio::test]
async fn an_outage_that_outlives_the_token_ends_neither_agent_nor_daemon() {
    let mut bao = Bao::start().await;
    let node = Node::new(&bao, "openbao", "approle");
    login::approle(&bao, &node.etc(), &json!({"token_ttl": "6s"})).await;
    let (mut agent, daemon) = (node.agent().await, node.daemon().await);
    let first = agent.token();
    bao.stop();
    eventually("it finds no way to log in", PATIENCE, async || {
        agent.output().matches("error authenticating").count() > 2
    })
    .await;
    assert_eq!(agent.exited(), None, "{}", agent.output());
    assert_eq!(agent.token(), first, "what is rendered stays");
    bao.start_again().await;
    agent.wait_for_another_token(&first, PATIENCE).await;
    daemon.wait_ready_within(PATIENCE).await;
    assert_eq!(agent.exited(), None);
}

#[tokio::test]
async fn an_agent_that_starts_too_early_tries_until_it_is_let_in() {
    let mut bao = Bao::start().await;
    let node = Node::new(&bao, "openbao", "approle");
    login::approle(&bao, &node.etc(), &json!({})).await;
    let secret_id = fs::read(node.etc().join("secret_id")).unwrap();
    fs::remove_file(node.etc().join("secret_id")).unwrap();
    bao.stop();
    let mut agent = Agent::of_file_unrendered(&node.etc().join("agent.hcl"), &node.rendered());
    let said = async |words: &str| {
        eventually(words, PATIENCE, async || {
            if agent.output().contains(words) { Ok(()) } else { Err(agent.output()) }
        })
        .await;
    };
    said("no known secret ID").await;
    fs::write(node.etc().join("secret_id"), secret_id).unwrap();
    said("connection refused").await;
    bao.start_again().await;
    agent.wait_for_another_token("", PATIENCE).await;
    node.daemon().await;
}

#[tokio::test]
async fn a_revoked_token_is_replaced_at_its_next_renewal() {
    let bao = Bao::start().await;
    let node = Node::new(&bao, "openbao", "approle");
    login::approle(&bao, &node.etc(), &json!({"token_ttl": "10s"})).await;
    let (mut agent, daemon) = (node.agent().await, node.daemon().await);
    let first = agent.token();
    bao.revoke(&first).await;
    eventually("Vault's refusal is seen", PATIENCE, async || daemon.admin("/readyz").await.0 != 200).await;
    agent.wait_for_another_token(&first, PATIENCE).await;
    daemon.wait_ready_within(PATIENCE).await;
    assert_eq!(agent.exited(), None);
}
