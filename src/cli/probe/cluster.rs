//! All API servers of a cluster, and how each is asked.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
};

use reqwest::{Certificate, Client, Response, StatusCode, header, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{
    metrics_page::{Page, PageReader, http_date},
    report::Verdict,
    unused::UnusedArgs,
};
use transit_client::text::root_cause;

/// The name that every API server's certificate carries: pods reach it by this one.
const NAME: &str = "kubernetes.default.svc";
/// The slices of the Service `kubernetes`: there may be one for each family of addresses.
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                      ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
/// A slice holds at most a thousand endpoints, in some hundred kilobytes.
const MOST_LIST: usize = 4 * 1024 * 1024;
/// `/metrics` of a large cluster has tens of megabytes in short lines; a longer line is not of it.
const LONGEST_LINE: usize = 1024 * 1024;

/// How API servers are asked.
pub(super) struct Cluster {
    ca: Vec<Certificate>,
    discovery: bool,
    given: Vec<Url>,
    token: SecretString,
}

/// Where one is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ApiServer {
    base: Url,
    /// The address of a name that no resolver need know.
    at: Option<SocketAddr>,
}

/// All API servers that there are. It can be made in two ways only: from a complete list of the cluster,
/// or because the user says so. An answer that anything else was taken for a list would let a plugin go
/// that is in use.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct AllServers(Vec<ApiServer>);

impl AllServers {
    pub(super) fn iter(&self) -> impl Iterator<Item = &ApiServer> {
        self.0.iter()
    }

    /// From the answer to [`SLICES`].
    ///
    /// # Errors
    /// Why it is no list, or not all of it.
    fn listed(body: &[u8]) -> Result<Self, String> {
        let list: EndpointSliceList =
            serde_json::from_slice(body).map_err(|_| "what it answers is no list of EndpointSlices")?;
        if list.kind != "EndpointSliceList" {
            return Err("what it answers is no list of EndpointSlices".into());
        }
        if !list.metadata.rest.unwrap_or_default().is_empty() {
            return Err("it answers with a part of the list only".into());
        }
        let mut servers = BTreeSet::new();
        for slice in list.items {
            let endpoints = slice.endpoints.unwrap_or_default();
            if endpoints.is_empty() {
                continue;
            }
            let ports = slice.ports.unwrap_or_default();
            let https = ports.iter().find(|port| port.name.as_deref() == Some("https"));
            let port = match (https, ports.as_slice()) {
                (Some(port), _) | (None, [port]) => port.port,
                _ => None,
            };
            let port = port.ok_or("an EndpointSlice has no port `https`")?;
            // One that is not ready is an API server all the same.
            for endpoint in endpoints {
                if endpoint.addresses.is_empty() {
                    return Err("an endpoint has no address".into());
                }
                for address in endpoint.addresses {
                    let address: IpAddr =
                        address.parse().map_err(|_| "an endpoint's address is no IP address")?;
                    servers.insert(SocketAddr::new(address, port));
                }
            }
        }
        if servers.is_empty() {
            return Err("the list is empty".into());
        }
        let server = |address: SocketAddr| {
            let base = Url::parse(&format!("https://{NAME}:{}", address.port())).ok()?;
            Some(ApiServer { base, at: Some(address) })
        };
        let all = servers.into_iter().map(server).collect::<Option<_>>();
        all.map(Self).ok_or_else(|| "an endpoint's port makes no URL".into())
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(address) => write!(f, "{address}"),
            None => f.write_str(self.base.as_str().trim_end_matches('/')),
        }
    }
}

/// The part of a list that says where they are. What Kubernetes always sends is required.
#[derive(Deserialize)]
struct EndpointSliceList {
    kind: String,
    items: Vec<EndpointSlice>,
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "continue")]
    rest: Option<String>,
}

#[derive(Deserialize)]
struct EndpointSlice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
}

