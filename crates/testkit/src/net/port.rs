//! Ports that stay the test's while nobody listens on them.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Below the ports that the kernel gives to outgoing connections (32768 and up): there, while a
/// server is stopped, another connection could take its port, or a client connect to itself.
const FIRST: u16 = 15_000;
const BLOCKS: u16 = 150;
/// How many ports are reserved at once.
const IN_BLOCK: u16 = 100;

static OURS: Mutex<Ours> = Mutex::new(Ours { blocks: Vec::new(), next: 0 });

/// What this process has reserved, until it ends.
struct Ours {
    blocks: Vec<Block>,
    /// Counts the ports of all blocks.
    next: usize,
}

/// Ports that no other process of the tests gives away.
struct Block {
    first: u16,
    /// A name that is taken: abstract names are those of one network namespace, as ports are. A range by process id
    /// would not do, for two PID namespaces may share a network.
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

/// A port of the loopback that is free now and given to no other test.
pub fn unused() -> u16 {
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..BLOCKS * IN_BLOCK {
        let (block, port) = (ours.next / usize::from(IN_BLOCK), ours.next % usize::from(IN_BLOCK));
        if block == ours.blocks.len() {
            let Some(more) = Block::reserved() else {
                // What was given first has been given back long ago.
                ours.next = 0;
                continue;
            };
            ours.blocks.push(more);
        }
        ours.next += 1;
        let port = ours.blocks[block].first + u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on the loopback")
}

/// The name of an abstract socket that no other test has.
pub fn abstract_name() -> PathBuf {
    format!("@transit-kms-test-{}", unused()).into()
}

/// The address of a server that is not there: connections are refused.
pub fn closed_address() -> String {
    format!("https://127.0.0.1:{}", unused())
}

#[cfg(test)]
mod tests {
    use super::{Block, unused};

    #[test]
    fn what_is_reserved_is_not_given_again() {
        // The kernel keeps the names, so a block of another process is no different.
        let blocks = [Block::reserved().unwrap(), Block::reserved().unwrap()];
        assert_ne!(blocks[0].first, blocks[1].first);
        for _ in 0..2 * super::IN_BLOCK {
            let port = unused();
            let in_block = |block: &Block| (block.first..block.first + super::IN_BLOCK).contains(&port);
            assert!(!blocks.iter().any(in_block), "{port}");
        }
    }
}
