//! Taking in what the peer sends: frames cut out of bytes, and what each of them does.
//!
//! Bytes of data go straight to their stream, however a frame is cut; other frames are small and
//! are put together first.
//!
//! Source: RFC 9113 sections 4 to 6.

use std::borrow::Cow;
use std::time::Instant;

use super::connection::Connection;
use super::error::{ConnectionError, Outcome, broken, frame_size, protocol, too_much};
use super::frame::{
    ACK, END_STREAM, ErrorCode, FrameHeader, FrameKind, HEADER_SIZE, PADDED, PREFACE, StreamId,
};
use super::settings::Role;
use super::stream::Inbound;
use crate::limits::H2_FRAME_SIZE_MAX;

/// Where in the peer's bytes we are.
#[derive(Debug)]
pub(super) struct Input {
    awaited: Awaited,
    /// The start of what is awaited.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Awaited {
    Preface,
    Header,
    Payload(FrameHeader),
    Padding(DataFrame),
    Data(DataFrame),
}

/// A DATA frame of which something is to come.
#[derive(Clone, Copy, Debug)]
struct DataFrame {
    stream: StreamId,
    /// Bytes that are to come: of the data, or of all when the size of the padding is awaited.
    left: usize,
    /// Bytes of padding behind them.
    padding: usize,
    is_end: bool,
    /// The bytes are thrown away.
    is_dropped: bool,
}

impl Input {
    pub(super) fn new(role: Role) -> Self {
        let awaited = match role {
            Role::Client => Awaited::Header,
            Role::Server => Awaited::Preface,
        };
        Self {
            awaited,
            partial: Vec::new(),
        }
    }

    /// Takes `size` bytes that may have come in parts off the front of `bytes`; `None` while some
    /// are missing.
    fn take<'a>(&mut self, bytes: &mut &'a [u8], size: usize) -> Option<Cow<'a, [u8]>> {
        if self.partial.is_empty() && bytes.len() >= size {
            return bytes.split_off(..size).map(Cow::Borrowed);
        }
        let part_size = bytes.len().min(size - self.partial.len());
        self.partial
            .extend_from_slice(bytes.split_off(..part_size)?);
        (self.partial.len() == size).then(|| Cow::Owned(std::mem::take(&mut self.partial)))
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.partial.capacity()
    }
}

