//! Starts and stops a Kubernetes control plane on the loopback: one etcd and any number of API servers.
//!
//! A process is killed when its value is dropped.

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
pub use control_plane::ControlPlane;
pub use encryption::{EncryptionConfig, NAME, Provider};
pub use etcd::Etcd;
pub use kms_calls::KmsCalls;
pub use kubectl::{Kubectl, Ran};
pub use measurements::record_measurement;
pub use pki::Pki;
pub use tools::tool;

use std::{path::Path, sync::Arc, time::Duration};

use transit_client::key_id::key_id_hash;

use crate::eventually;

/// kube-apiserver calls Status each minute, or every 20 seconds while `/readyz` is polled.
const KEY_ID_TIMEOUT: Duration = Duration::from_secs(100);

/// An etcd, and the certificates of all API servers on it. [`Cluster::api_server`] starts an API server.
pub struct Cluster {
    pub etcd: Etcd,
    pki: Arc<Pki>,
}

impl Cluster {
    /// Starts an empty etcd, without an API server.
    pub async fn start() -> Self {
        Self { etcd: Etcd::start().await, pki: Arc::new(Pki::new()) }
    }

    /// Starts an API server, and does not wait until it is ready.
    pub fn api_server(&self, config: &EncryptionConfig, options: ApiServerOptions) -> ApiServer {
        ApiServer::start(&self.etcd, Arc::clone(&self.pki), config, options)
    }

    /// The flags of an API server that another program starts, such as kubelet. Writes `config` to the folder
    /// `dir`, which holds its files. Further flags go after these.
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

    /// Writes the kubeconfig of this node's kubelet, for the API server on this port.
    pub fn kubeconfig_of_kubelet(&self, node: &str, port: u16, to: &Path) {
        let (chain, key) = self.pki.kubelet(node);
        let config = kubectl::kubeconfig(&self.pki, &format!("https://127.0.0.1:{port}"), (&chain, &key));
        std::fs::write(to, config).unwrap();
    }

    /// A kubectl for the API server on this port.
    pub fn kubectl_at(&self, port: u16) -> Kubectl {
        Kubectl::of(&self.pki, &format!("https://127.0.0.1:{port}"))
    }

    /// Starts an API server with this configuration, and waits until it is ready.
    pub async fn ready(&self, config: &EncryptionConfig) -> ApiServer {
        let mut server = self.api_server(config, ApiServerOptions::default());
        server.wait_ready(READY_WITHIN).await;
        server
    }

    /// Waits until this API server writes under `key_id`. Returns the name of a Secret written under it; the name
    /// begins with `prefix` and is also its value.
    pub async fn wait_for_key_id(&self, api: &Api, key_id: &str, prefix: &str) -> String {
        let hash = key_id_hash(key_id);
        // A request for `/readyz` makes kube-apiserver call Status.
        eventually("kube-apiserver has seen the key_id", KEY_ID_TIMEOUT, async || {
            let (_, said) = api.text("/readyz?verbose").await;
            let metric = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
            if api.metric(metric, &[("key_id_hash", &hash)]).await > 0.0 { Ok(()) } else { Err(said) }
        })
        .await;
        // The metric changes before kube-apiserver has a DEK seed under the new key_id.
        let mut tries = 0;
        eventually("kube-apiserver writes under the key_id", KEY_ID_TIMEOUT, async || {
            tries += 1;
            let name = format!("{prefix}-{tries}");
            api.create_secret(&name, &name).await.map_err(|error| error.to_string())?;
            let found = self.etcd.stored(SECRETS, &name).await.object().key_id;
            if found == key_id { Ok(name) } else { Err(found) }
        })
        .await
    }
}
