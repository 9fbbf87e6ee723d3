//! The network of a container that is otherwise alone on it: a DNS server, and a port that is forwarded to Vault.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{net::TcpStream, task::JoinSet};

use super::podman::Container;

/// The port of DNS.
const DNS: u16 = 53;
/// The type and class of a DNS question for an IPv4 address.
const A_IN: [u8; 4] = [0, 1, 0, 1];

/// The servers on the network. They stop when it is dropped.
pub(super) struct Network {
    resolved: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Network {
    /// Starts the servers on the loopback address of `container`. Every name resolves to that address, and `port` is
    /// forwarded to `to` (`host:port`) on the host.
    pub(super) fn within(container: &Container<'_>, port: u16, to: String) -> Self {
        let namespace = format!("/proc/{}/ns/net", container.proc().pid);
        // A socket stays in the network namespace of the thread that created it. The thread ends after that, because it
        // stays in the namespace too.
        let bind = move || -> io::Result<_> {
            move_into_link_name_space(File::open(namespace)?.as_fd(), Some(LinkNameSpaceType::Network))?;
            let names = UdpSocket::bind((Ipv4Addr::LOCALHOST, DNS))?;
            Ok((names, TcpListener::bind((Ipv4Addr::LOCALHOST, port))?))
        };
        let (names, way) = std::thread::spawn(bind).join().unwrap().unwrap();
        names.set_nonblocking(true).unwrap();
        way.set_nonblocking(true).unwrap();
        let resolved = Arc::<Mutex<Vec<String>>>::default();
        let mut serving = JoinSet::new();
        serving.spawn(answer(tokio::net::UdpSocket::from_std(names).unwrap(), resolved.clone()));
        serving.spawn(forward(tokio::net::TcpListener::from_std(way).unwrap(), to));
        Self { resolved, _serving: serving }
    }

    /// Returns the names that were resolved.
    pub(super) fn resolved(&self) -> Vec<String> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(socket: tokio::net::UdpSocket, resolved: Arc<Mutex<Vec<String>>>) {
    let mut packet = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut packet).await.unwrap();
        // RFC 1035: a header of 12 bytes, labels up to an empty one, type and class.
        let question = &packet[12..length];
        let end = question.iter().position(|&byte| byte == 0).unwrap() + 1;
        let mut name = String::new();
        let mut labels = &question[..end];
        while let [size, rest @ ..] = labels
            && *size > 0
        {
            let (label, others) = rest.split_at((*size).into());
            name += &format!("{}.", String::from_utf8_lossy(label));
            labels = others;
        }
        resolved.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        let is_ipv4 = question[end..].starts_with(&A_IN);
        let mut reply = [&packet[..2], &[0x81, 0x80, 0, 1, 0, is_ipv4.into(), 0, 0, 0, 0]].concat();
        reply.extend(&question[..end + A_IN.len()]);
        if is_ipv4 {
            // A pointer to the name of the question, a TTL of a minute, and a length of four bytes.
            reply.extend(
                [&[0xc0, 12], &A_IN[..], &[0, 0, 0, 60, 0, 4], &Ipv4Addr::LOCALHOST.octets()].concat(),
            );
        }
        socket.send_to(&reply, from).await.unwrap();
    }
}

async fn forward(listener: tokio::net::TcpListener, to: String) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let to = to.clone();
        connections.spawn(async move {
            let mut far = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}
