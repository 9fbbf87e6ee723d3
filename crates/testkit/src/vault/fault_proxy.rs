//! A node of Vault that answers wrongly: a proxy in front of a real server. A test says which
//! requests it answers itself, delays, loses, or edits; all others go on to the server.

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

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The proxy answers it: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The server's answer is changed on its way back.
    Edit(fn(&mut Value)),
    /// It goes on to the server, and the answer comes so much later.
    Late(Duration),
    /// It is never answered.
    Silence,
}

impl Fault {
    /// An answer with Vault's JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Answer(status, vec![("content-type", "application/json".into())], body.to_string())
    }

    /// An answer with Vault's error body.
    pub fn errors(status: u16, words: &[&str]) -> Self {
        Self::json(status, &json!({ "errors": words }))
    }

    /// A page, as a proxy or a captive portal has it.
    pub fn html(status: u16) -> Self {
        let page = "<html><body><h1>Welcome</h1></body></html>";
        Self::Answer(status, vec![("content-type", "text/html".into())], page.into())
    }

    /// A refusal of the token in bare words: it expired, or it is of another cluster.
    pub fn token_refused() -> Self {
        Self::errors(403, &["permission denied"])
    }

    /// A refusal by policy.
    pub fn policy_refused() -> Self {
        Self::errors(403, &["1 error occurred:\n\t* permission denied\n\n"])
    }

    /// A rate limit quota, as Vault answers it.
    pub fn quota(retry_after_seconds: u32) -> Self {
        let body = json!({ "errors": ["request path \"x\": rate limit quota exceeded"] });
        Self::Answer(429, vec![("retry-after", retry_after_seconds.to_string())], body.to_string())
    }
}

/// Which requests a fault is for, and the fault.
struct Rule {
    /// A part of the path, such as `/decrypt/` or `renew-self`; the empty one is part of all.
    part: String,
    fault: Fault,
}

/// A plain HTTP server on the loopback; the daemon needs `--allow-http`. It ends with this value.
pub struct FaultProxy {
    http: HttpServer,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl FaultProxy {
    /// In front of `bao`, with no fault yet.
    pub async fn before(bao: &Bao) -> Self {
        let rules = Arc::<Mutex<Vec<Rule>>>::default();
        let (client, to, known) = (bao.http().clone(), bao.address(), Arc::clone(&rules));
        let http = HttpServer::start(move |request| {
            let path = request.uri().path().to_owned();
            // The newest rule wins.
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

    /// Requests whose path contains `part` meet this fault from now on.
    pub fn spoil(&self, part: &str, fault: Fault) {
        self.rules.lock().unwrap().push(Rule { part: part.into(), fault });
    }

    /// As a secondary for disaster recovery, which answers nothing and says so in its health.
    pub fn be_a_dr_secondary(&self) {
        self.spoil("", Fault::errors(400, &["path disabled in replication DR secondary mode"]));
        self.spoil("sys/health", Fault::json(472, &json!({ "initialized": true, "sealed": false })));
    }

    /// No fault any more.
    pub fn mend(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// The requests so far, looks at its health apart.
    pub fn calls(&self) -> usize {
        self.seen().iter().filter(|seen| !seen.path.contains("sys/health")).count()
    }

    /// The requests so far whose path contains `part`.
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
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Late(_) | Fault::Edit(_)) | None => {}
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
        Some(Fault::Late(pause)) => {
            sleep(pause).await;
            answer(status, body)
        }
        _ => answer(status, body),
    }
}
