//! TLS over a plain TCP connection, without waiting and on the thread of whoever uses it.
//!
//! The library (rustls) is fed from memory and never sees the socket's readable side: what the
//! socket has is received in large pieces, decrypted record by record and handed out until the
//! caller's buffer is full or the socket is empty. Only then may the caller sleep, so nothing
//! that poll cannot see is left behind ([`Stream::holds_bytes`]).
//!
//! ```text
//!  socket ──recv──▶ received ──read_tls──▶ rustls ──reader──▶ caller     (64 KiB, one record, …)
//!  socket ◀──sendmsg── rustls ◀──writer── caller                         (64 KiB at a time)
//! ```
//!
//! The end of one direction is close_notify, then the end of the TCP stream; the other direction
//! lives on. An end of the TCP stream without close_notify is an error: somebody may have cut the
//! stream, and what came must not pass for the whole.
//!
//! Source: RFC 8446, sections 5 and 6.1.

mod config;
mod error;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

#[cfg(feature = "quic")]
pub use self::config::Judge;
pub(in crate::net) use self::config::crypto;
pub use self::config::{ClientTls, ServerTls, Trust};
pub use self::error::{CertificateFault, TlsError};
use super::stream::{Condition, PlainStream, Stream, flush_until};
use crate::limits::{TLS_RECEIVE_ROUNDS_MAX, TLS_RECEIVE_SIZE, TLS_SEND_SIZE};
use crate::runtime::event::{Event, timespec};
use crate::wire::fingerprint::Fingerprint;

/// The record types a connection may begin with, alert and handshake, and the first byte of the
/// version that follows, which is the same in all (RFC 8446 section 5.1).
const FIRST_TYPES: [u8; 2] = [0x15, 0x16];
const VERSION: u8 = 3;

/// One end of a TLS connection.
///
/// Reading and writing are for a connection whose handshake is done
/// ([`TlsStream::handshake`], [`TlsStream::advance`]); before that they are errors.
pub struct TlsStream {
    socket: PlainStream,
    connection: Connection,
    /// Ciphertext of the last receive; from `fed` on the library does not have it yet. Without
    /// memory of its own while nothing flows.
    received: Vec<u8>,
    fed: usize,
    /// Plaintext that can be read at once; it may be more when reading has failed.
    plaintext_count: usize,
    /// Close_notify has come: nothing that follows counts.
    is_ended: bool,
    /// What ended reading without close_notify.
    failure: Option<Failure>,
    /// Something has come from the other end.
    is_heard: bool,
    stage: Stage,
}

/// How far this end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    /// Both directions can be used.
    Open,
    /// Close_notify is written, and has perhaps yet to leave.
    Finishing,
    /// The end of the TCP stream has been sent.
    Finished,
}

/// Why nothing more can be read.
#[derive(Debug)]
enum Failure {
    /// The TCP stream ended without close_notify.
    Cut,
    /// The socket is broken.
    Socket(Errno),
    /// What came is no proper TLS.
    Library(rustls::Error),
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is done; bytes can be read and written.
    Done,
    /// It goes on when the socket is ready for one of these.
    Wants {
        /// Something can be received.
        read: bool,
        /// Something can be sent.
        write: bool,
    },
}

impl TlsStream {
    /// Makes the server's end of a connection; nothing is sent or received yet.
    ///
    /// Errors: `Protocol`, if the library refuses its configuration, which ours does not do.
    pub fn accept(socket: PlainStream, tls: &ServerTls) -> Result<Self, TlsError> {
        let connection = ServerConnection::new(tls.config.clone()).map_err(TlsError::Protocol)?;
        Ok(Self::new(socket, connection.into()))
    }

    /// Makes the client's end of a connection; nothing is sent or received yet.
    ///
    /// `server_name` is a host name or an IP address without brackets. A host name is sent (SNI);
    /// with `Trust::System` the certificate must be for it.
    ///
    /// Errors: `Name` if it is neither; `NoName` if it is missing and `tls` is to verify it.
    pub fn connect(
        socket: PlainStream,
        tls: &ClientTls,
        server_name: Option<&str>,
    ) -> Result<Self, TlsError> {
        let name = match server_name {
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| TlsError::Name(name.to_owned()))?,
            None if tls.trust == Trust::System => return Err(TlsError::NoName),
            // The library wants something. An address is never sent, and nobody compares it.
            None => ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        let connection =
            ClientConnection::new(tls.config.clone(), name).map_err(TlsError::Protocol)?;
        Ok(Self::new(socket, connection.into()))
    }

