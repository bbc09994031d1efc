//! The frames of WebSocket: a byte stream cut out of them in place, and their heads.
//!
//! Messages mean nothing here but by their ends: data are data whatever message they are in. What
//! is read is bounded by nothing but the buffer it is read into: a frame may have any length, for
//! only its head is ever kept.
//!
//! ```text
//!   │head│ payload │head│ ping │head│ payload │he…      what was received, in the caller's buffer
//!   │ payload payload │                    └────────▶   kept until the rest of it comes
//!                             └─────────────────────▶   gathered aside, to be answered
//! ```
//!
//! The heads are read and written by the library tungstenite; the payload never passes through it.
//!
//! Source: RFC 6455, section 5.

use std::fmt;
use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Largest payload of a control frame. RFC 6455 section 5.5
pub const CONTROL_SIZE_MAX: usize = 125;

/// Largest head of a frame: 2 bytes, a length of 64 bits, a mask.
pub const FRAME_HEAD_SIZE_MAX: usize = 14;

/// What the payload of a client's frame is changed with, byte by byte and over again.
pub type Mask = [u8; 4];

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Masks what it sends.
    Client,
    /// Does not.
    Server,
}

/// A frame that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of data.
    Binary,
    /// To be answered with a pong.
    Ping,
    /// The answer to a ping, or a word that asks for no answer. RFC 6455 section 5.5.3
    Pong,
    /// Nothing follows.
    Close,
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// An empty message has come, and means the end of the data.
    Empty,
    /// A close frame has come.
    Close,
    /// What came is not what may come.
    Violation(Violation),
}

/// What a peer may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A head that is none.
    Head,
    /// Bits that belong to an extension, and there is none.
    Reserved,
    /// A client sent without a mask, or a server with one.
    Masking,
    /// A message of text.
    Text,
    /// A length of more than 63 bits.
    Length,
    /// A control frame that is too large, or cut in parts.
    Control,
    /// A part of a message where none has begun, or a new message within one.
    Fragment,
}

/// How far to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everything that is there.
    All,
    /// Until the end of the first message that has data.
    OneMessage,
}

/// What came out of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// So many bytes of data are at the front now.
    pub size: usize,
    /// So many of the bytes have been looked at; less than all with [`Reach::OneMessage`], or when
    /// nothing more counts.
    pub consumed: usize,
}

/// Reads what the other end sends.
#[derive(Debug)]
pub struct Decoder {
    /// The other end is the client: it has to mask.
    masked: bool,
    /// An empty message is the end of the data.
    ends_by_empty: bool,
    /// The beginning of a head.
    head: [u8; FRAME_HEAD_SIZE_MAX],
    head_size: usize,
    frame: Option<Current>,
    /// Within a message: whether it has been empty so far.
    message: Option<Emptiness>,
    /// The payload of a control frame, as far as it has come.
    control: Vec<u8>,
    /// That of the last ping that has not been taken.
    ping: Option<Vec<u8>>,
    halt: Option<Halt>,
}

/// The frame that is being read.
#[derive(Clone, Copy, Debug)]
struct Current {
    kind: Kind,
    is_final: bool,
    mask: Option<Mask>,
    /// How much of its payload is still to come.
    left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Close,
    Ping,
    Pong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptiness {
    Empty,
    Filled,
}

impl Decoder {
    /// Makes what reads at the end `role`; `ends_by_empty` tells whether an empty message is the
    /// end of the data.
    pub fn new(role: Role, ends_by_empty: bool) -> Self {
        Self {
            masked: role == Role::Server,
            ends_by_empty,
            head: [0; FRAME_HEAD_SIZE_MAX],
            head_size: 0,
            frame: None,
            message: None,
            control: Vec::new(),
            ping: None,
            halt: None,
        }
    }

    /// Takes what was received, and moves the data in it to the front.
    pub fn decode(&mut self, bytes: &mut [u8], reach: Reach) -> Decoded {
        let (mut at, mut size) = (0, 0);
        while at < bytes.len() && self.halt.is_none() {
            if let Some(frame) = &mut self.frame {
                let left = usize::try_from(frame.left).unwrap_or(usize::MAX);
                let piece = at..at + left.min(bytes.len() - at);
                if let Some(mask) = &mut frame.mask {
                    apply_mask(&mut bytes[piece.clone()], mask);
                }
                frame.left -= piece.len() as u64;
                at = piece.end;
                if frame.kind == Kind::Data {
                    let piece_size = piece.len();
                    if size < piece.start {
                        bytes.copy_within(piece, size);
                    }
                    size += piece_size;
                } else {
                    self.control.extend_from_slice(&bytes[piece]);
                }
            } else {
                at += self.take_head(&bytes[at..]);
            }
            if self.frame.is_some_and(|frame| frame.left == 0) {
                self.end_frame();
            }
            if reach == Reach::OneMessage && size > 0 && self.is_between_messages() {
                break;
            }
        }
        Decoded { size, consumed: at }
    }

