//! The API servers of a cluster, and requests to them.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
};

use reqwest::{Certificate, Client, Response, StatusCode, header, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use error_text::root_cause;

use kms_plugin::cli::CheckError;

use super::{
    args::UnusedArgs,
    metrics_page::{PageReader, PluginMetrics, http_date},
};

/// The certificate of every API server contains this name, because pods use it.
const SERVER_NAME: &str = "kubernetes.default.svc";
/// The EndpointSlices of the Service `kubernetes`. There can be one for each address family.
const SLICES_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                      ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
/// An EndpointSlice has at most 1000 endpoints, in some hundred kilobytes.
const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;
/// The metrics of a large cluster have tens of megabytes, but their lines are short.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// What requests to API servers need.
pub(super) struct Cluster {
    ca: Vec<Certificate>,
    discovery: bool,
    /// The API servers in the arguments, or the one in the environment of a pod.
    named: Vec<Url>,
    token: SecretString,
}

/// The location of an API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ApiServer {
    base: Url,
    /// The address, if it is from the cluster's list: the name in the URL is resolved to it.
    address: Option<SocketAddr>,
}

/// All API servers of the cluster. It is made only from a complete list of the cluster, or if the operator says that
/// the named servers are all. If another answer were taken for a list, the check could pass for a plugin in use.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct AllApiServers(Vec<ApiServer>);

impl AllApiServers {
    pub(super) fn iter(&self) -> impl Iterator<Item = &ApiServer> {
        self.0.iter()
    }

    /// Parses the answer to [`SLICES_PATH`].
    ///
    /// # Errors
    /// If it is not a list, or an incomplete one.
    fn listed(body: &[u8]) -> Result<Self, String> {
        let list: EndpointSliceList =
            serde_json::from_slice(body).map_err(|_| "the answer is not a list of EndpointSlices")?;
        if list.kind != "EndpointSliceList" {
            return Err("the answer is not a list of EndpointSlices".into());
        }
        if !list.metadata.continue_token.unwrap_or_default().is_empty() {
            return Err("the answer is only a part of the list".into());
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
            // An API server that is not ready counts too.
            for endpoint in endpoints {
                if endpoint.addresses.is_empty() {
                    return Err("an endpoint has no address".into());
                }
                for address in endpoint.addresses {
                    let address: IpAddr =
                        address.parse().map_err(|_| "the address of an endpoint is not an IP address")?;
                    servers.insert(SocketAddr::new(address, port));
                }
            }
        }
        if servers.is_empty() {
            return Err("the list is empty".into());
        }
        let server = |address: SocketAddr| {
            let base = Url::parse(&format!("https://{SERVER_NAME}:{}", address.port())).ok()?;
            Some(ApiServer { base, address: Some(address) })
        };
        let all = servers.into_iter().map(server).collect::<Option<_>>();
        all.map(Self).ok_or_else(|| "the port of an endpoint is not valid in a URL".into())
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}"),
            None => f.write_str(self.base.as_str().trim_end_matches('/')),
        }
    }
}

/// The fields of a list of EndpointSlices. Fields that Kubernetes always sends are required.
#[derive(Deserialize)]
struct EndpointSliceList {
    kind: String,
    items: Vec<EndpointSlice>,
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

#[derive(Deserialize)]
struct EndpointSlice {
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct SliceEndpoint {
    addresses: Vec<String>,
}

#[derive(Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Cluster {
    pub(super) fn new(args: &UnusedArgs) -> Result<Self, String> {
        let named = match args.api_server.as_slice() {
            [] => vec![url_from_environment()?],
            urls => urls.to_vec(),
        };
        if named.iter().any(|url| url.scheme() != "https") {
            return Err("--api-server must begin with https://".into());
        }
        let read = |name: &str| {
            let path = args.service_account.join(name);
            fs::read(&path).map_err(|error: io::Error| {
                format!(
                    "cannot read {}: {error}; run this in a pod with a service account, or pass a directory \
                     with `ca.crt` and `token` in --service-account",
                    path.display()
                )
            })
        };
        let ca = Certificate::from_pem_bundle(&read("ca.crt")?)
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or("ca.crt contains no certificate in PEM format")?;
        let token = String::from_utf8(read("token")?).map_err(|_| "token is not UTF-8 text")?;
        let token = SecretString::from(token.trim().to_owned());
        Ok(Self { ca, discovery: !args.no_discovery, named, token })
    }

