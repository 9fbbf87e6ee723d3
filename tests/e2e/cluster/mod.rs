//! A control plane on the loopback: etcd, and as many API servers as a test wants.
//!
//! All of it ends with the values that stand for it, by process id.

#![allow(dead_code, unused_imports, reason = "a face for all scenarios; each uses a part of it")]

mod api;
mod api_server;
mod encryption;
mod etcd;
mod figures;
mod kubectl;
mod load;
mod pki;
mod stored;
mod tools;

pub(crate) use api::{Api, ApiError, CONFIG_MAPS, SECRETS};
pub(crate) use api_server::{ApiServer, ApiServerOptions, READY_WITHIN};
pub(crate) use encryption::{EncryptionConfig, NAME, Provider};
pub(crate) use etcd::Etcd;
pub(crate) use figures::figure;
pub(crate) use kubectl::Kubectl;
pub(crate) use load::{ApiLoad, ApiLoadReport};
pub(crate) use stored::Stored;
pub(crate) use tools::is_oldest;

use std::sync::Arc;

use pki::Pki;

/// An etcd and what API servers on it share; each of them is started by [`Cluster::api_server`].
pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    pki: Arc<Pki>,
}

impl Cluster {
    /// An empty etcd, and no API server yet.
    pub(crate) async fn start() -> Self {
        Self { etcd: Etcd::start().await, pki: Arc::new(Pki::new()) }
    }

    /// An API server that has been started and may or may not become ready.
    pub(crate) fn api_server(&self, config: &EncryptionConfig, options: ApiServerOptions) -> ApiServer {
        ApiServer::start(&self.etcd, Arc::clone(&self.pki), config, options)
    }

    /// An API server that is ready and writes Secrets and ConfigMaps through the daemon on `socket`.
    pub(crate) async fn ready(&self, config: &EncryptionConfig) -> ApiServer {
        let mut server = self.api_server(config, ApiServerOptions::default());
        server.wait_ready(READY_WITHIN).await;
        server
    }
}
