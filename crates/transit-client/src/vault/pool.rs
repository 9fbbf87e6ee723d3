//! The nodes of one Vault, with their connections: who they are, and who is asked first.
//!
//! A pool lives as long as addresses and TLS settings stay the same; sessions come and
//! go on it, so a new token costs no handshake. A name with several addresses is several nodes.
//! Names are resolved in the background, and what was found last stays until there is better.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub(super) use super::node::{Incoming, NoAnswer, Node, Outgoing};
use super::{
    failover::{
        budget::{Budget, Limits},
        hedge::Hedge,
    },
    lease::jittered,
    node::{Dialling, Mood, literal},
    node_health::Pace,
    resolver::{Resolver, System},
};
use crate::{
    ErrorKind, TransitError,
    endpoint::{Address, Endpoint},
};

/// How long a new pool waits for the addresses of its names; those that are late come later.
const FIRST_RESOLUTION: Duration = Duration::from_secs(2);
/// Between two resolutions, whatever the trouble.
const LEAST_RESOLVE_PAUSE: Duration = Duration::from_secs(1);

/// The nodes of one Vault.
pub struct Pool {
    /// Pays for the extra requests of candidates and of token care, apart from those of calls.
    pub(super) background: Budget,
    /// Pays for the extra requests of calls.
    pub(super) budget: Budget,
    pub(super) hedge: Hedge,
    /// A session in use is on it.
    in_use: AtomicBool,
    /// The node that answered last; the next call begins there.
    preferred: AtomicUsize,
    roll: Arc<Roll>,
    /// One task for each name.
    _resolving: JoinSet<()>,
}

/// Who belongs to the pool.
struct Roll {
    dialling: Dialling,
    members: RwLock<Vec<Member>>,
    mood: Arc<Mood>,
    next_id: AtomicUsize,
}

struct Member {
    /// Index of its address in the config.
    site: usize,
    node: Arc<Node>,
    _care: AbortOnDropHandle<()>,
}

impl Pool {
    /// Prepares connections; names are resolved, the rest is left to the first call.
    ///
    /// # Errors
    /// If certificates or keys cannot be used, or if no name has an address.
    pub async fn new(endpoint: &Endpoint) -> Result<Self, TransitError> {
        Self::with(endpoint, Pace::default(), Arc::new(System)).await
    }

    pub(super) async fn with(
        endpoint: &Endpoint,
        pace: Pace,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, TransitError> {
        let dialling = Dialling {
            connect_timeout: endpoint.connect_timeout,
            pace,
            server_name: endpoint.server_name.clone(),
            tls: endpoint.tls.clone(),
        };
        let roll = Arc::new(Roll {
            dialling,
            members: RwLock::default(),
            mood: Arc::default(),
            next_id: AtomicUsize::new(0),
        });
        let mut names = Vec::new();
        let mut first = JoinSet::new();
        for (site, address) in endpoint.addresses.iter().enumerate() {
            match address.url().host() {
                Some(url::Host::Domain(host)) => {
                    let (host, resolver) = (host.to_owned(), Arc::clone(&resolver));
                    names.push((site, address.clone(), host.clone()));
                    first.spawn(async move {
                        (
                            site,
                            timeout(FIRST_RESOLUTION, resolver.resolve(&host))
                                .await
                                .unwrap_or_else(|_| Err(late())),
                        )
                    });
                }
                _ => roll.settle(site, address, &[literal(address)])?,
            }
        }
        let mut unresolved = None;
        while let Some(resolved) = first.join_next().await {
            let Ok((site, found)) = resolved else { continue };
            let Some((_, address, host)) = names.iter().find(|(of, ..)| *of == site) else { continue };
            match found {
                Ok(found) => roll.settle(site, address, &somewhere(&found))?,
                Err(error) => {
                    unresolved = Some(format!(
                        "`{host}` cannot be resolved: {error}; correct the address, or look at the DNS of this \
                         node (/etc/resolv.conf; a pod with hostNetwork has the node's)"
                    ));
                }
            }
        }
        if let Some(message) = unresolved.filter(|_| roll.nodes().is_empty()) {
            return Err(TransitError::new(ErrorKind::Unreachable, message));
        }
        let mut resolving = JoinSet::new();
        for (site, address, host) in names {
            resolving.spawn(Arc::clone(&roll).keep_resolving(site, address, host, Arc::clone(&resolver)));
        }
        Ok(Self {
            background: Budget::new(Limits::RETRIES),
            budget: Budget::new(Limits::RETRIES),
            hedge: Hedge::new(),
            in_use: AtomicBool::new(false),
            preferred: AtomicUsize::new(0),
            roll,
            _resolving: resolving,
        })
    }

    /// The addresses of its nodes, and whether a node behind each gets calls because it is not ejected.
    #[must_use]
    pub fn health(&self) -> Vec<(String, bool)> {
        let mut up = BTreeMap::new();
        for node in self.nodes() {
            *up.entry(node.name.clone()).or_default() |= !node.is_ejected();
        }
        up.into_iter().collect()
    }

    /// Live calls depend on the health of its nodes from now on.
    pub(super) fn mark_in_use(&self) {
        self.in_use.store(true, Ordering::Relaxed);
    }

    /// Whether live calls depend on the health of its nodes.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// All nodes: those that are well first, and among them the one that answered last.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.roll.nodes();
        let preferred = self.preferred.load(Ordering::Relaxed);
        if let Some(first) = nodes.iter().position(|node| node.id == preferred) {
            nodes.rotate_left(first);
        }
        // Stable, so that the order stays the same within the two.
        nodes.sort_by_key(|node| !node.is_well());
        nodes
    }

