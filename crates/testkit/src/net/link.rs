//! The network between the daemon and one server, which a test can cut.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{net::port, vault::server::Bao, wait::eventually};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Carries,
    Refuses,
    Swallows,
}

/// A port of the loopback that leads to a server; it ends with this value.
pub struct Wire {
    mode: watch::Sender<Mode>,
    port: u16,
    serving: JoinHandle<()>,
}

impl Wire {
    /// To `bao`, whose certificate names the loopback.
    pub async fn to(bao: &Bao) -> Self {
        let port = port::unused();
        let (mode, heard) = watch::channel(Mode::Carries);
        let to = bao.address().trim_start_matches("https://").to_owned();
        let wire = Self { mode, port, serving: tokio::spawn(serve(port, to, heard)) };
        wire.takes_connections(true).await;
        wire
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Breaks all connections and refuses new ones, until [`Wire::mend`].
    pub async fn refuse(&self) {
        self.mode.send_replace(Mode::Refuses);
        self.takes_connections(false).await;
    }

    /// Swallows whatever is sent on connections, old and new, until [`Wire::mend`].
    pub fn swallow(&self) {
        self.mode.send_replace(Mode::Swallows);
    }

    /// Carries again; what was on its way is lost with its connection.
    pub async fn mend(&self) {
        self.mode.send_replace(Mode::Carries);
        self.takes_connections(true).await;
    }

    async fn takes_connections(&self, wanted: bool) {
        eventually("the wire does as it is told", Duration::from_secs(10), async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_ok() == wanted
        })
        .await;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(port: u16, to: String, mut mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    let heard = mode.clone();
    loop {
        if mode.wait_for(|mode| *mode != Mode::Refuses).await.is_err() {
            return;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let accepting = async {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                connections.spawn(carry(near, to.clone(), heard.clone()));
            }
        };
        tokio::select! {
            () = accepting => {}
            _refuses = mode.wait_for(|mode| *mode == Mode::Refuses) => {}
        }
        drop(listener);
        connections.shutdown().await;
    }
}

async fn carry(mut near: TcpStream, to: String, mut mode: watch::Receiver<Mode>) {
    let carrying = async {
        let mut far = TcpStream::connect(to).await?;
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        biased;
        _swallows = mode.wait_for(|mode| *mode == Mode::Swallows) => {}
        _done = carrying => return,
    }
    // Both ends stay open, and nobody reads.
    drop(mode.wait_for(|mode| *mode != Mode::Swallows).await);
    drop(near);
}
