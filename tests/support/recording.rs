//! The recorded v1 exchanges of `tests/vectors/v1`: what each side said on each connection.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use nodepass::wire::key::TunnelKey;
use nodepass::wire::signal::{PoolId, Received, Side, Signal, SignalReader};
use serde::Deserialize;

use super::peer::http2::{DATA, HEADERS, Mux, Opening, SETTINGS, WINDOW_UPDATE};
use super::peer::web_socket::Ends;
use super::peer::{Form, Stream, Way};
use super::tunnel::{HTTP2, TCP, WEB_SOCKET};

/// The key of all recordings, as it stands in a URL.
pub const KEY: &str = "k3y";

/// The number of the connection with the handshake, and of the control channel.
const HANDSHAKE: u32 = 1;
const CONTROL: u32 = 2;

/// A stream of HTTP/2 that is opened by the client has an odd number; the first one is 1.
const STREAM_STEP: u32 = 2;

/// One recording.
pub struct Recording {
    form: PoolForm,
    /// As they were read from the sockets.
    raw: Vec<Chunk>,
    /// What went over the handshake's connection and the pool connections, by the number of the
    /// latter: without what HTTP/2 or WebSocket adds.
    chunks: Vec<Chunk>,
}

/// What a visitor did, in the words of the two ends of its pool connection.
pub struct Visit {
    /// `Tcp` or `Udp`, as recorded.
    pub signal: Signal,
    /// The id of its pool connection, as recorded.
    pub id: PoolId,
    /// What the visitor sent.
    pub request: Vec<u8>,
    /// What the target sent.
    pub answer: Vec<u8>,
    /// Whether the visitor's bytes were recorded before their signal.
    pub data_comes_first: bool,
}

/// Bytes of one side on one connection.
#[derive(Clone)]
struct Chunk {
    conn: u32,
    side: Side,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct RecordedChunk {
    conn: u32,
    from: String,
    hex: String,
}

/// What pool connections are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PoolForm {
    /// One TCP connection each.
    Tcp,
    /// One WebSocket each.
    WebSocket,
    /// Streams of one connection of HTTP/2.
    Http2,
}