    fn new(socket: PlainStream, mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(TLS_SEND_SIZE));
        Self {
            socket,
            connection,
            received: Vec::new(),
            fed: 0,
            plaintext_count: 0,
            is_ended: false,
            failure: None,
            is_heard: false,
            stage: Stage::Handshake,
        }
    }

    /// Returns the connection below.
    pub fn socket(&self) -> &PlainStream {
        &self.socket
    }

    /// Returns the fingerprint of the certificate that the other end has shown: for a client,
    /// once the handshake is done.
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        let certificate = self.connection.peer_certificates()?.first()?;
        Some(Fingerprint::of_certificate(certificate))
    }

    /// Returns the protocol that both ends agreed on, if they agreed on one (ALPN).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    /// Brings the handshake as far as it goes without waiting.
    ///
    /// Errors: any but `Timeout`, `Stopped` and those of [`TlsStream::connect`]; the other end has
    /// been told why where it could be. The stream is of no use any more.
    pub fn advance(&mut self) -> Result<Progress, TlsError> {
        loop {
            let is_blocked = match self.send_ciphertext() {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                Err(error) => return Err(self.unsendable(error)),
            };
            if !self.connection.is_handshaking() {
                if is_blocked {
                    let (read, write) = (false, true);
                    return Ok(Progress::Wants { read, write });
                }
                if self.stage == Stage::Handshake {
                    self.stage = Stage::Open;
                }
                self.rest();
                return Ok(Progress::Done);
            }
            if !self.has_received() {
                self.receive();
            }
            if !self.has_received() && self.failure.is_none() {
                let (read, write) = (true, is_blocked);
                return Ok(Progress::Wants { read, write });
            }
            self.hear()?;
            while self.can_feed() {
                self.feed();
            }
            // What comes after the handshake, and what is wrong with it, is for the reader.
            if self.connection.is_handshaking() {
                if self.is_ended {
                    return Err(Failure::Cut.of_handshake());
                }
                if let Some(failure) = self.failure.take() {
                    return Err(failure.of_handshake());
                }
            }
        }
    }

    /// Makes the handshake.
    ///
    /// Blocks: until it is done, at most until `deadline`, woken by `stop`.
    /// Errors: as [`TlsStream::advance`], `Timeout` and `Stopped`.
    pub fn handshake(&mut self, deadline: Instant, stop: &Event) -> Result<(), TlsError> {
        loop {
            let Progress::Wants { read, write } = self.advance()? else {
                return Ok(());
            };
            if stop.is_raised() {
                return Err(TlsError::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TlsError::Timeout);
            }
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, read);
            wanted.set(PollFlags::OUT, write);
            let mut set = [
                PollFd::from_borrowed_fd(self.socket.descriptor(), wanted),
                PollFd::new(stop, PollFlags::IN),
            ];
            // An interrupted or failed poll is answered by the next look at clock and socket.
            let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
        }
    }

    /// Looks at the first bytes of the other end, or at its end without one.
    fn hear(&mut self) -> Result<(), TlsError> {
        if self.is_heard {
            return Ok(());
        }
        match (self.received.as_slice(), &self.failure) {
            ([kind, VERSION, ..] | [kind], _) if FIRST_TYPES.contains(kind) => {
                self.is_heard = true;
                Ok(())
            }
            ([_, ..], _) => Err(TlsError::NotTls),
            // Whoever closes without having read what we sent resets the connection.
            ([], Some(Failure::Cut | Failure::Socket(Errno::CONNRESET | Errno::PIPE))) => {
                Err(TlsError::NotTls)
            }
            ([], _) => Ok(()),
        }
    }

    /// Returns why nothing can be sent during a handshake: what the other end has said before
    /// tells more than the error.
    fn unsendable(&mut self, error: io::Error) -> TlsError {
        if !self.has_received() {
            self.receive();
        }
        if let Err(error) = self.hear() {
            return error;
        }
        while self.can_feed() {
            self.feed();
        }
        match self.failure.take() {
            Some(failure @ Failure::Library(_)) => failure.of_handshake(),
            _ => TlsError::Io(error),
        }
    }

    fn has_received(&self) -> bool {
        self.fed < self.received.len()
    }

    /// Returns whether nothing more will come.
    fn is_over(&self) -> bool {
        self.is_ended || self.failure.is_some()
    }

    /// Returns whether the library can take ciphertext: it refuses while it holds much plaintext.
    fn can_feed(&self) -> bool {
        self.has_received() && self.plaintext_count == 0 && !self.is_over()
    }

    /// Receives ciphertext, all of the last having been fed; returns whether there may be more.
    fn receive(&mut self) -> bool {
        self.received.clear();
        self.fed = 0;
        self.received.reserve_exact(TLS_RECEIVE_SIZE);
        let room = spare_capacity(&mut self.received);
        match rustix::net::recv(self.socket.socket(), room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.failure = Some(Failure::Cut);
                false
            }
            // Less than fits: the socket is empty, and poll will tell when it is not.
            Ok((_, size)) => size >= TLS_RECEIVE_SIZE,
            Err(Errno::WOULDBLOCK | Errno::INTR) => false,
            Err(error) => {
                self.failure = Some(Failure::Socket(error));
                false
            }
        }
    }

    /// Gives some ciphertext to the library, at most a record more than it can hold.
    fn feed(&mut self) {
        let mut rest = &self.received[self.fed..];
        let outcome = match self.connection.read_tls(&mut rest) {
            Ok(size) if size > 0 => {
                self.fed += size;
                self.connection.process_new_packets()
            }
            // It is asked only when it can take some, and bytes in memory do not fail.
            Ok(_) => Err(rustls::Error::General("ciphertext not taken".to_owned())),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        };
        match outcome {
            Ok(state) => {
                self.plaintext_count = state.plaintext_bytes_to_read();
                self.is_ended = state.peer_has_closed();
            }
            Err(error) => {
                self.failure = Some(Failure::Library(error));
                // The library has written an alert for the other end, if it can still be told.
                let _ = self.send_ciphertext();
            }
        }
    }

    /// Takes plaintext that is there; returns how much.
    fn take_plaintext(&mut self, buffer: &mut [u8]) -> usize {
        if self.plaintext_count == 0 && self.failure.is_none() {
            return 0;
        }
        // Its errors say what is known already: nothing there, or the end.
        let size = self.connection.reader().read(buffer).unwrap_or(0);
        self.plaintext_count = self.plaintext_count.saturating_sub(size);
        size
    }

    /// Hands ciphertext to the kernel.
    fn send_ciphertext(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Outlet(&self.socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn require_handshake(&self) -> io::Result<()> {
        if self.stage == Stage::Handshake {
            let reason = "the TLS handshake is not done";
            return Err(io::Error::new(io::ErrorKind::NotConnected, reason));
        }
        Ok(())
    }
}

impl Stream for TlsStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }

    /// Reads until `buffer` is full or the socket empty: poll does not tell of what is left in
    /// between.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.require_handshake()?;
        let mut taken = 0;
        let mut rounds_left = TLS_RECEIVE_ROUNDS_MAX;
        let mut may_have_more = true;
        loop {
            taken += self.take_plaintext(&mut buffer[taken..]);
            if taken == buffer.len() || self.is_over() {
                break;
            }
            if self.has_received() {
                self.feed();
            } else if may_have_more && rounds_left > 0 {
                rounds_left -= 1;
                may_have_more = self.receive();
            } else {
                break;
            }
        }
        match &self.failure {
            _ if taken > 0 => Ok(taken),
            _ if self.is_ended => Ok(0),
            Some(failure) => Err(failure.of_stream()),
            // The flood may go on, but others must get their turn.
            None if may_have_more => Err(io::ErrorKind::Interrupted.into()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Encrypts and sends up to `TLS_SEND_SIZE` bytes; none while earlier ones have yet to leave.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.require_handshake()?;
        if matches!(self.stage, Stage::Finishing | Stage::Finished) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.send_ciphertext()?;
        let piece = &bytes[..bytes.len().min(TLS_SEND_SIZE)];
        let taken = self.connection.writer().write(piece)?;
        match self.send_ciphertext() {
            // What is taken is taken: the rest of it is unsent.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.require_handshake()?;
        if self.stage == Stage::Open {
            self.connection.send_close_notify();
            self.stage = Stage::Finishing;
        }
        if self.stage == Stage::Finishing {
            self.send_ciphertext()?;
            self.socket.finish()?;
            self.stage = Stage::Finished;
        }
        Ok(())
    }

    fn abort(&mut self, deadline: Instant) {
        flush_until(self, deadline);
        self.socket.abort(deadline);
    }

    fn check(&mut self) -> Condition {
        if self.stage == Stage::Handshake {
            return Condition::Ended;
        }
        let mut condition = Condition::Silent;
        for _ in 0..TLS_RECEIVE_ROUNDS_MAX {
            while self.can_feed() {
                self.feed();
            }
            if self.plaintext_count > 0 {
                condition = Condition::Speaking;
                break;
            }
            if self.is_over() {
                condition = Condition::Ended;
                break;
            }
            if !self.receive() && !self.has_received() && !self.is_over() {
                break;
            }
        }
        self.rest();
        condition
    }

    fn holds_bytes(&self) -> bool {
        self.plaintext_count > 0 || self.has_received() || self.is_over()
    }

    fn holds_unsent(&self) -> bool {
        // After the end of the TCP stream nothing can be sent any more, nor need it.
        self.connection.wants_write() && self.stage != Stage::Finished
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.stage == Stage::Finished {
            return Ok(());
        }
        self.send_ciphertext()
    }

    fn rest(&mut self) {
        if !self.has_received() {
            self.received = Vec::new();
            self.fed = 0;
        }
    }
}

impl Failure {
    fn of_handshake(self) -> TlsError {
        match self {
            Self::Cut => TlsError::Io(io::ErrorKind::UnexpectedEof.into()),
            Self::Socket(error) => TlsError::Io(error.into()),
            Self::Library(error) => TlsError::from_library(error),
        }
    }

    fn of_stream(&self) -> io::Error {
        match self {
            Self::Cut => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was closed without an end of TLS: bytes may be missing",
            ),
            Self::Socket(error) => (*error).into(),
            Self::Library(error) => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }
}

/// The sending side of a socket, for the library to write to.
struct Outlet<'a>(&'a PlainStream);

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    /// All records at once: one system call for up to `TLS_SEND_SIZE` bytes.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        let sent = rustix::net::sendmsg(self.0.socket(), pieces, &mut control, flags)?;
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
