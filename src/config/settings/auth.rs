//! The settings of `vault.auth`: how transit-kms logs in to Vault. `docs/config.md` describes each setting.

mod files;
pub(in crate::config) mod rules;
mod spiffe_names;

use std::{fmt, path::PathBuf, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use transit_client::{
    key::{MountPath, Namespace},
    rule::BrokenRule,
};

/// Where kubelet mounts the token of a pod's ServiceAccount.
pub const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// The default of `vault.auth.state_dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/transit-kms";

/// The longest secret in the config file, in bytes.
const MAX_SECRET_BYTES: usize = 4096;

pub use files::NamedFile;
pub use spiffe_names::{SpiffeId, TrustDomainName, TrustDomains};

/// A login of transit-kms. `Debug` shows no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthSettings {
    /// The login method and its settings.
    pub method: AuthMethod,
    /// Where the method is mounted. `token_file` does not use it.
    pub mount: LoginMount,
    /// The namespace of the login; by default the namespace of Vault.
    pub namespace: Namespace,
    /// The directory of what must outlive the process. Only `approle`, `aws` and `token_file` use it.
    pub state_dir: PathBuf,
}

/// A login method and its settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthMethod {
    /// A role_id, and usually a secret_id.
    AppRole(AppRoleSettings),
    /// The identity of an AWS principal or an EC2 instance.
    Aws(AwsSettings),
    /// A TLS client certificate.
    Cert(CertSettings),
    /// The credentials of another method in headers of each request, without a token. Mount and namespace are
    /// those of that method.
    Inline(InlineMethod),
    /// A JWT.
    Jwt(JwtSettings),
    /// The token of a Kubernetes ServiceAccount.
    Kubernetes(KubernetesSettings),
    /// An SVID, for the method of Vault Enterprise.
    Spiffe(SpiffeSettings),
    /// A file with a wrapping token, from which a token is unwrapped. A file with a plain token is no login: its
    /// token is [`Credentials::Token`](super::Credentials::Token).
    TokenFile(MaterialFile),
    /// A user name and a password.
    Userpass(UserpassSettings),
}

impl AuthMethod {
    /// The name of the method in the config file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AppRole(_) => "approle",
            Self::Aws(_) => "aws",
            Self::Cert(_) => "cert",
            Self::Inline(_) => "inline",
            Self::Jwt(_) => "jwt",
            Self::Kubernetes(_) => "kubernetes",
            Self::Spiffe(_) => "spiffe",
            Self::TokenFile(_) => "token_file",
            Self::Userpass(_) => "userpass",
        }
    }
}

impl AuthMethod {
    /// Returns whether something must outlive the process: a nonce, or which credentials were used up or refused.
    ///
    /// The refusals of a password are not kept: from a hash of it on disk, a password could be guessed.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        matches!(self, Self::AppRole(_) | Self::Aws(_) | Self::TokenFile(_))
    }
}

/// A method whose credentials can travel with each request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InlineMethod {
    /// A role_id, and a secret_id that is delivered as it is.
    AppRole {
        /// The role_id.
        role_id: SecretSource,
        /// The secret_id; `None` if the role needs none.
        secret_id: Option<SecretSource>,
    },
    /// A JWT.
    Jwt(JwtSettings),
    /// The token of a Kubernetes ServiceAccount.
    Kubernetes(KubernetesSettings),
    /// A user name and a password.
    Userpass(UserpassSettings),
}

impl InlineMethod {
    /// The name of the method in the config file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AppRole { .. } => "approle",
            Self::Jwt(_) => "jwt",
            Self::Kubernetes(_) => "kubernetes",
            Self::Userpass(_) => "userpass",
        }
    }
}

/// Where a login method is mounted, below `auth/`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoginMount {
    /// The trust domain of the SVID chooses the mount.
    ByTrustDomain(TrustDomains),
    /// Always the same mount.
    Fixed(MountPath),
}

/// The settings of `approle`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppRoleSettings {
    /// The name of the role; always set if a delivery may lead to a wrapping token that is not sealed.
    pub role: Option<String>,
    /// The role_id.
    pub role_id: SecretSource,
    /// The secret_id; `None` if the role needs none (`bind_secret_id=false`).
    pub secret_id: Option<DeliveredSecretId>,
}

