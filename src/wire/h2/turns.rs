//! Writing: who may, how much, and who is next.
//!
//! A stream that finds no room in the output waits in a queue. When there is room again, as many
//! are told as find some, each for one turn; meanwhile nobody overtakes them.

use std::io::{self, ErrorKind};

use super::connection::{Connection, Event, Pending};
use super::frame::{FrameKind, StreamId};
use super::settings::Role;
use super::stream::{Inbound, Telling, Waiting};
use crate::limits::{
    H2_DATA_SIZE_MAX, H2_FIRST_WORDS_SIZE, H2_OUTPUT_EXCESS_MAX, H2_UPDATE_DATA_SIZE,
    H2_UPDATES_PER_FRAME,
};

impl Connection {
    /// Writes of `bytes` what the peer and the output have room for, and returns how much it was.
    ///
    /// Errors: `WouldBlock` without room; [`Event::Writable`] follows. `ConnectionReset` after a
    /// reset, `ConnectionAborted` when the connection is over, `BrokenPipe` after `finish`,
    /// `InvalidInput` before the response, `NotConnected` for a stream that is not there.
    pub fn write(&mut self, stream: StreamId, bytes: &[u8]) -> io::Result<usize> {
        self.writable_stream(stream)?;
        let has_turn = self.give_turn_back(stream);
        if bytes.is_empty() {
            return Ok(0);
        }
        let size = self.writable_size(stream, has_turn).min(bytes.len());
        if size == 0 {
            self.await_turn(stream, has_turn);
            return Err(ErrorKind::WouldBlock.into());
        }
        for part in bytes[..size].chunks(H2_DATA_SIZE_MAX) {
            self.output.frame(FrameKind::Data, 0, stream, part);
            // A peer that makes us send tiny frames by tiny windows earns nothing by it.
            let is_cut_short = part.len() < H2_UPDATE_DATA_SIZE && size < bytes.len();
            if !is_cut_short {
                let count = part.len() / H2_UPDATE_DATA_SIZE;
                let per_frame = usize::try_from(H2_UPDATES_PER_FRAME).unwrap_or(usize::MAX);
                self.allowances
                    .updates
                    .earn(per_frame.saturating_add(count));
            }
        }
        self.send.take(size);
        if let Some(found) = self.streams.get_mut(&stream) {
            found.send.take(size);
            found.has_written = true;
        }
        Ok(size)
    }

