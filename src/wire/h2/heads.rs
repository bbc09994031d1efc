//! Blocks of fields: requests, responses and trailers.
//!
//! Source: RFC 9113 sections 6.2, 6.10 and 8.

use std::time::Instant;

use super::connection::{Connection, Pending};
use super::error::{Outcome, broken, protocol, too_much};
use super::frame::{END_HEADERS, END_STREAM, ErrorCode, FrameHeader, StreamId, strip_headers};
use super::hpack::{Field, HpackError};
use super::message::{check_request, check_response, check_trailers};
use super::settings::Role;
use super::stream::{Inbound, Outbound, WaitingHead};
use crate::limits::{H2_CONTINUATIONS_MAX, H2_HEADER_BLOCK_SIZE_MAX, H2_INTERIM_RESPONSES_MAX};

/// A block of fields that is not complete.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: StreamId,
    is_end: bool,
    bytes: Vec<u8>,
    continuations_count: u32,
}

impl Connection {
    pub(super) fn take_headers(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        let id = header.stream;
        let is_odd = id % 2 == 1;
        if !is_odd || self.role == Role::Client && self.is_idle(id) {
            return Err(protocol("fields on a stream that the peer cannot open"));
        }
        let block = strip_headers(&header, payload)
            .ok_or(protocol("padding or priority is longer than its frame"))?;
        let is_end = header.has(END_STREAM);
        if header.has(END_HEADERS) {
            return self.take_block(id, is_end, block, now);
        }
        let bytes = block.to_vec();
        self.block = Some(Block {
            stream: id,
            is_end,
            bytes,
            continuations_count: 0,
        });
        Ok(())
    }

    pub(super) fn take_continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        let Some(block) = &mut self.block else {
            return Err(protocol("a continuation of nothing"));
        };
        block.continuations_count += 1;
        if block.continuations_count > H2_CONTINUATIONS_MAX {
            return Err(too_much("a block of fields comes in too many frames"));
        }
        if block.bytes.len() + payload.len() > H2_HEADER_BLOCK_SIZE_MAX {
            return Err(too_much("a block of fields is too large"));
        }
        block.bytes.extend_from_slice(payload);
        if header.has(END_HEADERS)
            && let Some(block) = self.block.take()
        {
            return self.take_block(block.stream, block.is_end, &block.bytes, now);
        }
        Ok(())
    }

    /// Takes a complete block. It is decoded whatever becomes of its stream: the tables of both
    /// ends must stay equal.
    fn take_block(&mut self, id: StreamId, is_end: bool, block: &[u8], now: Instant) -> Outcome {
        let fields = match self
            .decoder
            .decode(block, self.settings.header_list_size_max)
        {
            Ok(fields) => Some(fields),
            Err(HpackError::TooLarge) => None,
            Err(_) => {
                let reason = "a block of fields cannot be decoded";
                return Err(broken(ErrorCode::COMPRESSION_ERROR, reason));
            }
        };
        match self.streams.get(&id) {
            Some(stream) if stream.reset.is_some() => Ok(()),
            Some(stream) => match stream.inbound {
                Inbound::AwaitHead => self.take_response(id, is_end, fields, now),
                Inbound::Open => self.take_trailers(id, is_end, fields, now),
                Inbound::Ended | Inbound::Told | Inbound::Cut => {
                    self.fail_stream(id, ErrorCode::STREAM_CLOSED, now)
                }
            },
            None if self.role == Role::Server && id > self.highest_stream => {
                self.take_request(id, is_end, fields, now)
            }
            // A response or trailers on their way when the stream was reset.
            None if self.role == Role::Client || is_end => self.charge_empty_frame(now),
            None => Err(broken(
                ErrorCode::STREAM_CLOSED,
                "a stream was opened again",
            )),
        }
    }

    fn take_request(
        &mut self,
        id: StreamId,
        is_end: bool,
        fields: Option<Vec<Field>>,
        now: Instant,
    ) -> Outcome {
        self.highest_stream = id;
        let streams_max = self.settings.streams_max;
        let is_full = self.open_count >= streams_max
            // Those that are over and have something left for their owner take memory too.
            || self.streams.len() / 2 >= usize::try_from(streams_max).unwrap_or(usize::MAX);
        if self.has_gone_away || is_full {
            return self.fail_stream(id, ErrorCode::REFUSED_STREAM, now);
        }
        let Some(fields) = fields else {
            return self.fail_stream(id, ErrorCode::ENHANCE_YOUR_CALM, now);
        };
        let head = match check_request(&fields) {
            Ok(head) if !is_end || head.body_size.is_none_or(|size| size == 0) => head,
            _ => return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now),
        };
        let mut stream = self.new_stream(Inbound::after_head(is_end), Outbound::AwaitHead);
        stream.body_left = head.body_size;
        stream.heads.push(WaitingHead { fields, is_end });
        self.streams.insert(id, stream);
        self.open_count += 1;
        self.events.push_back(Pending::Head(id));
        Ok(())
    }

    fn take_response(
        &mut self,
        id: StreamId,
        is_end: bool,
        fields: Option<Vec<Field>>,
        now: Instant,
    ) -> Outcome {
        let Some(fields) = fields else {
            return self.fail_stream(id, ErrorCode::ENHANCE_YOUR_CALM, now);
        };
        let head = match check_response(&fields) {
            Ok(head) if is_end && head.is_interim => None,
            Ok(head) if is_end && head.body_size.is_some_and(|size| size > 0) => None,
            Ok(head) => Some(head),
            Err(_) => None,
        };
        let Some(head) = head else {
            return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now);
        };
        if head.is_interim {
            self.charge_empty_frame(now)?;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if stream.heads.len() > H2_INTERIM_RESPONSES_MAX {
            return self.fail_stream(id, ErrorCode::ENHANCE_YOUR_CALM, now);
        }
        stream.heads.push(WaitingHead { fields, is_end });
        if !head.is_interim {
            stream.body_left = head.body_size;
            stream.inbound = Inbound::after_head(is_end);
        }
        self.events.push_back(Pending::Head(id));
        self.settle(id);
        Ok(())
    }

    /// Trailers end the peer's direction; what they say is not needed.
    fn take_trailers(
        &mut self,
        id: StreamId,
        is_end: bool,
        fields: Option<Vec<Field>>,
        now: Instant,
    ) -> Outcome {
        let is_right = is_end && fields.is_none_or(|fields| check_trailers(&fields).is_ok());
        let has_body_left = self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.body_left.is_some_and(|left| left > 0));
        if !is_right || has_body_left {
            return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now);
        }
        self.end_inbound(id);
        Ok(())
    }
}
