//! The recorded exchanges of `tests/vectors/v1`, for the tests of codecs.

use serde::Deserialize;

use super::key::TunnelKey;

const PLAIN_REVERSE: &str = include_str!("../../tests/vectors/v1/tcp-plain-reverse.jsonl");
const PLAIN_FORWARD: &str = include_str!("../../tests/vectors/v1/tcp-plain-forward.jsonl");
const TLS_REVERSE: &str = include_str!("../../tests/vectors/v1/tcp-tls-reverse.jsonl");

/// The number of the connection with the handshake, and of the control channel, in each.
const HANDSHAKE: u32 = 1;
const CONTROL: u32 = 2;

/// One recording: what was said in the handshake and, behind the id, on the control channel.
pub(super) struct Recording {
    pub(super) request: Vec<u8>,
    pub(super) answer: Vec<u8>,
    pub(super) client_lines: Vec<u8>,
    pub(super) server_lines: Vec<u8>,
}

#[derive(Deserialize)]
struct Chunk {
    conn: u32,
    from: String,
    hex: String,
}

/// The key of all recordings.
pub(super) fn recorded_key() -> TunnelKey {
    TunnelKey::new(b"k3y".to_vec())
}

/// Returns all recordings: plain and reverse, plain and forward, TLS and reverse.
pub(super) fn recordings() -> [Recording; 3] {
    [PLAIN_REVERSE, PLAIN_FORWARD, TLS_REVERSE].map(|text| {
        let chunks: Vec<Chunk> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let said = |conn: u32, from: &str| -> Vec<u8> {
            let of_side = chunks
                .iter()
                .filter(|chunk| chunk.conn == conn && chunk.from == from);
            of_side.flat_map(|chunk| decode(&chunk.hex)).collect()
        };
        let server = said(CONTROL, "server");
        let lines = server.strip_prefix(&[0; 4]).expect("the id comes first");
        Recording {
            request: said(HANDSHAKE, "client"),
            answer: said(HANDSHAKE, "server"),
            client_lines: said(CONTROL, "client"),
            server_lines: lines.to_vec(),
        }
    })
}

fn decode(hex: &str) -> Vec<u8> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
