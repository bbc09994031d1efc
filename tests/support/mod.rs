//! What the cases are made of: the program as a child, servers to aim it at, traffic to send.

pub mod certificates;
pub mod downgrade;
pub mod each;
pub mod ends;
#[cfg(feature = "master")]
pub mod http;
pub mod link;
#[cfg(feature = "master")]
pub mod master;
#[cfg(any(feature = "http2", feature = "quic"))]
pub mod muxed;
pub mod name_server;
#[cfg(all(feature = "tls", feature = "websocket"))]
pub mod nginx;
pub mod pattern;
pub mod peer;
pub mod program;
pub mod proxy;
#[cfg(any(feature = "http2", feature = "master", feature = "websocket"))]
pub mod python;
pub mod recording;
pub mod servers;
pub mod tunnel;
pub mod udp_proxy;
pub mod visitors;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before the test gives up. Generous: machines that run tests are busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Repeats `attempt` until it gives a value; panics at the deadline, naming `what` was awaited.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A loopback address no other test uses, so that a port released there stays free.
pub fn own_loopback() -> Ipv4Addr {
    static USED: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = USED.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Two runs of the tests at the same time should not meet either.
    let [_, _, _, run] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + run / 2, high, low.max(1))
}

/// An address where nothing listens, neither TCP nor UDP, and where nothing else will.
pub fn free_address() -> SocketAddr {
    let ip = own_loopback();
    eventually("a port free for TCP and UDP", || {
        let listener = TcpListener::bind((ip, 0)).ok()?;
        let address = listener.local_addr().ok()?;
        UdpSocket::bind(address).ok().map(|_| address)
    })
}

/// The same with another port than any of `targets`: a program takes a target with its own port
/// for itself.
#[cfg(feature = "master")]
pub fn free_address_beside(targets: &[SocketAddr]) -> SocketAddr {
    eventually("another port", || {
        let address = free_address();
        let is_other = targets.iter().all(|target| target.port() != address.port());
        is_other.then_some(address)
    })
}
