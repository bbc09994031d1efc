//! Frames without data and fields: they end streams or are about the connection.
//!
//! Source: RFC 9113 sections 6.3 to 6.9.

use std::time::Instant;

use super::connection::{Connection, Pending};
use super::error::{Outcome, broken, frame_size, protocol, too_much};
use super::frame::{
    ACK, ErrorCode, FrameHeader, FrameKind, PRIORITY_SIZE, STREAM_ID_MAX, Setting, StreamId,
    WINDOW_DEFAULT, WINDOW_MAX, decode_number,
};
use super::settings::Role;
use super::stream::{Inbound, Outbound, Waiting};
use crate::limits::H2_ANSWERED_RESETS_FACTOR;

/// Returns `payload` if it has just that size.
fn exactly<const N: usize>(payload: &[u8]) -> Option<[u8; N]> {
    payload.try_into().ok()
}

impl Connection {
    pub(super) fn take_settings(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        if header.stream != 0 {
            return Err(protocol("settings of a stream"));
        }
        if !self.allowances.settings.take(now) {
            return Err(too_much("too many settings"));
        }
        if header.has(ACK) {
            if header.size != 0 {
                return Err(frame_size("an acknowledgement with settings"));
            }
            self.peer.knows_settings = true;
            return Ok(());
        }
        let (settings, rest) = payload.as_chunks::<{ Setting::SIZE }>();
        if !rest.is_empty() {
            return Err(frame_size("settings have a wrong size"));
        }
        let mut window = self.peer.stream_window;
        for setting in settings {
            match Setting::decode(setting) {
                Setting::HeaderTableSize(size) => {
                    let size = usize::try_from(size).unwrap_or(usize::MAX);
                    self.encoder.set_size_max(size);
                }
                Setting::EnablePush(value) => {
                    if value > 1 || value == 1 && self.role == Role::Client {
                        return Err(protocol("a wrong setting for pushes"));
                    }
                }
                Setting::StreamsMax(count) => self.peer.streams_max = count,
                Setting::StreamWindow(size) => {
                    if size > WINDOW_MAX {
                        let reason = "a window is too large";
                        return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
                    }
                    // Only the last one is applied: each goes through all streams.
                    window = size;
                }
                Setting::FrameSizeMax(size) => {
                    // Ours are never larger than the least that may be announced.
                    if !(1 << 14..1 << 24).contains(&size) {
                        return Err(protocol("a wrong size of frames"));
                    }
                }
                Setting::HeaderListSizeMax(_) | Setting::Unknown(..) => {}
            }
        }
        self.change_stream_windows(window)?;
        self.output.frame(FrameKind::Settings, ACK, 0, &[]);
        if !self.peer.has_settings {
            self.peer.has_settings = true;
            self.probe(now);
        }
        Ok(())
    }

    /// Changes the window that streams have at their start, and with it that of all open ones.
    fn change_stream_windows(&mut self, window: u32) -> Outcome {
        let change = i64::from(window) - i64::from(self.peer.stream_window);
        self.peer.stream_window = window;
        if change == 0 {
            return Ok(());
        }
        let mut waiting = Vec::new();
        for (&id, stream) in &mut self.streams {
            if stream.send.change(change).is_err() {
                let reason = "a window is too large";
                return Err(broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
            }
            if stream.waiting == Waiting::Window {
                waiting.push(id);
            }
        }
        waiting.sort_unstable();
        for id in waiting {
            self.window_opened(id);
        }
        Ok(())
    }

    pub(super) fn take_ping(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        if header.stream != 0 {
            return Err(protocol("a ping of a stream"));
        }
        let data: [u8; 8] = exactly(payload).ok_or(frame_size("a ping has a wrong size"))?;
        if header.has(ACK) {
            let asked = self.pings.iter().position(|asked| *asked == data);
            if let Some(index) = asked {
                self.pings.drain(..=index);
                self.events.push_back(Pending::Pong(data));
                return Ok(());
            }
            if self.round_trip.answer(data, now) {
                return Ok(());
            }
        }
        if !self.allowances.pings.take(now) {
            return Err(too_much("too many pings"));
        }
        if !header.has(ACK) {
            self.output.frame(FrameKind::Ping, ACK, 0, &data);
        }
        Ok(())
    }

    /// Measures the round trip, unless that has just been done.
    pub(super) fn probe(&mut self, now: Instant) {
        if let Some(data) = self.round_trip.probe(now) {
            self.output.frame(FrameKind::Ping, 0, 0, &data);
        }
    }

    pub(super) fn take_go_away(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        if header.stream != 0 {
            return Err(protocol("a farewell of a stream"));
        }
        // What follows is for people only.
        let start: Option<&[u8; 8]> = payload.first_chunk();
        let &[a, b, c, d, e, f, g, h] = start.ok_or(frame_size("a farewell has a wrong size"))?;
        let (last, code) = ([a, b, c, d], u32::from_be_bytes([e, f, g, h]));
        if self.peer_last.is_some() {
            self.charge_empty_frame(now)?;
        }
        let last = decode_number(last).min(self.peer_last.unwrap_or(STREAM_ID_MAX));
        self.peer_last = Some(last);
        if self.role == Role::Client {
            let is_refused = |id: &StreamId| *id > last;
            let mut refused: Vec<StreamId> =
                self.streams.keys().copied().filter(is_refused).collect();
            refused.sort_unstable();
            for id in refused {
                self.reset_by_peer(id, ErrorCode::REFUSED_STREAM);
            }
        }
        self.events
            .push_back(Pending::GoAway(last, ErrorCode(code)));
        Ok(())
    }

    pub(super) fn take_update(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        let increment = exactly(payload).ok_or(frame_size("an update has a wrong size"))?;
        let increment = decode_number(increment);
        let id = header.stream;
        if id != 0 && self.is_idle(id) {
            return Err(protocol("a window of a stream that was never opened"));
        }
        if !self.allowances.updates.take(now) {
            return Err(too_much("too many updates of windows"));
        }
        if id == 0 {
            if increment == 0 {
                return Err(protocol("an update of nothing"));
            }
            let changed = self.send.change(i64::from(increment));
            let reason = "a window is too large";
            return changed.map_err(|_| broken(ErrorCode::FLOW_CONTROL_ERROR, reason));
        }
        let Some(stream) = self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.reset.is_none())
        else {
            return Ok(());
        };
        if increment == 0 {
            return self.fail_stream(id, ErrorCode::PROTOCOL_ERROR, now);
        }
        if stream.send.change(i64::from(increment)).is_err() {
            return self.fail_stream(id, ErrorCode::FLOW_CONTROL_ERROR, now);
        }
        self.window_opened(id);
        Ok(())
    }

