//! The agent configs of `manifests/agent`: a real agent runs each of them, logs in to a real server, and renders
//! tokens for a real daemon.
//!
//! Only the address and the directories are changed. OpenBao's agent also runs the configs for Vault's agent, because
//! it knows all settings in them.

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

/// Long enough for a renewal and a new login.
const PATIENCE: Duration = Duration::from_secs(60);
const KINDS: [&str; 2] = ["openbao", "vault"];

/// A role whose tokens are renewed a few times, and then replaced.
fn short_lived() -> Value {
    json!({"token_ttl": "4s", "token_max_ttl": "8s"})
}

/// The files of an agent with one login method, without the credentials.
struct AgentFiles {
    dir: TempDir,
}

impl AgentFiles {
    fn new(bao: &Bao, kind: &str, method: &str) -> Self {
        let files = Self { dir: temp_dir("agent-") };
        for folder in ["etc", "run", "credentials"] {
            fs::create_dir(files.dir.path().join(folder)).unwrap();
        }
        let ca = files.localized(bao, "ca_cert = \"/etc/transit-kms/ca/ca.pem\"");
        let ca = Path::new(ca.split('"').nth(1).unwrap());
        fs::create_dir_all(ca.parent().unwrap()).unwrap();
        fs::copy(bao.ca_file(), ca).unwrap();
        for (manifest_of, file) in [
            (format!("agent/{kind}/{method}.hcl"), "agent.hcl"),
            ("agent/config.yaml.ctmpl".into(), "config.yaml.ctmpl"),
        ] {
            fs::write(files.etc().join(file), files.localized(bao, &manifest(&manifest_of))).unwrap();
        }
        files
    }

    /// Replaces the directories and the server of a manifest.
    fn localized(&self, bao: &Bao, text: &str) -> String {
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

    /// Runs an agent, and a daemon under load, until the first token is renewed and then replaced. Asserts that no call
    /// fails and that neither program ends.
    async fn assert_tokens_change_without_failures(&self) -> (Agent, Daemon) {
        let mut agent = self.agent().await;
        let mode = fs::metadata(self.rendered()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "other users may read the token");
        let daemon = self.daemon().await;
        let load = Load::start(&daemon, 2, Duration::from_millis(20)).await;
        let first = agent.token();
        let renewals = || agent.output().matches("renewed auth token").count();
        eventually("the token is renewed", PATIENCE, async || renewals() > 1).await;
        assert_eq!(agent.token(), first, "a renewal changed the token");
        let second = agent.wait_for_another_token(&first, PATIENCE).await;
        eventually("the daemon uses the new token", PATIENCE, async || daemon.generation().await > 1).await;
        let calls = load.calls();
        eventually("the load continues", PATIENCE, async || load.calls() > calls + 20).await;
        load.stop().await.assert_nothing_failed();
        assert_eq!(agent.exited(), None);
        daemon.assert_never_printed(&[&first, &second]);
        (agent, daemon)
    }
}

#[tokio::test]
async fn an_agent_logs_in_with_approle() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let files = AgentFiles::new(&bao, kind, "approle");
        login::approle(&bao, &files.etc(), &short_lived()).await;
        files.assert_tokens_change_without_failures().await;
        assert!(
            files.etc().join("secret_id").exists(),
            "the agent removed its credentials, so it cannot log in after a restart"
        );
    }
}

#[tokio::test]
async fn an_agent_logs_in_with_jwt_and_reads_a_renewed_token() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let files = AgentFiles::new(&bao, kind, "jwt");
        let mut jwt = Jwt::issued(&bao, &files.etc().join("token"), &short_lived()).await;
        let (mut agent, _daemon) = files.assert_tokens_change_without_failures().await;
        // The issuer replaces the token. The next login uses it.
        jwt.renew();
        let token = agent.token();
        agent.wait_for_another_token(&token, PATIENCE).await;
        assert!(
            files.etc().join("token").exists(),
            "the agent removed its credentials, so it cannot log in after a restart"
        );
    }
}

