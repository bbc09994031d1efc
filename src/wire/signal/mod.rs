//! Signals: the messages of the control channel, and their lines.
//!
//! v1: `base64(xor(json, key)) "\n"`. What cannot be read is reported and skipped.
//!
//! Native: `base64(json) "." hex(MAC) "\n"`; the MAC covers who sends and how many lines that side
//! has sent before. A line that fails, is missing, repeated or out of order is
//! [`ControlError::Tampered`], after which the reader gives nothing but that error.
//!
//! Nothing here knows how a signal is acted on.
//!
//! Source: wire protocol, sections 5 and 8.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::fingerprint::FingerprintClaim;
use super::key::{TunnelKey, same_bytes};
use super::proof::{SHORT_PROOF_SIZE, SessionKey, authenticate_short, decode_hex, encode_hex};
use super::shown::shown;
use crate::limits::CONTROL_LINE_SIZE_MAX;

mod line;

pub use line::{Line, LineSplitter};

/// The id of a pool connection: 4 bytes on that connection, 8 lower-case digits in a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub [u8; 4]);

/// One message of the control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Take pool connection `id`, dial for TCP, relay.
    Tcp {
        /// The visitor; `None` where the peer does not say it in a way we can read.
        remote: Option<SocketAddr>,
        /// The pool connection.
        id: PoolId,
    },
    /// Take pool connection `id`, dial for UDP, relay.
    Udp {
        /// The visitor; `None` where the peer does not say it in a way we can read.
        remote: Option<SocketAddr>,
        /// The pool connection.
        id: PoolId,
    },
    /// Check the certificate of pool connection `id`; only in v1.
    Verify {
        /// The pool connection.
        id: PoolId,
        /// What its sender takes for the fingerprint.
        fp: FingerprintClaim,
    },
    /// Drop all idle pool connections.
    Flush,
    /// Answer with a pong.
    Ping,
    /// The answer to a ping.
    Pong,
    /// The client stops; only in the native dialect.
    Bye,
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Client,
    /// The one that was dialled.
    Server,
}

/// Writes the signals of one direction; one for the life of a session.
#[derive(Debug)]
pub struct SignalWriter(Writer);

#[derive(Debug)]
enum Writer {
    V1(TunnelKey),
    Native(Authenticator),
}

/// Reads the signals of one direction; one for the life of a session.
#[derive(Debug)]
pub struct SignalReader {
    lines: LineSplitter,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    V1(TunnelKey),
    Native(Authenticator),
    Failed(ControlError),
}

/// What a line of the peer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A signal.
    Signal(Signal),
    /// A signal that this dialect does not have: to be ignored.
    UnknownAction {
        /// Its name, escaped and cut.
        action: String,
    },
    /// Nothing that can be read: to be logged and skipped.
    Unreadable(LineError),
}

/// Why a line was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// It has more than [`CONTROL_LINE_SIZE_MAX`] bytes.
    TooLong,
    /// It is not base64.
    Base64,
    /// It holds no JSON, or not that of a signal. What it holds is not told: in v1 a line of zero
    /// bytes decodes to the key.
    NoSignal,
    /// The id of its pool connection is not 8 lower-case digits.
    Id {
        /// The id, escaped and cut.
        id: String,
    },
}

/// Why a native control channel, and with it the session, has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// A line has more than [`CONTROL_LINE_SIZE_MAX`] bytes, which our side never writes.
    LineTooLong,
    /// A line is not the one that the other side sent as its `sequence`th, counted from 0.
    Tampered {
        /// Which one.
        sequence: u64,
    },
}

/// A signal as JSON: the order is that of recorded lines, and what is empty is left out.
#[derive(Serialize, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "is_empty")]
    remote: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "is_empty")]
    id: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "is_empty")]
    fp: Cow<'a, str>,
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V1,
    Native,
}

impl PoolId {
    /// The id of the connection that becomes the control channel.
    pub const CONTROL: Self = Self([0; 4]);

