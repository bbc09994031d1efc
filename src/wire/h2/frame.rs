//! Frames: their header, and the payloads that have a form of their own.
//!
//! Source: RFC 9113 sections 4, 6 and 7.

use std::fmt;

/// Number of a stream; 0 is the connection itself.
pub type StreamId = u32;

/// Size of the header of a frame (bytes).
pub const HEADER_SIZE: usize = 9;

/// The first bytes of a client. RFC 9113 section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest number of a stream.
pub const STREAM_ID_MAX: StreamId = 0x7fff_ffff;

/// Largest flow-control window. RFC 9113 section 6.9.1.
pub const WINDOW_MAX: u32 = 0x7fff_ffff;

/// The window of a stream and of a connection as long as nobody says otherwise.
pub const WINDOW_DEFAULT: u32 = 0xffff;

/// The sender ends its direction of the stream (DATA, HEADERS).
pub const END_STREAM: u8 = 0x1;
/// An answer (SETTINGS, PING).
pub const ACK: u8 = 0x1;
/// No CONTINUATION follows (HEADERS, CONTINUATION).
pub const END_HEADERS: u8 = 0x4;
/// The payload has padding (DATA, HEADERS).
pub const PADDED: u8 = 0x8;
/// The payload has a priority (HEADERS).
pub const PRIORITY: u8 = 0x20;

/// Size of the priority in HEADERS, and of the payload of PRIORITY (bytes).
pub const PRIORITY_SIZE: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Bytes of a stream.
    Data,
    /// Start of a request, a response or trailers.
    Headers,
    /// To be ignored.
    Priority,
    /// The stream is over at once.
    ResetStream,
    /// What the sender can take.
    Settings,
    /// Nothing we allow.
    PushPromise,
    /// To be answered.
    Ping,
    /// No more streams.
    GoAway,
    /// The peer may send more.
    WindowUpdate,
    /// The rest of a block of fields.
    Continuation,
    /// To be ignored.
    Unknown(u8),
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Size of the payload (bytes).
    pub size: usize,
    /// What the payload is.
    pub kind: FrameKind,
    /// Bits that `kind` gives a meaning.
    pub flags: u8,
    /// The stream it belongs to.
    pub stream: StreamId,
}

/// Why a stream or a connection ends. RFC 9113 section 7.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

/// What one side tells the other of itself. RFC 9113 section 6.5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Size of the table of fields that the encoder may use (bytes).
    HeaderTableSize(u32),
    /// Whether the server may push.
    EnablePush(u32),
    /// Streams that the other side may have open.
    StreamsMax(u32),
    /// Window of each stream at its start (bytes).
    StreamWindow(u32),
    /// Largest payload of a frame (bytes).
    FrameSizeMax(u32),
    /// Largest list of fields (bytes).
    HeaderListSizeMax(u32),
    /// To be ignored.
    Unknown(u16, u32),
}

impl FrameKind {
    fn decode(octet: u8) -> Self {
        match octet {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x2 => Self::Priority,
            0x3 => Self::ResetStream,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x6 => Self::Ping,
            0x7 => Self::GoAway,
            0x8 => Self::WindowUpdate,
            0x9 => Self::Continuation,
            _ => Self::Unknown(octet),
        }
    }

    fn encode(self) -> u8 {
        match self {
            Self::Data => 0x0,
            Self::Headers => 0x1,
            Self::Priority => 0x2,
            Self::ResetStream => 0x3,
            Self::Settings => 0x4,
            Self::PushPromise => 0x5,
            Self::Ping => 0x6,
            Self::GoAway => 0x7,
            Self::WindowUpdate => 0x8,
            Self::Continuation => 0x9,
            Self::Unknown(octet) => octet,
        }
    }
}

