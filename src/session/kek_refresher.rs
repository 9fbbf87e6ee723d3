//! The KEK refresher: has Vault unwrap the local KEKs in memory again, before they may not be used any longer.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::debug;
use transit_client::{ErrorKind, TransitError, ciphertext::Ciphertext, key_id::Scope, transit::Call};

use super::{
    local_kek::LocalKek,
    state::{CallReporter, Snapshot},
};

/// Limits the refresh of one KEK.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);
/// The minimum pause between two rounds, so that many requests for one do not cause as many rounds.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// The maximum pause between two rounds, so that the end of an outage is noticed soon.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Refreshes every KEK that is kept, whether calls use it or not: kube-apiserver asks for a KEK again only when
/// it starts, which may be in the middle of an outage.
pub struct KekRefresher {
    /// Gets the failures; its store has the KEKs.
    pub reporter: CallReporter,
}

impl KekRefresher {
    /// Refreshes KEKs. Never returns.
    pub async fn run(self) {
        let store = Arc::clone(self.reporter.store());
        loop {
            let mut pause = MAX_PAUSE;
            let now = store.read();
            // While the token is invalid, only the health checker asks Vault. The refresher would only add refused
            // requests to the audit log.
            if let Some(snapshot) = now.snapshot.filter(|_| now.token_invalid_for.is_none()) {
                let (due, _) = store.keks.due();
                let mut refreshing = JoinSet::new();
                for (wrapped, scope) in due {
                    let (reporter, snapshot) = (self.reporter.clone(), Arc::clone(&snapshot));
                    refreshing.spawn(refresh(reporter, snapshot, wrapped, scope));
                }
                tokio::select! {
                    // All at once, so that the coalescer puts them into few requests.
                    () = async { while refreshing.join_next().await.is_some() {} } => {}
                    // A new session does not wait for a Vault that does not answer the old one. The requests end by
                    // themselves, because cancelling a request closes its connection.
                    () = store.session_after(snapshot.generation) => {
                        refreshing.detach_all();
                        continue;
                    }
                }
                if let (_, Some(next)) = store.keks.due() {
                    pause = next.saturating_duration_since(Instant::now()).clamp(MIN_PAUSE, MAX_PAUSE);
                }
            }
            sleep(MIN_PAUSE).await;
            tokio::select! {
                () = sleep(pause.saturating_sub(MIN_PAUSE)) => {}
                () = store.keks.refresh_requested() => {}
            }
        }
    }
}

async fn refresh(reporter: CallReporter, snapshot: Arc<Snapshot>, wrapped: Ciphertext, scope: Scope) {
    let keks = reporter.keks();
    let stamp = keks.stamp(snapshot.generation);
    let Some(entry) = snapshot.keyring.entry(scope) else {
        let error = TransitError::new(ErrorKind::VersionTooOld, "its Transit key is not configured any more");
        keks.unwrap_failed(&wrapped, scope, &error, stamp);
        return;
    };
    let uid = format!("kek-{:016x}", rand::rng().next_u64());
    let call = Call { deadline: Instant::now() + REFRESH_TIMEOUT, uid: &uid };
    let outcome = snapshot.coalescer.decrypt(&entry.key, &wrapped, call).await;
    match outcome.and_then(|opened| LocalKek::new(&opened.plaintext, wrapped.clone(), scope)) {
        Ok(kek) => keks.insert(Arc::new(kek), stamp),
        Err(error) => {
            debug!(%error, "a local KEK could not be unwrapped again");
            let error = reporter.decrypt_failed(&snapshot, entry, error);
            keks.unwrap_failed(&wrapped, scope, &error, stamp);
        }
    }
}