    /// As [`Pool::nodes`], without those that are ejected or on trial.
    pub(super) fn well(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_well());
        nodes
    }

    /// As [`Pool::nodes`], without those that may not be sent a further call now.
    pub(super) fn ready(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_ready());
        nodes
    }

    /// Whether a node is on trial: its outcome is worth waiting for.
    pub(super) fn has_trial(&self) -> bool {
        self.roll.nodes().iter().any(|node| node.is_on_trial())
    }

    /// The ids of all nodes, and whether each is well.
    pub(super) fn members(&self) -> Vec<(usize, bool)> {
        self.roll.nodes().iter().map(|node| (node.id, node.is_well())).collect()
    }

    /// How long no node has been well.
    pub(super) fn outage(&self) -> Option<Duration> {
        let away: Option<Vec<Instant>> = self.roll.nodes().iter().map(|node| node.away_since()).collect();
        Some(away?.into_iter().max()?.elapsed())
    }

    /// The node did what was asked for.
    pub(super) fn answered(&self, node: &Node) {
        node.answered();
        self.prefer(node);
        self.budget.earn();
        self.hedge.earn();
    }

    /// The node is asked first from now on.
    pub(super) fn prefer(&self, node: &Node) {
        self.preferred.store(node.id, Ordering::Relaxed);
    }

    /// The node failed.
    pub(super) fn failed(&self, node: &Node, error: &TransitError, pause: Option<Duration>) {
        node.failed(error, pause);
        if self.well().is_empty() {
            self.roll.mood.trouble.notify_waiters();
        }
    }

    /// Why the node that failed last did.
    pub(super) fn why_away(&self) -> TransitError {
        let nodes = self.roll.nodes();
        let reasons = nodes.iter().filter_map(|node| node.why_away());
        reasons.max_by_key(|(when, _)| *when).map_or_else(
            || {
                TransitError::new(
                    ErrorKind::Unreachable,
                    "no node of Vault can be asked: look at vault.addresses and the log",
                )
            },
            |(_, error)| error,
        )
    }

    /// Waits until a node may be sent a call; false if none may until then.
    pub(super) async fn wait_for_a_node(&self, until: Instant) -> bool {
        let mood = &self.roll.mood;
        let mut changes = mood.watch();
        let _waiting = Waiting::new(mood);
        let nodes = self.roll.nodes();
        nodes.iter().for_each(|node| node.awaited());
        if nodes.iter().all(|node| node.not_before().is_some_and(|then| then > until)) {
            return false;
        }
        timeout_at(until, async { while self.ready().is_empty() && changes.changed().await.is_ok() {} })
            .await
            .is_ok()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The tasks that resolve names hold the roll as well, until they are gone.
        self.roll.members.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Roll {
    fn nodes(&self) -> Vec<Arc<Node>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().map(|member| Arc::clone(&member.node)).collect()
    }

    /// The nodes of `site` are those at `found`, `None` being what stands in the address itself.
    /// Those that are known keep their connections; calls in flight on others go on.
    fn settle(&self, site: usize, address: &Address, found: &[Option<IpAddr>]) -> Result<(), TransitError> {
        let known: Vec<_> = {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            members.iter().filter(|member| member.site == site).map(|member| member.node.ip).collect()
        };
        let mut new = Vec::new();
        for ip in found.iter().filter(|ip| !known.contains(ip)) {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let node = Arc::new(Node::new(address, *ip, id, &self.dialling, Arc::clone(&self.mood))?);
            let _care = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&node).care()));
            new.push(Member { site, node, _care });
        }
        let gone = known.iter().filter(|ip| !found.contains(ip)).count();
        if !known.is_empty() && (gone > 0 || !new.is_empty()) {
            info!(%address, new = new.len(), gone, "the name of a Vault has other addresses");
        }
        let arrived = !new.is_empty();
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.site != site || found.contains(&member.node.ip));
        members.extend(new);
        members.sort_by_key(|member| member.site);
        drop(members);
        if arrived {
            self.mood.arrived();
        }
        Ok(())
    }

    async fn keep_resolving(
        self: Arc<Self>,
        site: usize,
        address: Address,
        host: String,
        resolver: Arc<dyn Resolver>,
    ) {
        let mut fails = false;
        loop {
            sleep(LEAST_RESOLVE_PAUSE.min(self.dialling.pace.resolve)).await;
            tokio::select! {
                () = sleep(jittered(self.dialling.pace.resolve)) => {}
                () = self.mood.trouble.notified() => {}
            }
            match resolver.resolve(&host).await {
                Ok(found) => {
                    if std::mem::take(&mut fails) {
                        info!(host, "the name can be resolved again");
                    }
                    if let Err(error) = self.settle(site, &address, &somewhere(&found)) {
                        // Cannot be: the same files made clients before.
                        warn!(%error, "a new address of a Vault cannot be used");
                    }
                }
                Err(error) if std::mem::replace(&mut fails, true) => {
                    debug!(host, %error, "the name still cannot be resolved");
                }
                Err(error) => {
                    warn!(host, %error, "the name cannot be resolved; its last addresses stay in use");
                }
            }
        }
    }
}

/// Counts one caller among those that wait.
struct Waiting<'a>(&'a Mood);

impl<'a> Waiting<'a> {
    fn new(mood: &'a Mood) -> Self {
        mood.waiting.fetch_add(1, Ordering::Relaxed);
        Self(mood)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn somewhere(found: &[IpAddr]) -> Vec<Option<IpAddr>> {
    found.iter().copied().map(Some).collect()
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")
}