    /// Returns the next thing that the owner is to hear of.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(pending) = self.events.pop_front() {
            let event = match pending {
                Pending::Head(id) => self.head_event(id),
                Pending::Readable(id) => self.readable_event(id),
                Pending::Reset(id) => self.reset_event(id),
                Pending::GoAway(last, code) => Some(Event::GoAway { last, code }),
                Pending::Pong(data) => Some(Event::Pong(data)),
            };
            if event.is_some() {
                return event;
            }
        }
        if self.events.capacity() > 1024 {
            self.events.shrink_to(64);
        }
        self.next_writer().map(Event::Writable)
    }

    /// Tells the owner that there is something to read, unless it is on its way to him.
    pub(super) fn tell(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.telling != Telling::Pending
        {
            stream.telling = Telling::Pending;
            self.events.push_back(Pending::Readable(id));
        }
    }

    /// Queues a stream that waited for its window, which has opened.
    pub(super) fn window_opened(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.waiting == Waiting::Window
            && stream.send.available() > 0
        {
            stream.waiting = Waiting::Turn;
            self.writers.push_back(id);
        }
    }

    /// Takes the turn of a stream that was told of one; returns whether it had one.
    pub(super) fn give_turn_back(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        let has_turn = stream.waiting == Waiting::Owner;
        if has_turn {
            stream.waiting = Waiting::No;
            self.turns = self.turns.saturating_sub(1);
        }
        has_turn
    }

    /// Returns how much a stream may write now (bytes).
    fn writable_size(&mut self, id: StreamId, has_turn: bool) -> usize {
        self.drop_stale_writers();
        let room = self.settings.output_room.saturating_sub(self.output.size());
        let Some(stream) = self.streams.get(&id) else {
            return 0;
        };
        let window = stream.send.available().min(self.send.available());
        // What everything else depends on, and the few bytes that a stream begins with, need no
        // turn and may pass over the edge.
        let beyond = match (stream.is_urgent, stream.has_written) {
            (true, _) => usize::MAX,
            (false, false) => H2_FIRST_WORDS_SIZE,
            (false, true) => 0,
        };
        let edge = self.settings.output_room + H2_OUTPUT_EXCESS_MAX / 2;
        let beyond = beyond.min(edge.saturating_sub(self.output.size()));
        // The last frame may pass over the edge: small ones would cost more.
        let room = if room == 0 {
            0
        } else {
            room.next_multiple_of(H2_DATA_SIZE_MAX)
        };
        let share = match (has_turn, self.writers.is_empty()) {
            (true, true) => room,
            (true, false) => room.min(self.turn_size()),
            // Those who were told before have a claim on their turns.
            (false, true) => room.saturating_sub(self.turns * self.turn_size()),
            (false, false) => 0,
        };
        share.max(beyond).min(window)
    }

    /// Lets a stream write without a turn: the others depend on it.
    pub fn hurry(&mut self, stream: StreamId) {
        if let Some(found) = self.streams.get_mut(&stream) {
            found.is_urgent = true;
        }
    }

    fn await_turn(&mut self, id: StreamId, had_turn: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.waiting == Waiting::Turn {
            return;
        }
        if stream.send.available() == 0 {
            stream.waiting = Waiting::Window;
            return;
        }
        stream.waiting = Waiting::Turn;
        if had_turn {
            // Others were faster: it stays the first in the queue.
            self.writers.push_front(id);
        } else {
            self.writers.push_back(id);
        }
    }

    fn next_writer(&mut self) -> Option<StreamId> {
        self.drop_stale_writers();
        let id = *self.writers.front()?;
        let room = self.settings.output_room.saturating_sub(self.output.size());
        let claimed = self.turns * self.turn_size();
        if room < claimed + self.turn_size() || self.send.available() <= claimed {
            return None;
        }
        self.writers.pop_front();
        self.turns += 1;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.waiting = Waiting::Owner;
        }
        Some(id)
    }

    /// Drops those in front of the queue that do not wait for their turn any more.
    fn drop_stale_writers(&mut self) {
        while let Some(id) = self.writers.front() {
            match self.streams.get_mut(id) {
                Some(stream) if stream.waiting == Waiting::Turn => {
                    if stream.send.available() > 0 {
                        return;
                    }
                    stream.waiting = Waiting::Window;
                }
                _ => {}
            }
            self.writers.pop_front();
        }
    }

    fn head_event(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get_mut(&id)?;
        if stream.heads.is_empty() {
            return None;
        }
        let head = stream.heads.remove(0);
        if stream.heads.is_empty() {
            stream.heads = Vec::new();
        }
        stream.is_known = true;
        if head.is_end {
            stream.inbound = Inbound::Told;
        }
        self.settle(id);
        let (fields, is_end) = (head.fields, head.is_end);
        Some(match self.role {
            Role::Client => Event::Response {
                stream: id,
                fields,
                is_end,
            },
            Role::Server => Event::Request {
                stream: id,
                fields,
                is_end,
            },
        })
    }

    fn readable_event(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get_mut(&id)?;
        if stream.telling != Telling::Pending {
            return None;
        }
        let has_news =
            stream.pieces.size() > 0 || stream.inbound == Inbound::Ended || stream.reset.is_some();
        stream.telling = if has_news {
            Telling::Told
        } else {
            Telling::Armed
        };
        has_news.then_some(Event::Readable(id))
    }

    fn reset_event(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get_mut(&id)?;
        let code = stream.reset?;
        if stream.is_reset_told {
            return None;
        }
        stream.is_reset_told = true;
        self.settle(id);
        Some(Event::Reset(id, code))
    }
}
