//! The crate `aws-identity` and the real AWS auth method of Vault.

use std::{fs, time::SystemTime};

use aws_identity::{AwsIdentity, DocumentSignature, Environment, IamSettings, Nonce};
use serde_json::json;
use testkit::{
    aws::{
        ACCOUNT, AwsCredentials,
        auth_method::{AwsVault, SERVER_ID},
        metadata::{Instance, InstanceMetadata},
    },
    login::ROLE,
    temp_dir,
};

fn settings(server_id: &str) -> IamSettings {
    IamSettings { region: None, role: ROLE.into(), server_id: Some(server_id.into()) }
}

#[tokio::test]
async fn a_role_of_an_instance_logs_in_with_a_signed_request() {
    let Some(vault) = AwsVault::start().await else { return };
    let credentials = AwsCredentials::of_role("node-1");
    let metadata = InstanceMetadata::start(Instance::with_role("node-1", &credentials)).await;
    let environment: Environment = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.address()),
        ("AWS_ENDPOINT_URL_STS", vault.api.address()),
    ]
    .into_iter()
    .collect();
    let identity = AwsIdentity::new(environment);
    let fields = async |server_id: &str| {
        identity.iam_login(&settings(server_id), SystemTime::now()).await.unwrap().to_json()
    };
    vault.iam_role(&format!("arn:aws:iam::{ACCOUNT}:role/node-1"), &json!({})).await;

    let (status, said) = vault.login(&fields(SERVER_ID).await).await;
    assert!(status == 400 && said.contains("InvalidClientTokenId"), "STS does not know the role: {said}");
    vault.api.add(&credentials);
    let (status, token) = vault.login(&fields(SERVER_ID).await).await;
    assert_eq!(status, 200, "{token}");
    let (status, said) = vault.bao.api_as(&token, "GET", "transit/keys/kms", json!(null)).await;
    assert_eq!(status, 200, "{said}");

    let (status, said) = vault.login(&fields("other.example.com").await).await;
    assert!(status == 400 && said.contains("error validating X-Vault-AWS-IAM-Server-ID header"), "{said}");
    // Each node has its own principal: another one is refused.
    vault.iam_role(&format!("arn:aws:iam::{ACCOUNT}:role/node-2"), &json!({})).await;
    let (status, said) = vault.login(&fields(SERVER_ID).await).await;
    assert!(status == 400 && said.contains("does not belong to the role"), "{said}");
}

#[tokio::test]
async fn an_instance_logs_in_again_only_with_its_first_nonce() {
    let Some(vault) = AwsVault::start().await else { return };
    let metadata = InstanceMetadata::start(Instance::with_document(&vault.signer)).await;
    let environment = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.address())].into_iter().collect();
    let identity = AwsIdentity::new(environment);
    let dir = temp_dir("nonce-");
    let path = dir.path().join("nonce");
    vault.ec2_role(&json!({})).await;
    let login = async |signature| {
        let nonce = Nonce::load_or_create(&path).unwrap_or_else(|error| panic!("{error}"));
        vault.login(&identity.ec2_login(ROLE, &nonce, signature).await.unwrap().to_json()).await
    };
    for signature in [DocumentSignature::Pkcs7, DocumentSignature::Rsa2048] {
        let (status, said) = login(signature).await;
        assert_eq!(status, 200, "{said}");
    }
    let kept = dir.path().join("kept");
    fs::rename(&path, &kept).unwrap();
    let (status, said) = login(DocumentSignature::Pkcs7).await;
    assert!(status == 400 && said.contains("client nonce mismatch"), "{status} {said}");
    // The remedy that the error of a damaged file names.
    vault.bao.api("DELETE", "auth/aws/identity-accesslist/i-0123456789abcdef0", json!(null)).await;
    let (status, said) = login(DocumentSignature::Pkcs7).await;
    assert_eq!(status, 200, "{said}");
    fs::rename(&kept, &path).unwrap();
    assert_eq!(login(DocumentSignature::Pkcs7).await.0, 400);
}
