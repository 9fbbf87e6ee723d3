//! The client of the Workload API.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use error_text::{one_line, root_cause};
use spiffe::{
    SpiffeId, WorkloadApiClient, WorkloadApiError,
    transport::{Endpoint, TransportError},
};
use tokio::time::timeout;

use crate::svid::{JwtSvid, X509Svid};

/// The longest time that one fetch takes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest path that a unix socket can have on Linux: `sun_path` in unix(7), without the final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Why an address of the Workload API is not usable.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocketAddressError {
    /// It is not a unix socket with an absolute path. TCP is refused, because the Workload API has no TLS: a private
    /// key would cross the network in clear text.
    #[error("the address of the Workload API must be unix://<absolute path of a socket>")]
    NotUnix,
    /// The operating system accepts no such path.
    #[error("the path of the Workload API's socket must not be longer than 107 bytes")]
    TooLong,
}

/// Why there is no SVID. No fetch consumes anything, so it can be repeated after each of these errors.
///
/// The message names the socket, the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The Workload API answers with an error, or breaks the connection.
    #[error("the Workload API at unix://{} fails: {cause}: read the log of the SPIRE agent", socket.display())]
    Failed {
        /// What the Workload API answers.
        cause: String,
        /// The path of the socket.
        socket: PathBuf,
        /// The error of the client.
        source: Box<WorkloadApiError>,
    },
    /// The Workload API does not issue an SVID to this process.
    #[error(
        "the Workload API at unix://{} issues no SVID {} to this process{}: create a registration entry whose \
         selectors match this process, or correct the SPIFFE ID in the config",
        socket.display(),
        wanted(spiffe_id.as_ref()),
        found(issued)
    )]
    NotIssued {
        /// The SPIFFE IDs that it issues to this process, if it lists them.
        issued: Vec<SpiffeId>,
        /// The path of the socket.
        socket: PathBuf,
        /// The SPIFFE ID that was asked for. `None` means any.
        spiffe_id: Option<SpiffeId>,
    },
    /// The Workload API refuses the call.
    #[error(
        "the Workload API at unix://{} refuses the call: {words}: check that it serves the user of this process",
        socket.display()
    )]
    Refused {
        /// The path of the socket.
        socket: PathBuf,
        /// What the Workload API answers.
        words: String,
    },
    /// The deadline passed.
    #[error(
        "the Workload API at unix://{} did not answer within {} s: check that the SPIRE agent runs and reaches its \
         server",
        socket.display(),
        after.as_secs_f64()
    )]
    TimedOut {
        /// The time that the fetch could take.
        after: Duration,
        /// The path of the socket.
        socket: PathBuf,
    },
    /// No process accepts connections at the socket.
    #[error(
        "no Workload API is reachable at unix://{}: {cause}: check that the SPIRE agent runs, and that its socket is \
         mounted at this path",
        socket.display()
    )]
    Unreachable {
        /// The error of the operating system.
        cause: String,
        /// The path of the socket.
        socket: PathBuf,
        /// The error of the client.
        source: Box<WorkloadApiError>,
    },
    /// The Workload API answers with something that is not an SVID.
    #[error(
        "the Workload API at unix://{} issues an SVID that is not valid: {source}: check the SPIFFE server",
        socket.display()
    )]
    Unusable {
        /// The path of the socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        source: Box<WorkloadApiError>,
    },
}

/// A client of the Workload API at a unix socket.
///
/// Each fetch makes its own connection, so a restarted agent with a new socket is used at the next fetch.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    socket: PathBuf,
    timeout: Duration,
}