impl FrameHeader {
    /// Reads a header; any nine bytes are one.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let &[a, b, c, kind, flags, d, e, f, g] = bytes;
        Self {
            size: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind: FrameKind::decode(kind),
            flags,
            // The top bit is reserved and must be ignored on receipt.
            stream: u32::from_be_bytes([d, e, f, g]) & STREAM_ID_MAX,
        }
    }

    /// Writes the header.
    ///
    /// Panics: a size over 24 bits.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let size = u32::try_from(self.size).expect("no frame is that large");
        assert!(size >> 24 == 0, "no frame is that large");
        let [_, a, b, c] = size.to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind.encode(), self.flags, d, e, f, g]
    }

    /// Whether `flag` is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl ErrorCode {
    /// Nothing is wrong.
    pub const NO_ERROR: Self = Self(0x0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Our fault.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// The peer sent more than its window.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// Settings were not answered.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream that had ended.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing was done for the stream: it may be asked for again elsewhere.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(0x8);
    /// A block of fields that cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection behind a CONNECT broke.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// The peer does too much of something.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// The transport is not safe enough.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// HTTP/1.1 is wanted.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Self::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Self(code) => return write!(f, "error {code}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Setting {
    /// Size of one setting (bytes).
    pub const SIZE: usize = 6;

    /// Reads a setting; any six bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let &[a, b, c, d, e, f] = bytes;
        let value = u32::from_be_bytes([c, d, e, f]);
        match u16::from_be_bytes([a, b]) {
            0x1 => Self::HeaderTableSize(value),
            0x2 => Self::EnablePush(value),
            0x3 => Self::StreamsMax(value),
            0x4 => Self::StreamWindow(value),
            0x5 => Self::FrameSizeMax(value),
            0x6 => Self::HeaderListSizeMax(value),
            other => Self::Unknown(other, value),
        }
    }

    /// Writes the setting.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let (id, value) = match self {
            Self::HeaderTableSize(value) => (0x1, value),
            Self::EnablePush(value) => (0x2, value),
            Self::StreamsMax(value) => (0x3, value),
            Self::StreamWindow(value) => (0x4, value),
            Self::FrameSizeMax(value) => (0x5, value),
            Self::HeaderListSizeMax(value) => (0x6, value),
            Self::Unknown(id, value) => (id, value),
        };
        let ([a, b], [c, d, e, f]) = (u16::to_be_bytes(id), value.to_be_bytes());
        [a, b, c, d, e, f]
    }
}

/// Returns the 31 bits of a number, without the reserved one before them.
pub fn decode_number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & 0x7fff_ffff
}

/// Returns the block of fields in the payload of HEADERS: without padding and priority.
///
/// `None`: the padding or the priority is longer than the payload. RFC 9113 section 6.2.
pub fn strip_headers<'a>(header: &FrameHeader, payload: &'a [u8]) -> Option<&'a [u8]> {
    let mut block = payload;
    if header.has(PADDED) {
        let (&padding, rest) = block.split_first()?;
        block = &rest[..rest.len().checked_sub(usize::from(padding))?];
    }
    if header.has(PRIORITY) {
        block = block.get(PRIORITY_SIZE..)?;
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_as_it_is_read() {
        for octet in 0..=255 {
            let bytes = [1, 2, 3, octet, 0x25, 0x7f, 0xff, 0xff, 0xfe];
            let header = FrameHeader::decode(&bytes);
            assert_eq!(header.size, 0x01_0203);
            assert_eq!(header.stream, 0x7fff_fffe);
            assert!(header.has(PRIORITY) && header.has(END_STREAM) && !header.has(PADDED));
            assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        let header = FrameHeader::decode(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(header.stream, 1);
        assert_eq!(decode_number([0x80, 0, 0, 7]), 7);
    }

    #[test]
    fn a_setting_is_written_as_it_is_read() {
        for id in 0..=8 {
            let bytes = [0, id, 1, 2, 3, 4];
            assert_eq!(Setting::decode(&bytes).encode(), bytes);
        }
        assert_eq!(
            Setting::decode(&[0, 4, 0, 1, 0, 0]),
            Setting::StreamWindow(65536)
        );
    }

    #[test]
    fn padding_and_priority_are_stripped() {
        let strip = |flags, payload| {
            let header = FrameHeader {
                size: 0,
                kind: FrameKind::Headers,
                flags,
                stream: 1,
            };
            strip_headers(&header, payload)
        };
        assert_eq!(strip(0, b"abc"), Some(&b"abc"[..]));
        assert_eq!(strip(PADDED, b"\x02abc__"), Some(&b"abc"[..]));
        assert_eq!(strip(PRIORITY, b"12345abc"), Some(&b"abc"[..]));
        assert_eq!(
            strip(PADDED | PRIORITY, b"\x0112345abc_"),
            Some(&b"abc"[..])
        );
        assert_eq!(strip(PADDED, b"\x03abc"), Some(&b""[..]));
        assert_eq!(strip(PADDED, b"\x04abc"), None);
        assert_eq!(strip(PADDED, b""), None);
        assert_eq!(strip(PRIORITY, b"1234"), None);
        assert_eq!(strip(PADDED | PRIORITY, b"\x0112345"), None);
    }

    #[test]
    fn error_codes_have_their_names() {
        assert_eq!(ErrorCode::REFUSED_STREAM.to_string(), "REFUSED_STREAM");
        assert_eq!(ErrorCode(99).to_string(), "error 99");
    }
}
