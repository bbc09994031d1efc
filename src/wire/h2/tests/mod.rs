//! Two ends that talk through byte vectors, and an end against frames made by hand.

mod abuse;
mod exchange;
mod recorded;
mod rules;
mod streams;
mod windows;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::frame::{
    END_HEADERS, END_STREAM, FrameHeader, FrameKind, HEADER_SIZE, PREFACE, StreamId,
};
use super::hpack::{Encoder, Outgoing};
use super::{Connection, ConnectionError, Event, Role, Settings};
use crate::wire::mutation::Xorshift;

pub(super) const REQUEST: [(&[u8], &[u8]); 4] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/stream"),
    (b":authority", b"none"),
];
pub(super) const RESPONSE: [(&[u8], &[u8]); 1] = [(b":status", b"200")];

/// Two ends and the way between them.
pub(super) struct Pair {
    pub(super) client: Connection,
    pub(super) server: Connection,
    pub(super) now: Instant,
    cuts: Xorshift,
}

/// An end of a [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Server,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(Settings::default(), Settings::default())
    }

    pub(super) fn with(client: Settings, server: Settings) -> Self {
        let mut pair = Self {
            client: Connection::new(Role::Client, client),
            server: Connection::new(Role::Server, server),
            now: Instant::now(),
            cuts: Xorshift::new(7),
        };
        pair.pump();
        pair
    }

    /// Moves bytes until there are none, cut at places that look random.
    pub(super) fn pump(&mut self) {
        while self.move_bytes(End::Client) + self.move_bytes(End::Server) > 0 {}
    }

    /// Moves the bytes that `from` has to send now; returns how many there were.
    pub(super) fn move_bytes(&mut self, from: End) -> usize {
        let (source, target) = match from {
            End::Client => (&mut self.client, &mut self.server),
            End::Server => (&mut self.server, &mut self.client),
        };
        let bytes = source.output().to_vec();
        // Much of it in tiny parts would only take long.
        let size_max = match bytes.len() {
            0..10_000 => [1, 3, 20, 1000][self.cuts.below(4)],
            _ => [1000, 100_000][self.cuts.below(2)],
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let size = (self.cuts.below(size_max) + 1).min(rest.len());
            target.receive(&rest[..size], self.now).unwrap();
            source.sent(size);
            rest = &rest[size..];
        }
        bytes.len()
    }

    /// Opens a stream and has it answered.
    pub(super) fn open(&mut self) -> StreamId {
        let id = self.client.request(&REQUEST, false).unwrap();
        self.pump();
        let event = self.server.next_event();
        assert!(
            matches!(event, Some(Event::Request { stream, .. }) if stream == id),
            "{event:?}"
        );
        self.server.respond(id, &RESPONSE, false);
        self.pump();
        let event = self.client.next_event();
        assert!(
            matches!(event, Some(Event::Response { stream, .. }) if stream == id),
            "{event:?}"
        );
        id
    }

    pub(super) fn end(&mut self, end: End) -> &mut Connection {
        match end {
            End::Client => &mut self.client,
            End::Server => &mut self.server,
        }
    }

    /// Reads what there is on a stream, and whether the end came.
    pub(super) fn read(&mut self, end: End, id: StreamId) -> (Vec<u8>, bool) {
        let now = self.now;
        read_all(self.end(end), id, now)
    }

    /// Takes all events of an end.
    pub(super) fn events(&mut self, end: End) -> Vec<Event> {
        std::iter::from_fn(|| self.end(end).next_event()).collect()
    }
}

/// Reads what there is on a stream, and whether the end came.
pub(super) fn read_all(from: &mut Connection, id: StreamId, now: Instant) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut buffer = [0; 5000];
    loop {
        match from.read(id, &mut buffer, now) {
            Ok(0) => return (all, true),
            Ok(size) => all.extend_from_slice(&buffer[..size]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return (all, false);
            }
        }
    }
}

/// An end whose peer is made by hand.
pub(super) struct Lone {
    pub(super) connection: Connection,
    pub(super) now: Instant,
    pub(super) encoder: Encoder,
}

impl Lone {
    /// A server whose client has said its preface and empty settings.
    pub(super) fn server() -> Self {
        Self::with(Role::Server, Settings::default())
    }

    /// A client whose server has said empty settings, with one stream open.
    pub(super) fn client() -> Self {
        let mut lone = Self::with(Role::Client, Settings::default());
        lone.connection.request(&REQUEST, false).unwrap();
        lone
    }

    pub(super) fn with(role: Role, settings: Settings) -> Self {
        let connection = Connection::new(role, settings);
        let mut lone = Self {
            connection,
            now: Instant::now(),
            encoder: Encoder::new(),
        };
        if role == Role::Server {
            lone.connection.receive(PREFACE, lone.now).unwrap();
        }
        lone.take(&frame(FrameKind::Settings, 0, 0, &[])).unwrap();
        lone
    }

    /// Takes bytes in and forgets the output, as for a peer that reads.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let outcome = self.connection.receive(bytes, self.now);
        self.connection.sent(self.connection.output().len());
        outcome
    }

    /// Takes bytes in and returns the frames that come out.
    pub(super) fn frames_after(&mut self, bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
        let _ = self.connection.receive(bytes, self.now);
        self.frames()
    }

    /// Returns the frames in the output.
    pub(super) fn frames(&mut self) -> Vec<(FrameHeader, Vec<u8>)> {
        let frames = split_frames(self.connection.output());
        self.connection.sent(self.connection.output().len());
        frames
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    pub(super) fn block(&mut self, fields: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        let outgoing: Vec<_> = fields
            .iter()
            .map(|(name, value)| Outgoing::new(name, value))
            .collect();
        self.encoder.encode(&outgoing, &mut block);
        block
    }

    /// Returns HEADERS with these fields.
    pub(super) fn headers(
        &mut self,
        id: StreamId,
        flags: u8,
        fields: &[(&[u8], &[u8])],
    ) -> Vec<u8> {
        let block = self.block(fields);
        frame(FrameKind::Headers, flags | END_HEADERS, id, &block)
    }

    /// Has a stream opened by the peer and answers it.
    pub(super) fn open(&mut self, id: StreamId) {
        let bytes = self.headers(id, 0, &REQUEST);
        self.take(&bytes).unwrap();
        let event = self.connection.next_event();
        assert!(matches!(event, Some(Event::Request { .. })), "{event:?}");
        self.connection.respond(id, &RESPONSE, false);
        self.connection.sent(self.connection.output().len());
    }
}

pub(super) fn frame(kind: FrameKind, flags: u8, stream: StreamId, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        size: payload.len(),
        kind,
        flags,
        stream,
    };
    [&header.encode()[..], payload].concat()
}

pub(super) fn data(stream: StreamId, payload: &[u8]) -> Vec<u8> {
    frame(FrameKind::Data, 0, stream, payload)
}

pub(super) fn last_data(stream: StreamId, payload: &[u8]) -> Vec<u8> {
    frame(FrameKind::Data, END_STREAM, stream, payload)
}

pub(super) fn number_frame(kind: FrameKind, stream: StreamId, number: u32) -> Vec<u8> {
    frame(kind, 0, stream, &number.to_be_bytes())
}

pub(super) fn split_frames(mut bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    if bytes.starts_with(PREFACE) {
        bytes = &bytes[PREFACE.len()..];
    }
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::decode(header);
        let (payload, rest) = rest.split_at(header.size);
        frames.push((header, payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    frames
}

/// Returns bytes whose places can be told from their values.
pub(super) fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect()
}
