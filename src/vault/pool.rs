//! Connections to Vault: one keep-alive pool for each address, and one exchange over it.
//!
//! A pool lives as long as addresses and TLS settings stay the same; sessions come and
//! go on it, so a new token costs no handshake.

use std::{net::SocketAddr, sync::atomic::AtomicUsize, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{
    Certificate, Client, Identity,
    dns::{Name, Resolve, Resolving},
    redirect, tls,
};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::{
    config::{Address, Reading},
    kms::{Fault, TransitError},
    observe::root_cause,
};

/// A node that does not answer a SYN or a hello by then is taken for dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Below the idle timeouts of usual load balancers, above our probe interval.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Far more than any answer to us needs; a key read with thousands of versions has 100 KiB.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// The addresses of one Vault, with their connections.
pub(super) struct Pool {
    pub(super) nodes: Vec<Node>,
    /// Index of the node that answered last; the next call begins there.
    pub(super) preferred: AtomicUsize,
}

/// One address.
pub(super) struct Node {
    pub(super) address: Address,
    client: Client,
    /// What URLs begin with: the address, under the server name if one is set.
    base: String,
    /// Set if the URL's host is not the address's.
    host: Option<HeaderValue>,
}

/// A request to Vault, before it is known which node gets it.
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// Without `/v1/`.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Wiped when the last reference is gone.
    pub(super) body: Bytes,
}

/// An answer of Vault.
pub(super) struct Incoming {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Why there was no answer.
pub(super) enum NoAnswer {
    /// The connection could not be made: nothing was sent.
    Connect(TransitError),
    /// The connection broke in the middle.
    Broken(TransitError),
    /// The deadline passed, or the answer was not to be read.
    Final(TransitError),
}

impl Pool {
    /// Prepares connections; none is made yet.
    ///
    /// # Errors
    /// If certificates or keys cannot be used, with what to do about it.
    pub(super) fn new(reading: &Reading) -> Result<Self, TransitError> {
        let nodes = reading
            .config
            .addresses
            .iter()
            .map(|address| Node::new(address, reading))
            .collect::<Result<_, _>>()?;
        Ok(Self { nodes, preferred: AtomicUsize::new(0) })
    }
}

impl Node {
    fn new(address: &Address, reading: &Reading) -> Result<Self, TransitError> {
        let url = address.url();
        let mut builder = Client::builder()
            .user_agent(concat!("transit-kms/", env!("CARGO_PKG_VERSION")))
            // A redirect leads to another host, and the token would go with it.
            .redirect(redirect::Policy::none())
            .referer(false)
            // Where tokens are sent is decided by the config file alone.
            .no_proxy()
            .https_only(url.scheme() == "https")
            .tls_version_min(tls::Version::TLS_1_2)
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15));

        if url.scheme() == "http" {
            // Else the system's certificates are loaded, which a bare image does not have.
            builder = builder.tls_certs_only([]);
        } else if let Some(pem) = &reading.tls.ca {
            let certificates = Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| unusable("vault.tls.ca_file holds no certificate in PEM form"))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let (Some(certificate), Some(key)) = (&reading.tls.client_cert, &reading.tls.client_key) {
            let mut pem = Zeroizing::new(Vec::with_capacity(certificate.len() + key.len() + 1));
            pem.extend_from_slice(certificate);
            pem.push(b'\n');
            pem.extend_from_slice(key);
            let identity = Identity::from_pem(&pem).map_err(|_| {
                unusable("vault.tls.client_cert_file and client_key_file do not hold a certificate and a key in PEM form")
            })?;
            builder = builder.identity(identity);
        }

