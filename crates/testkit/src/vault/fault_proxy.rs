//! A proxy in front of a real server, which injects faults. It answers, delays, drops or changes the requests that a
//! test selects, and forwards all others.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    net::http::{Answer, HttpServer, Seen, answer},
    vault::server::Bao,
};

/// A fault of a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The proxy responds itself: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The proxy changes the JSON of the server's response.
    Edit(fn(&mut Value)),
    /// The proxy forwards the request, and delays the response.
    Delay(Duration),
    /// The proxy never responds.
    NoAnswer,
}

impl Fault {
    /// A response with a JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Answer(status, vec![("content-type", "application/json".into())], body.to_string())
    }

    /// A response with these messages in Vault's error format.
    pub fn errors(status: u16, words: &[&str]) -> Self {
        Self::json(status, &json!({ "errors": words }))
    }

    /// An HTML page, as from another proxy or a captive portal.
    pub fn html(status: u16) -> Self {
        let page = "<html><body><h1>Welcome</h1></body></html>";
        Self::Answer(status, vec![("content-type", "text/html".into())], page.into())
    }

    /// The refusal of an invalid token: it has expired, or it belongs to another cluster.
    pub fn token_refused() -> Self {
        Self::errors(403, &["permission denied"])
    }

    /// The refusal by a policy.
    pub fn policy_refused() -> Self {
        Self::errors(403, &["1 error occurred:\n\t* permission denied\n\n"])
    }

    /// Vault's response when a rate limit quota is exceeded.
    pub fn quota(retry_after_seconds: u32) -> Self {
        let body = json!({ "errors": ["request path \"x\": rate limit quota exceeded"] });
        Self::Answer(429, vec![("retry-after", retry_after_seconds.to_string())], body.to_string())
    }
}

/// A fault, and the requests that it applies to.
struct Rule {
    /// A part of the path, such as `/decrypt/` or `renew-self`. The empty string matches all paths.
    part: String,
    fault: Fault,
}

/// A plain HTTP server on the loopback, which stops when this value is dropped. The daemon needs `--allow-http`.
pub struct FaultProxy {
    http: HttpServer,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl FaultProxy {
    /// Starts a proxy in front of `bao`, without faults.
    pub async fn in_front_of(bao: &Bao) -> Self {
        let rules = Arc::<Mutex<Vec<Rule>>>::default();
        let (client, to, known) = (bao.http().clone(), bao.address(), Arc::clone(&rules));
        let http = HttpServer::start(move |request| {
            let path = request.uri().path().to_owned();
            // The newest rule counts.
            let fault = {
                let rules = known.lock().unwrap();
                rules.iter().rev().find(|rule| path.contains(&rule.part)).map(|rule| rule.fault.clone())
            };
            serve(client.clone(), to.clone(), request, fault)
        })
        .await;
        Self { http, rules }
    }

    /// `http://127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// Injects this fault into requests whose path contains `part`.
    pub fn inject(&self, part: &str, fault: Fault) {
        self.rules.lock().unwrap().push(Rule { part: part.into(), fault });
    }

    /// Responds like a secondary for disaster recovery: it refuses everything, and its health is 472.
    pub fn act_as_dr_secondary(&self) {
        self.inject("", Fault::errors(400, &["path disabled in replication DR secondary mode"]));
        self.inject("sys/health", Fault::json(472, &json!({ "initialized": true, "sealed": false })));
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// The number of requests so far, without health checks.
    pub fn calls(&self) -> usize {
        self.seen().iter().filter(|seen| !seen.path.contains("sys/health")).count()
    }

    /// The number of requests so far whose path contains `part`.
    pub fn requests(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.http.seen()
    }
}

async fn serve(client: Client, to: String, request: Request<Bytes>, fault: Option<Fault>) -> Answer {
    match &fault {
        Some(Fault::Answer(status, headers, body)) => {
            let mut answer = answer(StatusCode::from_u16(*status).unwrap(), body.clone());
            for (name, value) in headers {
                let value = HeaderValue::from_str(value).unwrap();
                answer.headers_mut().insert(HeaderName::from_static(name), value);
            }
            return answer;
        }
        Some(Fault::NoAnswer) => std::future::pending().await,
        Some(Fault::Delay(_) | Fault::Edit(_)) | None => {}
    }
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let forwarded =
        client.request(parts.method, format!("{to}{path}")).headers(parts.headers).body(body).send().await;
    let forwarded = match forwarded {
        Ok(forwarded) => forwarded,
        Err(error) => return answer(StatusCode::BAD_GATEWAY, error.to_string()),
    };
    let status = forwarded.status();
    let body = forwarded.bytes().await.unwrap_or_default();
    match fault {
        Some(Fault::Edit(edit)) => {
            let mut value: Value = serde_json::from_slice(&body).unwrap_or_default();
            edit(&mut value);
            answer(status, value.to_string())
        }
        Some(Fault::Delay(pause)) => {
            sleep(pause).await;
            answer(status, body)
        }
        _ => answer(status, body),
    }
}
