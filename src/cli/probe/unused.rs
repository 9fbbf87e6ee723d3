//! Whether kube-apiserver still asks this plugin: for whoever is about to take it away.
//!
//! kube-apiserver notes when a plugin last answered its Status, by the hash of the key_id:
//! `apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds` on its `/metrics`
//! (`k8s.io/apiserver`, `pkg/storage/value/encrypt/envelope/metrics/metrics.go`). It asks each minute, so a note that
//! is old means that its EncryptionConfiguration does not name us any more; one that is not there, that it
//! never did since its start.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use reqwest::{Certificate, Client, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{
    ProbeArgs, ask,
    report::{Report, Verdict},
};
use crate::{kms::key_id::key_id_hash, observe::root_cause};

const METRIC: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{";
/// A minute between two questions, two minutes at most until a plugin that was away is dialled again, and
/// room for a clock that is wrong.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// The name that every API server's certificate carries: pods reach it by this one.
const NAME: &str = "kubernetes.default.svc";
/// `/metrics` of a large cluster has tens of megabytes in short lines; a longer line is not of it.
const LONGEST_LINE: usize = 1024 * 1024;

#[derive(Args, Clone, Debug)]
pub(super) struct UnusedArgs {
    /// An API server: https://host:port [default: the one that pods are told of]
    #[arg(long, value_name = "URL")]
    api_server: Option<Url>,

    /// The folder with `ca.crt` and `token` to ask it with, as pods have it
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    service_account: PathBuf,
}

/// Asks all API servers when they last asked us.
pub(super) async fn unused(
    args: &ProbeArgs,
    unused: &UnusedArgs,
    report: &mut Report,
) -> Result<(), Verdict> {
    let cluster = Cluster::new(unused).map_err(Verdict::Input)?;
    let ours = ask::key_id(args).await.map(|key_id| key_id_hash(&key_id));
    match &ours {
        Ok(hash) => report.learn("key_id_hash", hash.as_str()),
        Err(verdict) => report.learn("unknown_key_id", verdict.reason().unwrap_or_default()),
    }
    let servers = cluster.servers().await?;
    report.learn("api_servers", servers.iter().map(ApiServer::to_string).collect::<Vec<_>>());
    let ours = ours.ok();
    for server in &servers {
        let notes = cluster.notes(server).await?;
        judge(&server.to_string(), ours.as_deref(), notes, now())?;
    }
    Ok(())
}

/// Whether what an API server has noted lets us go; without a hash of ours, any plugin may be us.
fn judge(server: &str, ours: Option<&str>, notes: Vec<Note>, now: Duration) -> Result<(), Verdict> {
    let newest = notes
        .into_iter()
        .filter(|note| ours.is_none_or(|ours| ours == note.key_id_hash))
        .max_by(|one, other| one.at.total_cmp(&other.at));
    let Some(note) = newest else { return Ok(()) };
    if ours.is_none() {
        // However old the note: that nobody asks may be because nobody answers.
        return Err(Verdict::Bad(format!(
            "kube-apiserver at {server} knows a KMS v2 provider \"{}\", and whether that is this plugin cannot be told, \
             because it does not say its key_id: bring it up first; or, if you are sure that no \
             EncryptionConfiguration names it, go past this check",
            note.provider,
        )));
    }
    let age = now.saturating_sub(Duration::try_from_secs_f64(note.at).unwrap_or_default());
    if age >= FORGOTTEN_AFTER {
        return Ok(());
    }
    Err(Verdict::Bad(format!(
        "kube-apiserver at {server} asked this plugin {} ago, as its provider \"{}\": an EncryptionConfiguration still \
         names it, and without it nothing that it has encrypted can be read. First have everything rewritten \
         under another provider and take this one out there; this passes when kube-apiserver has been restarted \
         without it, or {} after it asked for the last time",
        humantime::format_duration(Duration::from_secs(age.as_secs())),
        note.provider,
        humantime::format_duration(FORGOTTEN_AFTER),
    )))
}

#[expect(clippy::disallowed_methods, reason = "to be compared with a time stamp, which another clock made")]
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What kube-apiserver noted of a plugin.
#[derive(Debug, PartialEq)]
struct Note {
    /// In Unix seconds.
    at: f64,
    key_id_hash: String,
    provider: String,
}

impl Note {
    /// From a line of `/metrics`.
    fn parse(line: &str) -> Option<Self> {
        let (labels, value) = line.strip_prefix(METRIC)?.rsplit_once('}')?;
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        Some(Self {
            at: value.split_whitespace().next()?.parse().ok()?,
            key_id_hash: label("key_id_hash")?,
            provider: label("provider_name")?,
        })
    }
}

/// How API servers are asked.
struct Cluster {
    ca: Vec<Certificate>,
    given: ApiServer,
    token: SecretString,
}

/// Where one is.
struct ApiServer {
    base: Url,
    /// The address of a name that no resolver need know.
    at: Option<SocketAddr>,
}

impl std::fmt::Display for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            Some(address) => write!(f, "{address}"),
            None => f.write_str(self.base.as_str().trim_end_matches('/')),
        }
    }
}

/// The part of an EndpointSlice that says where they are.
#[derive(Deserialize)]
struct EndpointSlice {
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Port {
    port: Option<u16>,
}

impl Cluster {
    fn new(args: &UnusedArgs) -> Result<Self, String> {
        let base = match &args.api_server {
            Some(url) => url.clone(),
            None => told_to_pods()?,
        };
        if base.scheme() != "https" {
            return Err("--api-server must begin with https://".into());
        }
        let read = |name: &str| {
            let path = args.service_account.join(name);
            fs::read(&path).map_err(|error: io::Error| {
                format!(
                    "cannot read {}: {error}; run this in a pod with a service account, or name a folder with `ca.crt` \
                     and `token` by --service-account",
                    path.display()
                )
            })
        };
        let ca = Certificate::from_pem_bundle(&read("ca.crt")?)
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or("ca.crt holds no certificate in PEM form")?;
        let token = String::from_utf8(read("token")?).map_err(|_| "token is not text")?;
        let token = SecretString::from(token.trim().to_owned());
        Ok(Self { ca, given: ApiServer { base, at: None }, token })
    }

