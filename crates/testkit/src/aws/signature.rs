//! Signature Version 4, written from AWS's documentation, to verify the signatures of the program.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac::{HMAC_SHA256, Key, Tag, sign},
};
use http::{HeaderMap, header};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The parts of the header `Authorization`.
pub struct Authorization {
    pub access_key_id: String,
    /// `YYYYMMDD`.
    pub date: String,
    pub region: String,
    pub service: String,
    pub signature: String,
    /// Lower-case names in alphabetical order.
    pub signed_headers: Vec<String>,
}

impl Authorization {
    /// Reads the header.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn of(headers: &HeaderMap) -> Result<Self, String> {
        let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let text = text.ok_or("there is no Authorization header")?;
        let parts = text.strip_prefix(ALGORITHM).ok_or("the algorithm is another one")?;
        let part = |name: &str| {
            let found = parts.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| format!("there is no {name}"))
        };
        let scope: Vec<&str> = part("Credential")?.split('/').collect();
        let [access_key_id, date, region, service, "aws4_request"] = scope[..] else {
            return Err("the credential scope does not have five parts".into());
        };
        Ok(Self {
            access_key_id: access_key_id.into(),
            date: date.into(),
            region: region.into(),
            service: service.into(),
            signature: part("Signature")?.into(),
            signed_headers: part("SignedHeaders")?.split(';').map(str::to_owned).collect(),
        })
    }
}

/// Returns the signature of a request in hexadecimal. `path` and `query` are as in the request line.
///
/// # Errors
/// If a signed header is missing, or a header that must be signed is not.
pub fn signature(
    (method, path, query): (&str, &str, &str),
    headers: &HeaderMap,
    body: &[u8],
    authorization: &Authorization,
    secret_access_key: &str,
) -> Result<String, String> {
    let Authorization { date, region, service, signed_headers, .. } = authorization;
    for name in headers.keys().map(header::HeaderName::as_str) {
        let must_be_signed = name == "host" || name.starts_with("x-amz-");
        if must_be_signed && !signed_headers.iter().any(|signed| signed == name) {
            return Err(format!("the header {name} is not signed"));
        }
    }
    let mut canonical_headers = String::new();
    for name in signed_headers {
        let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        if values.is_empty() {
            return Err(format!("the signed header {name} is missing"));
        }
        let values: Vec<_> =
            values.iter().map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        canonical_headers.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    let mut query: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let request = [
        method,
        &canonical_path(path),
        &query.join("&"),
        &canonical_headers,
        &signed_headers.join(";"),
        &sha256(body),
    ]
    .join("\n");
    let time =
        headers.get("x-amz-date").and_then(|value| value.to_str().ok()).ok_or("there is no X-Amz-Date")?;
    let scope = format!("{date}/{region}/{service}/aws4_request");
    let to_sign = [ALGORITHM, time, &scope, &sha256(request.as_bytes())].join("\n");
    let mut key = format!("AWS4{secret_access_key}").into_bytes();
    for part in [date, region, service, "aws4_request"] {
        key = hmac(&key, part).as_ref().to_vec();
    }
    Ok(hex(hmac(&key, &to_sign).as_ref()))
}

/// Without empty and dot segments. Vault sends `//` to STS for a signed `/`.
fn canonical_path(path: &str) -> String {
    let segments: Vec<_> = path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    format!("/{}", segments.join("/"))
}

fn hmac(key: &[u8], text: &str) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
