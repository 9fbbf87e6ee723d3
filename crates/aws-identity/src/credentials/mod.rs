//! AWS credentials, from the sources and in the order of the AWS SDKs.
//!
//! A source that is not configured is skipped. A configured source that fails ends the search: the next one could have
//! the credentials of another identity.

mod container;
mod shared_file;

use std::{error::Error, fmt};

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::{
    environment::{ACCESS_KEY_ID, Environment, SECRET_ACCESS_KEY, SESSION_TOKEN, WEB_IDENTITY_TOKEN_FILE},
    http_client::HttpClient,
    metadata::{Metadata, MetadataError},
};

/// Where the credentials of the instance's role are. The name of the role follows.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// AWS credentials. They have no `Debug`, and are wiped.
pub(crate) struct SigningCredentials {
    access_key_id: Zeroizing<String>,
    secret_access_key: Zeroizing<String>,
    /// Temporary credentials have one.
    session_token: Option<Zeroizing<String>>,
}

/// A source of credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CredentialSource {
    /// The endpoint that ECS, or the pod identity agent of EKS, gives to a container.
    Container,
    /// The variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    Environment,
    /// The role of the EC2 instance.
    InstanceMetadata,
    /// A profile of the shared credentials file.
    SharedFile,
}

impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container => "container endpoint",
            Self::Environment => "environment",
            Self::InstanceMetadata => "instance metadata",
            Self::SharedFile => "shared credentials file",
        })
    }
}

/// Why a source has no credentials.
#[derive(Debug)]
pub struct SourceFailure {
    reason: Unavailable,
    source: CredentialSource,
}

impl SourceFailure {
    /// The source.
    #[must_use]
    pub fn source(&self) -> CredentialSource {
        self.source
    }

    /// Whether the source is configured, and therefore ended the search.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        matches!(self.reason, Unavailable::Failed(_))
    }
}

#[derive(Debug)]
pub(crate) enum Unavailable {
    Failed(Box<dyn Error + Send + Sync>),
    NotConfigured(String),
}

impl Unavailable {
    fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

impl fmt::Display for SourceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Unavailable::Failed(error) => write!(f, "{}: {error}", self.source),
            Unavailable::NotConfigured(reason) => write!(f, "{}: {reason}", self.source),
        }
    }
}

/// No source has credentials.
#[derive(Debug)]
pub struct CredentialsError {
    tried: Vec<SourceFailure>,
    /// Kubernetes has configured a source that is not supported.
    web_identity: bool,
}

impl CredentialsError {
    /// The sources that were tried, in their order, and why each of them has no credentials.
    #[must_use]
    pub fn tried(&self) -> &[SourceFailure] {
        &self.tried
    }
}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there are no AWS credentials")?;
        for (index, tried) in self.tried.iter().enumerate() {
            write!(f, "{} {tried}", if index == 0 { ":" } else { ";" })?;
        }
        if self.web_identity {
            write!(
                f,
                "; {WEB_IDENTITY_TOKEN_FILE} is set, but web identity is not supported, because kube-apiserver issues its tokens"
            )?;
        }
        Ok(())
    }
}

impl Error for CredentialsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.tried.last()?.reason {
            Unavailable::Failed(error) => Some(&**error),
            Unavailable::NotConfigured(_) => None,
        }
    }
}

impl SigningCredentials {
    pub(crate) fn new(access_key_id: &str, secret_access_key: &str, session_token: Option<&str>) -> Self {
        Self {
            access_key_id: Zeroizing::new(access_key_id.into()),
            secret_access_key: Zeroizing::new(secret_access_key.into()),
            session_token: session_token.map(|token| Zeroizing::new(token.into())),
        }
    }

