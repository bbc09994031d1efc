//! What can go wrong with a connection.

use std::fmt;

use super::frame::ErrorCode;

/// Why a stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// All numbers are used up: another connection is needed.
    NoIds,
    /// As many are open as the peer allows.
    PeerLimit,
    /// The connection is ending: another one is needed.
    GoingAway,
    /// Too much waits to be sent.
    Busy,
}

/// The peer broke the protocol or a limit: the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionError {
    /// What the peer is told.
    pub code: ErrorCode,
    /// What it did.
    pub reason: &'static str,
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP/2: {} ({})", self.reason, self.code)
    }
}

impl std::error::Error for ConnectionError {}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoIds => "the connection has used up its streams",
            Self::PeerLimit => "the peer allows no more streams at a time",
            Self::GoingAway => "the connection is ending",
            Self::Busy => "the peer does not take what is sent",
        })
    }
}

impl std::error::Error for NotOpened {}

/// What taking something in comes to.
pub(super) type Outcome = Result<(), ConnectionError>;

pub(super) const fn broken(code: ErrorCode, reason: &'static str) -> ConnectionError {
    ConnectionError { code, reason }
}

pub(super) const fn protocol(reason: &'static str) -> ConnectionError {
    broken(ErrorCode::PROTOCOL_ERROR, reason)
}

pub(super) const fn frame_size(reason: &'static str) -> ConnectionError {
    broken(ErrorCode::FRAME_SIZE_ERROR, reason)
}

pub(super) const fn too_much(reason: &'static str) -> ConnectionError {
    broken(ErrorCode::ENHANCE_YOUR_CALM, reason)
}
