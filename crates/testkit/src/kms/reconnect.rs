//! A connection that is replaced after GOAWAY without losing a call, as in grpc-go.
//!
//! tonic's channel also connects again when its connection is closed. But it fails a call that starts while GOAWAY is
//! read, although nothing of the call was sent: hyper hands the request back, and tonic drops it. grpc-go sends such a
//! call on the next connection ("transparent retry", independent of the retry policy), and so does this client.
//! It never sends a request twice, and a refused connection is a failure.

use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kms_plugin::v2::key_management_service_client::KeyManagementServiceClient;
use tonic::body::Body;

use crate::daemon::process::connect;

/// A client that keeps working when another daemon takes over the socket.
pub type ReconnectingKms = KeyManagementServiceClient<ReconnectingChannel>;

/// Gives up on a server that closes every connection with GOAWAY.
const MAX_CONNECTS: usize = 10;

type Sender = http2::SendRequest<Body>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// A connection to a socket, which is replaced after GOAWAY. Clones share it.
#[derive(Clone)]
pub struct ReconnectingChannel {
    sender: Arc<Mutex<Option<Sender>>>,
    socket: Arc<Path>,
}

/// A client on its own connection to this socket. The first call connects.
pub fn reconnecting_client(socket: &Path) -> ReconnectingKms {
    let channel = ReconnectingChannel { sender: Arc::default(), socket: socket.into() };
    KeyManagementServiceClient::with_origin(channel, Uri::from_static("http://localhost"))
}

impl ReconnectingChannel {
    async fn call(self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        for _ in 0..MAX_CONNECTS {
            let kept = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if sender.ready().await.is_ok() {
                match sender.try_send_request(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
            self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        Err("the server closes every connection with GOAWAY".into())
    }

    async fn connect(&self) -> Result<Sender, Error> {
        let stream = connect(&self.socket).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}

impl tower::Service<Request<Body>> for ReconnectingChannel {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().call(request))
    }
}
