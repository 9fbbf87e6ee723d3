use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;
use testkit::aws::{
    AwsCredentials,
    document::DocumentSigner,
    metadata::{ContainerEndpoint, Instance, InstanceMetadata},
};

use super::*;
use crate::{AwsIdentity, DocumentSignature, Nonce};

const AUTHORIZATION: &str = "token-of-the-agent";

/// Variables of the environment; tests remove some.
struct Variables(Vec<(&'static str, String)>);

impl Variables {
    fn without(&self, removed: &[&str]) -> Environment {
        self.0.iter().filter(|(name, _)| !removed.contains(name)).cloned().collect()
    }
}

/// All sources, with credentials of different principals, in the order of the search.
struct Sources {
    container: ContainerEndpoint,
    credentials: [AwsCredentials; 4],
    dir: TempDir,
    metadata: InstanceMetadata,
}

impl Sources {
    async fn start() -> Self {
        let credentials = ["environment", "file", "container", "instance"].map(AwsCredentials::of_role);
        let dir = tempfile::tempdir().unwrap();
        write_profile(&dir.path().join("credentials"), "default", &credentials[1]);
        fs::write(dir.path().join("token"), format!("{AUTHORIZATION}\n")).unwrap();
        Self {
            container: ContainerEndpoint::start(&credentials[2], AUTHORIZATION).await,
            metadata: InstanceMetadata::start(Instance::with_role("node", &credentials[3])).await,
            credentials,
            dir,
        }
    }

    fn variables(&self) -> Variables {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        Variables(vec![
            ("AWS_ACCESS_KEY_ID", self.credentials[0].access_key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.credentials[0].secret_access_key.clone()),
            ("AWS_SESSION_TOKEN", self.credentials[0].session_token.clone().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", file("credentials")),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", self.container.uri()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file("token")),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.metadata.address()),
        ])
    }
}

fn write_profile(path: &Path, name: &str, credentials: &AwsCredentials) {
    let text = format!(
        "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {}\n",
        credentials.access_key_id,
        credentials.secret_access_key,
        credentials.session_token.as_deref().unwrap_or_default()
    );
    fs::write(path, text).unwrap();
}

async fn find(environment: Environment) -> Result<SigningCredentials, CredentialsError> {
    SigningCredentials::find(&environment, &HttpClient::default()).await
}

/// Finds no credentials.
async fn error(environment: Environment) -> CredentialsError {
    find(environment).await.err().unwrap()
}

const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
const FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
const CONTAINER: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";

#[tokio::test]
async fn the_first_source_that_is_configured_is_used() {
    let sources = Sources::start().await;
    let variables = sources.variables();
    let [id, secret, token] = KEYS;
    let removed: [&[&str]; 4] =
        [&[], &[id, secret, token], &[id, secret, token, FILE], &[id, secret, token, FILE, CONTAINER]];
    for (removed, expected) in removed.into_iter().zip(&sources.credentials) {
        let found = find(variables.without(removed)).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(*found.access_key_id, expected.access_key_id);
        assert_eq!(*found.secret_access_key, expected.secret_access_key);
        assert_eq!(found.session_token.map(|token| token.to_string()), expected.session_token);
    }
    let paths: Vec<_> = sources.metadata.seen().into_iter().map(|seen| seen.path).collect();
    let roles = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(paths, ["/latest/api/token".to_owned(), roles.to_owned(), format!("{roles}node")]);
}

#[tokio::test]
async fn a_source_that_is_configured_and_fails_ends_the_search() {
    let sources = Sources::start().await;
    let variables = sources.variables();
    let [id, secret, token] = KEYS;

    let half = error(variables.without(&[secret])).await.to_string();
    assert_eq!(
        half,
        "there are no AWS credentials: environment: AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY"
    );

    let file = sources.dir.path().join("credentials");
    fs::write(&file, "[default]\nrole_arn = arn:aws:iam::123456789012:role/x\n").unwrap();
    let kind = error(variables.without(&[id, secret, token])).await;
    assert!(
        kind.to_string().contains("role_arn, credential_process, sso_session) are not supported"),
        "{kind}"
    );
    fs::remove_file(&file).unwrap();
    let missing = error(variables.without(&[id, secret, token])).await;
    assert!(missing.to_string().contains("credentials cannot be read: No such file"), "{missing}");

    fs::write(sources.dir.path().join("token"), "another").unwrap();
    let refused = error(variables.without(&[id, secret, token, FILE])).await;
    let sources_of: Vec<_> = refused.tried().iter().map(SourceFailure::source).collect();
    assert_eq!(
        sources_of,
        [CredentialSource::Environment, CredentialSource::SharedFile, CredentialSource::Container]
    );
    assert!(
        refused.to_string().ends_with("container endpoint: it answered with HTTP status 401"),
        "{refused}"
    );
    assert!(refused.source().is_some());
    assert!(sources.metadata.seen().is_empty());
}

#[tokio::test]
async fn a_profile_that_is_named_must_exist() {
    let sources = Sources::start().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".aws/credentials");
    fs::create_dir(file.parent().unwrap()).unwrap();
    write_profile(&file, "node", &sources.credentials[1]);
    let mut variables = Variables(vec![
        ("HOME", home.path().display().to_string()),
        ("AWS_EC2_METADATA_DISABLED", "TRUE".into()),
    ]);
    let skipped = error(variables.without(&[])).await.to_string();
    assert!(
        skipped.contains(".aws/credentials has no profile default; container endpoint: neither"),
        "{skipped}"
    );
    assert!(
        skipped.ends_with("AWS_EC2_METADATA_DISABLED turns the instance metadata service off"),
        "{skipped}"
    );
    variables.0.push(("AWS_PROFILE", "node".into()));
    let found = find(variables.without(&[])).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(*found.access_key_id, sources.credentials[1].access_key_id);
    variables.0[2].1 = "other".into();
    let missing = error(variables.without(&[])).await;
    assert!(missing.to_string().ends_with(".aws/credentials has no profile other"), "{missing}");
}

