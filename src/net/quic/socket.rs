//! The UDP socket of a QUIC endpoint: datagrams in batches, none in fragments.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use quinn_udp::{UdpSockRef, UdpSocketState};

use crate::limits::{DATAGRAM_RUN_SIZE_MAX, QUIC_SOCKET_BUFFER_SIZE};
use crate::net::datagram::{Batch, DatagramPort, Received, set_buffer_sizes};
use crate::runtime::threads::lock;

/// A UDP socket that all connections of an endpoint share.
pub struct QuicSocket {
    socket: UdpSocket,
    port: DatagramPort,
    /// What all connections call this end: its own address may change below them, and only their
    /// ids tell them apart.
    local: SocketAddr,
    /// Where connections write datagrams before they leave.
    scratch: Mutex<Vec<u8>>,
}

impl QuicSocket {
    /// Takes a bound socket.
    ///
    /// Errors: no descriptor left.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        set_buffer_sizes(&socket, QUIC_SOCKET_BUFFER_SIZE);
        // What it finds out is found out below; what it sets stays: no fragments, joined receipt,
        // and the address that datagrams came to.
        UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self {
            local: socket.local_addr()?,
            port: DatagramPort::new()?,
            socket,
            scratch: Mutex::default(),
        })
    }

    /// Makes a socket for a client of `peer`. It is not connected, so the system chooses for each
    /// datagram the address that it leaves from: when that of the machine changes, the connection
    /// goes on.
    ///
    /// Errors: no descriptor or port left.
    pub fn for_client(peer: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        Self::new(socket)
    }

    /// Returns what all connections call this end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Receives a batch.
    ///
    /// Errors: `WouldBlock` when nothing is there.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<()> {
        self.port.receive(&self.socket, batch)
    }

    /// Sends datagrams to `peer`, all of `segment_size` but the last one, from the address `local`
    /// if the socket has several. What cannot be sent is lost, as on the way.
    ///
    /// Errors: `WouldBlock` when there is no room.
    pub fn send(
        &self,
        peer: SocketAddr,
        local: Option<IpAddr>,
        bytes: &[u8],
        segment_size: usize,
    ) -> io::Result<()> {
        let datagrams = Received {
            peer,
            local,
            bytes,
            segment_size,
        };
        match self.port.send_to(&self.socket, peer, local, &datagrams) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                log::trace!("QUIC to {peer}: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Lends a buffer for datagrams to be sent by one call.
    pub(super) fn with_scratch<R>(&self, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut scratch = lock(&self.scratch);
        scratch.resize(DATAGRAM_RUN_SIZE_MAX, 0);
        write(&mut scratch)
    }
}

impl AsFd for QuicSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
