//! A client of a KMS plugin's socket, as kube-apiserver is one.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{address::UnixAddress, v2::key_management_service_client::KeyManagementServiceClient};

/// Why there is no connection to a plugin.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The plugin took the connection and then closed it, as a plugin does that refuses the peer.
    #[error("the plugin took the connection and closed it")]
    Closed(#[source] tonic::transport::Error),
    /// No process listens there.
    #[error("no process takes connections at the socket")]
    Unreachable(#[source] io::Error),
}

/// Connects to the KMS v2 service at `address`.
///
/// # Errors
/// See [`ConnectError`]: a plugin that refuses a peer takes the connection first.
pub async fn connect(address: &UnixAddress) -> Result<KeyManagementServiceClient<Channel>, ConnectError> {
    let stream = open(address).await.map_err(ConnectError::Unreachable)?;
    let mut stream = Some(stream);
    // kube-apiserver sends this authority since 1.32; h2 takes no socket path there.
    let endpoint = Endpoint::from_static("http://localhost");
    let target = address.clone();
    let connector = service_fn(move |_| {
        let (target, stream) = (target.clone(), stream.take());
        async move {
            match stream {
                Some(stream) => Ok(stream),
                None => open(&target).await,
            }
            .map(TokioIo::new)
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map(KeyManagementServiceClient::new)
        .map_err(ConnectError::Closed)
}

/// Opens a stream to a unix socket.
///
/// # Errors
/// What `connect(2)` reports.
pub async fn open(address: &UnixAddress) -> io::Result<UnixStream> {
    match address {
        UnixAddress::Abstract(name) => UnixStream::connect(format!("\0{name}")).await,
        UnixAddress::Path(path) => UnixStream::connect(path).await,
    }
}
