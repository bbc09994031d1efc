//! One stream: its two directions, its windows and what waits for its owner.
//!
//! Source: RFC 9113 section 5.1.

use super::flow::{ReceiveWindow, SendWindow};
use super::frame::ErrorCode;
use super::hpack::Field;
use super::pieces::Pieces;

/// The peer's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    /// The response has not come.
    AwaitHead,
    /// Data may come.
    Open,
    /// The peer has ended it.
    Ended,
    /// The owner knows that, and has read everything.
    Told,
    /// The stream was reset; the owner knows that, and has read what came before.
    Cut,
}

impl Inbound {
    /// Returns what comes behind a head, which may be the end.
    pub(super) fn after_head(is_end: bool) -> Self {
        match is_end {
            true => Self::Ended,
            false => Self::Open,
        }
    }
}

/// Our direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outbound {
    /// The response has not been sent.
    AwaitHead,
    /// Data may be sent.
    Open,
    /// We have ended it.
    Ended,
}

/// What a stream that could not write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing.
    No,
    /// Its window.
    Window,
    /// Its turn; it is in the queue.
    Turn,
    /// Its owner, who was told that it may write.
    Owner,
}

/// What the owner knows of the data that wait for him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// To be told when there are some.
    Armed,
    /// Will be told.
    Pending,
    /// He was told and has not read everything.
    Told,
}

/// Fields that wait for the owner.
#[derive(Debug)]
pub(super) struct WaitingHead {
    pub(super) fields: Vec<Field>,
    pub(super) is_end: bool,
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) waiting: Waiting,
    pub(super) telling: Telling,
    /// Whether the owner has heard of it.
    pub(super) is_known: bool,
    /// Whether it may write without a turn.
    pub(super) is_urgent: bool,
    /// Whether something has been written to it.
    pub(super) has_written: bool,
    /// Whether a WINDOW_UPDATE waits for room in the output.
    pub(super) owes_update: bool,
    /// Whether it counts as open between the two ends.
    pub(super) is_counted: bool,
    pub(super) reset: Option<ErrorCode>,
    /// Whether the owner has heard of the reset.
    pub(super) is_reset_told: bool,
    pub(super) send: SendWindow,
    pub(super) receive: ReceiveWindow,
    /// Bytes that have to come yet, where the peer has said how many.
    pub(super) body_left: Option<u64>,
    pub(super) pieces: Pieces,
    pub(super) heads: Vec<WaitingHead>,
}

impl Stream {
    pub(super) fn new(
        inbound: Inbound,
        outbound: Outbound,
        send: SendWindow,
        receive: ReceiveWindow,
    ) -> Self {
        Self {
            inbound,
            outbound,
            waiting: Waiting::No,
            telling: Telling::Armed,
            is_known: false,
            is_urgent: false,
            has_written: false,
            owes_update: false,
            is_counted: true,
            reset: None,
            is_reset_told: false,
            send,
            receive,
            body_left: None,
            pieces: Pieces::default(),
            heads: Vec::new(),
        }
    }

    /// Whether the peer may still send on it.
    pub(super) fn is_inbound_open(&self) -> bool {
        self.reset.is_none() && matches!(self.inbound, Inbound::AwaitHead | Inbound::Open)
    }

    /// Whether the peer has ended its direction.
    pub(super) fn has_inbound_ended(&self) -> bool {
        matches!(self.inbound, Inbound::Ended | Inbound::Told)
    }

    /// Whether both ends hold it for closed.
    pub(super) fn is_closed(&self) -> bool {
        self.reset.is_some() || self.has_inbound_ended() && self.outbound == Outbound::Ended
    }

    /// Whether its owner has nothing more to do with it, and knows that.
    pub(super) fn is_done(&self) -> bool {
        let is_over = match self.reset {
            Some(_) => self.is_reset_told,
            None => self.outbound == Outbound::Ended,
        };
        is_over && matches!(self.inbound, Inbound::Told | Inbound::Cut) && self.heads.is_empty()
    }
}
