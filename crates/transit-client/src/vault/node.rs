//! One node of Vault: its connections, one HTTP exchange over them, and its health checks.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use error_text::root_cause;
use http::{HeaderMap, HeaderValue, Method, header};
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
    exchange::{ExchangeError, HttpRequest, HttpResponse, X_VAULT_REQUEST, inline_auth_failed},
    failover::TokenSource,
    failover::classify::is_ready,
    node_health::{NodeHealth, Timings},
    tls::Transport,
};
use crate::{
    ErrorKind, TransitError,
    endpoint::{Address, TlsMaterial},
};

/// How long a node may take to answer a health check once it is connected. A node that is slower would be
/// too slow for calls.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest response that is read. The longest useful one, the description of a key with thousands of
/// versions, has about 100 KiB.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// The longest pause that a node gets, even if its `Retry-After` is longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// A configured address, or one IP address of a configured name.
pub(super) struct Node {
    /// The configured address: the name of the node in messages and metrics.
    pub(super) name: String,
    /// Unique in its pool.
    pub(super) id: usize,
    /// The IP address that the configured name resolves to; `None` if an IP address or a socket is configured.
    pub(super) ip: Option<IpAddr>,
    /// URLs begin with it. It is the configured address, with the server name as host if one is set.
    base_url: String,
    /// Wakes the health checks: the health has changed, or callers wait.
    check_now: Notify,
    client: Client,
    health: Mutex<NodeHealth>,
    /// The longest that a health check may take if it needs a new connection.
    health_check_timeout: Duration,
    /// The header `Host`, if it differs from the host of the URL.
    host: Option<HeaderValue>,
    /// An agent or a proxy listens on the unix socket.
    is_agent: bool,
    signals: Arc<PoolSignals>,
    transport: Transport,
}

/// Signals between the nodes of a pool, the callers that wait, and the tasks that resolve names.
#[derive(Debug, Default)]
pub(super) struct PoolSignals {
    /// No node is healthy any more: the names are resolved again at once, because their addresses may have
    /// changed.
    pub(super) no_healthy_node: Notify,
    /// The number of callers that wait for a node. Health checks follow sooner while there are any.
    pub(super) waiting_callers: AtomicUsize,
    node_ready: watch::Sender<()>,
}

impl PoolSignals {
    /// Wakes the callers that wait: a node may be sent a call.
    pub(super) fn notify_node_ready(&self) {
        self.node_ready.send_replace(());
    }

    /// Resolves on the next [`Self::notify_node_ready`].
    pub(super) fn node_ready(&self) -> watch::Receiver<()> {
        self.node_ready.subscribe()
    }
}

/// How the nodes of a pool are connected to.
pub(super) struct ConnectionSettings {
    /// For a new connection, TLS included.
    pub(super) connect_timeout: Duration,
    /// The name that certificates must carry, if it is not the host of the address.
    pub(super) server_name: Option<String>,
    pub(super) timings: Timings,
    pub(super) tls: TlsMaterial,
}

impl Node {
    /// Prepares connections to `address`, at `ip` if its host is a name. It establishes none.
    ///
    /// # Errors
    /// If a certificate or key cannot be used. The message says what to do.
    pub(super) fn new(
        address: &Address,
        ip: Option<IpAddr>,
        id: usize,
        settings: &ConnectionSettings,
        signals: Arc<PoolSignals>,
    ) -> Result<Self, TransitError> {
        let url = address.url();
        #[expect(clippy::disallowed_methods, reason = "the client uses no proxy: see no_proxy below")]
        let builder = Client::builder()
            .user_agent(concat!("transit-kms/", env!("CARGO_PKG_VERSION")))
            // A redirect leads to another host, and the token would go there.
            .redirect(redirect::Policy::none())
            .referer(false)
            // Only the config decides where tokens are sent, and not HTTPS_PROXY.
            .no_proxy()
            .tls_version_min(tls::Version::TLS_1_2)
            .http1_only()
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(settings.timings.idle_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15));

        let transport = Transport::new(address, &settings.tls);
        let mut builder = transport.configure(builder, &settings.tls)?;

