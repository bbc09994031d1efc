//! Frames of WebSocket.

use nodepass::wire::web_socket::{
    Decoder, FRAME_HEAD_SIZE_MAX, Frame, Halt, Reach, Role, apply_mask, copy_masked, encode_head,
};

use super::{recordings, take_byte, with_byte};

const MASK: [u8; 4] = [0xa1, 0x02, 0xf3, 0x44];

/// All that came out of some bytes.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    data: Vec<u8>,
    consumed: usize,
    ping: Option<Vec<u8>>,
    halt: Option<Halt>,
    is_between: bool,
}

/// However a stream is cut and however far one reads at once, the same comes out of it; what was
/// written comes out as it was.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let role = role_of(how);
    let ends_by_empty = how & 2 != 0;
    let whole = hear(role, ends_by_empty, input, input.len().max(1), Reach::All);
    let piece_size = 1 + usize::from(how / 4);
    assert_eq!(
        hear(role, ends_by_empty, input, piece_size, Reach::All),
        whole
    );
    assert_eq!(
        hear(role, ends_by_empty, input, 500, Reach::OneMessage),
        whole
    );
    assert!(whole.data.len() <= input.len() && whole.consumed <= input.len());
    assert!(whole.ping.as_ref().is_none_or(|ping| ping.len() <= 125));
    assert!(whole.halt.is_some() || whole.consumed == input.len());

    let written = frames(role, input.chunks(20 + 300 * usize::from(how)));
    let heard = hear(role, true, &written, 1 + written.len() / 3, Reach::All);
    assert_eq!((heard.data.as_slice(), heard.halt), (input, None));
    !matches!(whole.halt, Some(Halt::Violation(_))) && whole.consumed > 2
}

/// The end that hears: the other one speaks.
fn role_of(how: u8) -> Role {
    match how % 2 {
        0 => Role::Server,
        _ => Role::Client,
    }
}

fn hear(role: Role, ends_by_empty: bool, stream: &[u8], piece_size: usize, reach: Reach) -> Heard {
    let mut decoder = Decoder::new(role, ends_by_empty);
    let (mut data, mut consumed, mut ping) = (Vec::new(), 0, None);
    for piece in stream.chunks(piece_size) {
        let mut at = 0;
        while at < piece.len() {
            let mut bytes = piece[at..].to_vec();
            let decoded = decoder.decode(&mut bytes, reach);
            assert!(decoded.size <= decoded.consumed);
            assert!(decoded.consumed > 0 || decoder.halt().is_some());
            data.extend_from_slice(&bytes[..decoded.size]);
            at += decoded.consumed;
            ping = decoder.take_ping().or(ping);
            if decoder.halt().is_some() {
                break;
            }
        }
        consumed += at;
    }
    let (halt, mut is_between) = (decoder.halt(), decoder.is_between_messages());
    if matches!(halt, Some(Halt::Violation(_))) {
        // How much of a bad head was looked at means nothing.
        (consumed, is_between) = (0, false);
    }
    Heard {
        data,
        consumed,
        ping,
        halt,
        is_between,
    }
}

/// Returns messages to `role`.
fn frames<'d>(role: Role, messages: impl Iterator<Item = &'d [u8]>) -> Vec<u8> {
    messages
        .flat_map(|message| frame(role, Frame::Binary, message))
        .collect()
}

fn frame(role: Role, frame: Frame, payload: &[u8]) -> Vec<u8> {
    let mask = (role == Role::Server).then_some(MASK);
    let mut head = [0; FRAME_HEAD_SIZE_MAX];
    let size = u64::try_from(payload.len()).expect("a length");
    let head_size = encode_head(frame, size, mask, &mut head);
    let mut bytes = payload.to_vec();
    if let Some(mask) = mask {
        copy_masked(payload, &mut bytes, mask);
        let mut again = payload.to_vec();
        apply_mask(&mut again, &mut mask.clone());
        assert_eq!(again, bytes);
    }
    [&head[..head_size], &bytes].concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for how in 0..4 {
        let role = role_of(how);
        let mut stream = frames(role, [&b"some data"[..], &[3; 200]].into_iter());
        let mut ping = frame(role, Frame::Pong, b"there?");
        ping[0] = 0x89;
        stream.extend([ping, frame(role, Frame::Close, b"\x03\xe8")].concat());
        seeds.push(with_byte(how, &stream));
    }
    let web_socket = recordings::CONNECTIONS[3];
    for (how, side) in [(0, "client"), (1, "server")] {
        let connections = recordings::said(web_socket, side);
        let upgraded = connections.iter().filter_map(|bytes| {
            let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")?;
            Some(&bytes[end + 4..]).filter(|frames| frames.first().is_some_and(|byte| *byte > 0x80))
        });
        seeds.extend(upgraded.map(|frames| with_byte(how, frames)));
    }
    seeds
}
