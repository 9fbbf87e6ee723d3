//! A control plane on the loopback: etcd, and as many API servers as a test wants.
//!
//! All of it ends with the values that stand for it, by process id.

mod api;
mod api_server;
mod encryption;
mod etcd;
mod figures;
mod kubectl;
mod load;
mod pki;
mod plane;
mod stored;
mod tools;

pub(crate) use api::{Api, CONFIG_MAPS, SECRETS};
pub(crate) use api_server::{ApiServer, ApiServerOptions, READY_WITHIN};
pub(crate) use encryption::{EncryptionConfig, NAME, Provider};
pub(crate) use etcd::Etcd;
pub(crate) use figures::figure;
pub(crate) use load::ApiLoad;
pub(crate) use plane::Plane;

use std::{sync::Arc, time::Duration};

use pki::Pki;
use transit_kms::kms::key_id::key_id_hash;

use crate::support::eventually;

/// kube-apiserver asks for Status each minute, or every twenty seconds where `/readyz` is polled.
const MOVES_WITHIN: Duration = Duration::from_secs(100);

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

    /// Waits until this API server writes under `key_id`; answers a Secret that it has written so,
    /// and that holds its own name, which begins with `prefix`.
    pub(crate) async fn wait_moved(&self, api: &Api, key_id: &str, prefix: &str) -> String {
        let hash = key_id_hash(key_id);
        // Asking `/readyz` makes it ask for Status.
        eventually("kube-apiserver has seen the key_id", MOVES_WITHIN, async || {
            let (_, said) = api.text("/readyz?verbose").await;
            let metric = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
            if api.metric(metric, &[("key_id_hash", &hash)]).await > 0.0 { Ok(()) } else { Err(said) }
        })
        .await;
        // It notes what Status says before it has a seed under it.
        let mut tries = 0;
        eventually("kube-apiserver writes under the key_id", MOVES_WITHIN, async || {
            tries += 1;
            let name = format!("{prefix}-{tries}");
            api.create_secret(&name, &name).await.map_err(|error| error.to_string())?;
            let found = self.etcd.stored(SECRETS, &name).await.object().key_id;
            if found == key_id { Ok(name) } else { Err(found) }
        })
        .await
    }
}