    /// Returns why nothing more is read, when nothing is.
    pub fn halt(&self) -> Option<Halt> {
        self.halt
    }

    /// Returns whether the last message has been read to its end, and no other has begun.
    pub fn is_between_messages(&self) -> bool {
        self.message.is_none() && self.frame.is_none() && self.head_size == 0
    }

    /// Takes the payload of the latest ping; of many one answer is enough. RFC 6455 section 5.5.3
    pub fn take_ping(&mut self) -> Option<Vec<u8>> {
        self.ping.take()
    }

    /// Takes the head of a frame, or the part of it that is there; returns how many bytes of it.
    fn take_head(&mut self, bytes: &[u8]) -> usize {
        let (before, known) = (self.head_size, bytes.len().min(FRAME_HEAD_SIZE_MAX));
        let added = known.min(FRAME_HEAD_SIZE_MAX - before);
        let mut head = self.head;
        head[before..before + added].copy_from_slice(&bytes[..added]);
        let filled = before + added;
        let mut cursor = Cursor::new(&head[..filled]);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => {
                (self.head, self.head_size) = (head, filled);
                added
            }
            Ok(Some((header, length))) => {
                self.head_size = 0;
                match self.begin_frame(&header, length) {
                    Ok(frame) => self.frame = Some(frame),
                    Err(violation) => self.halt = Some(Halt::Violation(violation)),
                }
                let size = usize::try_from(cursor.position()).unwrap_or(filled);
                size.saturating_sub(before)
            }
            Err(_) => {
                self.halt = Some(Halt::Violation(Violation::Head));
                added
            }
        }
    }

    fn begin_frame(&mut self, header: &FrameHeader, length: u64) -> Result<Current, Violation> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::Reserved);
        }
        if header.mask.is_some() != self.masked {
            return Err(Violation::Masking);
        }
        if length > i64::MAX as u64 {
            return Err(Violation::Length);
        }
        let kind = match header.opcode {
            OpCode::Data(Data::Binary) if self.message.is_none() => Kind::Data,
            OpCode::Data(Data::Continue) if self.message.is_some() => Kind::Data,
            OpCode::Data(Data::Binary | Data::Continue) => return Err(Violation::Fragment),
            OpCode::Data(Data::Text) => return Err(Violation::Text),
            OpCode::Control(Control::Close) => Kind::Close,
            OpCode::Control(Control::Ping) => Kind::Ping,
            OpCode::Control(Control::Pong) => Kind::Pong,
            _ => return Err(Violation::Head),
        };
        if kind == Kind::Data {
            let message = self.message.get_or_insert(Emptiness::Empty);
            if length > 0 {
                *message = Emptiness::Filled;
            }
        } else if !header.is_final || length > CONTROL_SIZE_MAX as u64 {
            return Err(Violation::Control);
        }
        Ok(Current {
            kind,
            is_final: header.is_final,
            mask: header.mask,
            left: length,
        })
    }

    fn end_frame(&mut self) {
        let Some(frame) = self.frame.take() else {
            return;
        };
        let control = std::mem::take(&mut self.control);
        match frame.kind {
            Kind::Data if frame.is_final => {
                let is_empty = self.message.take() == Some(Emptiness::Empty);
                if is_empty && self.ends_by_empty {
                    self.halt = Some(Halt::Empty);
                }
            }
            Kind::Data | Kind::Pong => {}
            Kind::Ping => self.ping = Some(control),
            Kind::Close => self.halt = Some(Halt::Close),
        }
    }
}

/// Writes the head of a frame with a payload of `length` bytes; returns its size.
pub fn encode_head(
    frame: Frame,
    length: u64,
    mask: Option<Mask>,
    into: &mut [u8; FRAME_HEAD_SIZE_MAX],
) -> usize {
    let opcode = match frame {
        Frame::Binary => OpCode::Data(Data::Binary),
        Frame::Ping => OpCode::Control(Control::Ping),
        Frame::Pong => OpCode::Control(Control::Pong),
        Frame::Close => OpCode::Control(Control::Close),
    };
    let header = FrameHeader {
        opcode,
        mask,
        ..FrameHeader::default()
    };
    let mut rest = &mut into[..];
    // It has room for the largest head there is.
    let _ = header.format(length, &mut rest);
    FRAME_HEAD_SIZE_MAX - rest.len()
}

