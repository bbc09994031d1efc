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

use super::PoolConnection;
use crate::net::cover::{ClientCover, CoverError};
use crate::net::patient::Patience;
use crate::net::race;
use crate::runtime::event::Event;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::signal::PoolId;
use crate::wire::ticket::TicketIssuer;

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
        let deadline = Instant::now() + self.dial_timeout;
        let socket = race::connect(self.address, deadline, stop).map_err(OpenError::Connect)?;
        let patience = || Patience::new(self.handshake_timeout, stop);
        let (mut stream, fingerprint) = self
            .cover
            .put_on(socket, patience())
            .map_err(OpenError::Cover)?;
        if let Some(pinned) = self.pinned
            && fingerprint != Some(pinned)
        {
            return Err(OpenError::Certificate {
                pinned,
                shown: fingerprint,
            });
        }
        if let Opening::Ticket(issuer) = &self.opening {
            let preface = lock(issuer).issue().encode_preface();
            patience()
                .write_all(&mut *stream, &preface)
                .map_err(OpenError::NoId)?;
        }
        let mut id = [0; 4];
        patience()
            .read_exact(&mut *stream, &mut id)
            .map_err(OpenError::NoId)?;
        stream.rest();
        Ok((PoolId(id), PoolConnection::new(stream, fingerprint)))
    }
}

impl OpenError {
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
