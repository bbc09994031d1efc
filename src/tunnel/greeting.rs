//! The client's handshake, as a series of exchanges on connections to the tunnel port.
//!
//! The native dialect is tried first; where the server does not have it, and the operator has not
//! ruled that out, v1 follows on a new connection.
//!
//! Source: wire protocol, sections 3 and 8.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::Auth;
use crate::limits::{HANDSHAKE_BODY_SIZE_MAX, HANDSHAKE_HEAD_SIZE_MAX};
use crate::net::cover::{Accepts, ClientCover, CoverError};
use crate::net::patient::Patience;
use crate::net::race;
use crate::net::stream::{BoxedStream, PlainStream};
use crate::runtime::event::Event;
use crate::runtime::random::random_bytes;
use crate::wire::handshake::Connection;
use crate::wire::handshake::client::{
    AwaitChallenge, AwaitOffer, Challenged, ClientError, Response, ServerVerified, decode_response,
};
use crate::wire::key::{ServerKeys, TunnelKey};
use crate::wire::offer::Offer;
use crate::wire::proof::SessionId;

/// What goes for the name of a server that has none.
const NO_NAME: &str = "none";

/// A client before the handshake.
pub struct Greeting<'a> {
    /// The tunnel port of the server.
    pub address: SocketAddr,
    /// The name of the server, for HTTP, if it has one.
    pub host: Option<&'a str>,
    /// The same for TLS; the address of a server without a name.
    pub server_name: &'a str,
    /// The key, or those that are derived from the port.
    pub keys: &'a ServerKeys,
    /// Which dialects are spoken.
    pub auth: Auth,
    /// The session from which the client comes back.
    pub replaces: Option<SessionId>,
    /// The port is one where a web server would end TLS.
    pub over_tls: bool,
    /// Set once it did.
    pub has_spoken_tls: Cell<bool>,
    /// For each connect.
    pub dial_timeout: Duration,
    /// For each step after it.
    pub handshake_timeout: Duration,
    /// Raised when the program stops.
    pub stop: &'a Event,
}

/// A handshake that is done.
pub enum Greeted {
    /// In the native dialect.
    Native(Box<ServerVerified>),
    /// In v1, with the key that the server has accepted.
    V1(Offer, TunnelKey),
}

/// Why a handshake has failed.
#[derive(Debug)]
pub enum GreetingError {
    /// The tunnel port cannot be reached.
    Connect(io::Error),
    /// TLS failed.
    Cover(CoverError),
    /// The exchange was cut short.
    Exchange(io::Error),
    /// The answer does not lead to a session.
    Answer(ClientError),
    /// The server speaks v1, which `auth=1` rules out.
    NativeOnly,
    /// The system has no random bytes.
    Random(io::Error),
}

