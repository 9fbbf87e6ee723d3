//! A client of a KMS v2 plugin that behaves as kube-apiserver does.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status, TimeoutExpired,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    address::UnixAddress,
    v2::{
        DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
        key_management_service_client::KeyManagementServiceClient,
    },
};

/// Why there is no connection to a plugin.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The plugin accepted the connection and closed it. This is how a plugin refuses a peer.
    #[error("the plugin accepted the connection and closed it")]
    Closed(#[source] tonic::transport::Error),
    /// No process accepts connections at the socket.
    #[error("no process accepts connections at the socket")]
    Unreachable(#[source] io::Error),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection broke before the plugin answered.
    #[error("the plugin closed the connection")]
    Disconnected(#[source] Status),
    /// The plugin answered with a gRPC error.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Rejected(Status),
    /// The deadline passed before the plugin answered.
    #[error("the plugin did not answer in time")]
    TimedOut,
}

/// A connection to a KMS v2 plugin, for calls that share one deadline and one uid.
#[derive(Debug)]
pub struct Client {
    deadline: Instant,
    inner: KeyManagementServiceClient<Channel>,
    uid: String,
}

impl Client {
    /// Connects to the plugin at `address`. All calls together may take `timeout` from now on. The plugin logs
    /// `uid` for each Encrypt and Decrypt.
    ///
    /// # Errors
    /// See [`ConnectError`]. A plugin that refuses this peer accepts the connection first, so the refusal may
    /// also be a [`CallError::Disconnected`] of the first call.
    pub async fn connect(
        address: &UnixAddress,
        timeout: Duration,
        uid: impl Into<String>,
    ) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + timeout;
        let stream = connect_stream(address).await.map_err(ConnectError::Unreachable)?;
        let mut stream = Some(stream);
        // kube-apiserver sends this authority since 1.32. The h2 crate accepts no socket path as authority.
        let endpoint = Endpoint::from_static("http://localhost");
        let target = address.clone();
        let connector = service_fn(move |_| {
            let (target, stream) = (target.clone(), stream.take());
            async move {
                match stream {
                    Some(stream) => Ok(stream),
                    None => connect_stream(&target).await,
                }
                .map(TokioIo::new)
            }
        });
        let channel = endpoint.connect_with_connector(connector).await.map_err(ConnectError::Closed)?;
        Ok(Self { deadline, inner: KeyManagementServiceClient::new(channel), uid: uid.into() })
    }

    /// Calls Status. [`StatusResponse::check`] says whether kube-apiserver considers the plugin healthy.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&mut self) -> Result<StatusResponse, CallError> {
        let request = self.request(StatusRequest {});
        Ok(self.inner.status(request).await.map_err(into_call_error)?.into_inner())
    }

    /// Encrypts `plaintext`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn encrypt(&mut self, plaintext: Bytes) -> Result<EncryptResponse, CallError> {
        let request = self.request(EncryptRequest { plaintext, uid: self.uid.clone() });
        Ok(self.inner.encrypt(request).await.map_err(into_call_error)?.into_inner())
    }

    /// Decrypts the answer of an Encrypt. As kube-apiserver does, this sends back the key_id and the
    /// annotations.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn decrypt(&mut self, encrypted: &EncryptResponse) -> Result<Bytes, CallError> {
        let EncryptResponse { annotations, ciphertext, key_id } = encrypted.clone();
        let request = self.request(DecryptRequest { ciphertext, uid: self.uid.clone(), key_id, annotations });
        Ok(self.inner.decrypt(request).await.map_err(into_call_error)?.into_inner().plaintext)
    }

    /// Sets `grpc-timeout` to the remaining time, as kube-apiserver does.
    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        request
    }
}

/// Opens a stream to a unix socket.
///
/// # Errors
/// The error of `connect(2)`.
pub async fn connect_stream(address: &UnixAddress) -> io::Result<UnixStream> {
    match address {
        UnixAddress::Abstract(name) => UnixStream::connect(format!("\0{name}")).await,
        UnixAddress::Path(path) => UnixStream::connect(path).await,
    }
}

/// A status that the plugin sent has no source. A status that this client made has one.
fn into_call_error(status: Status) -> CallError {
    let Some(source) = status.source() else { return CallError::Rejected(status) };
    let mut next = Some(source);
    while let Some(error) = next {
        if error.is::<TimeoutExpired>() {
            return CallError::TimedOut;
        }
        next = error.source();
    }
    CallError::Disconnected(status)
}