impl Recording {
    /// Reads `tests/vectors/v1/NAME.jsonl`.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/vectors/v1")
            .join(format!("{name}.jsonl"));
        let text = fs::read_to_string(&path).unwrap();
        let raw: Vec<Chunk> = text.lines().filter_map(decode_chunk).collect();
        let form = match name.split('-').next() {
            Some("ws") => PoolForm::WebSocket,
            Some("h2") => PoolForm::Http2,
            _ => PoolForm::Tcp,
        };
        let chunks = match form {
            PoolForm::Tcp => raw.clone(),
            PoolForm::WebSocket => without_web_socket(&raw),
            PoolForm::Http2 => without_http2(&raw),
        };
        Self { form, raw, chunks }
    }

    /// The request by which the client opened the `index`-th pool connection of WebSocket, the
    /// control channel's being the first one.
    fn upgrade_request(&self, index: u32) -> Vec<u8> {
        self.upgrade(index, Side::Client)
    }

    /// The answer to that.
    fn upgrade_answer(&self, index: u32) -> Vec<u8> {
        self.upgrade(index, Side::Server)
    }

    fn upgrade(&self, index: u32, side: Side) -> Vec<u8> {
        let mut said = said(&self.raw, CONTROL + index, side);
        said.truncate(head_size(&said));
        said
    }

    /// How the recorded client opens the pool connections of a session.
    pub fn way(&self, server: SocketAddr) -> Way {
        match self.form {
            PoolForm::Tcp => Way::Tcp,
            PoolForm::WebSocket => {
                let count = u32::try_from(self.ids().len()).unwrap();
                let requests = (0..count).map(|index| self.upgrade_request(index));
                Way::WebSocket(requests.collect(), Ends::CloseFrame)
            }
            PoolForm::Http2 => {
                let below = Stream::dial_http2(server).unwrap();
                let opening = self.http2(Side::Client);
                Way::Http2(Mux::client(below, opening))
            }
        }
    }

    /// How the recorded server takes them.
    pub fn server_form(&self) -> Form {
        match self.form {
            PoolForm::Tcp => Form::Tcp,
            PoolForm::WebSocket => {
                let count = u32::try_from(self.ids().len()).unwrap();
                let answers = (0..count).map(|index| self.upgrade_answer(index));
                Form::WebSocket(answers.collect())
            }
            PoolForm::Http2 => Form::Http2(Some(self.http2(Side::Server))),
        }
    }

    /// Option `type` of the recorded server.
    pub fn transport(&self) -> u8 {
        match self.form {
            PoolForm::Tcp => TCP,
            PoolForm::WebSocket => WEB_SOCKET,
            PoolForm::Http2 => HTTP2,
        }
    }

    /// What `side` has said of HTTP/2 itself.
    fn http2(&self, side: Side) -> Opening {
        let said = said(&self.raw, CONTROL, side);
        let mut rest = http2_frames_of(&said, side);
        let opening_size = said.len() - rest.len();
        let mut opening = said[..opening_size].to_vec();
        let mut blocks = VecDeque::new();
        while let Some(frame) = Http2Frame::take(&mut rest) {
            match frame.kind {
                HEADERS => blocks.push_back(frame.payload.to_vec()),
                // An acknowledgement is for settings that another run of the test may not have.
                SETTINGS | WINDOW_UPDATE if blocks.is_empty() && frame.flags == 0 => {
                    opening.extend_from_slice(frame.bytes);
                }
                _ => {}
            }
        }
        Opening {
            bytes: opening,
            blocks,
            // It is the client's end that was recorded.
            ends_by_reset: side == Side::Client,
        }
    }

    /// The key of the recording, as the codecs take it.
    pub fn key() -> TunnelKey {
        TunnelKey::new(KEY.as_bytes().to_vec())
    }

    /// The request of the handshake.
    pub fn request(&self) -> Vec<u8> {
        self.said(HANDSHAKE, Side::Client)
    }

    /// The answer of the handshake.
    pub fn answer(&self) -> Vec<u8> {
        self.said(HANDSHAKE, Side::Server)
    }

    /// The ids of the pool connections, the control channel's first, in the order of the
    /// connections.
    pub fn ids(&self) -> Vec<PoolId> {
        self.conns().map(|conn| self.id_of(conn)).collect()
    }

    /// The numbers of the pool connections that were given an id.
    fn conns(&self) -> impl Iterator<Item = u32> {
        let last = self.chunks.iter().map(|chunk| chunk.conn).max().unwrap();
        (CONTROL..=last)
            .filter(|conn| self.said(*conn, Side::Server).len() >= PoolId::CONTROL.0.len())
    }

    /// The control lines of `side`: the bytes of each, newline included, and what it means.
    pub fn lines(&self, side: Side) -> Vec<(Vec<u8>, Signal)> {
        let said = self.said(CONTROL, side);
        let lines = match side {
            Side::Server => said.strip_prefix(&PoolId::CONTROL.0).unwrap(),
            Side::Client => &said,
        };
        let mut reader = SignalReader::v1(Self::key());
        let decode = |line: &[u8]| {
            let Ok(Some(Received::Signal(signal))) = reader.read(&mut &*line) else {
                panic!("a recorded line is no signal");
            };
            (line.to_vec(), signal)
        };
        lines
            .split_inclusive(|byte| *byte == b'\n')
            .map(decode)
            .collect()
    }

    /// The visitors, in the order of their signals; `entry` is the side that took them.
    pub fn visits(&self, entry: Side) -> Vec<Visit> {
        let exit = match entry {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let lines = self.lines(entry).into_iter();
        let visit = |(line, signal): (Vec<u8>, Signal)| {
            let (Signal::Tcp { id, .. } | Signal::Udp { id, .. }) = signal else {
                return None;
            };
            let conn = self.conns().find(|conn| self.id_of(*conn) == id)?;
            let (request, answer) = (self.data(conn, entry), self.data(conn, exit));
            Some(Visit {
                data_comes_first: self.position(conn, &request) < self.position(CONTROL, &line),
                signal,
                id,
                request,
                answer,
            })
        };
        lines.filter_map(visit).collect()
    }

    fn id_of(&self, conn: u32) -> PoolId {
        let said = self.said(conn, Side::Server);
        PoolId(*said.first_chunk().expect("the id comes first"))
    }

    /// What `side` said on a pool connection, without the id.
    fn data(&self, conn: u32, side: Side) -> Vec<u8> {
        let said = self.said(conn, side);
        match side {
            Side::Client => said,
            Side::Server => said[PoolId::CONTROL.0.len()..].to_vec(),
        }
    }

    fn said(&self, conn: u32, side: Side) -> Vec<u8> {
        said(&self.chunks, conn, side)
    }

    /// Where in the recording the chunk of `conn` with `bytes` stands.
    fn position(&self, conn: u32, bytes: &[u8]) -> usize {
        let is_it = |chunk: &Chunk| {
            let mut windows = chunk.bytes.windows(bytes.len().max(1));
            chunk.conn == conn && windows.any(|window| window == bytes)
        };
        let found = self.chunks.iter().position(is_it);
        found.expect("the recorded chunk is whole")
    }
}

