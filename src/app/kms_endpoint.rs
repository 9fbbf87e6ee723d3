//! Serves one KMS socket, from the takeover of its path to the end of its drain.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    server::{
        accept::{self, CutOff, GrpcService, ServeOptions},
        listener::ReplaceableListener,
        socket::{BoundSocket, SocketFile, SocketOptions},
        takeover::{self, SocketState, WatchContext},
    },
    session::StateStore,
};

/// How long connections wait until there is a session, or a reason why there is none. Without it, the
/// first answer would be that nothing is known, and kube-apiserver would ask again only ten seconds
/// later. A caller gives up after three seconds, of which a predecessor's drain may have used some.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the KMS endpoints share.
pub(super) struct ServeContext {
    pub(super) options: ServeOptions,
    pub(super) shutdown: CancellationToken,
    pub(super) socket: SocketOptions,
    pub(super) store: Arc<StateStore>,
}

/// One KMS socket.
pub(super) struct KmsEndpoint {
    log_message: &'static str,
    socket: BoundSocket,
    state: watch::Sender<SocketState>,
}

impl KmsEndpoint {
    /// Also returns the state of the socket. `log_message` is logged when the endpoint begins to serve.
    pub(super) fn new(
        socket: BoundSocket,
        log_message: &'static str,
    ) -> (Self, watch::Receiver<SocketState>) {
        let (state, receiver) = watch::channel(SocketState::Waiting);
        (Self { log_message, socket, state }, receiver)
    }

    /// Takes the path over, serves until the shutdown, drains and removes the socket's file.
    pub(super) async fn serve(
        mut self,
        service: impl GrpcService,
        context: &ServeContext,
    ) -> anyhow::Result<CutOff> {
        let ServeContext { options, shutdown, socket: socket_options, store } = context;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                // The predecessor continues to serve.
                remove_unserved(&self.socket).await;
                return Ok(CutOff::default());
            }
            () = takeover::take_over(&mut self.socket, *socket_options, store.healthy()) => {}
        }
        let (listener, mut file) = self.socket.into_listener().context("cannot serve the KMS socket")?;
        let (listener, listeners) = ReplaceableListener::new(listener);
        let watch_context =
            WatchContext { options: *socket_options, listeners, state: &self.state, stopping: shutdown };
        info!(socket = %file.address(), "{}", self.log_message);
        self.state.send_replace(SocketState::Serving);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = first_state(store) => {}
        }
        let cut_off = tokio::select! {
            cut_off = accept::serve(listener, service, options.clone(), shutdown.clone()) => cut_off,
            never = takeover::watch(&mut file, &watch_context) => match never {},
        };
        remove(&file).await;
        Ok(cut_off)
    }
}

/// Waits until something is known, for at most [`FIRST_STATE_TIMEOUT`].
async fn first_state(store: &StateStore) {
    drop(timeout(FIRST_STATE_TIMEOUT, store.session_or_config_error()).await);
}

/// Removes a socket that will not be served. Otherwise kube-apiserver would connect and get no answer.
pub(super) async fn remove_unserved(socket: &BoundSocket) {
    // A socket that remains is stale, and the next start replaces it.
    drop(socket.remove_if_own().await);
}

async fn remove(file: &SocketFile) {
    let socket = file.address();
    match file.remove_if_own().await {
        Ok(true) => {}
        Ok(false) if file.has_file() => {
            let owner = takeover::current_owner(file);
            info!(%socket, "the socket's path is left as it is: {owner} listens there");
        }
        Ok(false) => {}
        Err(error) => {
            warn!(%socket, %error, "the socket cannot be removed; the next start replaces it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::metrics::Metrics, session::health::HealthSettings};

    #[tokio::test(start_paused = true)]
    async fn the_first_callers_wait_for_a_state_with_a_time_limit() {
        let health = HealthSettings {
            outage_grace: Duration::from_secs(60),
            health_check_interval: Duration::from_secs(30),
        };
        let (store, writers) = StateStore::new(health, Arc::new(Metrics::new().unwrap())).share();
        let caller_timeout = Duration::from_secs(3);
        timeout(caller_timeout, first_state(&store)).await.unwrap();
        // What it waits for may arrive at any moment, so progress does not end the wait.
        writers.sessions.set_progress("waiting for Vault".into());
        assert!(timeout(Duration::from_secs(1), first_state(&store)).await.is_err());
        writers.sessions.set_config_error(Some("no config".into()));
        timeout(Duration::from_millis(1), first_state(&store)).await.unwrap();
    }
}
