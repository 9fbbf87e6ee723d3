//! The services of AWS that a machine and Vault use, on the loopback, and the AWS auth method.
//!
//! The auth method is real: that of Vault, or for OpenBao the plugin that `scripts/install-tools` compiles from Vault's
//! sources. The services are fakes, because AWS cannot run here:
//!
//! - [`api`]: STS and EC2. They verify each signature with [`signature`], which shares no code with the program.
//! - [`metadata`]: the metadata service of an instance, version 2 only, and the endpoint of containers.
//! - [`document`]: signs identity documents as AWS does.
//! - [`auth_method`]: enables the auth method of a server, and lets it use the fakes.

pub mod api;
pub mod auth_method;
pub mod document;
pub mod metadata;
pub mod signature;

/// The account of all principals.
pub const ACCOUNT: &str = "123456789012";
pub const INSTANCE_ID: &str = "i-0123456789abcdef0";
pub const REGION: &str = "us-east-1";

/// Credentials of a principal.
#[derive(Clone)]
pub struct AwsCredentials {
    pub access_key_id: String,
    /// The principal that STS names.
    pub arn: String,
    pub secret_access_key: String,
    /// Temporary credentials have one.
    pub session_token: Option<String>,
}

impl AwsCredentials {
    /// Permanent credentials of a user.
    pub fn of_user(name: &str) -> Self {
        Self {
            access_key_id: format!("AKIA{:016X}", rand::random::<u64>()),
            arn: format!("arn:aws:iam::{ACCOUNT}:user/{name}"),
            // With the characters that real ones have.
            secret_access_key: format!("{:032x}/+{:06x}", rand::random::<u128>(), rand::random::<u32>() >> 8),
            session_token: None,
        }
    }

    /// Temporary credentials of a role.
    pub fn of_role(name: &str) -> Self {
        Self {
            access_key_id: format!("ASIA{:016X}", rand::random::<u64>()),
            arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{name}/{INSTANCE_ID}"),
            session_token: Some(format!("IQoJb3JpZ2luX2VjEJr//{:032x}==", rand::random::<u128>())),
            ..Self::of_user(name)
        }
    }
}
