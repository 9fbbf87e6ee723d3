//! `aws`, through Vault's own auth method. The services of AWS are on the loopback; see `testkit::aws`.

use std::{
    collections::BTreeMap, fs, marker::PhantomData, os::unix::fs::PermissionsExt, path::Path, time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    Daemon, RELOAD_TIMEOUT, TestEnv,
    aws::{
        ACCOUNT, AwsCredentials, INSTANCE_ID,
        api::AwsApi,
        auth_method::{AwsVault, SERVER_ID, ec2_role, iam_role},
        document::DocumentSigner,
        metadata::{Instance, InstanceMetadata},
    },
    eventually,
};

use super::cases::{Issued, Method, ROLE, token_settings};

const NODE: &str = "node-1";
/// Longer than the longest pause after a login that is blocked a few times.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// A server with the auth method, and an instance. `T` is [`Iam`] or [`Ec2`].
struct Aws<T> {
    api: AwsApi,
    metadata: InstanceMetadata,
    signer: DocumentSigner,
    /// The server, until the tests take it.
    start: Option<TestEnv>,
    _type: PhantomData<T>,
}

struct Iam;
struct Ec2;

impl<T> Aws<T> {
    /// `None` if the plugin is not installed.
    async fn start(_: T) -> Option<Self> {
        let AwsVault { api, bao, signer } = AwsVault::start().await?;
        let metadata = InstanceMetadata::start(Instance::default()).await;
        let mut env = TestEnv::of(bao);
        env.environment = BTreeMap::from([
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.address()),
            ("AWS_ENDPOINT_URL_STS".to_owned(), api.address()),
        ]);
        Some(Self { api, metadata, signer, start: Some(env), _type: PhantomData })
    }
}

impl Method for Aws<Iam> {
    async fn env(&mut self) -> TestEnv {
        self.start.take().unwrap()
    }

    async fn issue(&mut self, env: &TestEnv, _: &Path, token: &Value) -> Issued {
        let credentials = AwsCredentials::of_role(NODE);
        self.api.add(&credentials);
        self.metadata.set(Instance::with_role(NODE, &credentials));
        iam_role(&env.bao, &format!("arn:aws:iam::{ACCOUNT}:role/{NODE}"), token).await;
        let auth = json!({
            "method": "aws", "role": ROLE, "iam_server_id_header_value": SERVER_ID,
            "state_dir": env.dir().join("state"),
        });
        let AwsCredentials { secret_access_key, session_token, .. } = credentials;
        Issued { auth, secrets: vec![secret_access_key, session_token.unwrap()] }
    }

    fn spoil(&self, _: &Path) {
        self.metadata.set(Instance::with_role(NODE, &AwsCredentials::of_role(NODE)));
    }

    /// The credentials come from the environment and from the metadata service.
    fn has_files(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "aws"
    }

    fn refusal(&self) -> &'static str {
        "AWS does not know the access key"
    }
}

impl Method for Aws<Ec2> {
    async fn env(&mut self) -> TestEnv {
        self.start.take().unwrap()
    }

    async fn issue(&mut self, env: &TestEnv, _: &Path, token: &Value) -> Issued {
        self.metadata.set(Instance::with_document(&self.signer));
        ec2_role(&env.bao, token).await;
        let auth = json!({
            "method": "aws", "type": "ec2", "role": ROLE, "state_dir": env.dir().join("state"),
        });
        Issued { auth, secrets: Vec::new() }
    }

    /// Vault does not know the signer.
    fn spoil(&self, _: &Path) {
        self.metadata.set(Instance::with_document(&DocumentSigner::new()));
    }

    /// The credentials come from the environment and from the metadata service.
    fn has_files(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "aws"
    }

    fn refusal(&self) -> &'static str {
        "Vault has no certificate that verifies the identity document"
    }
}

mod iam {
    use super::{Aws, Iam};
    use crate::auth::cases::cases;

    cases!({
        let Some(method) = Aws::start(Iam).await else { return };
        method
    });
}

mod ec2 {
    use super::{Aws, Ec2};
    use crate::auth::cases::cases;

    cases!({
        let Some(method) = Aws::start(Ec2).await else { return };
        method
    });
}

/// A config with the login, for a daemon that is not started yet.
struct Node<T> {
    aws: Aws<T>,
    env: TestEnv,
    secrets: Vec<String>,
}

