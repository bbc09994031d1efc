//! The bytes that are to be sent: frames one after another.

use super::frame::{FrameHeader, FrameKind, HEADER_SIZE, StreamId};
use crate::limits::H2_OUTPUT_KEPT_SIZE;

/// Times that the output ran empty after which a buffer that was too large is made smaller.
const ROUNDS_MAX: u32 = 8;

/// Frames that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that have been sent.
    sent: usize,
    /// Most bytes that waited since the buffer was looked at, and how often it ran empty.
    peak: usize,
    rounds: u32,
}

impl Output {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.sent..]
    }

    pub(super) fn size(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Forgets the first `size` bytes: they are sent.
    pub(super) fn remove(&mut self, size: usize) {
        self.peak = self.peak.max(self.size());
        self.sent += size.min(self.size());
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
            self.give_back();
        }
    }

    /// Appends a frame.
    pub(super) fn frame(&mut self, kind: FrameKind, flags: u8, stream: StreamId, payload: &[u8]) {
        let header = FrameHeader {
            size: payload.len(),
            kind,
            flags,
            stream,
        };
        self.reserve(HEADER_SIZE + payload.len());
        self.buffer.extend_from_slice(&header.encode());
        self.buffer.extend_from_slice(payload);
    }

    /// Appends bytes that are no frame.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.buffer.extend_from_slice(bytes);
    }

    /// Makes room by moving what is left to the start, where that is less than what has been sent,
    /// so that each byte is moved once at most on average.
    fn reserve(&mut self, size: usize) {
        let is_full = self.buffer.len() + size > self.buffer.capacity();
        if is_full && self.sent >= self.size() {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// A buffer that was large for a while only is not kept.
    fn give_back(&mut self) {
        self.rounds += 1;
        if self.rounds < ROUNDS_MAX {
            return;
        }
        if self.peak.saturating_mul(4) < self.buffer.capacity() {
            self.buffer.shrink_to(H2_OUTPUT_KEPT_SIZE.max(self.peak));
        }
        (self.rounds, self.peak) = (0, 0);
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_through_a_bounded_buffer() {
        let mut output = Output::default();
        let (mut written, mut read) = (0_u8, 0_u8);
        for round in 0..10_000 {
            while output.size() < 1000 {
                output.raw(&[written]);
                written = written.wrapping_add(1);
            }
            let size = round % 700;
            for octet in &output.bytes()[..size] {
                assert_eq!(*octet, read);
                read = read.wrapping_add(1);
            }
            output.remove(size);
        }
        assert!(output.capacity() <= 4096, "{}", output.capacity());
    }

    #[test]
    fn a_large_buffer_is_given_back_when_little_is_sent() {
        let mut output = Output::default();
        output.raw(&[0; 300_000]);
        output.remove(300_000);
        for _ in 0..2 * ROUNDS_MAX {
            output.frame(FrameKind::Ping, 0, 0, &[0; 8]);
            output.remove(17);
        }
        assert!(output.capacity() <= H2_OUTPUT_KEPT_SIZE);
    }
}