impl Connection {
    /// Takes in all of `bytes`, which may end anywhere.
    ///
    /// Errors: the peer broke the protocol or a limit. The output ends with a GOAWAY that says so:
    /// it is to be sent and the connection to be closed. Later calls return the same.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<(), ConnectionError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.now = Some(now);
        self.turns = 0;
        let outcome = self.take_in(bytes, now);
        if let Err(failure) = outcome {
            self.send_go_away(failure.code);
            self.failure = Some(failure);
            self.block = None;
            return outcome;
        }
        self.update_connection();
        Ok(())
    }

    fn take_in(&mut self, mut bytes: &[u8], now: Instant) -> Outcome {
        while !bytes.is_empty() {
            match self.input.awaited {
                Awaited::Preface => {
                    let rest = &PREFACE[self.input.partial.len()..];
                    if !rest.starts_with(&bytes[..bytes.len().min(rest.len())]) {
                        return Err(protocol("the peer does not speak HTTP/2"));
                    }
                    if self.input.take(&mut bytes, PREFACE.len()).is_some() {
                        self.input.awaited = Awaited::Header;
                    }
                }
                Awaited::Header => {
                    let header = self.input.take(&mut bytes, HEADER_SIZE);
                    if let Some(header) = header.as_deref().and_then(<[u8]>::first_chunk) {
                        self.start_frame(FrameHeader::decode(header), now)?;
                    }
                }
                Awaited::Payload(header) => {
                    if let Some(payload) = self.input.take(&mut bytes, header.size) {
                        self.input.awaited = Awaited::Header;
                        self.take_frame(header, &payload, now)?;
                    }
                }
                Awaited::Padding(data) => {
                    if let Some((&padding, rest)) = bytes.split_first() {
                        bytes = rest;
                        self.start_padded(data, usize::from(padding), now)?;
                    }
                }
                Awaited::Data(data) => bytes = self.take_data(data, bytes, now)?,
            }
        }
        Ok(())
    }

    fn start_frame(&mut self, header: FrameHeader, now: Instant) -> Outcome {
        if header.size > H2_FRAME_SIZE_MAX {
            return Err(frame_size("a frame is too large"));
        }
        let is_settings = header.kind == FrameKind::Settings && !header.has(ACK);
        if !self.peer.has_settings && !is_settings {
            return Err(protocol("the peer did not start with its settings"));
        }
        match &self.block {
            Some(block)
                if header.kind != FrameKind::Continuation || header.stream != block.stream =>
            {
                return Err(protocol("a block of fields was interrupted"));
            }
            None if header.kind == FrameKind::Continuation => {
                return Err(protocol("a continuation of nothing"));
            }
            _ => {}
        }
        if header.kind == FrameKind::Data {
            return self.start_data(header, now);
        }
        if header.size == 0 {
            self.input.awaited = Awaited::Header;
            return self.take_frame(header, &[], now);
        }
        self.input.awaited = Awaited::Payload(header);
        Ok(())
    }

    fn take_frame(&mut self, header: FrameHeader, payload: &[u8], now: Instant) -> Outcome {
        match header.kind {
            FrameKind::Data => {}
            FrameKind::Headers => self.take_headers(header, payload, now)?,
            FrameKind::Continuation => self.take_continuation(header, payload, now)?,
            FrameKind::Priority => self.take_priority(header, now)?,
            FrameKind::ResetStream => self.take_reset(header, payload, now)?,
            FrameKind::Settings => self.take_settings(header, payload, now)?,
            FrameKind::PushPromise => return Err(protocol("a push was not allowed")),
            FrameKind::Ping => self.take_ping(header, payload, now)?,
            FrameKind::GoAway => self.take_go_away(header, payload, now)?,
            FrameKind::WindowUpdate => self.take_update(header, payload, now)?,
            FrameKind::Unknown(_) => self.charge_empty_frame(now)?,
        }
        if self.output.size() > self.output_bound() {
            return Err(too_much("the peer does not read what it makes us send"));
        }
        Ok(())
    }

    // DATA

    fn start_data(&mut self, header: FrameHeader, now: Instant) -> Outcome {
        let id = header.stream;
        if self.is_idle(id) {
            return Err(protocol("data on a stream that was never opened"));
        }
        if self.receive.receive(header.size, 0, now).is_err() {
            let reason = "more data than the connection's window";
            return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
        }
        // Given back at once: what is kept is bounded by the windows of the streams, so that one
        // whose reader stalls never holds up another.
        self.receive.consume(header.size);
        let grace = self.window_grace();
        let verdict = match self.streams.get_mut(&id) {
            // On its way when the stream was reset.
            None => Err(None),
            Some(stream) if stream.reset.is_some() => Err(None),
            Some(stream) => match stream.inbound {
                Inbound::Ended | Inbound::Told | Inbound::Cut => {
                    Err(Some(ErrorCode::STREAM_CLOSED))
                }
                Inbound::AwaitHead => Err(Some(ErrorCode::PROTOCOL_ERROR)),
                Inbound::Open => match stream.receive.receive(header.size, grace, now) {
                    Ok(()) => Ok(()),
                    Err(_) => Err(Some(ErrorCode::FLOW_CONTROL_ERROR)),
                },
            },
        };
        if let Err(Some(code)) = verdict {
            self.fail_stream(id, code, now)?;
        }
        let data = DataFrame {
            stream: id,
            left: header.size,
            padding: 0,
            is_end: header.has(END_STREAM),
            is_dropped: verdict.is_err(),
        };
        if header.has(PADDED) {
            if header.size == 0 {
                return Err(protocol("padding is longer than its frame"));
            }
            self.input.awaited = Awaited::Padding(data);
            return Ok(());
        }
        self.start_body(data, now)
    }

    fn start_padded(&mut self, data: DataFrame, padding: usize, now: Instant) -> Outcome {
        let left = (data.left - 1).checked_sub(padding);
        let left = left.ok_or(protocol("padding is longer than its frame"))?;
        if !data.is_dropped
            && let Some(stream) = self.streams.get_mut(&data.stream)
        {
            stream.receive.consume(1 + padding);
        }
        self.start_body(
            DataFrame {
                left,
                padding,
                ..data
            },
            now,
        )
    }

    fn start_body(&mut self, mut data: DataFrame, now: Instant) -> Outcome {
        if data.left == 0 && !data.is_end {
            self.charge_empty_frame(now)?;
        }
        if !data.is_dropped
            && let Some(stream) = self.streams.get_mut(&data.stream)
            && let Some(body_left) = stream.body_left
        {
            let left = u64::try_from(data.left).unwrap_or(u64::MAX);
            stream.body_left = body_left.checked_sub(left);
            if stream.body_left.is_none() || data.is_end && body_left != left {
                data.is_dropped = true;
                self.fail_stream(data.stream, ErrorCode::PROTOCOL_ERROR, now)?;
            }
        }
        self.input.awaited = Awaited::Data(data);
        if data.left + data.padding == 0 {
            self.take_data(data, &[], now)?;
        }
        Ok(())
    }

    /// Takes what is there of a DATA frame and returns the bytes behind.
    fn take_data<'a>(
        &mut self,
        mut data: DataFrame,
        bytes: &'a [u8],
        now: Instant,
    ) -> Result<&'a [u8], ConnectionError> {
        let (part, rest) = bytes.split_at(bytes.len().min(data.left));
        let (padding, rest) = rest.split_at(rest.len().min(data.padding));
        data.left -= part.len();
        data.padding -= padding.len();
        let is_complete = data.left + data.padding == 0;
        self.input.awaited = if is_complete {
            Awaited::Header
        } else {
            Awaited::Data(data)
        };
        if data.is_dropped {
            return Ok(rest);
        }
        // The owner may have reset it in the middle of the frame.
        let Some(stream) = self.streams.get_mut(&data.stream) else {
            return Ok(rest);
        };
        if !part.is_empty() {
            let was_empty = stream.pieces.size() == 0;
            stream.pieces.append(part, &mut self.idle);
            if was_empty {
                self.tell(data.stream);
            }
            self.probe(now);
        }
        if is_complete && data.is_end {
            self.end_inbound(data.stream);
        } else if is_complete {
            // Padding counts as read.
            self.update_stream(data.stream, now);
        }
        Ok(rest)
    }

    pub(super) fn end_inbound(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.inbound = Inbound::Ended;
            self.tell(id);
            self.settle(id);
        }
    }
}
