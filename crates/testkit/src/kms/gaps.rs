//! How long nobody answers on a socket.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kms_plugin::v2::EncryptRequest;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{kms::calls::timed, kms::reconnect::lasting_client};

/// Calls without end, and how long there was no answer.
pub struct Gaps {
    measuring: JoinHandle<Vec<Duration>>,
    stop: CancellationToken,
}

impl Gaps {
    /// Begins to call whoever listens on this socket.
    pub fn measure(socket: &Path) -> Self {
        let (mut kms, stop) = (lasting_client(socket), CancellationToken::new());
        let stopping = stop.clone();
        let measuring = tokio::spawn(async move {
            let (mut gaps, mut last) = (Vec::new(), Instant::now());
            while timeout(Duration::from_millis(2), stopping.cancelled()).await.is_err() {
                let request = EncryptRequest { plaintext: [7; 32].as_slice().into(), uid: "gap".into() };
                if kms.encrypt(timed(request)).await.is_ok() {
                    gaps.push(last.elapsed());
                    last = Instant::now();
                }
            }
            gaps
        });
        Self { measuring, stop }
    }

    /// The longest `count` times without an answer.
    pub async fn stop(self, count: usize) -> Vec<Duration> {
        self.stop.cancel();
        let mut gaps = self.measuring.await.unwrap();
        gaps.sort_by(|one, other| other.cmp(one));
        gaps.truncate(count);
        gaps
    }
}
