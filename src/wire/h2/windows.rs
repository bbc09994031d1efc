//! Giving windows back to the peer as its data are read, and finding their right size.

use std::time::Instant;

use super::connection::Connection;
use super::flow::Tuning;
use super::frame::{FrameKind, StreamId};

impl Connection {
    /// Gives the window of the connection back when enough of it was used.
    pub(super) fn update_connection(&mut self) {
        if self.receive.is_due() && self.has_room_for_updates() {
            let increment = self.receive.give_back();
            self.send_update(0, increment);
        }
    }

    /// Gives the window of a stream back when enough of it was read.
    pub(super) fn update_stream(&mut self, id: StreamId, now: Instant) {
        let has_room = self.has_room_for_updates();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.is_inbound_open() || !stream.receive.is_due() {
            return;
        }
        if !has_room {
            if !stream.owes_update {
                stream.owes_update = true;
                self.owed.push_back(id);
            }
            return;
        }
        let tuning = stream.receive.tune(self.round_trip.value(), now);
        let size = stream.receive.size();
        let size_new = match tuning {
            Tuning::Grow => size.saturating_mul(2).min(self.settings.stream_window_max),
            Tuning::Keep => size,
            Tuning::Shrink => (size / 2).max(self.settings.stream_window),
        };
        // Windows only ever grow from the one at the start, so no difference is negative.
        let growth = self.growth - (size - self.settings.stream_window)
            + (size_new - self.settings.stream_window);
        if size_new < size || growth <= self.settings.growth_max {
            self.growth = growth;
            stream.receive.resize(size_new);
        }
        let increment = stream.receive.give_back();
        self.send_update(id, increment);
    }

    /// Sends the updates that had to wait, once the peer has taken what was in their way.
    pub(super) fn pay_owed_updates(&mut self) {
        let Some(now) = self.now else {
            return;
        };
        self.update_connection();
        while self.has_room_for_updates()
            && let Some(id) = self.owed.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.owes_update = false;
            }
            self.update_stream(id, now);
        }
    }

    fn has_room_for_updates(&self) -> bool {
        self.failure.is_none()
            && self.output.size() < self.settings.output_room + self.settings.output_room / 4
    }

    fn send_update(&mut self, id: StreamId, increment: u32) {
        if increment > 0 {
            self.output
                .frame(FrameKind::WindowUpdate, 0, id, &increment.to_be_bytes());
        }
    }
}
