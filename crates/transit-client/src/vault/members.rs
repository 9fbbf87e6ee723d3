//! The members of a pool: the nodes behind its addresses, and the tasks that resolve names.
//!
//! A name with several IP addresses is several nodes. Names are resolved in the background. The last
//! addresses stay in use until the resolver returns others, so no call waits for a resolver.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::{
    lease::jittered,
    node::{ConnectionSettings, Node, PoolSignals, literal_ip},
    resolver::Resolver,
};
use crate::{ErrorKind, TransitError, endpoint::Address};

/// How long a new pool waits for its names to be resolved. It is below the 10 s that the verification of a
/// config may take. Nodes of names that take longer are added later.
const FIRST_RESOLUTION_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest pause between two resolutions of a name, however often the nodes fail.
const MIN_RESOLVE_INTERVAL: Duration = Duration::from_secs(1);

/// The nodes of a pool, with the tasks that check their health and resolve their names.
pub(super) struct Members {
    list: Arc<MemberList>,
    /// One task for each name.
    _resolving: JoinSet<()>,
}

struct MemberList {
    members: RwLock<Vec<Member>>,
    next_id: AtomicUsize,
    settings: ConnectionSettings,
    signals: Arc<PoolSignals>,
}

struct Member {
    /// The index of the node's address in the endpoint.
    address_index: usize,
    node: Arc<Node>,
    _health_checks: AbortOnDropHandle<()>,
}

/// An address of the endpoint whose host is a name.
struct NamedAddress {
    address: Address,
    host: String,
    index: usize,
}

impl Members {
    /// Creates the nodes of `addresses`, after a first resolution of the names among them.
    ///
    /// # Errors
    /// If a certificate or key cannot be used, or if there are only names, and none can be resolved.
    pub(super) async fn resolve(
        addresses: &[Address],
        settings: ConnectionSettings,
        resolver: Arc<dyn Resolver>,
        signals: Arc<PoolSignals>,
    ) -> Result<Self, TransitError> {
        let list = Arc::new(MemberList {
            members: RwLock::default(),
            next_id: AtomicUsize::new(0),
            settings,
            signals,
        });
        let mut names = Vec::new();
        let mut resolutions = JoinSet::new();
        for (index, address) in addresses.iter().enumerate() {
            let Some(url::Host::Domain(host)) = address.host() else {
                list.update(index, address, &[literal_ip(address)])?;
                continue;
            };
            let (host, resolver) = (host.to_owned(), Arc::clone(&resolver));
            names.push(NamedAddress { address: address.clone(), host: host.clone(), index });
            resolutions.spawn(async move {
                let resolution = timeout(FIRST_RESOLUTION_TIMEOUT, resolver.resolve(&host)).await;
                (index, resolution.unwrap_or_else(|_| Err(timed_out())))
            });
        }
        let mut unresolved = None;
        while let Some(ended) = resolutions.join_next().await {
            let Ok((index, resolution)) = ended else { continue };
            let Some(name) = names.iter().find(|name| name.index == index) else { continue };
            match resolution {
                Ok(ips) => list.update(index, &name.address, &as_resolved(&ips))?,
                Err(error) => {
                    let message = format!(
                        "`{}` cannot be resolved: {error}; correct the address, or look at the DNS of this \
                         node (/etc/resolv.conf; a pod with hostNetwork has the node's)",
                        name.host
                    );
                    unresolved = Some(TransitError::new(ErrorKind::Unreachable, message).with_source(error));
                }
            }
        }
        if let Some(error) = unresolved.filter(|_| list.nodes().is_empty()) {
            return Err(error);
        }
        let mut resolving = JoinSet::new();
        for name in names {
            resolving.spawn(Arc::clone(&list).keep_resolving(name, Arc::clone(&resolver)));
        }
        Ok(Self { list, _resolving: resolving })
    }

    /// All nodes, in the order of their addresses.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.list.nodes()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // Ends the health checks now. The tasks that resolve names are aborted as well, but hold the list
        // until the runtime drops them.
        self.list.members.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl MemberList {
    fn nodes(&self) -> Vec<Arc<Node>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().map(|member| Arc::clone(&member.node)).collect()
    }

    /// Makes the nodes at `ips` the nodes of an address; `None` is the IP address or the socket in the address itself.
    /// Known nodes keep their connections. Calls in flight on removed nodes continue.
    fn update(
        &self,
        address_index: usize,
        address: &Address,
        ips: &[Option<IpAddr>],
    ) -> Result<(), TransitError> {
        let known: Vec<_> = {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            let of_address = members.iter().filter(|member| member.address_index == address_index);
            of_address.map(|member| member.node.ip).collect()
        };
        let mut added = Vec::new();
        for ip in ips.iter().filter(|ip| !known.contains(ip)) {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let node = Arc::new(Node::new(address, *ip, id, &self.settings, Arc::clone(&self.signals))?);
            let checks = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&node).run_health_checks()));
            added.push(Member { address_index, node, _health_checks: checks });
        }
        let removed = known.iter().filter(|ip| !ips.contains(ip)).count();
        if !known.is_empty() && (removed > 0 || !added.is_empty()) {
            info!(%address, added = added.len(), removed, "the IP addresses of a Vault name have changed");
        }
        let is_ready = !added.is_empty();
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.address_index != address_index || ips.contains(&member.node.ip));
        members.extend(added);
        members.sort_by_key(|member| member.address_index);
        drop(members);
        if is_ready {
            self.signals.notify_node_ready();
        }
        Ok(())
    }

    /// Resolves a name again and again: at intervals, and at once when no node is healthy any more.
    async fn keep_resolving(self: Arc<Self>, name: NamedAddress, resolver: Arc<dyn Resolver>) {
        let NamedAddress { address, host, index } = name;
        let interval = self.settings.timings.resolve_interval;
        let mut failing = false;
        loop {
            sleep(MIN_RESOLVE_INTERVAL.min(interval)).await;
            tokio::select! {
                () = sleep(jittered(interval)) => {}
                () = self.signals.no_healthy_node.notified() => {}
            }
            match resolver.resolve(&host).await {
                Ok(ips) => {
                    if std::mem::take(&mut failing) {
                        info!(host, "the name can be resolved again");
                    }
                    if let Err(error) = self.update(index, &address, &as_resolved(&ips)) {
                        // Unlikely: the same certificates were usable for the other nodes.
                        warn!(%error, "a new IP address of a Vault name cannot be used");
                    }
                }
                Err(error) if std::mem::replace(&mut failing, true) => {
                    debug!(host, %error, "the name still cannot be resolved");
                }
                Err(error) => {
                    warn!(host, %error, "the name cannot be resolved; its last addresses stay in use");
                }
            }
        }
    }
}

fn as_resolved(ips: &[IpAddr]) -> Vec<Option<IpAddr>> {
    ips.iter().copied().map(Some).collect()
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")
}
