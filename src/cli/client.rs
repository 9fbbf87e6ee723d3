//! Clients of a running daemon: of its KMS socket, as kube-apiserver is one,
//! and of its admin listener.

use std::io;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{
    kms::proto::key_management_service_client::KeyManagementServiceClient,
    observe::root_cause,
    server::address::{ListenAddress, UnixAddress},
};

/// A reason is a line; whatever sends more than this is not ours.
const MOST_ANSWER: usize = 64 * 1024;

/// Why there is no client, in words.
pub(super) enum NoClient {
    /// The connection was made, and then closed by the other side.
    Closed(String),
    /// Nobody takes connections there.
    Unreachable(String),
}

/// Connects to a KMS socket.
///
/// # Errors
/// Says which half of it failed: a daemon that refuses a peer takes the connection first.
pub(super) async fn kms(address: &UnixAddress) -> Result<KeyManagementServiceClient<Channel>, NoClient> {
    let stream = unix(address).await.map_err(|error| NoClient::Unreachable(error.to_string()))?;
    let mut stream = Some(stream);
    // kube-apiserver sends this authority since 1.32; h2 takes no socket path there.
    let endpoint = Endpoint::from_static("http://localhost");
    let target = address.clone();
    let connector = service_fn(move |_| {
        let (target, stream) = (target.clone(), stream.take());
        async move {
            match stream {
                Some(stream) => Ok(stream),
                None => unix(&target).await,
            }
            .map(TokioIo::new)
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map(KeyManagementServiceClient::new)
        .map_err(|error| NoClient::Closed(root_cause(&error)))
}

/// Asks an admin listener for `path`.
///
/// # Errors
/// Says what failed, in words.
pub(super) async fn admin(address: &ListenAddress, path: &str) -> Result<(StatusCode, String), String> {
    match address {
        ListenAddress::Tcp(address) => {
            ask(TcpStream::connect(address).await.map_err(|error| error.to_string())?, path).await
        }
        ListenAddress::Unix(address) => {
            ask(unix(address).await.map_err(|error| error.to_string())?, path).await
        }
    }
}

async fn ask<S>(stream: S, path: &str) -> Result<(StatusCode, String), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| root_cause(&error))?;
    let exchange = async move {
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| root_cause(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_ANSWER)
            .collect()
            .await
            .map_err(|error| root_cause(error.as_ref()))?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // The connection only moves while it is polled; its own end says nothing that the exchange
    // does not say better.
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = exchange.as_mut() => return answer,
        _ended = connection.as_mut() => {}
    }
    exchange.await
}

async fn unix(address: &UnixAddress) -> io::Result<UnixStream> {
    match address {
        UnixAddress::Abstract(name) => UnixStream::connect(format!("\0{name}")).await,
        UnixAddress::Path(path) => UnixStream::connect(path).await,
    }
}
