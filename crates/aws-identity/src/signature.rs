//! Signature Version 4, by the crate `aws-sigv4`.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::time::SystemTime;

use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SigningSettings},
    sign::v4::SigningParams,
};
use url::Url;
use zeroize::Zeroizing;

use crate::{AwsIdentityError, credentials::SigningCredentials};

/// A request to sign. The host of the URL is signed too.
pub(crate) struct Signable<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) method: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    pub(crate) url: &'a Url,
}

/// Returns the headers to add, with lower-case names: `authorization`, `x-amz-date` and, if the credentials are
/// temporary, `x-amz-security-token`.
pub(crate) fn sign(
    request: &Signable<'_>,
    credentials: &SigningCredentials,
    now: SystemTime,
) -> Result<Vec<(&'static str, Zeroizing<String>)>, AwsIdentityError> {
    fn unsignable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AwsIdentityError {
        AwsIdentityError::Unsignable(error.into())
    }
    // The crate panics for a value that is not allowed in a header.
    let identity =
        credentials.to_sdk().ok_or_else(|| unsignable("a credential is not visible ASCII"))?.into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(request.region)
        .name(request.service)
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(unsignable)?
        .into();
    let signable = SignableRequest::new(
        request.method,
        request.url.as_str(),
        request.headers.iter().copied(),
        SignableBody::Bytes(request.body),
    )
    .map_err(unsignable)?;
    let (instructions, _) = http_request::sign(signable, &params).map_err(unsignable)?.into_parts();
    let (headers, _) = instructions.into_parts();
    Ok(headers.iter().map(|header| (header.name(), Zeroizing::new(header.value().to_owned()))).collect())
}

#[cfg(test)]
mod tests;
