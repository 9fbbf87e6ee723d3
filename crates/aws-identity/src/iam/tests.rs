#![allow(clippy::disallowed_methods, reason = "a signature holds the wall-clock time")]

use std::{collections::BTreeMap, time::Duration};

use testkit::aws::{AwsCredentials, api::AwsApi};

use super::*;
use crate::Environment;

const SERVER: &str = "vault.example.com";

fn environment(credentials: &AwsCredentials, api: &AwsApi) -> Environment {
    let mut variables = vec![
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id.clone()),
        ("AWS_ENDPOINT_URL_STS", api.address()),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key.clone()),
    ];
    variables.extend(credentials.session_token.clone().map(|token| ("AWS_SESSION_TOKEN", token)));
    variables.into_iter().collect()
}

fn settings(server_id: Option<&str>) -> IamSettings {
    IamSettings { region: None, role: "node".into(), server_id: server_id.map(str::to_owned) }
}

/// The parts of a signed request, decoded.
struct Decoded {
    body: String,
    headers: BTreeMap<String, Vec<String>>,
    url: String,
}

impl Decoded {
    fn of(fields: &LoginFields) -> Self {
        let fields: BTreeMap<_, _> = fields.iter().collect();
        let decoded = |name: &str| BASE64.decode(fields[name]).unwrap();
        assert_eq!((fields["iam_http_request_method"], fields["role"], fields.len()), ("POST", "node", 5));
        Self {
            body: String::from_utf8(decoded("iam_request_body")).unwrap(),
            headers: serde_json::from_slice(&decoded("iam_request_headers")).unwrap(),
            url: String::from_utf8(decoded("iam_request_url")).unwrap(),
        }
    }

    /// Sends the request to STS as Vault does: with two slashes, and its body in one piece.
    async fn send(&self, api: &AwsApi) -> (u16, String) {
        let client = testkit::http::client().build().unwrap();
        let mut request = client.post(format!("{}//", api.address())).body(self.body.clone());
        for (name, values) in &self.headers {
            for value in values {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

#[tokio::test]
async fn sts_accepts_the_signed_request_of_a_user_and_of_a_role() {
    let api = AwsApi::start().await;
    for credentials in [AwsCredentials::of_user("node"), AwsCredentials::of_role("node")] {
        let identity = AwsIdentity::new(environment(&credentials, &api));
        let fields = identity.iam_login(&settings(Some(SERVER)), SystemTime::now()).await.unwrap();
        let request = Decoded::of(&fields);
        assert_eq!(request.url, format!("{}/", api.address()));
        assert_eq!(request.body, "Action=GetCallerIdentity&Version=2011-06-15");
        assert_eq!(request.send(&api).await.0, 403, "STS does not know the credentials yet");
        api.add(&credentials);
        let (status, said) = request.send(&api).await;
        assert!(status == 200 && said.contains(&credentials.arn), "{status} {said}");
        assert!(!format!("{:?}", request.headers).contains(&credentials.secret_access_key));
    }
}

#[tokio::test]
async fn the_header_that_names_the_vault_is_signed() {
    let (api, credentials) = (AwsApi::start().await, AwsCredentials::of_role("node"));
    api.add(&credentials);
    let identity = AwsIdentity::new(environment(&credentials, &api));
    let fields = identity.iam_login(&settings(Some(SERVER)), SystemTime::now()).await.unwrap();
    let mut request = Decoded::of(&fields);
    let names: Vec<&str> = request.headers.keys().map(String::as_str).collect();
    let expected =
        ["Authorization", "Content-Type", "X-Amz-Date", "X-Amz-Security-Token", "X-Vault-AWS-IAM-Server-ID"];
    assert_eq!(names, expected);
    let signed = "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id,";
    assert!(request.headers["Authorization"][0].contains(signed), "{:?}", request.headers);
    assert_eq!(request.headers["X-Vault-AWS-IAM-Server-ID"], [SERVER]);
    assert_eq!(request.send(&api).await.0, 200);
    request.headers.insert("X-Vault-AWS-IAM-Server-ID".into(), vec!["other.example.com".into()]);
    let (status, said) = request.send(&api).await;
    assert!(status == 403 && said.contains("SignatureDoesNotMatch"), "{status} {said}");

    let fields = identity.iam_login(&settings(None), SystemTime::now()).await.unwrap();
    assert!(!Decoded::of(&fields).headers.contains_key("X-Vault-AWS-IAM-Server-ID"));
}

#[tokio::test]
async fn sts_refuses_a_request_that_is_old_or_was_changed() {
    let (api, credentials) = (AwsApi::start().await, AwsCredentials::of_user("node"));
    api.add(&credentials);
    let identity = AwsIdentity::new(environment(&credentials, &api));
    let old = SystemTime::now() - Duration::from_secs(16 * 60);
    let fields = identity.iam_login(&settings(None), old).await.unwrap();
    let (status, said) = Decoded::of(&fields).send(&api).await;
    assert!(status == 403 && said.contains("Signature expired"), "{status} {said}");

    let fields = identity.iam_login(&settings(None), SystemTime::now()).await.unwrap();
    let mut request = Decoded::of(&fields);
    request.body = request.body.replace("GetCallerIdentity", "DescribeInstances");
    let (status, said) = request.send(&api).await;
    assert!(status == 403 && said.contains("SignatureDoesNotMatch"), "{status} {said}");
}

#[tokio::test]
async fn a_server_id_that_is_no_header_value_is_refused() {
    let (api, credentials) = (AwsApi::start().await, AwsCredentials::of_user("node"));
    let identity = AwsIdentity::new(environment(&credentials, &api));
    let error = identity.iam_login(&settings(Some("a\nb")), SystemTime::now()).await.err().unwrap();
    assert!(error.to_string().starts_with("iam_server_id_header_value must be"), "{error}");
}

#[test]
fn each_region_has_its_endpoint() {
    let url = |region, from_environment| endpoint(region, from_environment).map(String::from);
    assert_eq!(url(None, None).unwrap(), "https://sts.amazonaws.com/");
    assert_eq!(url(Some("eu-central-1"), None).unwrap(), "https://sts.eu-central-1.amazonaws.com/");
    assert_eq!(url(Some("us-gov-west-1"), None).unwrap(), "https://sts.us-gov-west-1.amazonaws.com/");
    assert_eq!(url(Some("cn-north-1"), None).unwrap(), "https://sts.cn-north-1.amazonaws.com.cn/");
    assert_eq!(url(Some("x"), Some("https://sts.example.com")).unwrap(), "https://sts.example.com/");
    for refused in ["", "eu-central-1.example.com/", "EU", "a b"] {
        assert!(url(Some(refused), None).unwrap_err().to_string().starts_with("region must be"), "{refused}");
    }
    for refused in ["sts.example.com", "ftp://sts.example.com", "https://sts.example.com/?a=b"] {
        let error = url(None, Some(refused)).unwrap_err().to_string();
        assert!(error.starts_with("AWS_ENDPOINT_URL_STS must be"), "{error}");
    }
}