    /// Returns the id that `text` writes; `None` if it is not exactly 8 lower-case digits.
    pub fn parse(text: &str) -> Option<Self> {
        decode_hex(text.as_bytes()).map(Self)
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

impl Signal {
    /// Returns whether `dialect` has this signal.
    fn is_of(&self, dialect: Dialect) -> bool {
        match self {
            Self::Verify { .. } => dialect == Dialect::V1,
            Self::Bye => dialect == Dialect::Native,
            Self::Tcp { .. } | Self::Udp { .. } | Self::Flush | Self::Ping | Self::Pong => true,
        }
    }

    fn encode_json(&self) -> Vec<u8> {
        let mut remote_text = String::new();
        let mut id_text = String::new();
        let mut fp_text = "";
        let action = match self {
            Self::Tcp { remote, id } | Self::Udp { remote, id } => {
                remote_text = remote
                    .map(|address| address.to_string())
                    .unwrap_or_default();
                id_text = id.to_string();
                if matches!(self, Self::Tcp { .. }) {
                    "tcp"
                } else {
                    "udp"
                }
            }
            Self::Verify { id, fp } => {
                id_text = id.to_string();
                fp_text = fp.as_str();
                "verify"
            }
            Self::Flush => "flush",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Bye => "bye",
        };
        serde_json::to_vec(&Message {
            action: action.into(),
            remote: remote_text.into(),
            id: id_text.into(),
            fp: fp_text.into(),
        })
        .expect("strings alone can always be written")
    }

    fn decode_json(json: &[u8], dialect: Dialect) -> Result<Received, LineError> {
        let message: Message<'_> = serde_json::from_slice(json).map_err(|_| LineError::NoSignal)?;
        let id = || {
            PoolId::parse(&message.id).ok_or_else(|| LineError::Id {
                id: shown(&message.id),
            })
        };
        let remote = || parse_remote(&message.remote);
        let signal = match &*message.action {
            "tcp" => Some(Self::Tcp {
                remote: remote(),
                id: id()?,
            }),
            "udp" => Some(Self::Udp {
                remote: remote(),
                id: id()?,
            }),
            "verify" => Some(Self::Verify {
                id: id()?,
                fp: FingerprintClaim::new(message.fp.clone().into_owned()),
            }),
            "flush" => Some(Self::Flush),
            "ping" => Some(Self::Ping),
            "pong" => Some(Self::Pong),
            "bye" => Some(Self::Bye),
            _ => None,
        };
        Ok(match signal {
            Some(signal) if signal.is_of(dialect) => Received::Signal(signal),
            _ => Received::UnknownAction {
                action: shown(&message.action),
            },
        })
    }
}

/// Returns the address that `text` writes. The zone of a link-local address is one of the peer's
/// interfaces, so where it has a name, which only that host could resolve, it is left out.
fn parse_remote(text: &str) -> Option<SocketAddr> {
    let without_zone = || {
        let (host, rest) = text.split_once('%')?;
        let (_zone, port) = rest.split_once(']')?;
        format!("{host}]{port}").parse().ok()
    };
    text.parse().ok().or_else(without_zone)
}

impl SignalWriter {
    /// Returns the writer of a v1 session with `key`.
    pub fn v1(key: TunnelKey) -> Self {
        Self(Writer::V1(key))
    }

    /// Returns the writer of the signals that `side`, our own, sends in a native session.
    pub fn native(key: SessionKey, side: Side) -> Self {
        Self(Writer::Native(Authenticator::new(key, side)))
    }

    /// Returns the line of `signal`, newline included, to be sent before any later one; `None`
    /// where this dialect has no such signal: [`Signal::Bye`] in v1, [`Signal::Verify`] in the
    /// native one.
    ///
    /// Panics: only where a claim that a peer made is sent back, and is too long for a line.
    pub fn encode(&mut self, signal: &Signal) -> Option<Vec<u8>> {
        let dialect = match &self.0 {
            Writer::V1(_) => Dialect::V1,
            Writer::Native(_) => Dialect::Native,
        };
        if !signal.is_of(dialect) {
            return None;
        }
        let mut json = signal.encode_json();
        let mut line = match &mut self.0 {
            Writer::V1(key) => {
                apply_key(&mut json, key);
                STANDARD.encode(json)
            }
            Writer::Native(authenticator) => {
                let mac = authenticator.expected(&json);
                authenticator.advance();
                format!("{}.{}", STANDARD.encode(json), encode_hex(&mac))
            }
        };
        line.push('\n');
        assert!(
            line.len() <= CONTROL_LINE_SIZE_MAX,
            "a signal is far shorter than a line may be"
        );
        Some(line.into_bytes())
    }
}

impl SignalReader {
    /// Returns the reader of a v1 session with `key`.
    pub fn v1(key: TunnelKey) -> Self {
        Self::new(Reader::V1(key))
    }

    /// Returns the reader of the signals that `side`, the peer, sends in a native session.
    pub fn native(key: SessionKey, side: Side) -> Self {
        Self::new(Reader::Native(Authenticator::new(key, side)))
    }

    fn new(reader: Reader) -> Self {
        Self {
            lines: LineSplitter::default(),
            reader,
        }
    }

    /// Returns what the next line is and moves `input` on behind it; `None` when all of `input`
    /// is taken and more is needed.
    ///
    /// Errors: what [`ControlError`] lists, only in the native dialect; the session has ended, and
    /// every later call returns the same.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Received>, ControlError> {
        if let Reader::Failed(error) = self.reader {
            return Err(error);
        }
        let Some(line) = self.lines.split(input) else {
            return Ok(None);
        };
        let received = match &mut self.reader {
            Reader::V1(key) => Ok(decode_v1(line, key).unwrap_or_else(Received::Unreadable)),
            Reader::Native(authenticator) => decode_native(line, authenticator),
            Reader::Failed(error) => Err(*error),
        };
        if let Err(error) = received {
            self.reader = Reader::Failed(error);
        }
        received.map(Some)
    }
}

fn decode_v1(line: Line, key: &TunnelKey) -> Result<Received, LineError> {
    let Line::Complete(line) = line else {
        return Err(LineError::TooLong);
    };
    let mut json = STANDARD.decode(line).map_err(|_| LineError::Base64)?;
    apply_key(&mut json, key);
    Signal::decode_json(&json, Dialect::V1)
}

fn decode_native(line: Line, authenticator: &mut Authenticator) -> Result<Received, ControlError> {
    let Line::Complete(line) = line else {
        return Err(ControlError::LineTooLong);
    };
    let tampered = ControlError::Tampered {
        sequence: authenticator.sequence,
    };
    let json = authenticator.open(&line).ok_or(tampered)?;
    // It comes from the peer as it is: a newer program may say what this one cannot read.
    Ok(Signal::decode_json(&json, Dialect::Native).unwrap_or_else(Received::Unreadable))
}

/// Hides or shows `json`: both are the same. An empty key changes nothing.
fn apply_key(json: &mut [u8], key: &TunnelKey) {
    for (byte, key_byte) in json.iter_mut().zip(key.as_bytes().iter().cycle()) {
        *byte ^= key_byte;
    }
}

/// The MACs of one direction of a native control channel.
#[derive(Debug)]
struct Authenticator {
    key: SessionKey,
    /// Who sends in this direction.
    side: Side,
    /// The number of the next line.
    sequence: u64,
}

impl Authenticator {
    fn new(key: SessionKey, side: Side) -> Self {
        Self {
            key,
            side,
            sequence: 0,
        }
    }

