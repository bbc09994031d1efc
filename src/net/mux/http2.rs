//! HTTP/2 over TLS as a transport of many streams: each pool connection is one `POST /stream`.
//!
//! ```text
//!   client ── HEADERS (ticket) ── DATA 00 ────────────▶ server
//!   client ◀─ HEADERS 200 ── DATA id (4 bytes) ─────── server
//!   client ◀──────────── DATA both ways ─────────────▶ server
//! ```
//!
//! Source: wire protocol, sections 4 and 8.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use socket2::SockRef;

use super::{MuxEvent, NotOpened, StreamKey, Transport};
use crate::limits::{HTTP2_RECEIVE_SIZE, HTTP2_UNSENT_SIZE_MAX, MUX_RECEIVE_SIZE_MAX};
use crate::net::stream::{Condition, Stream, is_passing};
use crate::net::tls::TlsStream;
use crate::wire::h2::hpack::Field;
use crate::wire::h2::{self, Connection, ErrorCode, Event, Role, Settings, StreamId};
use crate::wire::signal::PoolId;
use crate::wire::ticket::Ticket;

/// Where pool connections are asked for.
const PATH: &[u8] = b"/stream";

/// The field that carries a ticket.
const TICKET_FIELD: &[u8] = b"nodepass-ticket";

/// What the request body of a pool connection begins with.
const OPENING: u8 = 0;

/// What an open stream starts with, before it is a pool connection.
enum Preface {
    /// At the server: the byte that opens the request body is awaited.
    Opening(Option<Ticket>),
    /// At the client: the head of the response is awaited.
    Head,
    /// At the client: the id is awaited, of which these bytes have come.
    Id(Vec<u8>),
}

/// One HTTP/2 connection.
pub struct Http2 {
    tls: TlsStream,
    core: Connection,
    /// Of the server, as the client calls it.
    authority: String,
    prefaces: HashMap<StreamKey, Preface>,
    /// What streams say first and found no room for.
    owed: HashMap<StreamKey, Vec<u8>>,
    /// A stream without a ticket was on it: the other end speaks v1.
    is_v1: bool,
    /// Streams that a v1 peer has cancelled, which is how it ends them.
    cancelled: HashSet<StreamKey>,
    events: VecDeque<MuxEvent>,
    /// Bytes on their way from TLS to the core.
    scratch: Vec<u8>,
    /// No more streams are opened on it: an end has said so, or the numbers have run out.
    is_leaving: bool,
    /// TLS ends behind what is to be sent.
    is_closing: bool,
    /// What ended the connection.
    broken: Option<io::ErrorKind>,
    received_size: usize,
    /// Requests that were for something else.
    strange_count: usize,
}

impl Http2 {
    /// Makes the server's end on a TLS connection whose protocol is `h2`.
    pub fn server(tls: TlsStream) -> Self {
        Self::new(tls, Role::Server, String::new())
    }

    /// Makes the client's end, of a server called `authority`.
    pub fn client(tls: TlsStream, authority: String) -> Self {
        Self::new(tls, Role::Client, authority)
    }

    fn new(tls: TlsStream, role: Role, authority: String) -> Self {
        // Without it, pings wait behind more, and that is all.
        let socket = SockRef::from(tls.socket().socket());
        let _ = socket.set_tcp_notsent_lowat(HTTP2_UNSENT_SIZE_MAX);
        Self {
            tls,
            core: Connection::new(
                role,
                Settings {
                    secret_names: &[TICKET_FIELD],
                    ..Settings::default()
                },
            ),
            authority,
            prefaces: HashMap::new(),
            owed: HashMap::new(),
            is_v1: false,
            cancelled: HashSet::new(),
            events: VecDeque::new(),
            scratch: Vec::new(),
            is_leaving: false,
            is_closing: false,
            broken: None,
            received_size: 0,
            strange_count: 0,
        }
    }

    /// Puts an event back, to be told again before all others.
    pub fn put_back(&mut self, event: MuxEvent) {
        self.events.push_front(event);
    }

