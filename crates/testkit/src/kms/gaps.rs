//! Measures how long no call on a socket is answered.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kms_plugin::v2::EncryptRequest;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{kms::calls::timed, kms::reconnect::reconnecting_client};

/// Calls a socket until it is stopped, and measures the gaps between successful calls.
pub struct Gaps {
    measuring: JoinHandle<Vec<Duration>>,
    stop: CancellationToken,
}

impl Gaps {
    /// Starts to call this socket.
    pub fn measure(socket: &Path) -> Self {
        let (mut kms, stop) = (reconnecting_client(socket), CancellationToken::new());
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

    /// Stops, and returns the `count` longest gaps.
    pub async fn stop(self, count: usize) -> Vec<Duration> {
        self.stop.cancel();
        let mut gaps = self.measuring.await.unwrap();
        gaps.sort_by(|one, other| other.cmp(one));
        gaps.truncate(count);
        gaps
    }
}