    /// All of them, as the Service `kubernetes` has them; the given one if that does not tell.
    async fn servers(&self) -> Result<Vec<ApiServer>, Verdict> {
        let given = || ApiServer { base: self.given.base.clone(), at: None };
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let answer = self.get(&self.given, path).await?;
        if !answer.status().is_success() {
            return Ok(vec![given()]);
        }
        let text = answer.text().await.map_err(|error| silent(&self.given, &error))?;
        let Ok(slice) = serde_json::from_str::<EndpointSlice>(&text) else { return Ok(vec![given()]) };
        let Some(port) = slice.ports.first().and_then(|port| port.port) else { return Ok(vec![given()]) };
        let mut servers = Vec::new();
        for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
            let base = format!("https://{NAME}:{port}");
            let base = Url::parse(&base).map_err(|error| Verdict::Bad(error.to_string()))?;
            servers.push(ApiServer { base, at: Some(SocketAddr::new(*address, port)) });
        }
        if servers.is_empty() { Ok(vec![given()]) } else { Ok(servers) }
    }

    /// What a server has noted of all its plugins.
    async fn notes(&self, server: &ApiServer) -> Result<Vec<Note>, Verdict> {
        let mut answer = self.get(server, "/metrics").await?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                return Err(Verdict::Bad(format!(
                    "kube-apiserver at {server} does not show its metrics ({status}): a ClusterRole must allow the verb \
                     `get` on the nonResourceURL /metrics"
                )));
            }
            status => {
                return Err(Verdict::Bad(format!(
                    "kube-apiserver at {server} answers /metrics with {status}"
                )));
            }
        }
        let (mut notes, mut rest) = (Vec::new(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|error| silent(server, &error))? {
            let mut lines = chunk.split(|byte| *byte == b'\n').peekable();
            while let Some(line) = lines.next() {
                rest.extend_from_slice(line);
                if lines.peek().is_some() {
                    notes.extend(Note::parse(&String::from_utf8_lossy(&rest)));
                    rest.clear();
                } else if rest.len() > LONGEST_LINE {
                    return Err(Verdict::Bad(format!(
                        "what {server} answers is no metrics of a kube-apiserver"
                    )));
                }
            }
        }
        notes.extend(Note::parse(&String::from_utf8_lossy(&rest)));
        Ok(notes)
    }

    async fn get(&self, server: &ApiServer, path: &str) -> Result<Response, Verdict> {
        #[expect(clippy::disallowed_methods, reason = "no proxy is heeded")]
        let mut client = Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .tls_certs_only(self.ca.clone());
        if let Some(address) = server.at {
            client = client.resolve(NAME, address);
        }
        let client = client.build().map_err(|error| Verdict::Input(root_cause(&error)))?;
        let url = server.base.join(path).map_err(|error| Verdict::Input(error.to_string()))?;
        let request = client.get(url).bearer_auth(self.token.expose_secret());
        request.send().await.map_err(|error| silent(server, &error))
    }
}

/// The API server that a pod's environment names.
fn told_to_pods() -> Result<Url, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
    else {
        return Err("no API server is known: run this in a pod, or name one by --api-server".into());
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Url::parse(&format!("https://{host}:{port}"))
        .map_err(|error| format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT make no URL: {error}"))
}

fn silent(server: &ApiServer, error: &reqwest::Error) -> Verdict {
    Verdict::Silence(format!(
        "kube-apiserver at {server} cannot be asked whether it still uses this plugin: {}",
        root_cause(error)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_from_its_line_and_nothing_from_others() {
        let line = format!(
            "{METRIC}apiserver_id_hash=\"sha256:1\",key_id_hash=\"sha256:2\",provider_name=\"transit\"}} 1.76e+09"
        );
        let note = Note { at: 1.76e9, key_id_hash: "sha256:2".into(), provider: "transit".into() };
        assert_eq!(Note::parse(&line), Some(note));
        for other in ["", "# HELP x", "x{key_id_hash=\"sha256:2\",provider_name=\"transit\"} 1", METRIC] {
            assert_eq!(Note::parse(other), None, "{other}");
        }
        assert_eq!(Note::parse(&format!("{METRIC}key_id_hash=\"a\",provider_name=\"b\"}} soon")), None);
    }

    #[test]
    fn a_plugin_is_used_while_its_last_question_is_young() {
        let now = Duration::from_secs(10_000);
        let note = |hash: &str, at| Note { at, key_id_hash: hash.into(), provider: "transit".into() };
        let judged = |ours, notes| judge("s", ours, notes, now);
        let young =
            judged(Some("a"), vec![note("a", 1.0), note("a", 9_701.5), note("b", 9_999.0)]).unwrap_err();
        assert!(young.reason().unwrap().contains("4m 58s ago, as its provider \"transit\""), "{young:?}");
        // A clock that is behind makes it younger still.
        assert!(judged(Some("a"), vec![note("a", 20_000.0)]).is_err());
        for gone in [vec![], vec![note("a", 9_700.0)], vec![note("b", 9_999.0)]] {
            assert_eq!(judged(Some("a"), gone), Ok(()));
        }
        // It does not say who it is.
        assert!(judged(None, vec![note("b", 1.0)]).unwrap_err().reason().unwrap().contains("cannot be told"));
        assert_eq!(judged(None, vec![]), Ok(()));
    }
}
