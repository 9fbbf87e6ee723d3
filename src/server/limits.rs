//! Bounds on what clients of a KMS socket may use.

use std::time::Duration;

/// Bounds on what clients may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time in which the HTTP/2 preface, the first 24 bytes, must arrive.
    pub handshake_timeout: Duration,
    /// How long a connection without a call in flight may stay open after GOAWAY.
    pub linger: Duration,
    /// The number of connections that may be open. One more closes the connection that has been idle
    /// longest. The same number of connections may be closing in addition.
    pub max_connections: usize,
    /// Calls in flight on one connection. This is more than the service accepts, so that the service
    /// can answer the excess calls itself, and Status beside them.
    pub max_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            linger: Duration::from_millis(500),
            max_connections: 512,
            max_streams: 1024,
        }
    }
}

impl Limits {
    /// Lowers `max_connections` so that open and closing connections together use at most half of
    /// `open_files`. The other half is for connections to Vault and to the admin listeners.
    #[must_use]
    pub fn for_open_files(self, open_files: Option<u64>) -> Self {
        let max = open_files.and_then(|files| usize::try_from(files / 4).ok()).unwrap_or(usize::MAX);
        Self { max_connections: self.max_connections.min(max.max(1)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_file_descriptors_is_reserved() {
        let max = |open_files| Limits::default().for_open_files(open_files).max_connections;
        assert_eq!(max(None), 512);
        assert_eq!(max(Some(1_000_000)), 512);
        assert_eq!(max(Some(1024)), 256);
        assert_eq!(max(Some(2)), 1);
    }
}