#[derive(Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Cluster {
    pub(super) fn new(args: &UnusedArgs) -> Result<Self, String> {
        let given = match args.api_server.as_slice() {
            [] => vec![told_to_pods()?],
            named => named.to_vec(),
        };
        if given.iter().any(|url| url.scheme() != "https") {
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
        Ok(Self { ca, discovery: !args.no_discovery, given, token })
    }

    /// All that the cluster lists, and those that are named; or those alone, if they are said to be all.
    pub(super) async fn servers(&self) -> Result<AllServers, Verdict> {
        let given = self.given.iter().map(|base| ApiServer { base: base.clone(), at: None });
        if !self.discovery {
            return Ok(AllServers(given.collect()));
        }
        let mut given = given;
        let Some(first) = given.next() else {
            return Err(Verdict::Input("no API server is known".into()));
        };
        let unknown = |why: &str| {
            Verdict::Bad(format!(
                "which API servers there are cannot be told, so they cannot all be asked whether they use this plugin: \
                 kube-apiserver at {first} was asked for the EndpointSlices of the Service `kubernetes`, and {why}; or \
                 name all API servers by --api-server, and say so by --no-discovery"
            ))
        };
        let answer = self.get(&first, SLICES).await?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                return Err(unknown(&format!(
                    "refuses ({status}): a Role in the namespace `default` must allow the verb `list` on \
                     `endpointslices` of the API group discovery.k8s.io"
                )));
            }
            status => return Err(unknown(&format!("answers with {status}: try again later"))),
        }
        let body = whole(answer, MOST_LIST).await.map_err(|error| match error {
            Some(error) => silent(&first, &error),
            None => unknown("what it answers is too long for a list"),
        })?;
        let mut all = AllServers::listed(&body).map_err(|why| unknown(&why))?;
        all.0.extend(given);
        Ok(all)
    }

    /// What a server tells of its plugins.
    pub(super) async fn page(&self, server: &ApiServer) -> Result<Page, Verdict> {
        let unusable = |why: &str| {
            Verdict::Bad(format!("whether kube-apiserver at {server} uses this plugin cannot be told: {why}"))
        };
        let mut answer = self.get(server, "/metrics").await?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                return Err(Verdict::Bad(format!(
                    "kube-apiserver at {server} does not show its metrics ({status}): a ClusterRole must allow the verb \
                     `get` on the nonResourceURL /metrics"
                )));
            }
            status => return Err(unusable(&format!("it answers /metrics with {status}"))),
        }
        // Its own clock made the time stamps.
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let now = date.and_then(http_date).ok_or_else(|| unusable("its answer has no date"))?;
        let (mut page, mut rest) = (PageReader::default(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|error| silent(server, &error))? {
            let mut lines = chunk.split(|byte| *byte == b'\n').peekable();
            while let Some(line) = lines.next() {
                rest.extend_from_slice(line);
                if lines.peek().is_some() {
                    page.line(&String::from_utf8_lossy(&rest)).map_err(unusable)?;
                    rest.clear();
                } else if rest.len() > LONGEST_LINE {
                    return Err(unusable("what it answers is no metrics of a kube-apiserver"));
                }
            }
        }
        if !rest.is_empty() {
            return Err(unusable("its metrics end within a line"));
        }
        page.finish(now).map_err(unusable)
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

/// # Errors
/// None if it is longer than `most`.
async fn whole(mut answer: Response, most: usize) -> Result<Vec<u8>, Option<reqwest::Error>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(Some)? {
        body.extend_from_slice(&chunk);
        if body.len() > most {
            return Err(None);
        }
    }
    Ok(body)
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
    use serde_json::{Value, json};

    use super::*;

    fn slice(ports: Value, endpoints: Value) -> Value {
        json!({"addressType": "IPv4", "endpoints": endpoints, "ports": ports})
    }

    fn list(items: Value) -> Value {
        json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {}, "items": items})
    }

    fn listed(list: &Value) -> Result<Vec<String>, String> {
        let all = AllServers::listed(list.to_string().as_bytes())?;
        Ok(all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_slices_and_families_and_what_is_not_ready_are_listed_once() {
        let https = json!([{"name": "metrics", "port": 1}, {"name": "https", "port": 6443}]);
        let found = listed(&list(json!([
            slice(https.clone(), json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}])),
            slice(https, json!([{"addresses": ["10.0.0.1", "10.0.0.2"]}])),
            slice(json!([{"port": 443}]), json!([{"addresses": ["fd00::1"]}])),
            slice(Value::Null, Value::Null),
        ])));
        assert_eq!(found.unwrap(), ["10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:443"]);
    }

    /// Each of these was once taken for one server.
    #[test]
    fn what_is_no_complete_list_is_no_answer() {
        let one = json!([{"addresses": ["10.0.0.1"]}]);
        let mut part = list(json!([slice(json!([{"port": 443}]), one.clone())]));
        part["metadata"]["continue"] = "more".into();
        let mut other = list(json!([slice(json!([{"port": 443}]), one.clone())]));
        other["kind"] = "PodList".into();
        for (bad, says) in [
            (part, "a part of the list"),
            (other, "no list of EndpointSlices"),
            (json!({"kind": "EndpointSlice", "endpoints": []}), "no list of EndpointSlices"),
            (json!({"kind": "Status", "code": 200}), "no list of EndpointSlices"),
            (list(Value::Null), "no list of EndpointSlices"),
            (list(json!([])), "is empty"),
            (list(json!([slice(json!([{"port": 443}]), json!([]))])), "is empty"),
            (list(json!([slice(json!([]), one.clone())])), "no port"),
            (list(json!([slice(Value::Null, one.clone())])), "no port"),
            (list(json!([slice(json!([{"name": "https", "port": null}]), one.clone())])), "no port"),
            (list(json!([slice(json!([{"port": 1}, {"port": 2}]), one)])), "no port"),
            (list(json!([slice(json!([{"port": 443}]), json!([{"addresses": []}]))])), "no address"),
            (
                list(json!([slice(json!([{"port": 443}]), json!([{"addresses": ["api.example"]}]))])),
                "no IP address",
            ),
        ] {
            let why = listed(&bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
        assert!(AllServers::listed(b"<html>please log in</html>").unwrap_err().contains("no list"));
    }
}