/// Masks bytes, or takes the mask off. `mask` goes on to where the next bytes need it.
pub fn apply_mask(bytes: &mut [u8], mask: &mut Mask) {
    let word = widen(*mask);
    let size = bytes.len();
    let (words, rest) = bytes.as_chunks_mut();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(word.to_ne_bytes()) {
        *byte ^= key;
    }
    mask.rotate_left(size % 4);
}

/// Copies bytes to `into`, which is as long, and masks them on the way.
pub fn copy_masked(bytes: &[u8], into: &mut [u8], mask: Mask) {
    let word = widen(mask);
    let (words, rest) = bytes.as_chunks();
    let (words_into, rest_into) = into.as_chunks_mut();
    for (chunk, into) in words.iter().zip(words_into) {
        *into = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for ((byte, into), key) in rest.iter().zip(rest_into).zip(word.to_ne_bytes()) {
        *into = byte ^ key;
    }
}

/// Returns a mask for eight bytes.
fn widen([a, b, c, d]: Mask) -> u64 {
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "the other side sent a WebSocket frame that is none",
            Self::Reserved => "the other side uses a WebSocket extension that was not agreed on",
            Self::Masking => "the other side masks WebSocket frames as only its opposite may",
            Self::Text => "the other side sent text over WebSocket, and only bytes are spoken here",
            Self::Length => "the other side sent a WebSocket frame of more than 2^63 bytes",
            Self::Control => "the other side sent a WebSocket control frame that may not be",
            Self::Fragment => "the other side mixed up the parts of its WebSocket messages",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::mutation::Xorshift;
    use super::*;

    const MASK: Mask = [0x37, 0xfa, 0x21, 0x3d];

    /// A frame as the other end of `role` sends it.
    fn frame(role: Role, first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = (role == Role::Server).then_some(MASK);
        let mut head = [0; FRAME_HEAD_SIZE_MAX];
        let length = u64::try_from(payload.len()).unwrap();
        let size = encode_head(Frame::Binary, length, mask, &mut head);
        let mut frame = head[..size].to_vec();
        frame[0] = first;
        let mut payload = payload.to_vec();
        if let Some(mut mask) = mask {
            apply_mask(&mut payload, &mut mask);
        }
        frame.extend(payload);
        frame
    }

    fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let decoded = decoder.decode(&mut bytes, Reach::All);
        bytes.truncate(decoded.size);
        bytes
    }

    const BOTH: [Role; 2] = [Role::Client, Role::Server];

    #[test]
    fn the_example_of_the_standard_is_read() {
        // RFC 6455 section 5.7, with opcode binary for text.
        let masked = [
            0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let mut server = Decoder::new(Role::Server, true);
        assert_eq!(decode_all(&mut server, &masked), b"Hello");
        let mut client = Decoder::new(Role::Client, true);
        let fragmented = [0x02, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
        assert_eq!(decode_all(&mut client, &fragmented), b"Hello");
        assert_eq!((client.halt(), server.halt()), (None, None));
    }

    #[test]
    fn data_come_out_whole_wherever_they_are_cut() {
        let mut random = Xorshift::new(21);
        for role in BOTH {
            for _ in 0..300 {
                let (mut wire, mut expected) = (Vec::new(), Vec::new());
                let mut pings_count = 0;
                let mut is_within = false;
                for _ in 0..random.below(8) {
                    let size = [0, 1, 125, 126, 300, 65_535, 65_536][random.below(7)];
                    let payload: Vec<u8> = (0..size).map(|_| random.byte()).collect();
                    let is_last = random.below(2) == 0;
                    let opcode = if is_within { 0 } else { 2 };
                    wire.extend(frame(role, opcode | (u8::from(is_last) << 7), &payload));
                    expected.extend(payload);
                    is_within = !is_last;
                    if random.below(3) == 0 {
                        pings_count += 1;
                        wire.extend(frame(role, 0x89, b"are you there"));
                        wire.extend(frame(role, 0x8a, &[7; CONTROL_SIZE_MAX]));
                    }
                }
                let mut decoder = Decoder::new(role, false);
                let (mut got, mut at) = (Vec::new(), 0);
                while at < wire.len() {
                    let most = [3, 20, 100_000][random.below(3)];
                    let end = wire.len().min(at + 1 + random.below(most));
                    got.extend(decode_all(&mut decoder, &wire[at..end]));
                    at = end;
                }
                assert_eq!(decoder.halt(), None);
                assert_eq!(got, expected);
                assert_eq!(decoder.is_between_messages(), !is_within);
                assert_eq!(decoder.take_ping().is_some(), pings_count > 0);
            }
        }
    }

    #[test]
    fn one_message_at_a_time_can_be_had() {
        let wire = [
            frame(Role::Client, 0x82, b"one"),
            frame(Role::Client, 0x82, b""),
            frame(Role::Client, 0x02, b"tw"),
            frame(Role::Client, 0x80, b"o"),
        ]
        .concat();
        let mut decoder = Decoder::new(Role::Client, false);
        let mut rest = wire;
        for expected in [&b"one"[..], b"two"] {
            let decoded = decoder.decode(&mut rest, Reach::OneMessage);
            assert_eq!(&rest[..decoded.size], expected);
            rest.drain(..decoded.consumed);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn an_empty_message_is_the_end_where_that_was_agreed() {
        for role in BOTH {
            for parts in [vec![(0x82, "")], vec![(0x02, ""), (0x00, ""), (0x80, "")]] {
                let mut wire = frame(role, 0x82, b"last");
                for (first, payload) in parts {
                    wire.extend(frame(role, first, payload.as_bytes()));
                }
                wire.extend(frame(role, 0x82, b"more"));
                let mut ending = Decoder::new(role, true);
                assert_eq!(decode_all(&mut ending, &wire), b"last");
                assert_eq!(ending.halt(), Some(Halt::Empty));
                let mut going_on = Decoder::new(role, false);
                assert_eq!(decode_all(&mut going_on, &wire), b"lastmore");
                assert_eq!(going_on.halt(), None);
            }
            let filled = [frame(role, 0x02, b"x"), frame(role, 0x80, b"")].concat();
            let mut decoder = Decoder::new(role, true);
            assert_eq!(decode_all(&mut decoder, &filled), b"x");
            assert_eq!(decoder.halt(), None);
        }
    }

    #[test]
    fn each_violation_halts_behind_the_data_before_it() {
        use Violation::{Control, Fragment, Head, Length, Masking, Reserved, Text};
        for role in BOTH {
            let opposite = match role {
                Role::Client => Role::Server,
                Role::Server => Role::Client,
            };
            let bit = if role == Role::Server { 0x80 } else { 0 };
            let endless = [&[0x82, 127 | bit, 0x80][..], &[0; 11]].concat();
            for (violation, wire) in [
                (Reserved, frame(role, 0xc2, b"x")),
                (Reserved, frame(role, 0xa2, b"x")),
                (Reserved, frame(role, 0x92, b"x")),
                (Masking, frame(opposite, 0x82, b"x")),
                (Text, frame(role, 0x81, b"x")),
                (Head, frame(role, 0x83, b"x")),
                (Head, frame(role, 0x8b, b"x")),
                (Length, endless),
                (Control, frame(role, 0x89, &[0; CONTROL_SIZE_MAX + 1])),
                (Control, frame(role, 0x08, b"")),
                (Fragment, frame(role, 0x80, b"x")),
                (
                    Fragment,
                    [frame(role, 0x02, b""), frame(role, 0x82, b"x")].concat(),
                ),
            ] {
                let wire = [frame(role, 0x82, b"data"), wire].concat();
                let mut decoder = Decoder::new(role, true);
                assert_eq!(decode_all(&mut decoder, &wire), b"data");
                assert_eq!(decoder.halt(), Some(Halt::Violation(violation)));
                assert_eq!(decode_all(&mut decoder, b"more"), b"");
            }
        }
    }

    #[test]
    fn a_frame_of_any_length_is_read_in_pieces() {
        let mut decoder = Decoder::new(Role::Client, true);
        let head = [0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(decode_all(&mut decoder, &head), b"");
        for _ in 0..100 {
            assert_eq!(decode_all(&mut decoder, &[5; 1000]), [5; 1000]);
        }
        assert_eq!(decoder.halt(), None);
        assert!(!decoder.is_between_messages());
    }

    #[test]
    fn of_many_pings_the_latest_is_answered() {
        let mut decoder = Decoder::new(Role::Server, true);
        let wire: Vec<u8> = (0..200_u8)
            .flat_map(|number| frame(Role::Server, 0x89, &[number]))
            .collect();
        assert_eq!(decode_all(&mut decoder, &wire), b"");
        assert_eq!(decoder.take_ping(), Some(vec![199]));
        assert_eq!(decoder.take_ping(), None);
    }

    #[test]
    fn masked_copies_are_what_masking_in_place_gives() {
        let bytes: Vec<u8> = (0..=255).collect();
        for size in 0..40 {
            let mut copy = vec![0; size];
            copy_masked(&bytes[..size], &mut copy, MASK);
            for cut in 0..=size {
                let (mut mask, mut again) = (MASK, copy.clone());
                let (front, back) = again.split_at_mut(cut);
                apply_mask(front, &mut mask);
                apply_mask(back, &mut mask);
                assert_eq!(again, bytes[..size]);
            }
        }
    }
}
