//! A client that a case plays against our server.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use nodepass::wire::fingerprint::Fingerprint;
use nodepass::wire::handshake::NativeSession;
use nodepass::wire::handshake::client::{
    AwaitChallenge, AwaitOffer, AwaitProof, Challenged, ClientError, Response, ServerVerified,
    decode_response,
};
use nodepass::wire::key::TunnelKey;
use nodepass::wire::offer::{Offer, TlsMode, Transport};
use nodepass::wire::proof::SessionId;
use nodepass::wire::signal::{PoolId, Signal, SignalReader, SignalWriter};
use nodepass::wire::ticket::{Ticket, TicketIssuer};

use super::control::Control;
use super::http2::{Mux, Opening};
#[cfg(feature = "quic")]
use super::quic::Link;
use super::random;
use super::stream::Stream;
use super::web_socket::{Ends, WebSocket, upgrade_request};
use crate::support::visitors::try_dial;

/// A client that has joined, with its control channel and idle pool connections.
pub struct PlayedClient {
    /// What the server offered.
    pub offer: Offer,
    /// The certificate that the control channel's connection has shown.
    pub seen: Option<Fingerprint>,
    /// The session's id; `None` in v1.
    pub session: Option<SessionId>,
    /// The control channel.
    pub control: Control,
    server: SocketAddr,
    tickets: Option<TicketIssuer>,
    way: Way,
    idle: BTreeMap<PoolId, Stream>,
}

/// How pool connections are opened.
pub enum Way {
    /// One TCP connection each.
    Tcp,
    /// One WebSocket each, the first ones with these requests.
    WebSocket(VecDeque<Vec<u8>>, Ends),
    /// Streams of one connection.
    Http2(Mux),
    /// The same.
    #[cfg(feature = "quic")]
    Quic(Link),
}

impl Way {
    /// That of an offer, in the native dialect or in v1.
    ///
    /// Errors: there is no connection to be had for HTTP/2 or QUIC.
    pub fn of(server: SocketAddr, offer: &Offer, is_native: bool) -> io::Result<Self> {
        Ok(match offer.transport {
            Transport::Tcp => Self::Tcp,
            Transport::WebSocket if is_native => {
                Self::WebSocket(VecDeque::new(), Ends::EmptyMessage)
            }
            Transport::WebSocket => Self::WebSocket(VecDeque::new(), Ends::CloseFrame),
            Transport::Http2 => {
                let below = Stream::dial_http2(server)?;
                Self::Http2(Mux::client(below, Opening::of_client()))
            }
            #[cfg(feature = "quic")]
            Transport::Quic => Self::Quic(Link::dial(server)?),
            #[cfg(not(feature = "quic"))]
            Transport::Quic => panic!("QUIC is not built"),
        })
    }

    /// Opens a pool connection; the id that it is given.
    ///
    /// Errors: it is closed instead.
    pub fn join(
        &mut self,
        server: SocketAddr,
        tls: bool,
        ticket: Option<&Ticket>,
    ) -> io::Result<(PoolId, Stream)> {
        match self {
            Self::Tcp => {
                let preface = ticket.map(Ticket::encode_preface).unwrap_or_default();
                join_with(server, tls, &preface)
            }
            Self::WebSocket(requests, ends) => {
                let request = requests.pop_front();
                let request = request.unwrap_or_else(|| upgrade_request("none", ticket));
                let below = Stream::dial(server, tls)?;
                let mut stream = WebSocket::open(below, &request, *ends)?;
                let mut id = [0; 4];
                stream.read_exact(&mut id)?;
                Ok((PoolId(id), Stream::WebSocket(Box::new(stream))))
            }
            Self::Http2(mux) => {
                let (id, socket) = mux.join(ticket)?;
                Ok((id, Stream::Plain(socket)))
            }
            #[cfg(feature = "quic")]
            Self::Quic(link) => {
                let (id, socket) = link.join(ticket)?;
                Ok((id, Stream::Plain(socket)))
            }
        }
    }

    /// The connection of HTTP/2.
    #[cfg(feature = "http2")]
    #[track_caller]
    pub fn mux(&self) -> &Mux {
        match self {
            Self::Http2(mux) => mux,
            _ => panic!("no HTTP/2"),
        }
    }

    /// The connection of QUIC.
    #[cfg(feature = "quic")]
    #[track_caller]
    pub fn link(&self) -> &Link {
        match self {
            Self::Quic(link) => link,
            _ => panic!("no QUIC"),
        }
    }
}

/// A native client that has been given a challenge.
pub struct Hello {
    /// The request that answers it, to be sent on any connection.
    pub request: Vec<u8>,
    /// What waits for the answer to that.
    pub next: AwaitProof,
}