    pub(super) fn take_priority(&mut self, header: FrameHeader, now: Instant) -> Outcome {
        if header.stream == 0 {
            return Err(protocol("a priority of the connection"));
        }
        if header.size != PRIORITY_SIZE {
            return Err(frame_size("a priority has a wrong size"));
        }
        self.charge_empty_frame(now)
    }

    /// What the peer may send beyond the window of a stream while it need not know that it is
    /// smaller than one is by default.
    pub(super) fn window_grace(&self) -> u32 {
        if self.peer.knows_settings {
            return 0;
        }
        WINDOW_DEFAULT.saturating_sub(self.settings.stream_window)
    }

    fn charge_reset(&mut self, now: Instant, divisor: u32) -> Outcome {
        if self.allowances.resets.take_part(now, divisor) {
            return Ok(());
        }
        Err(too_much("too many streams were reset"))
    }

    pub(super) fn charge_empty_frame(&mut self, now: Instant) -> Outcome {
        if self.allowances.empty_frames.take(now) {
            return Ok(());
        }
        Err(too_much("too many frames that do nothing"))
    }

    /// Whether nobody has opened that stream yet, or nobody can.
    pub(super) fn is_idle(&self, id: StreamId) -> bool {
        let is_ours = id % 2 == 1;
        match self.role {
            _ if id == 0 => true,
            Role::Client => !is_ours || id < self.settings.first_stream || id >= self.next_stream,
            Role::Server => !is_ours || id > self.highest_stream,
        }
    }

    pub(super) fn take_reset(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Outcome {
        let code = exactly(payload).ok_or(frame_size("a reset has a wrong size"))?;
        if self.is_idle(header.stream) {
            return Err(protocol("a reset of a stream that was never opened"));
        }
        let was_answered = self.streams.get(&header.stream).is_some_and(|stream| {
            stream.inbound != Inbound::AwaitHead && stream.outbound != Outbound::AwaitHead
        });
        self.charge_reset(
            now,
            if was_answered {
                H2_ANSWERED_RESETS_FACTOR
            } else {
                1
            },
        )?;
        self.reset_by_peer(header.stream, ErrorCode(u32::from_be_bytes(code)));
        Ok(())
    }

    /// Ends a stream because the peer says so.
    fn reset_by_peer(&mut self, id: StreamId, code: ErrorCode) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.reset.is_some() {
            return;
        }
        self.end_stream(id, code);
    }

    /// Ends a stream, or one that was never let in, because the peer does what it must not.
    pub(super) fn fail_stream(&mut self, id: StreamId, code: ErrorCode, now: Instant) -> Outcome {
        self.charge_reset(now, 1)?;
        self.output
            .frame(FrameKind::ResetStream, 0, id, &code.0.to_be_bytes());
        if let Some(stream) = self.streams.get_mut(&id) {
            if !stream.has_inbound_ended() {
                stream.pieces.clear();
            }
            self.end_stream(id, code);
        }
        if self.output.size() > self.output_bound() {
            return Err(too_much("the peer does not read what it makes us send"));
        }
        Ok(())
    }

    fn end_stream(&mut self, id: StreamId, code: ErrorCode) {
        self.give_turn_back(id);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.is_known {
            // Whoever has not heard of it need not hear of its end.
            self.remove(id);
            return;
        }
        stream.reset = Some(code);
        stream.waiting = Waiting::No;
        self.events.push_back(Pending::Reset(id));
        self.settle(id);
    }
}
