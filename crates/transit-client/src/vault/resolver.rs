//! Names of hosts, resolved.

use std::{io, net::IpAddr};

use async_trait::async_trait;

/// More addresses than this of one name are not used.
const MOST: usize = 16;

/// Answers which addresses a name has.
#[async_trait]
pub(super) trait Resolver: Send + Sync + 'static {
    /// All of them, each once.
    ///
    /// # Errors
    /// If there is none, or nobody knows.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the system does it.
pub(super) struct System;

#[async_trait]
impl Resolver for System {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for address in tokio::net::lookup_host((host, 0)).await? {
            if !found.contains(&address.ip()) && found.len() < MOST {
                found.push(address.ip());
            }
        }
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}
