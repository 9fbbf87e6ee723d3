//! The login of an IAM principal, by a signed request that only Vault sends.
//!
//! <https://developer.hashicorp.com/vault/docs/auth/aws#iam-auth-method>

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::ser::{SerializeMap as _, Serializer as _};
use url::Url;
use zeroize::Zeroizing;

use crate::{
    AwsIdentity, AwsIdentityError, LoginFields,
    credentials::SigningCredentials,
    environment::STS_ENDPOINT,
    signature::{Signable, sign},
};

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const CONTENT_TYPE: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8");
/// The endpoint without a region, which is in this region.
const GLOBAL_ENDPOINT: &str = "https://sts.amazonaws.com/";
const GLOBAL_REGION: &str = "us-east-1";
/// Vault accepts only `POST`.
const METHOD: &str = "POST";
const SERVER_ID: &str = "X-Vault-AWS-IAM-Server-ID";

/// The settings of a login with the type `iam`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IamSettings {
    /// The region of the STS endpoint. `None` is the global endpoint `sts.amazonaws.com`, in `us-east-1`.
    pub region: Option<String>,
    /// The role of the auth method.
    pub role: String,
    /// The value that Vault expects in the header `X-Vault-AWS-IAM-Server-ID`. It binds the signed request to one Vault.
    pub server_id: Option<String>,
}

impl AwsIdentity {
    /// Returns the fields of a login with the type `iam`: `role`, `iam_http_request_method`, `iam_request_url`,
    /// `iam_request_body` and `iam_request_headers`. STS accepts the request for 15 minutes from `now`.
    ///
    /// # Errors
    /// If no source has credentials, or a setting or credential cannot be used.
    pub async fn iam_login(
        &self,
        settings: &IamSettings,
        now: SystemTime,
    ) -> Result<LoginFields, AwsIdentityError> {
        let region = settings.region.as_deref();
        let url = endpoint(region, self.environment.get(STS_ENDPOINT))?;
        let credentials = SigningCredentials::find(&self.environment, &self.http).await?;
        let mut headers = vec![CONTENT_TYPE];
        if let Some(server_id) = &settings.server_id {
            if !server_id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
                return Err(AwsIdentityError::InvalidSetting {
                    name: "iam_server_id_header_value",
                    rule: "must be visible ASCII characters, because it is the value of a header",
                });
            }
            headers.push((SERVER_ID, server_id));
        }
        let request = Signable {
            body: BODY.as_bytes(),
            headers: &headers,
            method: METHOD,
            region: region.unwrap_or(GLOBAL_REGION),
            service: "sts",
            url: &url,
        };
        let signed = sign(&request, &credentials, now)?;
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .chain(signed.iter().map(|(name, value)| (canonical(name), value.as_str())));
        let fields = vec![
            ("role", Zeroizing::new(settings.role.clone())),
            ("iam_http_request_method", Zeroizing::new(METHOD.into())),
            ("iam_request_url", Zeroizing::new(BASE64.encode(url.as_str()))),
            ("iam_request_body", Zeroizing::new(BASE64.encode(BODY))),
            ("iam_request_headers", encode(headers)?),
        ];
        Ok(LoginFields::new(fields, credentials.into_parts()))
    }
}

/// The headers as Vault expects them: base64 of a JSON object with a list of values for each name.
fn encode<'a>(
    headers: impl Iterator<Item = (String, &'a str)>,
) -> Result<Zeroizing<String>, AwsIdentityError> {
    let unsignable = |error: serde_json::Error| AwsIdentityError::Unsignable(Box::new(error));
    // Session tokens have up to a few KiB. The capacity avoids copies that are not wiped.
    let mut json = Zeroizing::new(Vec::with_capacity(16 * 1024));
    let mut serializer = serde_json::Serializer::new(&mut *json);
    let mut map = serializer.serialize_map(None).map_err(unsignable)?;
    for (name, value) in headers {
        map.serialize_entry(&name, &[value]).map_err(unsignable)?;
    }
    map.end().map_err(unsignable)?;
    Ok(Zeroizing::new(BASE64.encode(&*json)))
}

/// The name as Go spells it, such as `X-Amz-Date`. Vault looks up `Authorization` in this spelling.
fn canonical(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
            .unwrap_or_default()
    });
    words.collect::<Vec<_>>().join("-")
}

/// The URL of STS. Vault does not use its host as the address, but as the header `Host`, which is signed: it must be the
/// endpoint that Vault sends the request to.
fn endpoint(region: Option<&str>, from_environment: Option<&str>) -> Result<Url, AwsIdentityError> {
    if let Some(url) = from_environment {
        let url = Url::parse(url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none()
        });
        let rule = "must be a URL that starts with http:// or https://, without a query";
        return url.ok_or(AwsIdentityError::InvalidSetting { name: STS_ENDPOINT, rule });
    }
    let url = match region {
        None => GLOBAL_ENDPOINT.to_owned(),
        Some(region) => {
            let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if region.is_empty() || !region.bytes().all(is_allowed) {
                let rule = "must be the name of an AWS region, such as eu-central-1";
                return Err(AwsIdentityError::InvalidSetting { name: "region", rule });
            }
            let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://sts.{region}.amazonaws.com{suffix}/")
        }
    };
    let rule = "must be the name of an AWS region, such as eu-central-1";
    Url::parse(&url).map_err(|_| AwsIdentityError::InvalidSetting { name: "region", rule })
}

#[cfg(test)]
mod tests;
