//! What is in `tests/vectors`, as seeds.

use serde_json::Value;

/// The state file of a 1.x master.
pub const GOB: &[u8] = include_bytes!("../../tests/vectors/master/nodepass.gob");

/// Answers of a 1.x master.
pub const ANSWERS: [&[u8]; 4] = [
    include_bytes!("../../tests/vectors/master/59-list-with-exit.txt"),
    include_bytes!("../../tests/vectors/master/54-delete.txt"),
    include_bytes!("../../tests/vectors/master/61-head-list.txt"),
    include_bytes!("../../tests/vectors/master/events-sse-raw.txt"),
];

/// Connections to a 1.x server: pool type 0 plain in both flows and covered, 2, and 3 in both
/// flows. The first of each is the handshake, the second the control channel or, with type 3, the
/// HTTP/2 connection.
pub const CONNECTIONS: [&str; 6] = [
    include_str!("../../tests/vectors/v1/tcp-plain-reverse.jsonl"),
    include_str!("../../tests/vectors/v1/tcp-plain-forward.jsonl"),
    include_str!("../../tests/vectors/v1/tcp-tls-reverse.jsonl"),
    include_str!("../../tests/vectors/v1/ws-plain-reverse.jsonl"),
    include_str!("../../tests/vectors/v1/h2-reverse.jsonl"),
    include_str!("../../tests/vectors/v1/h2-forward.jsonl"),
];

/// The key of all of them.
pub const KEY: &[u8] = b"k3y";

/// Returns what `side` said on each connection of `recording` on which it said something.
pub fn said(recording: &str, side: &str) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for line in recording.lines() {
        let chunk: Value = serde_json::from_str(line).expect("a chunk");
        let index = chunk["conn"].as_u64().expect("a number");
        let index = usize::try_from(index).expect("a small one");
        if chunk["from"] == side {
            all.resize(all.len().max(index + 1), Vec::new());
            all[index].extend(decode_hex(chunk["hex"].as_str().expect("a text")));
        }
    }
    all.retain(|bytes| !bytes.is_empty());
    all
}

fn decode_hex(text: &str) -> Vec<u8> {
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .expect("a digit")
            .to_le_bytes()[0]
    };
    pairs
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}