        let mut base_url = url.as_str().trim_end_matches('/').to_owned();
        let mut host = None;
        let mut pinned_to = ip;
        if let Some(socket) = address.socket() {
            builder = builder.unix_socket(socket);
        } else if let Some(server_name) = &settings.server_name {
            let mut named = url.clone();
            named
                .set_host(Some(server_name))
                .map_err(|_| config_error("vault.tls.server_name is not a host name"))?;
            pinned_to = pinned_to.or_else(|| literal_ip(address));
            base_url = named.as_str().trim_end_matches('/').to_owned();
            host = HeaderValue::from_str(url.authority()).ok();
        }
        if let Some(ip) = pinned_to {
            builder = builder.dns_resolver(Arc::new(PinnedResolver { ip }));
        }
        let client = builder.build().map_err(|error| transport.client_error(error))?;
        Ok(Self {
            name: address.to_string(),
            id,
            ip,
            base_url,
            check_now: Notify::new(),
            client,
            health: Mutex::new(NodeHealth::new(settings.timings, Instant::now())),
            health_check_timeout: settings.connect_timeout + HEALTH_CHECK_TIMEOUT,
            host,
            is_agent: address.socket().is_some(),
            signals,
            transport,
        })
    }

    /// Sends one request and reads its response.
    pub(super) async fn exchange(
        &self,
        request: &HttpRequest,
        deadline: Instant,
    ) -> Result<HttpResponse, ExchangeError> {
        self.health().request_sent(Instant::now());
        let url = format!("{}/v1/{}", self.base_url, request.path);
        let mut builder = self
            .client
            .request(request.method.clone(), url)
            .headers(request.headers.clone())
            .body(request.body.clone());
        if let Some(host) = &self.host {
            builder = builder.header(header::HOST, host);
        }
        let exchange = async {
            let response = builder.send().await.map_err(|error| self.exchange_error(error))?;
            let status = response.status().as_u16();
            let retry_after = retry_after(response.headers());
            let inline_auth_failed = inline_auth_failed(response.headers());
            let body = self.read_body(response).await?;
            Ok(HttpResponse { status, body, inline_auth_failed, node: self.id, retry_after })
        };
        timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            let message = format!("Vault at {} did not answer in time: {}", self.name, self.silence_hint());
            let error = TransitError::new(ErrorKind::DeadlineExceeded, message);
            Err(ExchangeError::DeadlineExceeded(error))
        })
    }

    async fn read_body(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, ExchangeError> {
        let too_long = || {
            let message = format!(
                "Vault at {} answered with more than {MAX_RESPONSE_BYTES} bytes: is something else listening there?",
                self.name
            );
            ExchangeError::ResponseTooLong(TransitError::new(ErrorKind::InvalidResponse, message))
        };
        let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
        if announced > MAX_RESPONSE_BYTES {
            return Err(too_long());
        }
        // Allocated once: a vector that grows leaves copies of secrets in memory that is not wiped.
        let mut body = Zeroizing::new(Vec::with_capacity(announced.max(4096)));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.exchange_error(error))? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The error keeps its source, which has neither headers nor bodies, and so no secrets. The URL is removed:
    /// the message names the address.
    fn exchange_error(&self, error: reqwest::Error) -> ExchangeError {
        let is_connect = error.is_connect();
        if error.is_builder() {
            let message = format!("no request can be made: {}", root_cause(&error));
            let unusable = TransitError::new(ErrorKind::InvalidResponse, message);
            return ExchangeError::Unusable(unusable.with_source(error.without_url()));
        }
        let message = format!("Vault at {} cannot be reached: {}", self.name, self.transport.explain(&error));
        let unreachable = TransitError::new(ErrorKind::Unreachable, message).with_source(error.without_url());
        if is_connect { ExchangeError::Connect(unreachable) } else { ExchangeError::Broken(unreachable) }
    }

    /// What to look at while it does not answer. An agent is silent while it tries to reach Vault.
    pub(super) const fn silence_hint(&self) -> &'static str {
        if self.is_agent { "does the agent reach Vault?" } else { "is it overloaded or frozen?" }
    }

    /// See [`NodeHealth::is_healthy`].
    pub(super) fn is_healthy(&self) -> bool {
        self.health().is_healthy()
    }

    /// See [`NodeHealth::is_ejected`].
    pub(super) fn is_ejected(&self) -> bool {
        self.health().is_ejected()
    }

    /// See [`NodeHealth::is_on_trial`].
    pub(super) fn is_on_trial(&self) -> bool {
        self.health().is_on_trial()
    }

    /// Whether the node may be sent one more call: it is healthy, or its trial is free.
    pub(super) fn is_ready(&self) -> bool {
        let health = self.health();
        health.is_healthy() || health.has_free_trial()
    }

    /// See [`NodeHealth::take_trial`].
    #[must_use]
    pub(super) fn take_trial(&self) -> bool {
        self.health().take_trial()
    }

    /// See [`NodeHealth::return_trial`]; wakes the callers that wait for the trial.
    pub(super) fn return_trial(&self) {
        self.health().return_trial();
        self.signals.notify_node_ready();
    }

    /// See [`NodeHealth::failing_since`].
    pub(super) fn failing_since(&self) -> Option<Instant> {
        self.health().failing_since()
    }

    /// See [`NodeHealth::not_before`].
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.health().not_before()
    }

    /// See [`NodeHealth::last_failure`].
    pub(super) fn last_failure(&self) -> Option<(Instant, TransitError)> {
        self.health().last_failure()
    }

    /// Notes that the node answered a call as Vault does.
    pub(super) fn succeeded(&self) {
        let was_unhealthy = {
            let mut health = self.health();
            let was_unhealthy = !health.is_healthy();
            health.succeeded();
            was_unhealthy
        };
        if was_unhealthy {
            info!(node = self.name, ip = self.ip.map(display), "a Vault node is back");
            self.notify_ready();
        }
    }

    /// Ejects the node: it failed with `error`, and asked for a pause of `retry_after`.
    pub(super) fn failed(&self, error: &TransitError, retry_after: Option<Duration>) {
        let newly_ejected = {
            let mut health = self.health();
            let newly_ejected = !health.is_ejected();
            health.failed(Instant::now(), error, retry_after.map(|pause| pause.min(MAX_RETRY_AFTER)));
            newly_ejected
        };
        if newly_ejected {
            debug!(node = self.name, ip = self.ip.map(display), %error, "a Vault node was ejected");
            self.check_now.notify_one();
        }
    }

    /// Notes that a caller waits: the next health check may be due sooner.
    pub(super) fn awaited(&self) {
        self.check_now.notify_one();
    }

    fn notify_ready(&self) {
        self.signals.notify_node_ready();
        self.check_now.notify_one();
    }

    /// The health-check task of the node; it never returns. It keeps a connection open while the node is
    /// healthy, and finds out whether it works again while it is ejected.
    pub(super) async fn run_health_checks(self: Arc<Self>) {
        // Vault answers it from the state of its seal, and needs no token for that.
        let mut headers = HeaderMap::new();
        headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
        let request = HttpRequest {
            method: Method::GET,
            path: "sys/health".into(),
            headers,
            body: Bytes::new(),
            token_source: TokenSource::Rendered,
        };
        loop {
            let awaited = self.signals.waiting_callers.load(Ordering::Relaxed) > 0;
            let due = self.health().next_health_check(awaited);
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.check_now.notified() => continue,
            }
            let error = match self.exchange(&request, Instant::now() + self.health_check_timeout).await {
                Ok(response) if is_ready(response.status, &response.body) => {
                    self.passed_health_check();
                    continue;
                }
                Ok(response) => self.not_ready(response.status),
                // The server may close an idle connection while the request is sent: that is no failure.
                Err(ExchangeError::Broken(_)) if !self.is_ejected() => continue,
                Err(error) => error.into_error(),
            };
            self.failed(&error, None);
        }
    }

    fn passed_health_check(&self) {
        let was_ejected = {
            let mut health = self.health();
            let was_ejected = health.is_ejected();
            health.passed_health_check();
            was_ejected
        };
        if was_ejected {
            debug!(
                node = self.name,
                ip = self.ip.map(display),
                "an ejected Vault node passed a health check"
            );
            self.notify_ready();
        }
    }

    /// The error for a health check that was answered with `status`.
    fn not_ready(&self, status: u16) -> TransitError {
        let why = match status {
            200 | 429 | 473 => ", but the answer is not Vault's: is a proxy in between?",
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

    fn health(&self) -> MutexGuard<'_, NodeHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The IP address in `address`; `None` if it has a name instead, or is a unix socket.
pub(super) fn literal_ip(address: &Address) -> Option<IpAddr> {
    match address.host()? {
        url::Host::Domain(_) => None,
        url::Host::Ipv4(ip) => Some(ip.into()),
        url::Host::Ipv6(ip) => Some(ip.into()),
    }
}

/// The header `Retry-After` in seconds, as Vault sends it. A date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Resolves every name to one address. Connections go to that address, certificates are checked against the
/// name in the URL, and no call waits for a resolver.
struct PinnedResolver {
    ip: IpAddr,
}

impl Resolve for PinnedResolver {
    fn resolve(&self, _: Name) -> Resolving {
        // Port 0 means the port of the URL.
        let address = SocketAddr::new(self.ip, 0);
        Box::pin(async move {
            Ok(Box::new(std::iter::once(address)) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

fn config_error(message: impl Into<String>) -> TransitError {
    TransitError::new(ErrorKind::Config, message)
}
