//! The metrics of the published key.

use std::sync::Mutex;

use prometheus::{
    IntCounter, IntGaugeVec, Registry, register_int_counter_with_registry,
    register_int_gauge_vec_with_registry,
};

/// The metrics of the published key.
#[derive(Debug)]
pub struct KeyMetrics {
    info: IntGaugeVec,
    /// The key and the hash of the key_id that have series.
    published: Mutex<Option<(String, String)>>,
    version: IntGaugeVec,
    /// How often an older key version was published.
    pub version_regressions: IntCounter,
}

impl KeyMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            info: register_int_gauge_vec_with_registry!(
                "key_id_hash_info",
                "Always 1; the label is the published key_id, hashed as kube-apiserver hashes it.",
                &["key_id_hash"],
                registry
            )?,
            published: Mutex::default(),
            version: register_int_gauge_vec_with_registry!(
                "key_version",
                "Published version of the Transit key that encrypts.",
                &["key"],
                registry
            )?,
            version_regressions: register_int_counter_with_registry!(
                "key_version_regressions_total",
                "How often an older key version was published because Vault kept reporting it.",
                registry
            )?,
        })
    }

    /// Sets the published key version. The series of other keys and key_ids are removed.
    pub fn published(&self, key: &str, version: u32, key_id_hash: &str) {
        let current = (key.to_owned(), key_id_hash.to_owned());
        if let Ok(mut published) = self.published.lock() {
            if published.as_ref() != Some(&current) {
                self.version.reset();
                self.info.reset();
            }
            *published = Some(current);
            self.version.with_label_values(&[key]).set(i64::from(version));
            self.info.with_label_values(&[key_id_hash]).set(1);
        }
    }
}
