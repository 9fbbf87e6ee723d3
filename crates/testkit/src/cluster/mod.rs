//! A control plane on the loopback: etcd, and as many API servers as a test wants.
//!
//! All of it ends with the values that stand for it, by process id.

mod api;
mod api_load;
mod api_server;
mod control_plane;
mod encryption;
mod etcd;
mod kms_calls;
mod kubectl;
mod measurements;
mod pki;
mod stored;
mod tools;

pub use api::{Api, CONFIG_MAPS, SECRETS};
pub use api_load::ApiLoad;
pub use api_server::{ApiServer, ApiServerOptions, READY_WITHIN};
pub use control_plane::Plane;
pub use encryption::{EncryptionConfig, NAME, Provider};
pub use etcd::Etcd;
pub use kms_calls::KmsCalls;
pub use kubectl::{Kubectl, Ran};
pub use measurements::figure;
pub use pki::Pki;
pub use tools::tool;

use std::{path::Path, sync::Arc, time::Duration};

use transit_client::key_id::key_id_hash;

use crate::eventually;

/// kube-apiserver asks for Status each minute, or every twenty seconds where `/readyz` is polled.
const MOVES_WITHIN: Duration = Duration::from_secs(100);

/// An etcd and what API servers on it share; each of them is started by [`Cluster::api_server`].
pub struct Cluster {
    pub etcd: Etcd,
    pki: Arc<Pki>,
}

impl Cluster {
    /// An empty etcd, and no API server yet.
    pub async fn start() -> Self {
        Self { etcd: Etcd::start().await, pki: Arc::new(Pki::new()) }
    }

    /// An API server that has been started and may or may not become ready.
    pub fn api_server(&self, config: &EncryptionConfig, options: ApiServerOptions) -> ApiServer {
        ApiServer::start(&self.etcd, Arc::clone(&self.pki), config, options)
    }

    /// The flags of an API server that others start, such as kubelet, with its files in the folder `dir`, to
    /// which this configuration is written. Further flags go after them.
    pub fn api_server_flags(&self, config: &EncryptionConfig, dir: &Path, port: u16) -> Vec<String> {
        config.write(&api_server::encryption_file(dir));
        api_server::flags(&self.etcd, &self.pki, dir, port)
    }

    /// The certificates and keys that those flags name.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A client of the API server on this port.
    pub fn api_at(&self, port: u16) -> Api {
        Api::new(&self.pki, &format!("https://127.0.0.1:{port}"))
    }

    /// Writes a kubeconfig with which the kubelet of this node finds it.
    pub fn kubeconfig_of_kubelet(&self, node: &str, port: u16, to: &Path) {
        let (chain, key) = self.pki.kubelet(node);
        let config = kubectl::kubeconfig(&self.pki, &format!("https://127.0.0.1:{port}"), (&chain, &key));
        std::fs::write(to, config).unwrap();
    }

    /// The real client of it.
    pub fn kubectl_at(&self, port: u16) -> Kubectl {
        Kubectl::of(&self.pki, &format!("https://127.0.0.1:{port}"))
    }

    /// An API server that is ready and writes Secrets and ConfigMaps through the daemon on `socket`.
    pub async fn ready(&self, config: &EncryptionConfig) -> ApiServer {
        let mut server = self.api_server(config, ApiServerOptions::default());
        server.wait_ready(READY_WITHIN).await;
        server
    }

    /// Waits until this API server writes under `key_id`; answers a Secret that it has written so,
    /// and that holds its own name, which begins with `prefix`.
    pub async fn wait_moved(&self, api: &Api, key_id: &str, prefix: &str) -> String {
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