    /// Gives up all memory that is needed only while bytes flow, for a peer who may be anybody.
    pub fn sleep(&mut self) {
        self.scratch = Vec::new();
        self.tls.rest();
    }

    /// Returns how many bytes have come.
    pub fn received_size(&self) -> usize {
        self.received_size
    }

    /// Returns how many requests came that were not for a pool connection.
    pub fn strange_count(&self) -> usize {
        self.strange_count
    }

    /// Takes what has happened in the core.
    fn take_events(&mut self) {
        while let Some(event) = self.core.next_event() {
            match event {
                Event::Request {
                    stream,
                    fields,
                    is_end,
                } => self.take_request(stream, &fields, is_end),
                Event::Response {
                    stream,
                    fields,
                    is_end,
                } => self.take_response(stream, &fields, is_end),
                Event::Readable(stream) => {
                    let key = StreamKey::from(stream);
                    if self.prefaces.contains_key(&key) {
                        self.read_preface(key);
                    } else {
                        self.events.push_back(MuxEvent::Readable(key));
                    }
                }
                Event::Writable(stream) => {
                    let key = StreamKey::from(stream);
                    if self.pay(key) {
                        self.events.push_back(MuxEvent::Writable(key));
                    }
                }
                Event::Reset(stream, code) => self.take_reset(stream, code),
                Event::GoAway { .. } => self.is_leaving = true,
                Event::Pong(_) => {}
            }
        }
    }

    /// Writes what a stream says first, now or when there is room.
    fn owe(&mut self, key: StreamKey, bytes: &[u8]) {
        self.owed.insert(key, bytes.to_vec());
        self.pay(key);
    }

    /// Writes what a stream owes; returns whether it owes nothing any more.
    fn pay(&mut self, key: StreamKey) -> bool {
        let Some(mut bytes) = self.owed.remove(&key) else {
            return true;
        };
        while !bytes.is_empty() {
            match self.core.write(id_of(key), &bytes) {
                Ok(size) => drop(bytes.drain(..size)),
                Err(error) if is_passing(&error) => {
                    self.owed.insert(key, bytes);
                    return false;
                }
                // It is over, which its reader will find.
                Err(_) => return true,
            }
        }
        true
    }

    fn take_reset(&mut self, stream: StreamId, code: ErrorCode) {
        let key = StreamKey::from(stream);
        if let Some(Preface::Opening(_)) = self.prefaces.remove(&key) {
            // It has not arrived yet, so it is nobody's.
            self.core.reset(stream, ErrorCode::CANCEL);
            return;
        }
        if self.is_v1 && code == ErrorCode::CANCEL {
            self.cancelled.insert(key);
        }
        self.events.push_back(if self.has_declined(key) {
            MuxEvent::Declined(key)
        } else {
            MuxEvent::Reset(key)
        });
    }

    /// Takes a request: one for a pool connection is [`MuxEvent::Arrived`] when its first byte is
    /// there, any other one is answered.
    fn take_request(&mut self, stream: StreamId, fields: &[Field], is_end: bool) {
        let value_of = |name: &[u8]| {
            let mut fields = fields.iter();
            let field = fields.find(|field| field.name == name);
            field.map(|field| field.value.as_slice())
        };
        let status: &[u8] = match (value_of(b":method"), value_of(b":path")) {
            (Some(b"POST"), Some(PATH)) if !is_end => {
                let ticket = value_of(TICKET_FIELD).map(Ticket::decode_header);
                if let Some(None) = ticket {
                    self.core.reset(stream, ErrorCode::REFUSED_STREAM);
                    self.strange_count += 1;
                    return;
                }
                self.is_v1 |= ticket.is_none();
                let key = StreamKey::from(stream);
                self.prefaces
                    .insert(key, Preface::Opening(ticket.flatten()));
                self.read_preface(key);
                return;
            }
            (Some(b"POST"), Some(PATH)) => b"400",
            (_, Some(PATH)) => b"405",
            _ => b"404",
        };
        self.strange_count += 1;
        self.core.respond(stream, &[(b":status", status)], true);
        // Of its body nothing is wanted (RFC 9113 section 8.1).
        self.core.reset(stream, ErrorCode::NO_ERROR);
    }