#[tokio::test]
async fn an_agent_logs_in_with_a_certificate_and_reads_a_renewed_one() {
    for kind in KINDS {
        let bao = Bao::start().await;
        let files = AgentFiles::new(&bao, kind, "cert");
        bao.api("POST", "sys/auth/cert", json!({"type": "cert"})).await;
        let certified = async |name: &str| {
            let (chain, key) = bao.client_certificate(name);
            fs::copy(key, files.etc().join("client-key.pem")).unwrap();
            fs::copy(chain, files.etc().join("client.pem")).unwrap();
            let mut role = login::role(&short_lived());
            role["certificate"] = fs::read_to_string(bao.ca_file()).unwrap().into();
            role["allowed_common_names"] = json!([name]);
            bao.api("POST", &format!("auth/cert/certs/{ROLE}"), role).await;
        };
        certified("first").await;
        let (mut agent, _daemon) = files.assert_tokens_change_without_failures().await;
        // The old certificate is no longer accepted, so the agent must read the new one.
        certified("second").await;
        let token = agent.token();
        agent.wait_for_another_token(&token, PATIENCE).await;
    }
}

#[tokio::test]
async fn an_agent_logs_in_with_a_service_account_token() {
    let cluster = Cluster::start().await;
    let server = cluster.ready(&EncryptionConfig::new([Provider::identity()])).await;
    for kind in KINDS {
        let bao = Bao::start().await;
        let files = AgentFiles::new(&bao, kind, "kubernetes");
        enable_kubernetes_auth(&bao, &server).await;
        let token = service_account_token(&server, &["--audience", "transit-kms"]).await;
        fs::write(files.dir.path().join("credentials/token"), token).unwrap();
        files.assert_tokens_change_without_failures().await;
    }
}

/// Configures Vault to review service account tokens with this API server.
async fn enable_kubernetes_auth(bao: &Bao, server: &ApiServer) {
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
async fn agent_and_daemon_recover_from_an_outage_that_is_longer_than_the_tokens_ttl() {
    let mut bao = Bao::start().await;
    let files = AgentFiles::new(&bao, "openbao", "approle");
    login::approle(&bao, &files.etc(), &json!({"token_ttl": "6s"})).await;
    let (mut agent, daemon) = (files.agent().await, files.daemon().await);
    let first = agent.token();
    bao.stop();
    eventually("logins fail", PATIENCE, async || agent.output().matches("error authenticating").count() > 2)
        .await;
    assert_eq!(agent.exited(), None, "{}", agent.output());
    assert_eq!(agent.token(), first, "the agent changed the rendered config");
    bao.start_again().await;
    agent.wait_for_another_token(&first, PATIENCE).await;
    daemon.wait_ready_within(PATIENCE).await;
    assert_eq!(agent.exited(), None);
}

#[tokio::test]
async fn an_agent_without_credentials_or_server_retries_until_it_can_log_in() {
    let mut bao = Bao::start().await;
    let files = AgentFiles::new(&bao, "openbao", "approle");
    login::approle(&bao, &files.etc(), &json!({})).await;
    let secret_id = fs::read(files.etc().join("secret_id")).unwrap();
    fs::remove_file(files.etc().join("secret_id")).unwrap();
    bao.stop();
    let mut agent = Agent::of_file_unrendered(&files.etc().join("agent.hcl"), &files.rendered());
    let wait_output = async |words: &str| {
        eventually(words, PATIENCE, async || {
            if agent.output().contains(words) { Ok(()) } else { Err(agent.output()) }
        })
        .await;
    };
    wait_output("no known secret ID").await;
    fs::write(files.etc().join("secret_id"), secret_id).unwrap();
    wait_output("connection refused").await;
    bao.start_again().await;
    agent.wait_for_another_token("", PATIENCE).await;
    files.daemon().await;
}

#[tokio::test]
async fn an_agent_replaces_a_revoked_token_at_its_next_renewal() {
    let bao = Bao::start().await;
    let files = AgentFiles::new(&bao, "openbao", "approle");
    login::approle(&bao, &files.etc(), &json!({"token_ttl": "10s"})).await;
    let (mut agent, daemon) = (files.agent().await, files.daemon().await);
    let first = agent.token();
    bao.revoke(&first).await;
    eventually("the daemon notices that its token is invalid", PATIENCE, async || {
        daemon.admin("/readyz").await.0 != 200
    })
    .await;
    agent.wait_for_another_token(&first, PATIENCE).await;
    daemon.wait_ready_within(PATIENCE).await;
    assert_eq!(agent.exited(), None);
}