impl<T> Node<T>
where
    Aws<T>: Method,
{
    async fn new(kind: T) -> Option<Self> {
        let mut aws = Aws::start(kind).await?;
        let mut env = aws.env().await;
        let Issued { auth, secrets } = aws.issue(&env, Path::new(""), &token_settings("1h", "2h")).await;
        env.render_auth(auth);
        Some(Self { aws, env, secrets })
    }

    fn set(&mut self, name: &str, value: Value) {
        let mut auth = self.env.rendered.auth.clone().unwrap();
        auth[name] = value;
        self.env.render_auth(auth);
    }

    async fn daemon(&self) -> Daemon {
        self.env.daemon(["--log-level", "trace"]).await
    }
}

/// Waits until `/readyz` says this, in one line.
async fn wait_for_reason(daemon: &Daemon, wanted: &str) {
    eventually(&format!("/readyz says {wanted:?}"), RELOAD_TIMEOUT, async || {
        let (status, said) = daemon.admin("/readyz").await;
        let is_one_line = said.trim().lines().count() == 1;
        if status == 503 && said.contains(wanted) && is_one_line { Ok(()) } else { Err(said) }
    })
    .await;
}

async fn logins(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("transit_kms_logins_total", &[("method", "aws"), ("result", result)]).await
}

#[tokio::test]
async fn credentials_that_aws_refuses_are_sent_twice() {
    let Some(node) = Node::new(Iam).await else { return };
    let right = AwsCredentials::of_role(NODE);
    node.aws.api.add(&right);
    // As after a mistake in the shared credentials file: the access key ID is right.
    let wrong = AwsCredentials { secret_access_key: "x".repeat(40), ..right.clone() };
    node.aws.metadata.set(Instance::with_role(NODE, &wrong));
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "correct the secret access key").await;
    wait_for_reason(&daemon, "logs in again when the AWS access key changes").await;
    let sent = node.aws.api.requests();
    let refused = logins(&daemon, "refused").await;
    eventually("the login is due twice more", RECOVERY_TIMEOUT, async || {
        logins(&daemon, "refused").await >= refused + 2.0
    })
    .await;
    assert_eq!(node.aws.api.requests(), sent, "nothing is sent: {}", daemon.log());
    node.aws.metadata.set(Instance::with_role(NODE, &right));
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
    let mut secrets: Vec<_> = node.secrets.iter().map(String::as_str).collect();
    secrets.extend([wrong.secret_access_key.as_str(), right.secret_access_key.as_str()]);
    daemon.assert_never_printed(&secrets);
}

#[tokio::test]
async fn a_missing_or_wrong_server_id_is_explained() {
    let Some(mut node) = Node::new(Iam).await else { return };
    node.set("iam_server_id_header_value", json!("other.example.com"));
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "vault.auth.iam_server_id_header_value must be the value of").await;
    node.set("iam_server_id_header_value", json!(SERVER_ID));
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
    let mut auth = node.env.rendered.auth.clone().unwrap();
    auth.as_object_mut().unwrap().remove("iam_server_id_header_value");
    node.env.render_auth(auth);
    eventually("the missing header is explained", RELOAD_TIMEOUT, async || {
        daemon.log().contains("missing header")
    })
    .await;
}

#[tokio::test]
async fn a_role_for_another_principal_or_type_is_explained() {
    let Some(mut node) = Node::new(Iam).await else { return };
    iam_role(&node.env.bao, &format!("arn:aws:iam::{ACCOUNT}:role/node-2"), &json!({})).await;
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "the identity of this machine is not the one that the role is bound to").await;
    node.set("role", json!("absent"));
    wait_for_reason(&daemon, "the role does not exist: create it, or correct vault.auth.role").await;
    // The type of a role cannot be changed.
    node.env.bao.api("DELETE", &format!("auth/aws/role/{ROLE}"), Value::Null).await;
    ec2_role(&node.env.bao, &json!({})).await;
    node.set("role", json!(ROLE));
    wait_for_reason(&daemon, "the role is of the other type: correct vault.auth.type").await;
}

#[tokio::test]
async fn sts_may_be_away_at_the_login() {
    let Some(node) = Node::new(Iam).await else { return };
    let sts = async |address: &str| {
        let client = json!({ "sts_endpoint": address });
        node.env.bao.api("POST", "auth/aws/config/client", client).await;
    };
    sts("http://127.0.0.1:1").await;
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "Vault cannot reach STS").await;
    sts(&node.aws.api.address()).await;
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
}

