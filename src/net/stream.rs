//! What each byte stream offers to the relay, and the plain TCP one.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;

use crate::limits::{KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};
use crate::runtime::event::timespec;

/// One end of a relay: a non-blocking byte stream over one descriptor.
pub trait Stream {
    /// Returns the descriptor to wait for.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Reads into `buffer`; 0 at the end of the stream.
    ///
    /// Errors: `WouldBlock` when nothing is there; any other one breaks the stream.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from `bytes`; returns how many were taken.
    ///
    /// Errors: `WouldBlock` when nothing can be taken; any other one breaks the stream.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends the writing direction: the other side reads the end of the stream, and may go on
    /// writing.
    ///
    /// Errors: `WouldBlock` when bytes written before have yet to leave.
    fn finish(&mut self) -> io::Result<()>;

    /// Ends both directions so that the other side sees that the stream was cut short.
    ///
    /// Blocks: until what was written has left, at most until `deadline`.
    fn abort(&mut self, deadline: Instant);

    /// Returns whether a read would give bytes that the descriptor does not announce.
    fn holds_bytes(&self) -> bool {
        false
    }

    /// Returns whether the descriptor carries just these bytes, so that the kernel may move them.
    fn is_plain(&self) -> bool {
        false
    }
}

/// A TCP connection that carries the bytes as they are.
#[derive(Debug)]
pub struct PlainStream {
    socket: TcpStream,
}

impl PlainStream {
    /// Takes a connected socket that is non-blocking already.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Returns the socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl Stream for PlainStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, size) = rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT)?;
        Ok(size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.socket, bytes, flags)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    fn abort(&mut self, deadline: Instant) {
        let socket = SockRef::from(&self.socket);
        // A reset throws away what the kernel has not sent yet. On a direct connection those
        // bytes would have arrived before the reset, so wait for them to leave: with this mark
        // the socket is writable only when none is left.
        if socket.set_tcp_notsent_lowat(1).is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut set = [PollFd::new(&self.socket, PollFlags::OUT)];
            // Reset it whatever came of the wait.
            let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
        }
        // The reset itself is sent when the socket is closed; if it is gone already, fine.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    fn is_plain(&self) -> bool {
        true
    }
}

/// Sets what every TCP connection of a relay has: no delay, and probes that find a dead peer.
///
/// An accepted connection has the options of its listener.
pub fn set_stream_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}
