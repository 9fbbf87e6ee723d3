//! Writes the file of `--encryption-provider-config`.

use std::path::Path;

use serde_json::{Value, json};

use super::api::{CONFIG_MAPS, SECRETS};
use crate::{config_file, unix_url};

/// The name of the KMS provider, which is part of every stored value.
pub const NAME: &str = "transit";

/// One entry of `providers`.
#[derive(Clone)]
pub struct Provider(Value);

impl Provider {
    /// KMS v2, on this socket.
    pub fn v2(name: &str, socket: &Path) -> Self {
        Self::kms("v2", name, socket)
    }

    /// KMS v1, on this socket.
    pub fn v1(name: &str, socket: &Path) -> Self {
        Self::kms("v1", name, socket)
    }

    /// No encryption.
    pub fn identity() -> Self {
        Self(json!({"identity": {}}))
    }

    fn kms(version: &str, name: &str, socket: &Path) -> Self {
        let endpoint = unix_url(socket).into_string().unwrap();
        Self(json!({"kms": {"apiVersion": version, "name": name, "endpoint": endpoint, "timeout": "3s"}}))
    }
}

/// An EncryptionConfiguration.
#[derive(Clone)]
pub struct EncryptionConfig(String);

impl EncryptionConfig {
    /// For Secrets and ConfigMaps: the first provider encrypts, all decrypt.
    pub fn new<const N: usize>(providers: [Provider; N]) -> Self {
        Self::of([SECRETS, CONFIG_MAPS], providers)
    }

    /// The same for Secrets alone.
    pub fn for_secrets<const N: usize>(providers: [Provider; N]) -> Self {
        Self::of([SECRETS], providers)
    }

    fn of<const N: usize, const M: usize>(resources: [&str; M], providers: [Provider; N]) -> Self {
        let providers = Value::from(providers.map(|provider| provider.0).to_vec());
        let file = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{"resources": resources.as_slice(), "providers": providers}],
        });
        // JSON is YAML.
        Self::of_text(file.to_string())
    }

    /// A file with this text.
    pub fn of_text(text: String) -> Self {
        Self(text)
    }

    /// KMS v2 on this socket encrypts, and plain values can still be read, as in the README.
    pub fn with_kms(socket: &Path) -> Self {
        Self::new([Provider::v2(NAME, socket), Provider::identity()])
    }

    /// Replaces the file atomically.
    pub(super) fn write(&self, to: &Path) {
        config_file::by_rename(to, &self.0);
    }
}
