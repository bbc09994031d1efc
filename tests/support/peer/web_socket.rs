//! WebSocket in the hands of a case, above a plain or encrypted connection.
//!
//! Source: RFC 6455 sections 4 and 5.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodepass::wire::ticket::Ticket;

use super::random;
use super::sha1::sha1;
use super::stream::Stream;

/// What the answer to a key is made with (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// First bytes of whole messages, and of the first and last part of one.
pub const BINARY: u8 = 0x82;
/// Closes both directions.
pub const CLOSE: u8 = 0x88;
/// Is to be answered.
pub const PING: u8 = 0x89;
/// Answers a ping.
pub const PONG: u8 = 0x8a;

/// The bit of the second byte that says that the payload is masked.
const MASKED: u8 = 0x80;

/// What ends one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// An empty message, as in the native dialect: the other direction goes on.
    EmptyMessage,
    /// A close frame, as in v1: both have ended.
    CloseFrame,
}

/// An open WebSocket.
pub struct WebSocket {
    below: Stream,
    /// Clients mask what they send.
    is_client: bool,
    ends: Ends,
    /// What has come and is not a whole frame yet.
    incoming: Vec<u8>,
    /// Of binary messages, not read yet.
    payload: VecDeque<u8>,
    is_ended: bool,
    is_closed: bool,
}

/// The request by which a pool connection is opened.
pub fn upgrade_request(host: &str, ticket: Option<&Ticket>) -> Vec<u8> {
    let key = STANDARD.encode(random::<16>());
    let ticket = ticket.map_or_else(String::new, |ticket| {
        format!("NodePass-Ticket: {}\r\n", ticket.encode_header())
    });
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{ticket}\r\n"
    );
    request.into_bytes()
}

/// The value of a header, whose name has no case.
pub fn header<'a>(message: &'a [u8], name: &str) -> Option<&'a str> {
    let text = str::from_utf8(message).ok()?;
    let mut lines = text.lines().skip(1).take_while(|line| !line.is_empty());
    lines.find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// What the server has to say to the key of `request`.
pub fn accept_value(request: &[u8]) -> Option<String> {
    let key = header(request, "Sec-WebSocket-Key")?;
    Some(STANDARD.encode(sha1(format!("{key}{GUID}").as_bytes())))
}