    /// Returns the credentials of the first source that is configured.
    pub(crate) async fn find(environment: &Environment, http: &HttpClient) -> Result<Self, CredentialsError> {
        let mut tried = Vec::new();
        for source in [
            CredentialSource::Environment,
            CredentialSource::SharedFile,
            CredentialSource::Container,
            CredentialSource::InstanceMetadata,
        ] {
            let found = match source {
                CredentialSource::Container => container::read(environment, http).await,
                CredentialSource::Environment => Self::from_environment(environment),
                CredentialSource::InstanceMetadata => {
                    Self::from_metadata(environment, http).await.map_err(Unavailable::failed)
                }
                CredentialSource::SharedFile => shared_file::read(environment).await,
            };
            match found {
                Ok(credentials) => return Ok(credentials),
                Err(reason) => {
                    let failure = SourceFailure { reason, source };
                    let ends = failure.is_configured();
                    tried.push(failure);
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(CredentialsError { tried, web_identity: environment.get(WEB_IDENTITY_TOKEN_FILE).is_some() })
    }

    fn from_environment(environment: &Environment) -> Result<Self, Unavailable> {
        match (environment.get(ACCESS_KEY_ID), environment.get(SECRET_ACCESS_KEY)) {
            (Some(id), Some(secret)) => Ok(Self::new(id, secret, environment.get(SESSION_TOKEN))),
            (None, None) => Err(Unavailable::NotConfigured(format!("{ACCESS_KEY_ID} is not set"))),
            (Some(_), None) => {
                Err(Unavailable::failed(format!("{ACCESS_KEY_ID} is set without {SECRET_ACCESS_KEY}")))
            }
            (None, Some(_)) => {
                Err(Unavailable::failed(format!("{SECRET_ACCESS_KEY} is set without {ACCESS_KEY_ID}")))
            }
        }
    }

    async fn from_metadata(environment: &Environment, http: &HttpClient) -> Result<Self, MetadataError> {
        let metadata = Metadata::open(http, environment).await?;
        let roles = metadata.get(ROLES).await.map_err(|error| match error {
            MetadataError::Failed { failure: crate::HttpFailure::Status(404), .. } => MetadataError::NoRole,
            error => error,
        })?;
        let role = std::str::from_utf8(&roles)
            .ok()
            .and_then(|roles| roles.lines().next())
            .unwrap_or_default()
            .trim();
        // https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if role.is_empty() || !role.bytes().all(is_allowed) {
            return Err(MetadataError::Answer { expected: "the name of a role", path: ROLES.into() });
        }
        let path = format!("{ROLES}{role}");
        Self::from_json(&metadata.get(&path).await?)
            .ok_or(MetadataError::Answer { expected: "temporary credentials", path })
    }

    /// Reads the answer of the metadata service or of a container endpoint. There is no reason for `None`: it could quote
    /// a credential.
    fn from_json(json: &[u8]) -> Option<Self> {
        let answer: EndpointAnswer = serde_json::from_slice(json).ok()?;
        if answer.code.is_some_and(|code| code != "Success") {
            return None;
        }
        Some(Self {
            access_key_id: answer.access_key_id,
            secret_access_key: answer.secret_access_key,
            session_token: Some(answer.token),
        })
    }

    /// What tells these credentials from others. A session token changes together with them.
    pub(crate) fn into_parts(self) -> Vec<Zeroizing<String>> {
        vec![self.access_key_id, self.secret_access_key]
    }

    /// Returns `None` if a value is not allowed in a header.
    pub(crate) fn to_sdk(&self) -> Option<aws_credential_types::Credentials> {
        let values = [Some(&self.access_key_id), Some(&self.secret_access_key), self.session_token.as_ref()];
        let is_allowed = |value: &&Zeroizing<String>| {
            !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !values.iter().flatten().all(is_allowed) {
            return None;
        }
        Some(aws_credential_types::Credentials::new(
            self.access_key_id.as_str(),
            self.secret_access_key.as_str(),
            self.session_token.as_ref().map(|token| token.as_str().to_owned()),
            None,
            "aws-identity",
        ))
    }
}

/// The answer of the metadata service and of container endpoints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointAnswer {
    #[serde(deserialize_with = "wiped")]
    access_key_id: Zeroizing<String>,
    /// Only the metadata service has it.
    code: Option<String>,
    #[serde(deserialize_with = "wiped")]
    secret_access_key: Zeroizing<String>,
    #[serde(deserialize_with = "wiped")]
    token: Zeroizing<String>,
}

fn wiped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

#[cfg(test)]
mod tests;
