//! The services that give credentials and documents to a machine or container.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};

use super::{AwsCredentials, document::DocumentSigner};
use crate::net::http::{Answer, HttpServer, Seen, answer};

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What an instance is.
#[derive(Clone, Default)]
pub struct Instance {
    /// The identity document in both its signed forms.
    pub document: Option<String>,
    /// The answer with the token never arrives, as when it would pass too many hops.
    pub drops_tokens: bool,
    /// The role: its name and credentials.
    pub role: Option<(String, AwsCredentials)>,
}

impl Instance {
    /// An instance with a role.
    pub fn with_role(name: &str, credentials: &AwsCredentials) -> Self {
        Self { role: Some((name.into(), credentials.clone())), ..Self::default() }
    }

    /// An instance without a role, whose identity document is signed by `signer`.
    pub fn with_document(signer: &DocumentSigner) -> Self {
        Self { document: Some(signer.document()), ..Self::default() }
    }
}

/// The metadata service. It speaks version 2 only: without a token, it answers 401.
pub struct InstanceMetadata {
    http: HttpServer,
    instance: Arc<Mutex<Instance>>,
}

impl InstanceMetadata {
    /// Starts it.
    pub async fn start(instance: Instance) -> Self {
        let instance = Arc::new(Mutex::new(instance));
        let (known, tokens) = (Arc::clone(&instance), Arc::<Mutex<Vec<String>>>::default());
        let http = HttpServer::start(move |request| {
            let (instance, tokens) = (known.lock().unwrap().clone(), Arc::clone(&tokens));
            async move {
                if request.method() == Method::PUT && instance.drops_tokens {
                    std::future::pending::<()>().await;
                }
                serve(&request, &instance, &tokens)
            }
        })
        .await;
        Self { http, instance }
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// From now on, this is the instance.
    pub fn set(&self, instance: Instance) {
        *self.instance.lock().unwrap() = instance;
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.http.seen()
    }
}

fn serve(request: &Request<Bytes>, instance: &Instance, tokens: &Mutex<Vec<String>>) -> Answer {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let path = request.uri().path();
    if path == "/latest/api/token" {
        let ttl = header(TOKEN_TTL).and_then(|ttl| ttl.parse::<u32>().ok());
        // Like the real one, it does not answer through a proxy.
        if request.method() != Method::PUT || header("x-forwarded-for").is_some() {
            return answer(StatusCode::FORBIDDEN, "");
        }
        if !ttl.is_some_and(|ttl| (1..=21_600).contains(&ttl)) {
            return answer(StatusCode::BAD_REQUEST, "");
        }
        let token = format!("AQAEA{:032x}==", rand::random::<u128>());
        tokens.lock().unwrap().push(token.clone());
        return answer(StatusCode::OK, token);
    }
    if !header(TOKEN).is_some_and(|token| tokens.lock().unwrap().iter().any(|known| known == token)) {
        return answer(StatusCode::UNAUTHORIZED, "");
    }
    let found = match (path, &instance.role, &instance.document) {
        (ROLES, Some((role, _)), _) => Some(role.clone()),
        (
            "/latest/dynamic/instance-identity/pkcs7" | "/latest/dynamic/instance-identity/rsa2048",
            _,
            Some(document),
        ) => Some(document.clone()),
        (path, Some((role, credentials)), _) if path == format!("{ROLES}{role}") => {
            let mut answer = of(credentials);
            answer["Code"] = json!("Success");
            Some(answer.to_string())
        }
        _ => None,
    };
    found.map_or_else(|| answer(StatusCode::NOT_FOUND, ""), |found| answer(StatusCode::OK, found))
}

fn of(credentials: &AwsCredentials) -> Value {
    json!({
        "AccessKeyId": credentials.access_key_id,
        "Expiration": "2099-01-01T00:00:00Z",
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.session_token,
    })
}

/// The endpoint that gives credentials to a container. It answers 401 without the right authorization.
pub struct ContainerEndpoint {
    http: HttpServer,
}

impl ContainerEndpoint {
    /// Starts it for clients that send `authorization`.
    pub async fn start(credentials: &AwsCredentials, authorization: &str) -> Self {
        let (body, authorization) = (of(credentials).to_string(), authorization.to_owned());
        let http = HttpServer::start(move |request| {
            let given = request.headers().get(header::AUTHORIZATION);
            let is_allowed = given.is_some_and(|given| given == authorization.as_str());
            let answer = match (is_allowed, request.uri().path()) {
                (false, _) => answer(StatusCode::UNAUTHORIZED, ""),
                (true, "/v1/credentials") => answer(StatusCode::OK, body.clone()),
                (true, _) => answer(StatusCode::NOT_FOUND, ""),
            };
            async move { answer }
        })
        .await;
        Self { http }
    }

    /// For `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub fn uri(&self) -> String {
        format!("{}/v1/credentials", self.http.address())
    }
}
