//! What each byte stream offers to the relay, and the plain TCP one.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
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

    /// From now on, to close this without [`Stream::finish`] is to cut it: the other side sees that,
    /// also where it is the kernel that closes because this process has been killed.
    ///
    /// Nothing to do for streams that tell an end from a cut by themselves.
    fn expect_finish(&mut self) {}

    /// Takes [`Stream::expect_finish`] back.
    fn forgo_finish(&mut self) {}

    /// Ends both directions so that the other side sees that the stream was cut short.
    ///
    /// Blocks: until what was written has left, at most until `deadline`.
    fn abort(&mut self, deadline: Instant);

    /// Returns what an idle stream is about to do; bytes that have come are kept for the next read.
    fn check(&mut self) -> Condition;

    /// Returns whether a read would give bytes, the end or an error that the descriptor does not
    /// announce.
    fn holds_bytes(&self) -> bool {
        false
    }

    /// Returns whether something that `write` or `finish` took has yet to leave for the kernel.
    ///
    /// It leaves by [`Stream::flush`] when the descriptor is writable, or before the next bytes
    /// that are written.
    fn holds_unsent(&self) -> bool {
        false
    }

    /// Hands to the kernel what `write` and `finish` took and still hold.
    ///
    /// Errors: `WouldBlock` when some of it is left; any other one breaks the stream.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Breaks a silence that has become too long for those in between, who may take it for the end
    /// of the stream. To be called before each sleep.
    ///
    /// Returns when to call it again at the latest; `None` where it is no use until more has been
    /// read or written. What it fails with is told by the next reads.
    fn keep_alive(&mut self) -> Option<Instant> {
        None
    }

    /// Gives up memory that is needed only while bytes flow. To be called before a long sleep.
    fn rest(&mut self) {}

    /// Returns whether the descriptor carries just these bytes, so that the kernel may move them.
    fn is_plain(&self) -> bool {
        false
    }

    /// From now on a read gives bytes of one message only, where the stream is made of messages.
    fn keep_messages(&mut self) {}

    /// Returns whether the other end, which has ended its direction, has left altogether; `None`
    /// where it has not ended, or where the descriptor tells.
    fn has_left(&mut self) -> Option<bool> {
        None
    }

    /// Returns whether one direction can end without the other one.
    fn has_half_close(&self) -> bool {
        true
    }
}

/// A byte stream that any thread may take over.
pub type BoxedStream = Box<dyn Stream + Send>;

/// What is known of a stream without reading from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is open and has nothing to read.
    Silent,
    /// It has bytes to read.
    Speaking,
    /// It has nothing to read but its end, or it is broken.
    Ended,
}

/// A TCP connection that carries the bytes as they are.
#[derive(Debug)]
pub struct PlainStream {
    socket: TcpStream,
    expects_finish: bool,
}

impl PlainStream {
    /// Takes a connected socket that is non-blocking already.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
            expects_finish: false,
        }
    }

    /// Returns the socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Gives the socket away.
    pub fn into_socket(self) -> OwnedFd {
        self.socket.into()
    }

    /// Returns the address of the other end.
    ///
    /// Errors: the connection has been reset.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
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
        self.forgo_finish();
        self.socket.shutdown(Shutdown::Write)
    }

    fn expect_finish(&mut self) {
        // Closed with this mark, it is reset.
        let marked = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        self.expects_finish = marked.is_ok();
    }

    fn forgo_finish(&mut self) {
        if std::mem::take(&mut self.expects_finish) {
            // What cannot be marked any more is broken.
            let _ = SockRef::from(&self.socket).set_linger(None);
        }
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

    fn check(&mut self) -> Condition {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut [0; 1], flags) {
            Ok((_, 0)) => Condition::Ended,
            Ok(_) => Condition::Speaking,
            Err(Errno::WOULDBLOCK | Errno::INTR) => Condition::Silent,
            Err(_) => Condition::Ended,
        }
    }

    fn is_plain(&self) -> bool {
        true
    }
}

/// Returns whether a call that failed is worth another try when the descriptor is ready.
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Returns whether a descriptor takes more bytes now.
pub fn has_room(descriptor: BorrowedFd<'_>) -> bool {
    let mut set = [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)];
    // A failed poll tells of nothing.
    let _ = rustix::event::poll(&mut set, Some(&timespec(Duration::ZERO)));
    set[0].revents() == PollFlags::OUT
}

/// Lets what a stream has taken leave, as far as it does.
///
/// Blocks: until all has left, at most until `deadline`.
pub fn flush_until(stream: &mut dyn Stream, deadline: Instant) {
    while let Err(error) = stream.flush() {
        let left = deadline.saturating_duration_since(Instant::now());
        if error.kind() != io::ErrorKind::WouldBlock || left.is_zero() {
            return;
        }
        let mut set = [PollFd::from_borrowed_fd(
            stream.descriptor(),
            PollFlags::OUT,
        )];
        // An interrupted or failed poll is answered by the next look at clock and stream.
        let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
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

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// Returns both ends of a connection over loopback, as `relay` wants them.
    pub fn connected() -> (PlainStream, PlainStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let prepare = |socket: TcpStream| {
            socket.set_nonblocking(true).unwrap();
            socket.set_nodelay(true).unwrap();
            PlainStream::new(socket.into())
        };
        (prepare(dialled), prepare(accepted))
    }

    /// Waits until the descriptor of a stream has something to tell a reader.
    pub fn wait_readable(stream: &dyn Stream) {
        let mut set = [PollFd::from_borrowed_fd(stream.descriptor(), PollFlags::IN)];
        let limit = timespec(Duration::from_secs(10));
        assert_eq!(rustix::event::poll(&mut set, Some(&limit)), Ok(1));
    }

    #[test]
    fn a_plain_stream_tells_silence_speech_and_end_apart() {
        let (mut near, far) = connected();
        assert_eq!(near.check(), Condition::Silent);
        far.socket().write_all(b"x").unwrap();
        wait_readable(&near);
        assert_eq!(near.check(), Condition::Speaking);
        let mut buffer = [0; 8];
        assert_eq!(near.read(&mut buffer).unwrap(), 1);
        assert_eq!(near.check(), Condition::Silent);
        drop(far);
        wait_readable(&near);
        assert_eq!(near.check(), Condition::Ended);
    }

    #[test]
    fn a_plain_stream_gives_its_socket_and_its_peer() {
        let (near, far) = connected();
        let address = far.socket().local_addr().unwrap();
        assert_eq!(near.peer_address().unwrap(), address);
        let socket = TcpStream::from(near.into_socket());
        assert_eq!(socket.peer_addr().unwrap(), address);
    }
}
