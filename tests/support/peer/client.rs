//! A client that a case plays against our server.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use nodepass::wire::fingerprint::Fingerprint;
use nodepass::wire::handshake::NativeSession;
use nodepass::wire::handshake::client::{
    AwaitChallenge, AwaitOffer, AwaitProof, Challenged, ClientError, Response, ServerVerified,
    decode_response,
};
use nodepass::wire::key::TunnelKey;
use nodepass::wire::offer::{Offer, TlsMode};
use nodepass::wire::proof::SessionId;
use nodepass::wire::signal::{PoolId, Signal, SignalReader, SignalWriter};
use nodepass::wire::ticket::{Ticket, TicketIssuer};

use super::control::Control;
use super::random;
use super::stream::Stream;
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
    idle: BTreeMap<PoolId, Stream>,
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
        let writer = SignalWriter::v1(key.clone());
        let reader = SignalReader::v1(key.clone());
        Self::open(server, offer, None, None, None, writer, reader)
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
        let tickets = Some(tickets);
        Self::open(
            server,
            offer,
            fingerprint,
            Some(id),
            tickets,
            writer,
            reader,
        )
    }

    #[track_caller]
    fn open(
        server: SocketAddr,
        offer: Offer,
        fingerprint: Option<Fingerprint>,
        session: Option<SessionId>,
        mut tickets: Option<TicketIssuer>,
        writer: SignalWriter,
        reader: SignalReader,
    ) -> Self {
        let preface = tickets
            .as_mut()
            .map(|issuer| issuer.issue().encode_preface());
        let tls = offer.tls != TlsMode::Plain;
        let (id, stream) = join_with(server, tls, &preface.unwrap_or_default()).unwrap();
        assert_eq!(id, PoolId::CONTROL, "the first id of a session");
        let seen = stream.fingerprint();
        assert!(fingerprint.is_none() || seen == fingerprint);
        Self {
            offer,
            seen,
            session,
            control: Control::start(stream, writer, reader),
            server,
            tickets,
            idle: BTreeMap::new(),
        }
    }

    /// A ticket that was not used; only in the native dialect.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets.as_mut().unwrap().issue()
    }

    /// Opens a pool connection; the id that it is given.
    ///
    /// Errors: it is closed instead.
    pub fn try_fill(&mut self) -> io::Result<PoolId> {
        let preface = match &mut self.tickets {
            Some(issuer) => issuer.issue().encode_preface(),
            None => Vec::new(),
        };
        let tls = self.offer.tls != TlsMode::Plain;
        let (id, stream) = join_with(self.server, tls, &preface)?;
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
