//! QUIC: pool connections as streams over UDP.
//!
//! | part | does |
//! |---|---|
//! | [`connection`] | one connection, as the mux loop sees it |
//! | [`endpoint`] | the server's socket with all its connections, on one thread |
//! | [`connect`] | a client's connection, which has a socket and a thread for itself |
//! | `config`, [`token`] | certificates, limits; what strangers have to bring back |
//! | [`socket`], `piece` | datagrams in batches; bytes on their way |
//! | `whereabouts` | where the peer is, when its address changes |
//!
//! The protocol itself is the work of quiche, which knows nothing of sockets, clocks or threads.

mod config;
pub mod connection;
pub mod endpoint;
mod piece;
pub mod socket;
pub mod token;
mod whereabouts;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quiche::ConnectionId;
use rustix::event::{PollFd, PollFlags};
use rustls::AlertDescription;

pub use self::config::ConfigError;
use self::connection::Quic;
use self::socket::QuicSocket;
use self::token::OwnId;
use super::mux::Transport;
use super::patient::Patience;
use super::tls::{Judge, TlsError};
use crate::limits::QUIC_DATAGRAM_SIZES_MAX;
use crate::runtime::event::timespec;
use crate::runtime::random::random_bytes;
use crate::wire::alpn::NP_QUIC;

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// This end cannot be set up.
    Config(ConfigError),
    /// No socket, or no random bytes.
    System(io::Error),
    /// The certificate is not accepted, or the other end refused the handshake.
    Tls(TlsError),
    /// Nothing that could be understood came back in time.
    Silent,
    /// The program stops.
    Stopped,
    /// The other end gave up.
    Refused,
    /// The other end speaks another protocol inside QUIC.
    Protocol,
}

/// Connects to `server`, whose certificate `judge` looks at; `keep_alive` is the interval between
/// signs of life.
///
/// Blocks: until the handshake is done, as long as `patience` has it.
pub fn connect(
    server: SocketAddr,
    judge: Judge,
    keep_alive: Duration,
    patience: Patience<'_>,
) -> Result<Quic, ConnectError> {
    let host_name = judge.host_name().map(str::to_owned);
    let (mut config, verdict) =
        config::of_client(judge, keep_alive).map_err(ConnectError::Config)?;
    config.set_max_send_udp_payload_size(datagram_size_max(server));
    let socket = QuicSocket::for_client(server).map_err(ConnectError::System)?;
    let socket = Arc::new(socket);
    let id: OwnId = random_bytes().map_err(ConnectError::System)?;
    let core = quiche::connect_with_buffer_factory(
        host_name.as_deref(),
        &ConnectionId::from_ref(&id),
        socket.local(),
        server,
        &mut config,
    )
    .map_err(|error| ConnectError::Config(error.into()))?;
    let mut quic = Quic::client(core, socket, server, keep_alive);
    if let Err(error) = shake_hands(&mut quic, patience) {
        let of_peer = quic.peer_alert();
        // The server need not wait for what will not come.
        quic.hang_up();
        return Err(match (verdict.take(), of_peer) {
            (Some(fault), _) => ConnectError::Tls(fault),
            (None, Some(alert)) => {
                ConnectError::Tls(TlsError::Alert(AlertDescription::from(alert)))
            }
            (None, None) => match error.kind() {
                io::ErrorKind::TimedOut => ConnectError::Silent,
                io::ErrorKind::Interrupted => ConnectError::Stopped,
                _ => ConnectError::Refused,
            },
        });
    }
    if quic.protocol() != NP_QUIC {
        quic.hang_up();
        return Err(ConnectError::Protocol);
    }
    Ok(quic)
}

/// Errors: the connection is over; `TimedOut`; `Interrupted` when it is to stop.
fn shake_hands(quic: &mut Quic, patience: Patience<'_>) -> io::Result<()> {
    loop {
        quic.send()?;
        if quic.is_established() {
            return Ok(());
        }
        let now = Instant::now();
        let left = patience.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if patience.stop.is_raised() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let of_quic = quic.wake_at().map(|at| at.saturating_duration_since(now));
        let timeout = of_quic.map_or(left, |timeout| timeout.min(left));
        let mut set = [
            PollFd::from_borrowed_fd(quic.descriptor(), PollFlags::IN),
            PollFd::from_borrowed_fd(patience.stop.as_fd(), PollFlags::IN),
        ];
        // An interrupted poll is answered by the next try.
        let _ = rustix::event::poll(&mut set, Some(&timespec(timeout)));
        quic.receive(Instant::now())?;
        quic.look_at_the_clock(Instant::now())?;
    }
}

/// Returns the largest datagram that is sent to `peer` (bytes).
fn datagram_size_max(peer: SocketAddr) -> usize {
    let [ipv4, ipv6] = QUIC_DATAGRAM_SIZES_MAX;
    match peer.ip().to_canonical().is_ipv4() {
        true => ipv4,
        false => ipv6,
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::System(error) => write!(f, "no socket for QUIC: {error}"),
            Self::Tls(error) => write!(f, "{error}"),
            Self::Silent => f.write_str(
                "no answer over QUIC; let UDP through to the tunnel port in every firewall on the \
                 way, or set type=0 at the server",
            ),
            Self::Stopped => f.write_str("QUIC handshake given up: the program stops"),
            Self::Refused => f.write_str("the server refused the QUIC connection; see its log"),
            Self::Protocol => {
                f.write_str("what answers over QUIC is no tunnel (ALPN np-quic); check the address")
            }
        }
    }
}

impl std::error::Error for ConnectError {}