/// Reads the head of an HTTP message, and nothing behind it.
pub fn read_head(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    const SIZE_MAX: usize = 16 * 1024;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < SIZE_MAX {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

impl WebSocket {
    /// Asks for the upgrade with `request`.
    ///
    /// Errors: the connection ends, or the answer is another one than the upgrade.
    pub fn open(mut below: Stream, request: &[u8], ends: Ends) -> io::Result<Self> {
        below.write_all(request)?;
        below.flush()?;
        let answer = read_head(&mut below)?;
        let is_right = answer.starts_with(b"HTTP/1.1 101 ")
            && header(&answer, "Upgrade").is_some_and(|it| it.eq_ignore_ascii_case("websocket"))
            && header(&answer, "Connection").is_some_and(|it| it.eq_ignore_ascii_case("upgrade"))
            && header(&answer, "Sec-WebSocket-Accept") == accept_value(request).as_deref()
            && header(&answer, "Sec-WebSocket-Extensions").is_none();
        if !is_right {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            return Err(io::Error::new(ErrorKind::InvalidData, answer));
        }
        Ok(Self::new(below, true, ends))
    }

    /// Takes the connection of a client whose request was answered.
    pub fn accepted(below: Stream, ends: Ends) -> Self {
        Self::new(below, false, ends)
    }

    fn new(below: Stream, is_client: bool, ends: Ends) -> Self {
        Self {
            below,
            is_client,
            ends,
            incoming: Vec::new(),
            payload: VecDeque::new(),
            is_ended: false,
            is_closed: false,
        }
    }

    /// The connection below.
    pub fn below(&self) -> &Stream {
        &self.below
    }

    /// The same, for what is no frame.
    #[cfg(feature = "websocket")]
    pub fn below_mut(&mut self) -> &mut Stream {
        &mut self.below
    }

    /// Sends one frame, masked if that is our part.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mask = self.is_client.then(random::<4>);
        let bytes = encode_frame(first, payload, mask);
        self.below.write_all(&bytes)?;
        self.below.flush()
    }

    /// Ends our direction.
    pub fn finish(&mut self) -> io::Result<()> {
        match self.ends {
            Ends::EmptyMessage => self.send_frame(BINARY, b""),
            Ends::CloseFrame => self.close(),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();
        if std::mem::replace(&mut self.is_closed, true) {
            return Ok(());
        }
        self.send_frame(CLOSE, &NORMAL)
    }

    /// The next frame, whatever it is: its first byte and its payload.
    ///
    /// Errors: those of the connection, of which the frame's bytes so far are kept; an end of
    /// stream is [`ErrorKind::UnexpectedEof`].
    pub fn next_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            let mut buffer = [0; 64 * 1024];
            match self.below.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.incoming.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn take_frame(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let Some(&[first, second]) = self.incoming.first_chunk() else {
            return Ok(None);
        };
        // RFC 6455 section 5.1: a client masks, a server does not.
        if (second & MASKED != 0) == self.is_client {
            return Err(io::Error::new(ErrorKind::InvalidData, "wrongly masked"));
        }
        let after = &self.incoming[2..];
        let (length, length_size) = match second & !MASKED {
            126 => match after.first_chunk() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
                None => return Ok(None),
            },
            127 => match after.first_chunk() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            },
            length => (u64::from(length), 0),
        };
        let mask_size = if self.is_client { 0 } else { 4 };
        let start = 2 + length_size + mask_size;
        let end = start + usize::try_from(length).map_err(io::Error::other)?;
        if self.incoming.len() < end {
            return Ok(None);
        }
        let mask = self.incoming[start - mask_size..start].to_vec();
        let mut payload = self.incoming[start..end].to_vec();
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        self.incoming.drain(..end);
        Ok(Some((first, payload)))
    }
}

/// The bytes of a frame, masked where there is a mask.
pub fn encode_frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { MASKED } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        size @ 0..126 => bytes.push(masked | u8::try_from(size).unwrap()),
        size @ 126..0x1_0000 => {
            bytes.push(masked | 126);
            bytes.extend_from_slice(&u16::try_from(size).unwrap().to_be_bytes());
        }
        size => {
            bytes.push(masked | 127);
            bytes.extend_from_slice(&u64::try_from(size).unwrap().to_be_bytes());
        }
    }
    let mask = mask.inspect(|mask| bytes.extend_from_slice(mask));
    let mask = mask.unwrap_or_default();
    let masked = payload.iter().zip(mask.iter().cycle());
    bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
    bytes
}

impl Read for WebSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.payload.is_empty() && !self.is_ended {
            let (first, payload) = match self.next_frame() {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.is_ended = true;
                    break;
                }
                result => result?,
            };
            match first {
                BINARY if payload.is_empty() && self.ends == Ends::EmptyMessage => {
                    self.is_ended = true;
                }
                // Parts of a message, and an end that has no meaning in v1.
                0x00 | 0x02 | 0x80 | BINARY => self.payload.extend(payload),
                CLOSE => {
                    self.is_ended = true;
                    // The other side may be gone already.
                    let _ = self.close();
                }
                PING => self.send_frame(PONG, &payload)?,
                PONG => {}
                other => {
                    let text = format!("a frame that begins with {other:#04x}");
                    return Err(io::Error::new(ErrorKind::InvalidData, text));
                }
            }
        }
        self.payload.read(buffer)
    }
}

impl Write for WebSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.send_frame(BINARY, bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.below.flush()
    }
}
