//! Pool connections over TCP, one connection each: the client's side.
//!
//! v1: the client connects, says nothing and is given an id. Native: it says `NPC1` and a ticket
//! first. With TLS all of that is inside.
//!
//! Source: wire protocol, sections 4 and 8.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Carrier, PoolConnection};
use crate::net::cover::{ClientCover, CoverError};
use crate::net::patient::Patience;
#[cfg(feature = "quic")]
use crate::net::quic::ConnectError;
use crate::net::race;
use crate::net::stream::{BoxedStream, PlainStream};
use crate::runtime::event::Event;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::Fingerprint;
#[cfg(feature = "websocket")]
use crate::wire::handshake::upgrade::UpgradeError;
use crate::wire::signal::PoolId;
use crate::wire::ticket::{Ticket, TicketIssuer};

/// Makes the pool connections of one session.
pub struct TcpConnector {
    /// Where the handshake was done.
    pub address: SocketAddr,
    /// What a connection starts with.
    pub opening: Opening,
    /// What it is wrapped in.
    pub cover: ClientCover,
    /// The certificate that it has to show.
    pub pinned: Option<Fingerprint>,
    /// For the connect.
    pub dial_timeout: Duration,
    /// For each step after it.
    pub handshake_timeout: Duration,
}

/// What a connection starts with.
pub enum Opening {
    /// v1: nothing.
    Silence,
    /// Native: a ticket.
    Ticket(Mutex<TicketIssuer>),
}

/// Why a pool connection could not be made.
#[derive(Debug)]
pub enum OpenError {
    /// The tunnel port cannot be reached.
    Connect(io::Error),
    /// TLS failed.
    Cover(CoverError),
    /// The certificate is not the one that the server has proven in the handshake.
    Certificate {
        /// What it should be.
        pinned: Fingerprint,
        /// What it is.
        shown: Option<Fingerprint>,
    },
    /// There is no QUIC connection.
    #[cfg(feature = "quic")]
    Quic(ConnectError),
    /// The server does not speak HTTP/2 inside TLS.
    #[cfg(feature = "http2")]
    NotHttp2,
    /// The server, or something in between, does not speak WebSocket as it should.
    #[cfg(feature = "websocket")]
    Upgrade(UpgradeError),
    /// The system has no random bytes.
    #[cfg(feature = "websocket")]
    Random(io::Error),
    /// The server gave no id.
    NoId(io::Error),
}

impl TcpConnector {
    /// Makes a connection.
    ///
    /// Blocks: for the dial timeout and then for the handshake timeout, and again as long for the
    /// id; hardly longer than until `stop`.
    /// Errors: what [`OpenError`] lists.
    pub fn open(&self, stop: &Event) -> Result<(PoolId, PoolConnection), OpenError> {
        let (mut stream, fingerprint) = self.connect(stop)?;
        if let Some(ticket) = self.ticket() {
            self.patience(stop)
                .write_all(&mut *stream, &ticket.encode_preface())
                .map_err(OpenError::NoId)?;
        }
        self.take_id(stream, fingerprint, stop)
    }

    /// Makes a connection that has said nothing yet; returns with it the certificate of the server.
    pub(super) fn connect(
        &self,
        stop: &Event,
    ) -> Result<(BoxedStream, Option<Fingerprint>), OpenError> {
        let socket = self.dial(stop)?;
        let covered = self.cover.put_on(socket, self.patience(stop));
        let (stream, fingerprint) = covered.map_err(OpenError::Cover)?;
        OpenError::require_pinned(self.pinned, fingerprint)?;
        Ok((stream, fingerprint))
    }

    /// Connects, and nothing more.
    pub(super) fn dial(&self, stop: &Event) -> Result<PlainStream, OpenError> {
        let deadline = Instant::now() + self.dial_timeout;
        race::connect(self.address, deadline, stop).map_err(OpenError::Connect)
    }

    /// Takes the id, which is what the server says first.
    pub(super) fn take_id(
        &self,
        mut stream: BoxedStream,
        fingerprint: Option<Fingerprint>,
        stop: &Event,
    ) -> Result<(PoolId, PoolConnection), OpenError> {
        let mut id = [0; 4];
        self.patience(stop)
            .read_exact(&mut *stream, &mut id)
            .map_err(OpenError::NoId)?;
        stream.rest();
        let carrier = Carrier::Stream(stream);
        Ok((PoolId(id), PoolConnection::new(carrier, fingerprint)))
    }

    /// Returns the ticket of the next connection, if it has one.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.opening.ticket()
    }

    /// Returns the patience with one step.
    pub(super) fn patience<'a>(&self, stop: &'a Event) -> Patience<'a> {
        Patience::new(self.handshake_timeout, stop)
    }
}

impl Opening {
    /// Returns the ticket of the next connection, if it has one.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Silence => None,
            Self::Ticket(issuer) => Some(lock(issuer).issue()),
        }
    }
}

impl OpenError {
    /// Returns an error unless the certificate that was shown is the one that has to be.
    pub(super) fn require_pinned(
        pinned: Option<Fingerprint>,
        shown: Option<Fingerprint>,
    ) -> Result<(), Self> {
        match pinned {
            Some(pinned) if shown != Some(pinned) => Err(Self::Certificate { pinned, shown }),
            _ => Ok(()),
        }
    }

    /// Returns whether the server may have no place for one more now.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoId(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Cover(error) => write!(f, "{error}"),
            Self::Certificate { pinned, shown } => {
                f.write_str("the certificate is not the one that the server has proven: ")?;
                match shown {
                    Some(shown) => write!(f, "expected {pinned}, got {shown}")?,
                    None => write!(f, "expected {pinned}, got none")?,
                }
                f.write_str("; someone may be in between")
            }
            #[cfg(feature = "quic")]
            Self::Quic(error) => write!(f, "{error}"),
            #[cfg(feature = "http2")]
            Self::NotHttp2 => f.write_str(
                "the server did not agree on HTTP/2 (ALPN h2); something in between may end TLS",
            ),
            #[cfg(feature = "websocket")]
            Self::Upgrade(error) => write!(f, "the server does not take up WebSocket: {error}"),
            #[cfg(feature = "websocket")]
            Self::Random(error) => write!(f, "the system has no random bytes: {error}"),
            Self::NoId(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => f.write_str(
                    "the server closed a pool connection instead of giving it an id; its 'max' \
                     may be reached",
                ),
                io::ErrorKind::TimedOut => {
                    f.write_str("the server gave a pool connection no id in time")
                }
                _ => write!(f, "the server gave a pool connection no id: {error}"),
            },
        }
    }
}

impl std::error::Error for OpenError {}
