//! One node of Vault: connections to it, one exchange over them, and how it is doing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::{
    Client,
    dns::{Name, Resolve, Resolving},
    redirect, tls,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info};
use zeroize::Zeroizing;

use super::{
    failover::classify::{Place, is_ready},
    node_health::{Condition, Pace},
    tls::Transport,
};
use crate::{
    ErrorKind, TransitError,
    endpoint::{Address, TlsMaterial},
    text::root_cause,
};

/// How long a node may take to answer a health check, once it is connected.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Far more than any answer to us needs; a key read with thousands of versions has 100 KiB.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// Nobody is left alone for longer, whatever it asks for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

pub(super) const X_VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
pub(super) const X_VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// One address, or one of those that a name has.
pub(super) struct Node {
    /// What it is called in messages and metrics: the address of the config.
    pub(super) name: String,
    /// Tells it apart from the others of its pool.
    pub(super) id: usize,
    client: Client,
    /// What URLs begin with: the address, under the server name if one is set.
    base: String,
    /// Set if the URL's host is not the address's.
    host: Option<HeaderValue>,
    /// The address that its name has, if it has a name.
    pub(super) ip: Option<IpAddr>,
    /// The longest that a health check may take, with a new connection.
    longest_look: Duration,
    condition: Mutex<Condition>,
    /// Its condition has changed, or somebody waits.
    changed: Notify,
    mood: Arc<Mood>,
    transport: Transport,
}

/// What the nodes of a pool share.
#[derive(Debug, Default)]
pub(super) struct Mood {
    /// No node is well any more: have their names other addresses?
    pub(super) trouble: Notify,
    /// A node has come back.
    well: watch::Sender<()>,
    /// Callers that wait for that.
    pub(super) waiting: AtomicUsize,
}

impl Mood {
    /// There is a node that was not there before.
    pub(super) fn arrived(&self) {
        self.well.send_replace(());
    }

    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.well.subscribe()
    }
}

/// How connections to the nodes of a pool are made.
pub(super) struct Dialling {
    /// TLS included. A call does not wait so long for one node if there are others.
    pub(super) connect_timeout: Duration,
    pub(super) pace: Pace,
    /// The name that certificates must carry, if not the address's.
    pub(super) server_name: Option<String>,
    pub(super) tls: TlsMaterial,
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

impl Outgoing {
    /// Where it goes, for messages.
    pub(super) fn place(&self) -> Place<'_> {
        let namespace = self.headers.get(X_VAULT_NAMESPACE).and_then(|namespace| namespace.to_str().ok());
        Place { namespace, path: &self.path }
    }
}

/// An answer of Vault.
pub(super) struct Incoming {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// The id of the node that gave it.
    pub(super) node: usize,
    /// For how long the node wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// Why there was no answer.
pub(super) enum NoAnswer {
    /// The connection could not be made: nothing was sent.
    Connect(TransitError),
    /// The connection broke in the middle.
    Broken(TransitError),
    /// The deadline passed, or no request could be made.
    Final(TransitError),
    /// The answer is longer than any of Vault's.
    Unreadable(TransitError),
}

impl Node {
    /// Prepares connections to `address`, at `ip` if its host is a name; none is made yet.
    ///
    /// # Errors
    /// If certificates or keys cannot be used, with what to do about it.
    pub(super) fn new(
        address: &Address,
        ip: Option<IpAddr>,
        id: usize,
        dialling: &Dialling,
        mood: Arc<Mood>,
    ) -> Result<Self, TransitError> {
        let url = address.url();
        #[expect(clippy::disallowed_methods, reason = "no proxy is heeded")]
        let builder = Client::builder()
            .user_agent(concat!("transit-kms/", env!("CARGO_PKG_VERSION")))
            // A redirect leads to another host, and the token would go with it.
            .redirect(redirect::Policy::none())
            .referer(false)
            // Where tokens are sent is decided by the config file alone.
            .no_proxy()
            .tls_version_min(tls::Version::TLS_1_2)
            .http1_only()
            .connect_timeout(dialling.connect_timeout)
            .pool_idle_timeout(dialling.pace.idle)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15));

