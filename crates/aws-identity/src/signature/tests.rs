use http::{HeaderMap, HeaderName, HeaderValue};
use testkit::aws::{api::time, signature};

use super::*;

const ACCESS_KEY_ID: &str = "AKIDEXAMPLE";
const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TIME: &str = "20150830T123600Z";

/// The signatures of the crate and of the independent implementation.
fn signatures(request: &Signable<'_>, session_token: Option<&str>) -> (String, String) {
    let credentials = SigningCredentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY, session_token);
    let signed = sign(request, &credentials, time(TIME).unwrap()).unwrap();
    let mut headers = HeaderMap::new();
    let given = request.headers.iter().copied();
    for (name, value) in given.chain(signed.iter().map(|(name, value)| (*name, value.as_str()))) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    headers.append("host", HeaderValue::from_str(request.url.host_str().unwrap()).unwrap());
    let authorization = signature::Authorization::of(&headers).unwrap();
    assert_eq!(
        (authorization.access_key_id.as_str(), authorization.date.as_str()),
        (ACCESS_KEY_ID, "20150830")
    );
    let line = (request.method, request.url.path(), request.url.query().unwrap_or_default());
    let other =
        signature::signature(line, &headers, request.body, &authorization, SECRET_ACCESS_KEY).unwrap();
    (authorization.signature, other)
}

/// The example of AWS's documentation, "Signature Version 4 signing process", which is in the AWS General Reference:
/// <https://docs.aws.amazon.com/general/latest/gr/sigv4-calculate-signature.html>.
#[test]
fn both_implementations_agree_with_the_example_of_the_documentation() {
    let request = Signable {
        body: b"",
        headers: &[("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")],
        method: "GET",
        region: "us-east-1",
        service: "iam",
        url: &Url::parse("https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08").unwrap(),
    };
    let documented = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7".to_owned();
    assert_eq!(signatures(&request, None), (documented.clone(), documented));
}

/// The vector `get-vanilla-with-session-token` of AWS's test suite:
/// <https://github.com/awslabs/aws-c-auth/tree/v0.9.0/tests/aws-signing-test-suite>.
#[test]
fn both_implementations_agree_with_the_vector_for_temporary_credentials() {
    let request = Signable {
        body: b"",
        headers: &[],
        method: "GET",
        region: "us-east-1",
        service: "service",
        url: &Url::parse("https://example.amazonaws.com/").unwrap(),
    };
    let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
    let vector = "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8".to_owned();
    assert_eq!(signatures(&request, Some(token)), (vector.clone(), vector));
}

#[test]
fn a_credential_that_is_no_header_value_is_an_error() {
    let url = Url::parse("https://sts.amazonaws.com/").unwrap();
    let request =
        Signable { body: b"", headers: &[], method: "POST", region: "us-east-1", service: "sts", url: &url };
    for (id, secret, token) in
        [("A B", "s", None), ("A", "s\n", None), ("A", "s", Some("t\u{e9}")), ("A", "", None)]
    {
        let error =
            sign(&request, &SigningCredentials::new(id, secret, token), time(TIME).unwrap()).unwrap_err();
        assert!(matches!(error, AwsIdentityError::Unsignable(_)), "{error}");
    }
}
