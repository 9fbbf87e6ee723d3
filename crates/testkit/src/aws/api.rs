//! STS and EC2, as far as Vault uses them: `GetCallerIdentity` and `DescribeInstances`.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};

use super::{
    ACCOUNT, AwsCredentials, INSTANCE_ID,
    signature::{Authorization, signature},
};
use crate::net::http::{Answer, HttpServer, answer};

/// How much the time of a signature may differ from that of STS.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// The API of STS and EC2. It refuses requests whose signature is wrong or too old.
pub struct AwsApi {
    http: HttpServer,
    principals: Arc<Mutex<Vec<AwsCredentials>>>,
}

impl AwsApi {
    /// Starts it without principals.
    pub async fn start() -> Self {
        let principals = Arc::<Mutex<Vec<AwsCredentials>>>::default();
        let known = Arc::clone(&principals);
        let http = HttpServer::start(move |request| {
            let known = known.lock().unwrap().clone();
            async move { serve(&request, &known) }
        })
        .await;
        Self { http, principals }
    }

    /// `http://127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// From now on, these credentials are valid.
    pub fn add(&self, credentials: &AwsCredentials) {
        self.principals.lock().unwrap().push(credentials.clone());
    }

    /// From now on, no credentials are valid.
    pub fn remove_all(&self) {
        self.principals.lock().unwrap().clear();
    }

    /// The number of requests so far.
    pub fn requests(&self) -> usize {
        self.http.seen().len()
    }
}

fn serve(request: &Request<Bytes>, principals: &[AwsCredentials]) -> Answer {
    let principal = match authenticate(request, principals) {
        Ok(principal) => principal,
        Err((code, message)) => {
            let error = format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
            );
            return xml(StatusCode::FORBIDDEN, error);
        }
    };
    let body = String::from_utf8_lossy(request.body()).into_owned();
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
    match action {
        "GetCallerIdentity" => xml(
            StatusCode::OK,
            format!(
                "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
                 <Arn>{}</Arn><UserId>{}</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>\
                 <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
                principal.arn, principal.access_key_id
            ),
        ),
        "DescribeInstances" => xml(
            StatusCode::OK,
            format!(
                "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>1</requestId>\
                 <reservationSet><item><reservationId>r-1</reservationId><ownerId>{ACCOUNT}</ownerId><instancesSet><item>\
                 <instanceId>{INSTANCE_ID}</instanceId><imageId>ami-1</imageId><instanceState><code>16</code>\
                 <name>running</name></instanceState></item></instancesSet></item></reservationSet>\
                 </DescribeInstancesResponse>"
            ),
        ),
        action => xml(StatusCode::BAD_REQUEST, format!("<Error>unknown action {action}</Error>")),
    }
}

/// Vault accepts only answers of exactly this type.
fn xml(status: StatusCode, body: String) -> Answer {
    let mut answer = answer(status, body);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    answer
}

fn authenticate<'a>(
    request: &Request<Bytes>,
    principals: &'a [AwsCredentials],
) -> Result<&'a AwsCredentials, (&'static str, String)> {
    let headers = request.headers();
    let authorization = Authorization::of(headers).map_err(|reason| ("IncompleteSignature", reason))?;
    let principal = principals.iter().find(|known| known.access_key_id == authorization.access_key_id);
    let principal =
        principal.ok_or_else(|| ("InvalidClientTokenId", "the access key is unknown".to_owned()))?;
    let token = headers.get("x-amz-security-token").and_then(|value| value.to_str().ok());
    if token != principal.session_token.as_deref() {
        return Err(("InvalidClientTokenId", "the session token is another one".into()));
    }
    let path = (request.method().as_str(), request.uri().path(), request.uri().query().unwrap_or_default());
    let expected = signature(path, headers, request.body(), &authorization, &principal.secret_access_key)
        .map_err(|reason| ("IncompleteSignature", reason))?;
    if authorization.signature != expected {
        return Err(("SignatureDoesNotMatch", "the signature is wrong".into()));
    }
    let text = headers["x-amz-date"].to_str().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a signature holds the wall-clock time")]
    let now = SystemTime::now();
    let signed = time(text).filter(|_| text.starts_with(&authorization.date));
    let age = signed.map(|signed| now.duration_since(signed).unwrap_or_else(|error| error.duration()));
    match age {
        Some(age) if age <= MAX_AGE => Ok(principal),
        _ => Err(("SignatureDoesNotMatch", format!("Signature expired: {text}"))),
    }
}

/// The time of `20150830T123600Z`.
pub fn time(text: &str) -> Option<SystemTime> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    // Days since 1970-01-01 in the Gregorian calendar, whose year begins in March here.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().ok()?))
}