        let mut base = url.as_str().trim_end_matches('/').to_owned();
        let mut host = None;
        if let Some(server_name) = &reading.config.tls.server_name {
            let mut named = url.clone();
            named
                .set_host(Some(server_name))
                .map_err(|_| unusable("vault.tls.server_name is not a host name"))?;
            if !matches!(named.host(), Some(url::Host::Domain(_))) {
                return Err(unusable("vault.tls.server_name must be a name, not an IP address"));
            }
            let to = url.host_str().unwrap_or_default();
            // An IPv6 literal stands in brackets in a URL, and without them in a socket address.
            let to = to.trim_start_matches('[').trim_end_matches(']').to_owned();
            let authority = url.authority().to_owned();
            base = named.as_str().trim_end_matches('/').to_owned();
            host = HeaderValue::from_str(&authority).ok();
            builder = builder.dns_resolver(std::sync::Arc::new(Elsewhere { to }));
        }
        let client = builder.build().map_err(|error| {
            unusable(format!("no TLS client can be made: {}; is vault.tls.ca_file set?", root_cause(&error)))
        })?;
        Ok(Self { address: address.clone(), client, base, host })
    }

    /// One request, one answer.
    pub(super) async fn exchange(
        &self,
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, NoAnswer> {
        let url = format!("{}/v1/{}", self.base, outgoing.path);
        let mut request = self
            .client
            .request(outgoing.method.clone(), url)
            .headers(outgoing.headers.clone())
            .body(outgoing.body.clone());
        if let Some(host) = &self.host {
            request = request.header(header::HOST, host);
        }
        let exchange = async {
            let response = request.send().await.map_err(|error| self.no_answer(&error))?;
            let status = response.status().as_u16();
            let body = self.read(response).await?;
            Ok(Incoming { status, body })
        };
        timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            let message = format!("Vault at {} did not answer in time", self.address);
            Err(NoAnswer::Final(TransitError::new(Fault::DeadlineExceeded, message)))
        })
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
        let too_long = || {
            let message =
                format!("Vault at {} answered with more than {MAX_RESPONSE_BYTES} bytes", self.address);
            NoAnswer::Final(TransitError::new(Fault::Nonsense, message))
        };
        let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
        if announced > MAX_RESPONSE_BYTES {
            return Err(too_long());
        }
        // Of the right size at once: a vector that grows leaves copies behind.
        let mut body = Zeroizing::new(Vec::with_capacity(announced.max(4096)));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.no_answer(&error))? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn no_answer(&self, error: &reqwest::Error) -> NoAnswer {
        let cause = root_cause(error);
        let remedy = remedy(&cause);
        let message = format!("Vault at {} cannot be reached: {cause}{remedy}", self.address);
        let error_of_ours = TransitError::new(Fault::Unreachable, message);
        if error.is_connect() {
            NoAnswer::Connect(error_of_ours)
        } else if error.is_builder() {
            NoAnswer::Final(TransitError::new(
                Fault::Nonsense,
                format!("no request can be made: {}", root_cause(error)),
            ))
        } else {
            NoAnswer::Broken(error_of_ours)
        }
    }
}

/// Resolves every name to one host: connections go there, certificates are checked
/// for the name that was asked for.
struct Elsewhere {
    to: String,
}

impl Resolve for Elsewhere {
    fn resolve(&self, _: Name) -> Resolving {
        let to = self.to.clone();
        Box::pin(async move {
            // Port 0 stands for the port of the URL.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((to, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

fn unusable(message: impl Into<String>) -> TransitError {
    TransitError::new(Fault::Denied, message)
}

/// What to do about a cause in the words of rustls, if it is one of those that a config brings
/// about. They are only words: `io::Error` hides the type from those who look along the chain.
fn remedy(cause: &str) -> &'static str {
    if cause.contains("UnknownIssuer") {
        ": vault.tls.ca_file must hold the authority of Vault's certificate"
    } else if cause.contains("not valid for name") {
        ": set vault.tls.server_name to a name in Vault's certificate"
    } else if cause.contains("CertificateRequired") {
        ": Vault asks for vault.tls.client_cert_file and client_key_file"
    } else {
        ""
    }
}