impl WorkloadApi {
    /// A client of the Workload API at `address`, such as `unix:///run/spire/agent/public/api.sock`. This makes no
    /// connection. Each fetch takes at most [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    /// If the address is not that of a unix socket.
    pub fn new(address: &str) -> Result<Self, SocketAddressError> {
        let path = address.strip_prefix("unix:").ok_or(SocketAddressError::NotUnix)?;
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(SocketAddressError::NotUnix);
        }
        if path.len() > MAX_SOCKET_PATH_BYTES {
            return Err(SocketAddressError::TooLong);
        }
        Ok(Self::at(path))
    }

    /// Like [`WorkloadApi::new`], with the path of the socket.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: DEFAULT_TIMEOUT }
    }

    /// Changes the longest time that one fetch takes.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Fetches a new JWT-SVID for `audience`. Without a SPIFFE ID, it is the first one that the Workload API issues to
    /// this process.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn jwt_svid(
        &self,
        audience: &str,
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, FetchError> {
        let fetch = async {
            let client = self.connect().await?;
            client.fetch_jwt_svid([audience], spiffe_id).await
        };
        let svid = self.within_deadline(spiffe_id, fetch).await?;
        if spiffe_id.is_some_and(|wanted| wanted != svid.spiffe_id()) {
            return Err(self.not_issued(spiffe_id, vec![svid.spiffe_id().clone()]));
        }
        Ok(JwtSvid::from(&svid))
    }

    /// Fetches the current X.509-SVID. Without a SPIFFE ID, it is the first one that the Workload API issues to this
    /// process.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn x509_svid(&self, spiffe_id: Option<&SpiffeId>) -> Result<X509Svid, FetchError> {
        let fetch = async { self.connect().await?.fetch_all_x509_svids().await };
        let svids = self.within_deadline(spiffe_id, fetch).await?;
        self.select(svids.iter(), spiffe_id)
    }

    async fn connect(&self) -> Result<WorkloadApiClient, WorkloadApiError> {
        WorkloadApiClient::connect(Endpoint::Unix(self.socket.clone())).await
    }

    /// The SVID with this SPIFFE ID, or the first one.
    pub(crate) fn select<'a>(
        &self,
        svids: impl Iterator<Item = &'a spiffe::X509Svid> + Clone,
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<X509Svid, FetchError> {
        let selected = svids.clone().find(|svid| spiffe_id.is_none_or(|wanted| wanted == svid.spiffe_id()));
        match selected {
            Some(svid) => Ok(X509Svid::from(svid)),
            None => Err(self.not_issued(spiffe_id, svids.map(|svid| svid.spiffe_id().clone()).collect())),
        }
    }

    pub(crate) async fn within_deadline<T>(
        &self,
        spiffe_id: Option<&SpiffeId>,
        call: impl Future<Output = Result<T, WorkloadApiError>>,
    ) -> Result<T, FetchError> {
        match timeout(self.timeout, call).await {
            Ok(result) => result.map_err(|error| self.classify(error, spiffe_id)),
            Err(_) => Err(FetchError::TimedOut { after: self.timeout, socket: self.socket.clone() }),
        }
    }

    pub(crate) fn classify(&self, error: WorkloadApiError, spiffe_id: Option<&SpiffeId>) -> FetchError {
        let socket = self.socket.clone();
        match error {
            WorkloadApiError::EmptyResponse | WorkloadApiError::NoIdentityIssued => {
                self.not_issued(spiffe_id, Vec::new())
            }
            WorkloadApiError::MissingRequiredField { field } if field.ends_with(".svids") => {
                self.not_issued(spiffe_id, Vec::new())
            }
            WorkloadApiError::PermissionDenied(words) => {
                FetchError::Refused { socket, words: one_line(&words) }
            }
            WorkloadApiError::Transport(TransportError::Connect(_)) => {
                FetchError::Unreachable { cause: root_cause(&error), socket, source: Box::new(error) }
            }
            WorkloadApiError::Transport(_) => {
                FetchError::Failed { cause: root_cause(&error), socket, source: Box::new(error) }
            }
            _ => FetchError::Unusable { socket, source: Box::new(error) },
        }
    }

    fn not_issued(&self, spiffe_id: Option<&SpiffeId>, issued: Vec<SpiffeId>) -> FetchError {
        FetchError::NotIssued { issued, socket: self.socket.clone(), spiffe_id: spiffe_id.cloned() }
    }
}

fn wanted(spiffe_id: Option<&SpiffeId>) -> String {
    spiffe_id.map_or_else(|| "at all".into(), |id| format!("with the SPIFFE ID {id}"))
}

fn found(issued: &[SpiffeId]) -> String {
    if issued.is_empty() {
        return String::new();
    }
    let ids: Vec<_> = issued.iter().map(ToString::to_string).collect();
    format!(", only {}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets_are_accepted() {
        for address in ["unix:///run/spire/api.sock", "unix:/run/spire/api.sock"] {
            assert_eq!(WorkloadApi::new(address).unwrap().socket(), Path::new("/run/spire/api.sock"));
        }
        for address in
            ["", "/run/api.sock", "unix:", "unix://", "unix:///", "unix://run/api.sock", "unix:api.sock"]
        {
            assert_eq!(WorkloadApi::new(address).unwrap_err(), SocketAddressError::NotUnix, "{address}");
        }
        assert_eq!(WorkloadApi::new("tcp://127.0.0.1:8081").unwrap_err(), SocketAddressError::NotUnix);
        let long = format!("unix:///{}", "x".repeat(MAX_SOCKET_PATH_BYTES));
        assert_eq!(WorkloadApi::new(&long).unwrap_err(), SocketAddressError::TooLong);
    }
}
