//! A client of the daemon's admin listener.

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kms_plugin::{address::ListenAddress, client::connect_stream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use transit_client::text::root_cause;

/// A reason is a line; whatever sends more than this is not ours.
const MOST_ANSWER: usize = 64 * 1024;

/// Asks an admin listener for `path`.
///
/// # Errors
/// Says what failed, in words.
pub(super) async fn get(address: &ListenAddress, path: &str) -> Result<(StatusCode, String), String> {
    match address {
        ListenAddress::Tcp(address) => {
            ask(TcpStream::connect(address).await.map_err(|error| error.to_string())?, path).await
        }
        ListenAddress::Unix(address) => {
            ask(connect_stream(address).await.map_err(|error| error.to_string())?, path).await
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