    /// Returns the API servers in the cluster's list and the named ones. Without discovery, returns only the named
    /// ones.
    pub(super) async fn servers(&self) -> Result<AllApiServers, CheckError> {
        let mut named = self.named.iter().map(|base| ApiServer { base: base.clone(), address: None });
        if !self.discovery {
            return Ok(AllApiServers(named.collect()));
        }
        let Some(first) = named.next() else {
            return Err(CheckError::InvalidInput("no API server is known".into()));
        };
        let unknown = |why: &str| {
            CheckError::Failed(format!(
                "the API servers of the cluster cannot be listed. kube-apiserver at {first} was asked for the \
                 EndpointSlices of the Service `kubernetes`: {why}. Alternatively, pass all API servers in \
                 --api-server, together with --no-discovery"
            ))
        };
        let answer = self.get(&first, SLICES_PATH).await?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                return Err(unknown(&format!(
                    "it refused ({status}): a Role in the namespace `default` must allow the verb `list` on \
                     `endpointslices` of the API group discovery.k8s.io"
                )));
            }
            status => return Err(unknown(&format!("it answered with {status}; try again later"))),
        }
        let body = read_body(answer, MAX_LIST_BYTES).await.map_err(|error| match error {
            Some(error) => no_answer(&first, &error),
            None => unknown("the answer is too long for a list"),
        })?;
        let mut all = AllApiServers::listed(&body).map_err(|why| unknown(&why))?;
        all.0.extend(named);
        Ok(all)
    }

    /// Requests the metrics of an API server about its plugins.
    pub(super) async fn plugin_metrics(&self, server: &ApiServer) -> Result<PluginMetrics, CheckError> {
        let unusable = |why: &str| {
            CheckError::Failed(format!(
                "it cannot be determined whether kube-apiserver at {server} uses this plugin: {why}"
            ))
        };
        let mut answer = self.get(server, "/metrics").await?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                return Err(CheckError::Failed(format!(
                    "kube-apiserver at {server} refused to show its metrics ({status}): a ClusterRole must allow the \
                     verb `get` on the nonResourceURL /metrics"
                )));
            }
            status => return Err(unusable(&format!("it answered /metrics with {status}"))),
        }
        // The timestamps in the metrics are from the clock of the API server, and so is this date.
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let now = date.and_then(http_date).ok_or_else(|| unusable("its answer has no Date header"))?;
        let (mut page, mut rest) = (PageReader::default(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|error| no_answer(server, &error))? {
            let mut lines = chunk.split(|byte| *byte == b'\n').peekable();
            while let Some(line) = lines.next() {
                rest.extend_from_slice(line);
                if lines.peek().is_some() {
                    page.line(&String::from_utf8_lossy(&rest)).map_err(unusable)?;
                    rest.clear();
                } else if rest.len() > MAX_LINE_BYTES {
                    return Err(unusable("the answer is not the metrics of a kube-apiserver"));
                }
            }
        }
        if !rest.is_empty() {
            return Err(unusable("its metrics end in the middle of a line"));
        }
        page.finish(now).map_err(unusable)
    }

    async fn get(&self, server: &ApiServer, path: &str) -> Result<Response, CheckError> {
        #[expect(clippy::disallowed_methods, reason = "the client uses no proxy")]
        let mut client = Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .tls_certs_only(self.ca.clone());
        if let Some(address) = server.address {
            client = client.resolve(SERVER_NAME, address);
        }
        let client = client.build().map_err(|error| CheckError::InvalidInput(root_cause(&error)))?;
        let url = server.base.join(path).map_err(|error| CheckError::InvalidInput(error.to_string()))?;
        let request = client.get(url).bearer_auth(self.token.expose_secret());
        request.send().await.map_err(|error| no_answer(server, &error))
    }
}

/// Returns the body.
///
/// # Errors
/// `None` if it is longer than `max_bytes`.
async fn read_body(mut answer: Response, max_bytes: usize) -> Result<Vec<u8>, Option<reqwest::Error>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(Some)? {
        body.extend_from_slice(&chunk);
        if body.len() > max_bytes {
            return Err(None);
        }
    }
    Ok(body)
}

/// Returns the URL of the API server in the environment of a pod.
fn url_from_environment() -> Result<Url, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
    else {
        return Err("no API server is known: run this in a pod, or pass --api-server".into());
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Url::parse(&format!("https://{host}:{port}")).map_err(|error| {
        format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not valid in a URL: {error}")
    })
}

fn no_answer(server: &ApiServer, error: &reqwest::Error) -> CheckError {
    CheckError::NoAnswer(format!(
        "kube-apiserver at {server} did not answer whether it still uses this plugin: {}",
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
        let all = AllApiServers::listed(list.to_string().as_bytes())?;
        Ok(all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn servers_of_all_slices_are_listed_once_also_if_not_ready() {
        let https = json!([{"name": "metrics", "port": 1}, {"name": "https", "port": 6443}]);
        let found = listed(&list(json!([
            slice(https.clone(), json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}])),
            slice(https, json!([{"addresses": ["10.0.0.1", "10.0.0.2"]}])),
            slice(json!([{"port": 443}]), json!([{"addresses": ["fd00::1"]}])),
            slice(Value::Null, Value::Null),
        ])));
        assert_eq!(found.unwrap(), ["10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:443"]);
    }

    /// An earlier version read a single server from each of these.
    #[test]
    fn an_incomplete_list_is_refused() {
        let one = json!([{"addresses": ["10.0.0.1"]}]);
        let mut part = list(json!([slice(json!([{"port": 443}]), one.clone())]));
        part["metadata"]["continue"] = "more".into();
        let mut other = list(json!([slice(json!([{"port": 443}]), one.clone())]));
        other["kind"] = "PodList".into();
        for (bad, says) in [
            (part, "a part of the list"),
            (other, "not a list of EndpointSlices"),
            (json!({"kind": "EndpointSlice", "endpoints": []}), "not a list of EndpointSlices"),
            (json!({"kind": "Status", "code": 200}), "not a list of EndpointSlices"),
            (list(Value::Null), "not a list of EndpointSlices"),
            (list(json!([])), "is empty"),
            (list(json!([slice(json!([{"port": 443}]), json!([]))])), "is empty"),
            (list(json!([slice(json!([]), one.clone())])), "no port"),
            (list(json!([slice(Value::Null, one.clone())])), "no port"),
            (list(json!([slice(json!([{"name": "https", "port": null}]), one.clone())])), "no port"),
            (list(json!([slice(json!([{"port": 1}, {"port": 2}]), one)])), "no port"),
            (list(json!([slice(json!([{"port": 443}]), json!([{"addresses": []}]))])), "no address"),
            (
                list(json!([slice(json!([{"port": 443}]), json!([{"addresses": ["api.example"]}]))])),
                "not an IP address",
            ),
        ] {
            let why = listed(&bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
        assert!(AllApiServers::listed(b"<html>please log in</html>").unwrap_err().contains("not a list"));
    }
}
