//! Resolves the host names of addresses.

use std::{io, net::IpAddr};

use async_trait::async_trait;

/// The most IP addresses of one name that are used. Each is a node with connections and health checks.
const MAX_ADDRESSES: usize = 16;

/// Resolves host names. Tests replace it.
#[async_trait]
pub(super) trait Resolver: Send + Sync + 'static {
    /// The IP addresses of `host`, each once.
    ///
    /// # Errors
    /// If the name has no address, or the resolver fails.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The resolver of the operating system.
pub(super) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let mut ips = Vec::new();
        for address in tokio::net::lookup_host((host, 0)).await? {
            if !ips.contains(&address.ip()) && ips.len() < MAX_ADDRESSES {
                ips.push(address.ip());
            }
        }
        if ips.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(ips)
    }
}