/// One line; `None` for an end of stream.
fn decode_chunk(line: &str) -> Option<Chunk> {
    let RecordedChunk { conn, from, hex } = serde_json::from_str(line).unwrap();
    let side = match &*from {
        "client" => Side::Client,
        "server" => Side::Server,
        _ => return None,
    };
    let bytes = decode_hex(&hex);
    Some(Chunk { conn, side, bytes })
}

fn said(chunks: &[Chunk], conn: u32, side: Side) -> Vec<u8> {
    let of_side = chunks
        .iter()
        .filter(|chunk| chunk.conn == conn && chunk.side == side);
    of_side.flat_map(|chunk| chunk.bytes.clone()).collect()
}

/// Bytes of the head of an HTTP message, its empty line included.
fn head_size(message: &[u8]) -> usize {
    let end = message.windows(4).position(|end| end == b"\r\n\r\n");
    end.expect("a head of HTTP") + 4
}

/// The payloads of the messages, and the handshake as it is. Each chunk holds whole frames.
fn without_web_socket(raw: &[Chunk]) -> Vec<Chunk> {
    const BINARY: u8 = 0x82;
    let mut all = Vec::new();
    for chunk in raw {
        if chunk.conn == HANDSHAKE {
            all.push(chunk.clone());
            continue;
        }
        let mut rest = &chunk.bytes[..];
        if rest.starts_with(b"GET ") || rest.starts_with(b"HTTP/") {
            rest = &rest[head_size(rest)..];
        }
        while !rest.is_empty() {
            let (opcode, bytes) = take_message(&mut rest);
            if opcode == BINARY {
                let Chunk { conn, side, .. } = *chunk;
                all.push(Chunk { conn, side, bytes });
            }
        }
    }
    all
}

/// The first byte and the payload of a frame of WebSocket (RFC 6455 section 5.2).
fn take_message(rest: &mut &[u8]) -> (u8, Vec<u8>) {
    const MASKED: u8 = 0x80;
    let (opcode, length) = (rest[0], rest[1] & !MASKED);
    let (length, length_size) = match length {
        126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 2),
        127 => panic!("no recorded message is that large"),
        length => (usize::from(length), 0),
    };
    let is_masked = rest[1] & MASKED != 0;
    *rest = &rest[2 + length_size..];
    let mask = if is_masked {
        let mask = *rest.first_chunk::<4>().unwrap();
        *rest = &rest[4..];
        mask
    } else {
        [0; 4]
    };
    let (payload, after) = rest.split_at(length);
    *rest = after;
    let unmasked = payload.iter().zip(mask.iter().cycle());
    (opcode, unmasked.map(|(byte, mask)| byte ^ mask).collect())
}

// Frames of HTTP/2 (RFC 9113 section 4.1).

struct Http2Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
    /// Header and payload.
    bytes: &'a [u8],
}

impl<'a> Http2Frame<'a> {
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, d, e, f, g] = rest.first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        let (bytes, after) = rest.split_at(9 + length);
        *rest = after;
        Some(Self {
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]),
            payload: &bytes[9..],
            bytes,
        })
    }
}

/// All frames of what `side` has said.
fn http2_frames_of(said: &[u8], side: Side) -> &[u8] {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    match side {
        Side::Client => said.strip_prefix(PREFACE).unwrap(),
        Side::Server => said,
    }
}

/// The bodies, each stream as a connection of its own, and the handshake as it is. Each chunk
/// holds whole frames.
fn without_http2(raw: &[Chunk]) -> Vec<Chunk> {
    let mut all = Vec::new();
    // Those whose request has shown its first byte, which is not of the pool connection.
    let mut opened = Vec::new();
    for chunk in raw {
        if chunk.conn == HANDSHAKE {
            all.push(chunk.clone());
            continue;
        }
        let side = chunk.side;
        let mut rest = &chunk.bytes[..];
        if rest.starts_with(b"PRI ") {
            rest = http2_frames_of(rest, side);
        }
        while let Some(frame) = Http2Frame::take(&mut rest) {
            if frame.kind != DATA {
                continue;
            }
            let mut bytes = frame.payload.to_vec();
            if side == Side::Client && !opened.contains(&frame.stream) {
                opened.push(frame.stream);
                assert_eq!(bytes.remove(0), 0, "a request begins with a zero byte");
            }
            let conn = CONTROL + frame.stream / STREAM_STEP;
            all.push(Chunk { conn, side, bytes });
        }
    }
    all
}

fn decode_hex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte");
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
