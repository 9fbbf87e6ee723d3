//! Reserves ports and abstract socket names for this process, also while no server listens on them.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Below the ports of outgoing connections (32768 and up). In that range, an outgoing connection could take the port
/// of a stopped server, or a client could connect to itself.
const FIRST: u16 = 15_000;
const BLOCKS: u16 = 150;
/// The number of ports that are reserved at once.
const IN_BLOCK: u16 = 100;

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved { blocks: Vec::new(), next: 0 });

/// The ports that this process has reserved, until it ends.
struct Reserved {
    blocks: Vec<Block>,
    /// Counts the ports of all blocks.
    next: usize,
}

/// A range of ports that no other test process uses.
struct Block {
    first: u16,
    /// The reservation: a bound abstract socket, which belongs to a network namespace, as ports do. A range derived
    /// from the process id is not enough, because two PID namespaces can share a network.
    _name: UnixListener,
}

impl Block {
    fn reserved() -> Option<Self> {
        (0..BLOCKS).map(|number| FIRST + number * IN_BLOCK).find_map(|first| {
            let name = SocketAddr::from_abstract_name(format!("transit-kms-test-ports-{first}")).unwrap();
            Some(Self { first, _name: UnixListener::bind_addr(&name).ok()? })
        })
    }
}

/// A free port of the loopback, which no other test gets.
pub fn unused() -> u16 {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..BLOCKS * IN_BLOCK {
        let (block, port) = (reserved.next / usize::from(IN_BLOCK), reserved.next % usize::from(IN_BLOCK));
        if block == reserved.blocks.len() {
            let Some(more) = Block::reserved() else {
                // All blocks are reserved. Start again with the oldest ports, which are no longer in use.
                reserved.next = 0;
                continue;
            };
            reserved.blocks.push(more);
        }
        reserved.next += 1;
        let port = reserved.blocks[block].first + u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on the loopback")
}

/// The name of an abstract socket, which no other test gets.
pub fn abstract_name() -> PathBuf {
    format!("@transit-kms-test-{}", unused()).into()
}

/// An address without a server: connections are refused.
pub fn closed_address() -> String {
    format!("https://127.0.0.1:{}", unused())
}

#[cfg(test)]
mod tests {
    use super::{Block, unused};

    #[test]
    fn reserved_ports_are_not_given_again() {
        // The kernel keeps the names, so these blocks act like those of another process.
        let blocks = [Block::reserved().unwrap(), Block::reserved().unwrap()];
        assert_ne!(blocks[0].first, blocks[1].first);
        for _ in 0..2 * super::IN_BLOCK {
            let port = unused();
            let in_block = |block: &Block| (block.first..block.first + super::IN_BLOCK).contains(&port);
            assert!(!blocks.iter().any(in_block), "{port}");
        }
    }
}