impl Greeting<'_> {
    /// Does the handshake; `first` is a connection to the server's address, if there is one.
    ///
    /// Blocks: as long as the timeouts have it for each of at most four exchanges; hardly longer
    /// than until the program stops.
    pub fn run(&self, first: PlainStream) -> Result<Greeted, GreetingError> {
        let key = &self.keys.as_slice()[0];
        let nonce = random_bytes().map_err(GreetingError::Random)?;
        let host = self.host.unwrap_or(NO_NAME);
        let (hello, waiting) = AwaitChallenge::start(key.clone(), host, nonce, self.replaces);
        let mut stream = self.cover(first, Accepts::Anyone)?;
        let response = self.exchange(&mut stream, &hello)?;
        match waiting.take(&response).map_err(GreetingError::Answer)? {
            Challenged::Native { request, next } => {
                if response.connection() == Connection::Closed {
                    stream = self.connect(Accepts::Anyone)?;
                }
                let response = self.exchange(&mut stream, &request)?;
                let verified = next.take(&response).map_err(GreetingError::Answer)?;
                Ok(Greeted::Native(Box::new(verified)))
            }
            Challenged::V1 if self.auth == Auth::NativeOnly => Err(GreetingError::NativeOnly),
            Challenged::V1 => self.run_v1(host),
        }
    }

    /// Tries the keys one after another.
    fn run_v1(&self, host: &str) -> Result<Greeted, GreetingError> {
        let mut refused = ClientError::KeyRefused;
        for key in self.keys.as_slice() {
            // Whoever reads the token can use it: it goes to a verified server or in plain sight.
            let mut stream = self.connect(Accepts::Verified)?;
            let (request, waiting) = AwaitOffer::start(key.clone(), host);
            let response = self.exchange(&mut stream, &request)?;
            match waiting.take(&response) {
                Ok((offer, key)) => return Ok(Greeted::V1(offer, key)),
                Err(ClientError::KeyRefused) => {}
                Err(error) => {
                    refused = error;
                    break;
                }
            }
        }
        Err(GreetingError::Answer(refused))
    }

    fn connect(&self, accepts: Accepts) -> Result<BoxedStream, GreetingError> {
        let socket = self.connect_plain()?;
        self.cover(socket, accepts)
    }

    fn connect_plain(&self) -> Result<PlainStream, GreetingError> {
        let deadline = Instant::now() + self.dial_timeout;
        race::connect(self.address, deadline, self.stop).map_err(GreetingError::Connect)
    }

    /// Puts TLS around a connection where the port asks for it and the other end speaks it.
    fn cover(&self, socket: PlainStream, accepts: Accepts) -> Result<BoxedStream, GreetingError> {
        if !self.over_tls {
            return Ok(Box::new(socket));
        }
        let name = self.server_name.to_owned();
        let cover = ClientCover::tls(accepts, name, &[]).map_err(GreetingError::Cover)?;
        match cover.put_on(socket, self.patience()) {
            Ok((stream, _)) => {
                self.has_spoken_tls.set(true);
                Ok(stream)
            }
            // A server that has spoken TLS before does so still: somebody would have it otherwise.
            Err(error) if error.is_not_tls() && !self.has_spoken_tls.get() => {
                log::info!(
                    "The server at {} does not speak TLS: the handshake goes in plain sight",
                    self.address
                );
                Ok(Box::new(self.connect_plain()?))
            }
            Err(error) => Err(GreetingError::Cover(error)),
        }
    }

    fn patience(&self) -> Patience<'_> {
        Patience::new(self.handshake_timeout, self.stop)
    }

    /// Sends a request and reads the answer to it.
    fn exchange(
        &self,
        stream: &mut BoxedStream,
        request: &[u8],
    ) -> Result<Response, GreetingError> {
        const SIZE_MAX: usize = HANDSHAKE_HEAD_SIZE_MAX + HANDSHAKE_BODY_SIZE_MAX;
        let patience = self.patience();
        let stream = &mut **stream;
        patience
            .write_all(stream, request)
            .map_err(GreetingError::Exchange)?;
        let mut input = vec![0; SIZE_MAX];
        let mut filled = 0;
        loop {
            let decoded = decode_response(&input[..filled]).map_err(GreetingError::Answer)?;
            if let Some((response, _)) = decoded {
                return Ok(response);
            }
            // Whatever does not fit has been refused by the decoder.
            let size = patience
                .read(stream, &mut input[filled..])
                .map_err(GreetingError::Exchange)?;
            if size == 0 {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Err(GreetingError::Exchange(error));
            }
            filled += size;
        }
    }
}

impl fmt::Display for GreetingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect for the handshake: {error}"),
            Self::Cover(error) => write!(f, "{error}"),
            Self::Exchange(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => f.write_str(
                    "the server closed the connection instead of answering the handshake; it may \
                     not be a NodePass server",
                ),
                io::ErrorKind::TimedOut => {
                    f.write_str("the server did not answer the handshake in time")
                }
                _ => write!(f, "the handshake was cut short: {error}"),
            },
            Self::Answer(error) => write!(f, "{error}"),
            Self::NativeOnly => f.write_str(
                "the server speaks v1 only, and auth=1 accepts the native handshake only; update \
                 the server, or set auth=0",
            ),
            Self::Random(error) => write!(f, "the system has no random bytes: {error}"),
        }
    }
}

impl std::error::Error for GreetingError {}
