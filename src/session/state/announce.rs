//! Logs and measures the keys of a snapshot when it is published.

use tracing::{error, info, warn};

use super::{StateStore, published::Snapshot};

impl StateStore {
    /// Logs what has changed in the keys since `before`, and sets the metrics of the key.
    pub(super) fn announce(&self, before: Option<&Snapshot>, now: &Snapshot) {
        let current = now.keyring.current();
        let earlier = before.map(|before| before.keyring.current());
        if earlier != Some(current) {
            match earlier {
                Some(earlier) if earlier.key == current.key && earlier.version > current.version => {
                    self.metrics.keys.version_regressions.inc();
                    error!(
                        key = %current.key, from = %earlier.version, to = %current.version,
                        key_id_hash = current.key_id_hash,
                        "Vault keeps reporting an older key version, as after a backup was restored: publishing it, \
                         because Vault could not decrypt data that a missing version has encrypted; data written \
                         with the newer version is unreadable until that version is back"
                    );
                }
                _ => info!(
                    key = %current.key, version = %current.version, key_id = current.key_id,
                    key_id_hash = current.key_id_hash, "key version published"
                ),
            }
        }
        for entry in now.keyring.entries() {
            let known = before.and_then(|before| before.keyring.entry(entry.scope));
            let so_far = known.and_then(|known| known.unusable.as_ref());
            if let Some(reason) = entry.unusable.as_ref().filter(|reason| Some(*reason) != so_far) {
                warn!(key = %entry.key, %reason, "an additional key cannot be used; the other keys can");
            }
            // Logged once, although the reason may differ each time.
            if let Some(reason) =
                entry.unread.as_ref().filter(|_| known.is_none_or(|known| known.unread.is_none()))
            {
                warn!(key = %entry.key, %reason, "an additional key cannot be read; Decrypts are still tried with it");
            }
            if entry.min_decryption > 1
                && known.is_none_or(|known| known.min_decryption < entry.min_decryption)
            {
                warn!(
                    key = %entry.key, min_decryption_version = entry.min_decryption,
                    "older versions of the key are excluded from decryption: data still encrypted with them \
                     cannot be read; lower min_decryption_version until all data is rewritten"
                );
            }
        }
        self.metrics.keys.published(
            // With its path, so that a key of the same name in another mount does not look like an older version.
            &format!("{}/{}", current.key.path(), current.key.name()),
            current.version.number(),
            &current.key_id_hash,
        );
        self.metrics.health.set_session_generation(now.generation);
    }
}