#[tokio::test]
async fn each_failure_of_the_metadata_service_has_its_remedy() {
    let metadata = InstanceMetadata::start(Instance::default()).await;
    let endpoint = |address: String| [("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)].into_iter().collect();
    let no_role = error(endpoint(metadata.address())).await.to_string();
    let expected = "there are no AWS credentials: environment: AWS_ACCESS_KEY_ID is not set; shared credentials file: \
                    neither AWS_SHARED_CREDENTIALS_FILE nor HOME is set; container endpoint: neither \
                    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is set; instance \
                    metadata: the instance has no IAM role: attach an instance profile to it";
    assert_eq!(no_role, expected);

    metadata.set(Instance { drops_tokens: true, ..Instance::default() });
    let http = HttpClient { timeout: Duration::from_millis(200) };
    let dropped = SigningCredentials::find(&endpoint(metadata.address()), &http).await.err().unwrap();
    assert!(dropped.to_string().contains("--http-put-response-hop-limit 2"), "{dropped}");

    let closed = error(endpoint(testkit::closed_address())).await;
    assert!(closed.to_string().contains("this is no EC2 instance"), "{closed}");
    let invalid = error(endpoint("169.254.169.254".into())).await;
    assert!(invalid.to_string().contains("AWS_EC2_METADATA_SERVICE_ENDPOINT must be a URL"), "{invalid}");
}

#[tokio::test]
async fn web_identity_is_named_as_not_supported() {
    let variables = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let said = error(variables.into_iter().collect()).await.to_string();
    assert!(said.contains("AWS_WEB_IDENTITY_TOKEN_FILE is set, but web identity is not supported"), "{said}");
}

#[tokio::test]
async fn an_answer_without_credentials_is_not_quoted() {
    let credentials = AwsCredentials::of_user("user");
    // The endpoint has permanent credentials, without a session token.
    let container = ContainerEndpoint::start(&credentials, AUTHORIZATION).await;
    let variables = [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", AUTHORIZATION.to_owned()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.uri()),
    ];
    let error = error(variables.into_iter().collect()).await;
    let said = format!("{error} {error:?} {:?}", error.source());
    assert!(said.contains("its answer has no temporary credentials"), "{said}");
    for secret in [&credentials.secret_access_key, AUTHORIZATION] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test]
async fn the_identity_document_has_no_line_breaks() {
    let signer = DocumentSigner::new();
    let metadata = InstanceMetadata::start(Instance::with_document(&signer)).await;
    let environment = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.address())].into_iter().collect();
    let identity = AwsIdentity::new(environment);
    let dir = tempfile::tempdir().unwrap();
    let nonce = Nonce::load_or_create(&dir.path().join("nonce")).unwrap_or_else(|error| panic!("{error}"));
    for (signature, path) in [(DocumentSignature::Pkcs7, "pkcs7"), (DocumentSignature::Rsa2048, "rsa2048")] {
        let fields = identity.ec2_login("node", &nonce, signature).await.unwrap();
        let fields: Vec<_> = fields.iter().collect();
        let document = signer.document().replace('\n', "");
        assert_eq!(fields, [("role", "node"), ("pkcs7", document.as_str()), ("nonce", nonce.expose())]);
        assert!(metadata.seen().last().unwrap().path.ends_with(path));
    }
    metadata.set(Instance { document: Some("<html>".into()), ..Instance::default() });
    let error = identity.ec2_login("node", &nonce, DocumentSignature::Pkcs7).await.err().unwrap();
    assert!(error.to_string().ends_with("instance-identity/pkcs7 is not a document in base64"), "{error}");
}
