//! A client of the daemon's admin addresses.

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

use error_text::root_cause;

/// The admin pages that this client requests have a few lines.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Requests `path` and returns the status and the body.
///
/// # Errors
/// The cause, as text for the operator.
pub(super) async fn get(address: &ListenAddress, path: &str) -> Result<(StatusCode, String), String> {
    match address {
        ListenAddress::Tcp(address) => {
            exchange(TcpStream::connect(address).await.map_err(|error| error.to_string())?, path).await
        }
        ListenAddress::Unix(address) => {
            exchange(connect_stream(address).await.map_err(|error| error.to_string())?, path).await
        }
    }
}

async fn exchange<S>(stream: S, path: &str) -> Result<(StatusCode, String), String>
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
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| root_cause(error.as_ref()))?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // The connection makes progress only while it is polled. If it ends first, the exchange returns the better
    // error.
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = exchange.as_mut() => return answer,
        _ = connection.as_mut() => {}
    }
    exchange.await
}