/// A secret_id, or what leads to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeliveredSecretId {
    /// How `source` leads to the secret_id.
    pub delivery: Delivery,
    /// What was delivered.
    pub source: SecretSource,
}

/// How a secret_id is delivered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// A token with few uses and a path in its cubbyhole, where the secret_id is.
    Cubbyhole,
    /// The secret_id itself.
    Plain,
    /// The secret_id, encrypted to the RSA key of this node.
    Sealed {
        /// The PEM file of the RSA key.
        private_key_file: MaterialFile,
    },
    /// A wrapping token, from which the secret_id is unwrapped.
    Wrapped,
}

/// The settings of `aws`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AwsSettings {
    /// What proves the identity.
    pub proof: AwsProof,
    /// The role of the mount.
    pub role: String,
}

/// What proves an identity of AWS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AwsProof {
    /// The signed identity document of the EC2 instance, with a nonce.
    Ec2,
    /// A signed request to STS.
    Iam {
        /// The region of STS; `None` for the global endpoint, which signs for `us-east-1`.
        region: Option<String>,
        /// The value of the header `X-Vault-AWS-IAM-Server-ID`.
        server_id: Option<String>,
    },
}

/// The settings of `cert`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertSettings {
    /// The certificate and its key.
    pub certificate: X509Source,
    /// The name of the certificate role; `None` if Vault shall try all.
    pub role: Option<String>,
}

/// The settings of `jwt`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtSettings {
    /// The JWT.
    pub jwt: JwtSource,
    /// The role of the mount.
    pub role: String,
}

/// The settings of `kubernetes`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesSettings {
    /// The token of the ServiceAccount.
    pub jwt_file: MaterialFile,
    /// The role of the mount.
    pub role: String,
}

/// The settings of `spiffe`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SpiffeSettings {
    /// The role of the mount.
    pub role: String,
    /// The SVID.
    pub svid: SvidSource,
}

/// The settings of `userpass`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserpassSettings {
    /// The password.
    pub password: SecretSource,
    /// The name of the user; one segment of a URL's path.
    pub username: String,
}

/// A SPIFFE identity document of either kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SvidSource {
    /// A JWT-SVID.
    Jwt(JwtSource),
    /// An X.509-SVID.
    X509(X509Source),
}

/// Where a JWT comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwtSource {
    /// A file.
    File(MaterialFile),
    /// The SPIFFE Workload API.
    WorkloadApi {
        /// How to reach the API.
        api: WorkloadApiSettings,
        /// The audience of the JWT-SVID.
        audience: String,
    },
}

/// Where a certificate and its key come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum X509Source {
    /// PEM files.
    Files {
        /// The chain.
        cert_file: MaterialFile,
        /// The private key.
        key_file: MaterialFile,
    },
    /// The SPIFFE Workload API.
    WorkloadApi(WorkloadApiSettings),
}

/// How to get an SVID from the SPIFFE Workload API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkloadApiSettings {
    /// The path of the unix socket.
    pub socket: PathBuf,
    /// The identity to use; `None` for the first one.
    pub spiffe_id: Option<SpiffeId>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SecretSource {
    /// A file.
    File(MaterialFile),
    /// The config file.
    Inline(Secret),
}

/// A file with login material: an absolute path, and the setting that names it, such as
/// `vault.auth.secret_id_file`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MaterialFile {
    /// The path.
    pub path: PathBuf,
    /// The name of the setting, for messages.
    pub setting: String,
}

/// A secret of the config file. It is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Secret(Arc<SecretString>);

impl Secret {
    /// Trims white space around the secret.
    ///
    /// # Errors
    /// If the secret is empty, longer than 4096 bytes, or has control characters.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim();
        if text.is_empty() {
            Err(BrokenRule("must not be empty"))
        } else if text.len() > MAX_SECRET_BYTES {
            Err(BrokenRule("must not be longer than 4096 bytes"))
        } else if text.chars().any(char::is_control) {
            Err(BrokenRule("must be one line without control characters"))
        } else {
            Ok(Self(Arc::new(SecretString::from(text))))
        }
    }

    /// The secret itself. It must not get into logs or errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Eq for Secret {}

impl PartialEq for Secret {
    /// It does not take constant time: both secrets come from the config, and no peer can measure it.
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

#[cfg(test)]
mod tests;