#[tokio::test]
async fn the_metadata_service_may_be_away_at_the_login() {
    let Some(mut node) = Node::new(Iam).await else { return };
    node.aws.metadata.set(Instance { drops_tokens: true, ..Instance::default() });
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "its answer to the request for a token does not arrive").await;
    assert!(logins(&daemon, "away").await >= 1.0);
    node.aws.issue(&node.env, Path::new(""), &token_settings("1h", "2h")).await;
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
    assert_eq!(logins(&daemon, "blocked").await, 0.0, "{}", daemon.log());
    drop(daemon);

    let name = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    node.env.environment.insert(name.into(), "http://127.0.0.1:1".into());
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "there are no AWS credentials: environment: AWS_ACCESS_KEY_ID is not set").await;
    wait_for_reason(&daemon, "the instance metadata service is not reachable").await;
}

#[tokio::test]
async fn incomplete_credentials_are_explained_and_those_of_the_environment_are_used() {
    let Some(mut node) = Node::new(Iam).await else { return };
    let credentials = AwsCredentials { session_token: None, ..AwsCredentials::of_role(NODE) };
    node.aws.api.add(&credentials);
    node.env.environment.insert("AWS_ACCESS_KEY_ID".into(), credentials.access_key_id.clone());
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY").await;
    assert_eq!((logins(&daemon, "away").await, node.aws.api.requests()), (0.0, 0));
    drop(daemon);
    node.env.environment.insert("AWS_SECRET_ACCESS_KEY".into(), credentials.secret_access_key.clone());
    let daemon = node.daemon().await;
    daemon.wait_ready().await;
    daemon.assert_never_printed(&[&credentials.secret_access_key]);
}

/// Starts a daemon that has logged in, and one without the nonce of the first. Returns the nonce and the second daemon.
async fn without_nonce(node: &Node<Ec2>) -> (String, Daemon) {
    let nonce_file = node.env.dir().join("state/ec2-nonce");
    let (mut daemon, _) = node.env.ready(["--log-level", "trace"]).await;
    let nonce = fs::read_to_string(&nonce_file).unwrap();
    assert_eq!(fs::metadata(&nonce_file).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.assert_never_printed(&[nonce.trim()]);
    daemon.signal(Signal::KILL);
    fs::remove_file(&nonce_file).unwrap();
    let next = node.daemon().await;
    wait_for_reason(&next, "this instance has logged in with another nonce: restore the nonce file").await;
    wait_for_reason(&next, "logs in again when the nonce file").await;
    (nonce, next)
}

#[tokio::test]
async fn a_lost_nonce_is_explained_and_restored() {
    let Some(node) = Node::new(Ec2).await else { return };
    let (nonce, daemon) = without_nonce(&node).await;
    let nonce_file = node.env.dir().join("state/ec2-nonce");
    fs::write(&nonce_file, &nonce).unwrap();
    fs::set_permissions(&nonce_file, fs::Permissions::from_mode(0o644)).unwrap();
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
    assert!(daemon.log().contains("other users can read the nonce file"), "{}", daemon.log());
    daemon.assert_never_printed(&[nonce.trim()]);
}

/// The remedy of docs/auth/aws.md.
#[tokio::test]
async fn a_lost_nonce_is_replaced_when_vault_forgets_the_instance() {
    let Some(node) = Node::new(Ec2).await else { return };
    let (_, daemon) = without_nonce(&node).await;
    let entry = format!("auth/aws/identity-accesslist/{INSTANCE_ID}");
    node.env.bao.api("DELETE", &entry, Value::Null).await;
    fs::remove_file(node.env.dir().join("state/ec2-nonce")).unwrap();
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
}

#[tokio::test]
async fn no_login_is_sent_if_the_nonce_cannot_be_stored() {
    let Some(mut node) = Node::new(Ec2).await else { return };
    node.set("state_dir", json!("/proc/transit-kms"));
    let daemon = node.daemon().await;
    wait_for_reason(&daemon, "the nonce file /proc/transit-kms/ec2-nonce cannot be created").await;
    assert!(logins(&daemon, "blocked").await >= 1.0);
    assert_eq!(node.aws.api.requests(), 0, "Vault asks EC2 at a login");
    node.set("state_dir", json!(node.env.dir().join("state")));
    daemon.wait_ready_within(RECOVERY_TIMEOUT).await;
}
