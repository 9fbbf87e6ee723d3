//! What connections are accepted from.

use std::io;

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
};

/// A source of connections.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: Send + 'static;

    /// Waits for the next connection. Must be cancel-safe: dropping the future loses no connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// A listener that can be replaced while it is served. Connections in the queue of the replaced one are
/// still accepted.
#[derive(Debug)]
pub struct ReplaceableListener {
    current: UnixListener,
    /// Its socket has no name any more, but clients may wait in its queue.
    previous: Option<UnixListener>,
    replacements: mpsc::Receiver<UnixListener>,
}

impl ReplaceableListener {
    /// Accepts from `current` until the returned sender sends another listener.
    #[must_use]
    pub fn new(current: UnixListener) -> (Self, mpsc::Sender<UnixListener>) {
        let (sender, replacements) = mpsc::channel(1);
        (Self { current, previous: None, replacements }, sender)
    }
}

impl Listener for ReplaceableListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let from_previous = async {
                match &self.previous {
                    Some(previous) => previous.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(replacement) = self.replacements.recv() => {
                    self.previous = Some(std::mem::replace(&mut self.current, replacement));
                }
                accepted = from_previous => return Ok(accepted?.0),
                accepted = self.current.accept() => return Ok(accepted?.0),
            }
        }
    }
}