    /// Returns the MAC of `json` as the next line.
    fn expected(&self, json: &[u8]) -> [u8; SHORT_PROOF_SIZE] {
        let direction = match self.side {
            Side::Client => b"c",
            Side::Server => b"s",
        };
        let parts: [&[u8]; 3] = [direction, &self.sequence.to_be_bytes(), json];
        authenticate_short(self.key.as_bytes(), "nodepass signal", &parts)
    }

    /// Returns the JSON of `line` and counts it; `None` if it is not the next line of the peer.
    fn open(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let dot_index = line.iter().position(|byte| *byte == b'.')?;
        let (text, mac) = (&line[..dot_index], &line[dot_index + 1..]);
        let mac: [u8; SHORT_PROOF_SIZE] = decode_hex(mac)?;
        let json = STANDARD.decode(text).ok()?;
        if !same_bytes(&mac, &self.expected(&json)) {
            return None;
        }
        self.advance();
        Some(json)
    }

    fn advance(&mut self) {
        let next = self.sequence.checked_add(1);
        self.sequence = next.expect("2^64 lines are out of reach");
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(
                f,
                "a line of the control channel has more than {CONTROL_LINE_SIZE_MAX} bytes"
            ),
            Self::Base64 => f.write_str("a line of the control channel is not base64"),
            Self::NoSignal => {
                f.write_str("a line of the control channel is no signal, as with different keys")
            }
            Self::Id { id } => write!(
                f,
                "a signal names the pool connection '{id}'; an id has 8 lower-case hex digits"
            ),
        }
    }
}

impl std::error::Error for LineError {}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineTooLong => write!(
                f,
                "the control channel was tampered with: a line has more than \
                 {CONTROL_LINE_SIZE_MAX} bytes"
            ),
            Self::Tampered { sequence } => write!(
                f,
                "the control channel was tampered with: line {sequence} is not what the other side \
                 sent"
            ),
        }
    }
}

impl std::error::Error for ControlError {}

#[cfg(test)]
mod tests;