        let transport = Transport::new(url, &dialling.tls);
        let mut builder = transport.equip(builder, &dialling.tls)?;

        let mut base = url.as_str().trim_end_matches('/').to_owned();
        let mut host = None;
        let mut to = ip;
        if let Some(server_name) = &dialling.server_name {
            let mut named = url.clone();
            named
                .set_host(Some(server_name))
                .map_err(|_| unusable("vault.tls.server_name is not a host name"))?;
            to = to.or_else(|| literal(address));
            base = named.as_str().trim_end_matches('/').to_owned();
            host = HeaderValue::from_str(url.authority()).ok();
        }
        if let Some(to) = to {
            builder = builder.dns_resolver(Arc::new(Pinned { to }));
        }
        let client = builder.build().map_err(|error| transport.unusable(&error))?;
        let condition = Mutex::new(Condition::new(dialling.pace, Instant::now()));
        Ok(Self {
            name: address.to_string(),
            id,
            client,
            base,
            host,
            ip,
            longest_look: dialling.connect_timeout + LONGEST_LOOK,
            condition,
            changed: Notify::new(),
            mood,
            transport,
        })
    }

    /// One request, one answer.
    pub(super) async fn exchange(
        &self,
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Incoming, NoAnswer> {
        self.condition().used(Instant::now());
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
            let retry_after = retry_after(response.headers());
            let body = self.read(response).await?;
            Ok(Incoming { status, body, node: self.id, retry_after })
        };
        timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            let message =
                format!("Vault at {} did not answer in time: is it overloaded or frozen?", self.name);
            Err(NoAnswer::Final(TransitError::new(ErrorKind::DeadlineExceeded, message)))
        })
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
        let too_long = || {
            let message = format!(
                "Vault at {} answered with more than {MAX_RESPONSE_BYTES} bytes: is something else listening there?",
                self.name
            );
            NoAnswer::Unreadable(TransitError::new(ErrorKind::InvalidResponse, message))
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
        let why = self.transport.explain(error);
        let message = format!("Vault at {} cannot be reached: {why}", self.name);
        let error_of_ours = TransitError::new(ErrorKind::Unreachable, message);
        if error.is_connect() {
            NoAnswer::Connect(error_of_ours)
        } else if error.is_builder() {
            NoAnswer::Final(TransitError::new(
                ErrorKind::InvalidResponse,
                format!("no request can be made: {}", root_cause(error)),
            ))
        } else {
            NoAnswer::Broken(error_of_ours)
        }
    }

    /// See [`Condition::is_well`].
    pub(super) fn is_well(&self) -> bool {
        self.condition().is_well()
    }

    /// See [`Condition::is_ejected`].
    pub(super) fn is_ejected(&self) -> bool {
        self.condition().is_ejected()
    }

    /// See [`Condition::is_on_trial`].
    pub(super) fn is_on_trial(&self) -> bool {
        self.condition().is_on_trial()
    }

    /// Whether one more call may be sent to it.
    pub(super) fn is_ready(&self) -> bool {
        let condition = self.condition();
        condition.is_well() || condition.has_free_trial()
    }

    /// See [`Condition::take_trial`].
    #[must_use]
    pub(super) fn take_trial(&self) -> bool {
        self.condition().take_trial()
    }

    /// See [`Condition::return_trial`]; callers wait for it.
    pub(super) fn return_trial(&self) {
        self.condition().return_trial();
        self.mood.arrived();
    }

    /// See [`Condition::away_since`].
    pub(super) fn away_since(&self) -> Option<Instant> {
        self.condition().away_since()
    }

    /// See [`Condition::not_before`].
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.condition().not_before()
    }

    /// See [`Condition::why_away`].
    pub(super) fn why_away(&self) -> Option<(Instant, TransitError)> {
        self.condition().why_away()
    }

    /// It gave an answer that speaks for it.
    pub(super) fn answered(&self) {
        let back = {
            let mut condition = self.condition();
            let back = !condition.is_well();
            condition.answered();
            back
        };
        if back {
            info!(node = self.name, ip = self.ip.map(display), "a Vault node is back");
            self.back();
        }
    }

    /// It failed, and wants to be left alone for `pause`, or not.
    pub(super) fn failed(&self, error: &TransitError, pause: Option<Duration>) {
        let news = {
            let mut condition = self.condition();
            let news = !condition.is_ejected();
            condition.failed(Instant::now(), error, pause.map(|pause| pause.min(LONGEST_RETRY_AFTER)));
            news
        };
        if news {
            debug!(node = self.name, ip = self.ip.map(display), %error, "a Vault node is left alone for a while");
            self.changed.notify_one();
        }
    }

    /// Somebody waits for it to come back.
    pub(super) fn awaited(&self) {
        self.changed.notify_one();
    }

    fn back(&self) {
        self.mood.arrived();
        self.changed.notify_one();
    }

    /// Keeps a connection warm while it is well, and looks whether it is back while it is not; for
    /// ever.
    pub(super) async fn care(self: Arc<Self>) {
        // An answer of whatever status costs a lookup of the seal's state only, and no token.
        let mut headers = HeaderMap::new();
        headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
        let look = Outgoing { method: Method::GET, path: "sys/health".into(), headers, body: Bytes::new() };
        loop {
            let due = self.condition().next_look(self.mood.waiting.load(Ordering::Relaxed) > 0);
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.changed.notified() => continue,
            }
            let error = match self.exchange(&look, Instant::now() + self.longest_look).await {
                Ok(incoming) if is_ready(incoming.status, &incoming.body) => {
                    let back = {
                        let mut condition = self.condition();
                        let back = condition.is_ejected();
                        condition.looked_ready();
                        back
                    };
                    if back {
                        debug!(
                            node = self.name,
                            ip = self.ip.map(display),
                            "a Vault node can be asked again"
                        );
                        self.back();
                    }
                    continue;
                }
                Ok(incoming) => self.unready(incoming.status),
                // Kept connections may be closed under our hands.
                Err(NoAnswer::Broken(_)) if !self.is_ejected() => continue,
                Err(
                    NoAnswer::Broken(error)
                    | NoAnswer::Connect(error)
                    | NoAnswer::Final(error)
                    | NoAnswer::Unreadable(error),
                ) => error,
            };
            self.failed(&error, None);
        }
    }

    /// What its health says, in the words that its other answers have.
    fn unready(&self, status: u16) -> TransitError {
        let why = match status {
            200 | 429 | 473 => ", but not in Vault's words: is a proxy in between?",
            472 => {
                ": it is a secondary for disaster recovery: name the nodes of the primary in vault.addresses"
            }
            501 => ": Vault is not initialized: initialize it, or correct the address",
            503 => ": Vault is sealed: unseal it",
            _ => ": is a proxy in between? Otherwise Vault's own log says why",
        };
        TransitError::new(
            ErrorKind::Unreachable,
            format!("the health of Vault at {} is {status}{why}", self.name),
        )
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The IP address that stands in `address` instead of a name.
pub(super) fn literal(address: &Address) -> Option<IpAddr> {
    match address.url().host()? {
        url::Host::Domain(_) => None,
        url::Host::Ipv4(ip) => Some(ip.into()),
        url::Host::Ipv6(ip) => Some(ip.into()),
    }
}

/// Vault gives seconds; a date is taken for nothing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Resolves every name to one address, at once: connections go there, certificates are checked
/// for the name that was asked for, and no call waits for a resolver.
struct Pinned {
    to: IpAddr,
}

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        // Port 0 stands for the port of the URL.
        let found = SocketAddr::new(self.to, 0);
        Box::pin(async move {
            Ok(Box::new(std::iter::once(found)) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

fn unusable(message: impl Into<String>) -> TransitError {
    TransitError::new(ErrorKind::Config, message)
}