    fn take_response(&mut self, stream: StreamId, fields: &[Field], is_end: bool) {
        let key = StreamKey::from(stream);
        let mut status = fields.iter().filter(|field| field.name == b":status");
        let status = status.next().map(|field| field.value.as_slice());
        // What comes before the final answer says nothing.
        if status.is_some_and(|status| status.starts_with(b"1")) && !is_end {
            return;
        }
        if self.prefaces.remove(&key).is_none() {
            return;
        }
        if status == Some(b"200") && !is_end {
            self.prefaces.insert(key, Preface::Id(Vec::new()));
            self.read_preface(key);
        } else {
            self.events.push_back(MuxEvent::Refused(key));
        }
    }

    /// Reads what a stream starts with, as far as it has come.
    fn read_preface(&mut self, key: StreamKey) {
        let Some(preface) = self.prefaces.remove(&key) else {
            return;
        };
        let stream = id_of(key);
        match preface {
            Preface::Opening(ticket) => {
                let mut first = [0];
                match self.core.read(stream, &mut first, Instant::now()) {
                    Ok(1) if first == [OPENING] => {
                        self.events.push_back(MuxEvent::Arrived(key, ticket));
                    }
                    Err(error) if is_passing(&error) => {
                        self.prefaces.insert(key, Preface::Opening(ticket));
                    }
                    _ => {
                        self.strange_count += 1;
                        self.core.reset(stream, ErrorCode::PROTOCOL_ERROR);
                    }
                }
            }
            Preface::Head => {
                self.prefaces.insert(key, Preface::Head);
            }
            Preface::Id(mut got) => {
                let mut rest = [0; 4];
                let missing = rest.len() - got.len();
                match self.core.read(stream, &mut rest[..missing], Instant::now()) {
                    Ok(0) => self.events.push_back(MuxEvent::Refused(key)),
                    Ok(size) => {
                        got.extend_from_slice(&rest[..size]);
                        match <[u8; 4]>::try_from(got.as_slice()) {
                            Ok(id) => {
                                let event = MuxEvent::Identified(key, PoolId(id));
                                self.events.push_back(event);
                            }
                            Err(_) => {
                                self.prefaces.insert(key, Preface::Id(got));
                                self.read_preface(key);
                            }
                        }
                    }
                    Err(error) if is_passing(&error) => {
                        self.prefaces.insert(key, Preface::Id(got));
                    }
                    Err(_) => self.events.push_back(MuxEvent::Refused(key)),
                }
            }
        }
    }

    /// Notes that the connection is over, and returns why.
    fn break_off(&mut self, kind: io::ErrorKind) -> io::Error {
        self.broken = Some(kind);
        kind.into()
    }
}

