//! The AWS auth method of a server.

use std::{fs, path::PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{ACCOUNT, AwsCredentials, INSTANCE_ID, REGION, api::AwsApi, document::DocumentSigner};
use crate::{
    files::repository,
    vault::{
        login::{ROLE, role},
        server::{Bao, BaoOptions},
    },
};

/// The value of the header `X-Vault-AWS-IAM-Server-ID` that the auth method requires.
pub const SERVER_ID: &str = "vault.example.com";
const PLUGIN: &str = "aws-auth";

/// A server with the auth method at `auth/aws`, and the services of AWS that it uses.
pub struct AwsVault {
    pub api: AwsApi,
    pub bao: Bao,
    pub signer: DocumentSigner,
}

impl AwsVault {
    /// Starts the server. Returns `None`, with a message, if it is OpenBao and the plugin is not installed; CI requires it.
    pub async fn start() -> Option<Self> {
        let plugin = repository::path("target/tools/bin").join(PLUGIN);
        let mut options = BaoOptions::default();
        if !Bao::is_vault() {
            if !plugin.is_file() {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "the plugin is missing: run scripts/install-tools aws-auth"
                );
                eprintln!("skipped: run scripts/install-tools aws-auth");
                return None;
            }
            options.plugin_directory = plugin.parent().map(PathBuf::from);
        }
        let bao = Bao::start_with(options).await;
        let kind = if Bao::is_vault() { "aws" } else { PLUGIN };
        if !Bao::is_vault() {
            let sum: String = digest(&SHA256, &fs::read(&plugin).unwrap())
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            bao.api(
                "PUT",
                &format!("sys/plugins/catalog/auth/{PLUGIN}"),
                json!({"command": PLUGIN, "sha256": sum}),
            )
            .await;
        }
        bao.api("POST", "sys/auth/aws", json!({"type": kind})).await;
        let (api, signer, own) =
            (AwsApi::start().await, DocumentSigner::new(), AwsCredentials::of_user("vault"));
        api.add(&own);
        let client = json!({
            "access_key": own.access_key_id,
            "endpoint": api.address(),
            "iam_server_id_header_value": SERVER_ID,
            "max_retries": 0,
            "secret_key": own.secret_access_key,
            "sts_endpoint": api.address(),
            "sts_region": REGION,
        });
        bao.api("POST", "auth/aws/config/client", client).await;
        let certificate = json!({"aws_public_cert": BASE64.encode(signer.pem()), "type": "pkcs7"});
        bao.api("POST", "auth/aws/config/certificate/test", certificate).await;
        Some(Self { api, bao, signer })
    }

    /// Creates [`ROLE`] for the IAM principal with this ARN. `settings` are those of tokens.
    pub async fn iam_role(&self, arn: &str, settings: &Value) {
        iam_role(&self.bao, arn, settings).await;
    }

    /// Creates [`ROLE`] for the EC2 instance [`INSTANCE_ID`]. `settings` are those of tokens.
    pub async fn ec2_role(&self, settings: &Value) {
        ec2_role(&self.bao, settings).await;
    }

    /// Logs in with these fields, without the daemon: the status, and the token or the error.
    pub async fn login(&self, fields: &[u8]) -> (u16, String) {
        let body = serde_json::from_slice(fields).unwrap();
        let (status, answer) = self.bao.api_as("", "POST", "auth/aws/login", body).await;
        let token = answer["auth"]["client_token"].as_str();
        (status, token.map_or_else(|| answer["errors"].to_string(), str::to_owned))
    }
}

/// Like [`AwsVault::iam_role`].
pub async fn iam_role(bao: &Bao, arn: &str, settings: &Value) {
    let mut role = role(settings);
    role["auth_type"] = json!("iam");
    role["bound_iam_principal_arn"] = json!([arn]);
    // Otherwise Vault asks IAM for the unique ID of the principal.
    role["resolve_aws_unique_ids"] = json!(false);
    bao.api("POST", &format!("auth/aws/role/{ROLE}"), role).await;
}

/// Like [`AwsVault::ec2_role`].
pub async fn ec2_role(bao: &Bao, settings: &Value) {
    let mut role = role(settings);
    role["auth_type"] = json!("ec2");
    role["bound_account_id"] = json!([ACCOUNT]);
    role["bound_ec2_instance_id"] = json!([INSTANCE_ID]);
    bao.api("POST", &format!("auth/aws/role/{ROLE}"), role).await;
}
