//! A connection as grpc-go keeps one: told to go away, it is made anew, and no call is lost by that.
//!
//! tonic's channel does the same between calls: it finds its connection closed and connects again. But
//! a call that is handed to it in the very moment in which GOAWAY is read is failed, though not a byte
//! of it was sent: hyper hands it back, and tonic drops it. grpc-go sends such a call on the next
//! connection ("transparent retry", which no retry policy has a say in), and so does this. What has
//! been sent is never sent again, and a connection that is refused is a failure.

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

/// A client that outlives the daemon that it calls.
pub type LastingKms = KeyManagementServiceClient<Redial>;

/// Whoever always says GOAWAY has to be given up.
const MOST_DIALS: usize = 10;

type Sender = http2::SendRequest<Body>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// A connection to whoever listens on a socket; clones share it.
#[derive(Clone)]
pub struct Redial {
    sender: Arc<Mutex<Option<Sender>>>,
    socket: Arc<Path>,
}

/// A client on a connection of its own to this socket, which is made with the first call.
pub fn lasting_client(socket: &Path) -> LastingKms {
    let redial = Redial { sender: Arc::default(), socket: socket.into() };
    KeyManagementServiceClient::with_origin(redial, Uri::from_static("http://localhost"))
}

impl Redial {
    async fn call(self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        for _ in 0..MOST_DIALS {
            let kept = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.dial().await?,
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
        Err("it says GOAWAY to everybody".into())
    }

    async fn dial(&self) -> Result<Sender, Error> {
        let stream = connect(&self.socket).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}

impl tower::Service<Request<Body>> for Redial {
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