impl Transport for Http2 {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.tls.descriptor()
    }

    fn holds_unsent(&self) -> bool {
        self.broken.is_none() && (self.tls.holds_unsent() || !self.core.output().is_empty())
    }

    fn receive(&mut self, now: Instant) -> io::Result<bool> {
        self.scratch.resize(HTTP2_RECEIVE_SIZE, 0);
        let mut left = MUX_RECEIVE_SIZE_MAX;
        while left > 0 {
            match self.tls.read(&mut self.scratch) {
                Ok(0) => return Err(self.break_off(io::ErrorKind::UnexpectedEof)),
                Ok(size) => {
                    left = left.saturating_sub(size);
                    self.received_size = self.received_size.saturating_add(size);
                    if let Err(error) = self.core.receive(&self.scratch[..size], now) {
                        // The peer is told what is wrong, if it still listens.
                        let _ = self.send();
                        log::debug!("HTTP/2: {error}");
                        return Err(self.break_off(io::ErrorKind::InvalidData));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => {
                    self.break_off(error.kind());
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    fn send(&mut self) -> io::Result<()> {
        if let Some(kind) = self.broken {
            return Err(kind.into());
        }
        loop {
            let output = self.core.output();
            let result = if output.is_empty() && self.is_closing {
                self.tls.finish().map(|()| 0)
            } else if output.is_empty() {
                self.tls.flush().map(|()| 0)
            } else {
                self.tls.write(output)
            };
            match result {
                Ok(0) => return Ok(()),
                Ok(size) => self.core.sent(size),
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => {
                    self.break_off(error.kind());
                    return Err(error);
                }
            }
        }
    }

    fn next_event(&mut self) -> Option<MuxEvent> {
        if self.events.is_empty() {
            self.take_events();
        }
        self.events.pop_front()
    }

    fn open(&mut self, ticket: Option<&Ticket>) -> Result<StreamKey, NotOpened> {
        self.is_v1 |= ticket.is_none();
        let ticket = ticket.map(Ticket::encode_header);
        let mut fields: Vec<(&[u8], &[u8])> = vec![
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", self.authority.as_bytes()),
            (b":path", PATH),
        ];
        if let Some(ticket) = &ticket {
            fields.push((TICKET_FIELD, ticket.as_bytes()));
        }
        let stream = match self.core.request(&fields, false) {
            Ok(stream) => stream,
            Err(h2::NotOpened::PeerLimit) => return Err(NotOpened::Full),
            Err(h2::NotOpened::Busy) => return Err(NotOpened::Busy),
            Err(h2::NotOpened::NoIds | h2::NotOpened::GoingAway) => {
                self.is_leaving = true;
                return Err(NotOpened::Over);
            }
        };
        let key = StreamKey::from(stream);
        self.owe(key, &[OPENING]);
        self.prefaces.insert(key, Preface::Head);
        Ok(key)
    }

    fn identify(&mut self, key: StreamKey, id: PoolId) {
        let stream = id_of(key);
        self.core.respond(stream, &[(b":status", b"200")], false);
        self.owe(key, &id.0);
    }

    fn hurry(&mut self, key: StreamKey) {
        self.core.hurry(id_of(key));
    }

    fn has_declined(&self, key: StreamKey) -> bool {
        let stream = id_of(key);
        let has_ended = self.core.has_ended(stream) || self.cancelled.contains(&key);
        self.core.is_reset(stream) && has_ended
    }

    fn read(&mut self, key: StreamKey, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.core.read(id_of(key), buffer, Instant::now());
        let is_cancelled = self.cancelled.contains(&key);
        match (result, self.broken) {
            (Err(error), _) if is_cancelled && !is_passing(&error) => Ok(0),
            // What has come is there to be read; behind it is the break.
            (Err(error), Some(_)) if is_passing(&error) => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            (result, _) => result,
        }
    }

    fn check(&self, key: StreamKey) -> Condition {
        let stream = id_of(key);
        if self.core.readable_size(stream) > 0 {
            Condition::Speaking
        } else if self.broken.is_some() || self.core.has_ended(stream) || self.core.is_reset(stream)
        {
            Condition::Ended
        } else {
            Condition::Silent
        }
    }

    fn write(&mut self, key: StreamKey, bytes: &[u8]) -> io::Result<usize> {
        if self.broken.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.pay(key) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.core.write(id_of(key), bytes)
    }

    fn finish(&mut self, key: StreamKey) -> io::Result<()> {
        if self.broken.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.pay(key) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.core.finish(id_of(key))
    }

    fn reset(&mut self, key: StreamKey) {
        self.prefaces.remove(&key);
        self.cancelled.remove(&key);
        self.owed.remove(&key);
        self.core.reset(id_of(key), ErrorCode::CANCEL);
    }

    fn can_open(&self) -> bool {
        !self.is_leaving
    }

    fn close(&mut self) {
        self.core.go_away(ErrorCode::NO_ERROR);
        self.is_closing = true;
    }

    fn hang_up(&mut self) {
        // A peer that takes nothing more finds out by itself.
        let _ = self.tls.finish();
    }

    fn rest(&mut self) {
        self.tls.rest();
    }
}

/// Returns the number of the stream that a key names: all keys come from one.
fn id_of(key: StreamKey) -> StreamId {
    StreamId::try_from(key).unwrap_or_default()
}
