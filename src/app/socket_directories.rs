//! Warns if other users can replace the sockets.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, time::interval};
use tracing::{info, warn};

use crate::exposure;

const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Checks periodically who can write to the directories of `sockets`. Publishes the warnings, and logs
/// each one once.
pub(super) async fn watch(sockets: Vec<PathBuf>, published: watch::Sender<Vec<String>>) {
    let sockets = Arc::new(sockets);
    let mut ticks = interval(CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let checked = Arc::clone(&sockets);
        let check = move || {
            let mut warnings: Vec<String> =
                checked.iter().flat_map(|socket| exposure::socket_directory_warnings(socket)).collect();
            warnings.sort();
            warnings.dedup();
            warnings
        };
        // Fails only if the check panics or the runtime stops.
        let Ok(found) = tokio::task::spawn_blocking(check).await else { continue };
        published.send_if_modified(|known| {
            for warning in found.iter().filter(|warning| !known.contains(warning)) {
                warn!(%warning, "insecure directory of a socket");
            }
            let changed = *known != found;
            if changed && found.is_empty() {
                info!("no other user can write to the directories of the sockets any more");
            }
            *known = found;
            changed
        });
    }
}
