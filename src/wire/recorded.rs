//! The recorded exchanges of `tests/vectors/v1`, for the tests of codecs.

use serde::Deserialize;

use super::key::TunnelKey;

const PLAIN_REVERSE: &str = include_str!("../../tests/vectors/v1/tcp-plain-reverse.jsonl");
const PLAIN_FORWARD: &str = include_str!("../../tests/vectors/v1/tcp-plain-forward.jsonl");
const TLS_REVERSE: &str = include_str!("../../tests/vectors/v1/tcp-tls-reverse.jsonl");
#[cfg(feature = "http2")]
const HTTP2_REVERSE: &str = include_str!("../../tests/vectors/v1/h2-reverse.jsonl");
#[cfg(feature = "http2")]
const HTTP2_FORWARD: &str = include_str!("../../tests/vectors/v1/h2-forward.jsonl");

/// The number of the connection with the handshake, and of the control channel, in each.
const HANDSHAKE: u32 = 1;
const CONTROL: u32 = 2;
/// The number of the connection with all pool connections, where it is one.
#[cfg(feature = "http2")]
const HTTP2: u32 = 2;

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
        let said = |conn, from| said(text, conn, from);
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

/// Returns what the client and the server said on the HTTP/2 connection of each recording of pool
/// type 3: reverse, forward.
#[cfg(feature = "http2")]
pub(super) fn recorded_http2() -> [[Vec<u8>; 2]; 2] {
    [HTTP2_REVERSE, HTTP2_FORWARD]
        .map(|text| ["client", "server"].map(|from| said(text, HTTP2, from)))
}

/// Returns what one side said on one connection.
fn said(text: &str, conn: u32, from: &str) -> Vec<u8> {
    let chunks = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let of_side = chunks.filter(|chunk: &Chunk| chunk.conn == conn && chunk.from == from);
    of_side.flat_map(|chunk| decode(&chunk.hex)).collect()
}

fn decode(hex: &str) -> Vec<u8> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
