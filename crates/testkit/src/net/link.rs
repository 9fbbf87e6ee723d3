//! The network between the daemon and one server. A test can break it.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{net::port, vault::server::Bao, wait::eventually};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Forward,
    Refuse,
    Drop,
}

/// A loopback port that forwards to a server, until this value is dropped.
pub struct NetworkLink {
    mode: watch::Sender<Mode>,
    port: u16,
    serving: JoinHandle<()>,
}

impl NetworkLink {
    /// Starts a link to `bao`, whose certificate is valid for the loopback.
    pub async fn to(bao: &Bao) -> Self {
        let port = port::unused();
        let (mode, heard) = watch::channel(Mode::Forward);
        let to = bao.address().trim_start_matches("https://").to_owned();
        let link = Self { mode, port, serving: tokio::spawn(serve(port, to, heard)) };
        link.takes_connections(true).await;
        link
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Breaks all connections and refuses new ones, until [`NetworkLink::restore`].
    pub async fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
        self.takes_connections(false).await;
    }

    /// Drops all bytes on existing and new connections, until [`NetworkLink::restore`].
    pub fn drop_traffic(&self) {
        self.mode.send_replace(Mode::Drop);
    }

    /// Forwards again. Dropped bytes stay lost: their connections are closed.
    pub async fn restore(&self) {
        self.mode.send_replace(Mode::Forward);
        self.takes_connections(true).await;
    }

    async fn takes_connections(&self, wanted: bool) {
        eventually("the link changes its mode", Duration::from_secs(10), async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_ok() == wanted
        })
        .await;
    }
}

impl Drop for NetworkLink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(port: u16, to: String, mut mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    let heard = mode.clone();
    loop {
        if mode.wait_for(|mode| *mode != Mode::Refuse).await.is_err() {
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
            _refuse = mode.wait_for(|mode| *mode == Mode::Refuse) => {}
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
        _drop = mode.wait_for(|mode| *mode == Mode::Drop) => {}
        _done = carrying => return,
    }
    // Both connections stay open without a reader.
    drop(mode.wait_for(|mode| *mode != Mode::Drop).await);
    drop(near);
}
