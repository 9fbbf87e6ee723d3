//! Ports that stay ours while nobody listens on them.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the ports that the kernel gives to outgoing connections (32768 and up): there, while a
/// server is stopped, somebody's connection could take its port, or a client connect to itself.
const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of the loopback that is free now and given to nobody else of this process.
pub(crate) fn unused() -> u16 {
    // Two test processes begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + begin.wrapping_add(turn) % COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on the loopback")
}

/// The address of a server that is not there: connections are refused.
pub(crate) fn closed_address() -> String {
    format!("https://127.0.0.1:{}", unused())
}
