//! The recorded v1 exchanges of `tests/vectors/v1`: what each side said on each connection.

use std::fs;
use std::path::Path;

use nodepass::wire::key::TunnelKey;
use nodepass::wire::signal::{PoolId, Received, Side, Signal, SignalReader};
use serde::Deserialize;

/// The key of all recordings, as it stands in a URL.
pub const KEY: &str = "k3y";

/// The number of the connection with the handshake, and of the control channel.
const HANDSHAKE: u32 = 1;
const CONTROL: u32 = 2;

/// One recording.
pub struct Recording {
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

#[derive(Deserialize)]
struct Chunk {
    conn: u32,
    from: String,
    hex: String,
}

impl Recording {
    /// Reads `tests/vectors/v1/NAME.jsonl`.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/vectors/v1")
            .join(format!("{name}.jsonl"));
        let text = fs::read_to_string(&path).unwrap();
        let chunks = text.lines().map(|line| serde_json::from_str(line).unwrap());
        Self {
            chunks: chunks.collect(),
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
        let last = self.chunks.iter().map(|chunk| chunk.conn).max().unwrap();
        (CONTROL..=last).map(|conn| self.id_of(conn)).collect()
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
            let last = self.chunks.iter().map(|chunk| chunk.conn).max().unwrap();
            let conn = (CONTROL..=last).find(|conn| self.id_of(*conn) == id)?;
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
        let name = match side {
            Side::Client => "client",
            Side::Server => "server",
        };
        let of_side = self
            .chunks
            .iter()
            .filter(|chunk| chunk.conn == conn && chunk.from == name);
        of_side.flat_map(|chunk| decode_hex(&chunk.hex)).collect()
    }

    /// Where in the recording the chunk of `conn` with `bytes` stands.
    fn position(&self, conn: u32, bytes: &[u8]) -> usize {
        let is_it = |chunk: &Chunk| {
            let chunk_bytes = decode_hex(&chunk.hex);
            let mut windows = chunk_bytes.windows(bytes.len().max(1));
            chunk.conn == conn && windows.any(|window| window == bytes)
        };
        let found = self.chunks.iter().position(is_it);
        found.expect("the recorded chunk is whole")
    }
}

fn decode_hex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte");
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
