//! The metadata service of EC2 instances, version 2 only (IMDSv2).
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;
use zeroize::Zeroizing;

use crate::{
    environment::{Environment, METADATA_DISABLED, METADATA_ENDPOINT},
    http_client::{HttpClient, HttpFailure},
};

const DEFAULT_ENDPOINT: &str = "http://169.254.169.254";
const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// In seconds: the token is used at once, and then dropped.
const TTL: &str = "60";

/// Why the metadata service gives no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The answer is not of the expected form.
    #[error("the answer of the instance metadata service to {path} is not {expected}")]
    Answer {
        /// What the answer should be.
        expected: &'static str,
        /// The path of the request.
        path: String,
    },
    /// The environment turns the service off.
    #[error("AWS_EC2_METADATA_DISABLED turns the instance metadata service off")]
    Disabled,
    /// The address in the environment cannot be used.
    #[error("AWS_EC2_METADATA_SERVICE_ENDPOINT must be a URL that starts with http:// or https://")]
    Endpoint,
    /// The service gives no answer to this request.
    #[error("the instance metadata service cannot be used for {path}: {failure}")]
    Failed {
        /// The reason.
        #[source]
        failure: HttpFailure,
        /// The path of the request.
        path: String,
    },
    /// The answer with the token does not arrive.
    #[error(
        "the instance metadata service accepts connections, but its answer to the request for a token does not arrive. \
         The answer may pass one network hop only, and a container is one hop further away: use the network of the host, \
         or run aws ec2 modify-instance-metadata-options --instance-id ID --http-put-response-hop-limit 2"
    )]
    HopLimit(#[source] HttpFailure),
    /// The instance has no role.
    #[error("the instance has no IAM role: attach an instance profile to it")]
    NoRole,
    /// The service refuses a token.
    #[error(
        "the instance metadata service refuses to issue a token (HTTP status {0}); is it a proxy of another program?"
    )]
    TokenRefused(u16),
    /// The service is not there.
    #[error(
        "the instance metadata service is not reachable: {}; this is no EC2 instance, or its metadata options, a firewall \
         or a network policy block the service", error_text::root_cause(.0)
    )]
    Unreachable(#[source] reqwest::Error),
}

/// A session with the metadata service.
pub(crate) struct Metadata<'a> {
    base: Url,
    http: &'a HttpClient,
    token: HeaderValue,
}

impl<'a> Metadata<'a> {
    /// Gets a token, without which version 2 of the service answers nothing.
    pub(crate) async fn open(http: &'a HttpClient, environment: &Environment) -> Result<Self, MetadataError> {
        if environment.get(METADATA_DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(MetadataError::Disabled);
        }
        let base = Url::parse(environment.get(METADATA_ENDPOINT).unwrap_or(DEFAULT_ENDPOINT))
            .ok()
            .filter(|base| matches!(base.scheme(), "http" | "https"))
            .ok_or(MetadataError::Endpoint)?;
        let path = "/latest/api/token";
        let url = base.join(path).map_err(|_| MetadataError::Endpoint)?;
        let headers = HeaderMap::from_iter([(TOKEN_TTL, HeaderValue::from_static(TTL))]);
        let token = http.send(Method::PUT, url, headers).await.map_err(|failure| match failure {
            HttpFailure::Connect(error) => MetadataError::Unreachable(error),
            HttpFailure::Status(status) => MetadataError::TokenRefused(status),
            HttpFailure::Timeout(_) => MetadataError::HopLimit(failure),
            failure => MetadataError::Failed { failure, path: path.into() },
        })?;
        let invalid = || MetadataError::Answer { expected: "a token", path: path.into() };
        let mut token = HeaderValue::from_bytes(token.trim_ascii()).map_err(|_| invalid())?;
        token.set_sensitive(true);
        Ok(Self { base, http, token })
    }

    /// Returns the answer to `path`, such as `/latest/dynamic/instance-identity/pkcs7`.
    pub(crate) async fn get(&self, path: &str) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
        let url = self.base.join(path).map_err(|_| MetadataError::Endpoint)?;
        let headers = HeaderMap::from_iter([(TOKEN, self.token.clone())]);
        let answer = self.http.send(Method::GET, url, headers).await;
        answer.map_err(|failure| MetadataError::Failed { failure, path: path.into() })
    }
}