/// Sends `request` on a connection of its own and reads the answer to it.
pub fn ask(server: SocketAddr, request: &[u8]) -> io::Result<Response> {
    let mut stream = try_dial(server)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let decoded = decode_response(&answer).map_err(io::Error::other)?;
        if let Some((response, _)) = decoded {
            return Ok(response);
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The first half of a native handshake.
#[track_caller]
pub fn say_hello(server: SocketAddr, key: &TunnelKey, replaces: Option<SessionId>) -> Hello {
    let (request, state) = AwaitChallenge::start(key.clone(), "none", random(), replaces);
    let answer = ask(server, &request).unwrap();
    match state.take(&answer).unwrap() {
        Challenged::Native { request, next } => Hello { request, next },
        Challenged::V1 => panic!("the server says that it speaks v1 only"),
    }
}

/// A whole native handshake.
#[track_caller]
pub fn handshake(server: SocketAddr, key: &TunnelKey) -> Result<ServerVerified, ClientError> {
    let hello = say_hello(server, key, None);
    hello.next.take(&ask(server, &hello.request).unwrap())
}

/// A whole v1 handshake.
#[track_caller]
pub fn handshake_v1(server: SocketAddr, key: &TunnelKey) -> Result<Offer, ClientError> {
    let (request, state) = AwaitOffer::start(key.clone(), "none");
    let (offer, _) = state.take(&ask(server, &request).unwrap())?;
    Ok(offer)
}

/// Opens a pool connection with these first bytes; the id that it is given.
///
/// Errors: it is closed instead.
pub fn join_with(server: SocketAddr, tls: bool, preface: &[u8]) -> io::Result<(PoolId, Stream)> {
    let mut stream = Stream::dial(server, tls)?;
    stream.write_all(preface)?;
    stream.flush()?;
    let mut id = [0; 4];
    stream.read_exact(&mut id)?;
    Ok((PoolId(id), stream))
}

/// Does the handshake in v1 and joins.
#[track_caller]
pub fn join_v1(server: SocketAddr, key: &TunnelKey) -> PlayedClient {
    let offer = handshake_v1(server, key).unwrap();
    PlayedClient::join_v1(server, key, offer)
}

impl PlayedClient {
    /// Joins in v1 as far as the control channel, after the handshake that led to `offer`.
    #[track_caller]
    pub fn join_v1(server: SocketAddr, key: &TunnelKey, offer: Offer) -> Self {
        let way = Way::of(server, &offer, false).unwrap();
        Self::join_v1_by(server, key, offer, way)
    }

    /// The same where pool connections are opened in a way of its own.
    #[track_caller]
    pub fn join_v1_by(server: SocketAddr, key: &TunnelKey, offer: Offer, way: Way) -> Self {
        let ends = (SignalWriter::v1(key.clone()), SignalReader::v1(key.clone()));
        Self::open(server, offer, None, None, None, ends, way)
    }

    /// Joins in the native dialect as far as the control channel.
    #[track_caller]
    pub fn join(server: SocketAddr, key: &TunnelKey) -> Self {
        Self::join_verified(server, handshake(server, key).unwrap())
    }

    /// The same after a handshake.
    #[track_caller]
    pub fn join_verified(server: SocketAddr, verified: ServerVerified) -> Self {
        let ServerVerified {
            offer,
            fingerprint,
            session,
        } = verified;
        let id = NativeSession::id(&session);
        let (writer, reader, tickets) = session.into_client();
        let ends = (writer, reader);
        let way = Way::of(server, &offer, true).unwrap();
        Self::open(
            server,
            offer,
            fingerprint,
            Some(id),
            Some(tickets),
            ends,
            way,
        )
    }

    #[track_caller]
    fn open(
        server: SocketAddr,
        offer: Offer,
        fingerprint: Option<Fingerprint>,
        session: Option<SessionId>,
        mut tickets: Option<TicketIssuer>,
        (writer, reader): (SignalWriter, SignalReader),
        mut way: Way,
    ) -> Self {
        let ticket = tickets.as_mut().map(TicketIssuer::issue);
        let tls = offer.tls != TlsMode::Plain;
        let (id, stream) = way.join(server, tls, ticket.as_ref()).unwrap();
        assert_eq!(id, PoolId::CONTROL, "the first id of a session");
        let seen = match &way {
            Way::Http2(mux) => mux.fingerprint,
            #[cfg(feature = "quic")]
            Way::Quic(link) => link.fingerprint,
            _ => stream.fingerprint(),
        };
        assert!(fingerprint.is_none() || seen == fingerprint);
        Self {
            offer,
            seen,
            session,
            control: Control::start(stream, writer, reader),
            server,
            tickets,
            way,
            idle: BTreeMap::new(),
        }
    }

    /// How it opens pool connections.
    #[cfg(any(feature = "http2", feature = "quic"))]
    pub fn way(&mut self) -> &mut Way {
        &mut self.way
    }

    /// A ticket that was not used; only in the native dialect.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets.as_mut().unwrap().issue()
    }

    /// Opens a pool connection; the id that it is given.
    ///
    /// Errors: it is closed instead.
    pub fn try_fill(&mut self) -> io::Result<PoolId> {
        let ticket = self.tickets.as_mut().map(TicketIssuer::issue);
        let tls = self.offer.tls != TlsMode::Plain;
        let (id, stream) = self.way.join(self.server, tls, ticket.as_ref())?;
        assert_ne!(id, PoolId::CONTROL, "the id of the control channel");
        let before = self.idle.insert(id, stream);
        assert!(before.is_none(), "the server gave {id} twice");
        Ok(id)
    }

    /// Opens `count` pool connections.
    #[track_caller]
    pub fn fill(&mut self, count: usize) -> Vec<PoolId> {
        (0..count).map(|_| self.try_fill().unwrap()).collect()
    }

    /// Takes a pool connection.
    #[track_caller]
    pub fn take(&mut self, id: PoolId) -> Stream {
        let stream = self.idle.remove(&id);
        stream.unwrap_or_else(|| panic!("{id} is no idle pool connection of ours"))
    }

    /// Waits for the next visitor and takes its pool connection.
    #[track_caller]
    pub fn next_visitor(&mut self) -> (Signal, Stream) {
        let signal = self.control.next_signal();
        let (Signal::Tcp { id, .. } | Signal::Udp { id, .. }) = signal else {
            panic!("no visitor but {signal:?}");
        };
        (signal, self.take(id))
    }
}
