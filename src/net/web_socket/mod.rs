//! A byte stream over a WebSocket, without waiting and on the thread of whoever uses it.
//!
//! What is read goes straight into the caller's buffer; masks are taken off and the heads of
//! frames squeezed out there ([`Decoder`]). What a client writes is masked on its way into a
//! buffer. What a server writes leaves as it is: a large frame is begun, and the rest of it is
//! owed and sent out of the caller's memory.
//!
//! ```text
//!  inner ──read──▶ caller's buffer: heads out, mask off ──▶ data
//!                  └─ pings ──▶ pong ─┐
//!  inner ◀──write── send ◀── head, ◀──┴── mask on, or the first part ◀── data
//!  inner ◀──write───────────────────────────────── what is owed ◀──────── data
//! ```
//!
//! How a direction ends depends on the dialect ([`Ends`]). In the native one an empty message ends
//! it, and when both have ended a close frame follows; a connection that ends before that was cut
//! short. In v1 a close frame ends both directions, and so does the end of the connection.
//!
//! A proxy in between may cut a connection on which nothing passes, so [`Stream::keep_alive`] lets
//! something pass. An end that has closed resets the connection at the next byte that comes, and
//! what it had yet to send is lost. So nothing is said for this alone where the other end may have
//! closed: while anything comes or is still to be read, and after the own end, which is what a
//! native peer closes after.
//!
//! Source: RFC 6455, sections 5 and 7; wire protocol, sections 4, 7 and 8.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::stream::{BoxedStream, Condition, Stream, flush_until, has_room, is_passing};
use crate::limits::{
    WEB_SOCKET_CHECK_SIZE, WEB_SOCKET_JOIN_SIZE, WEB_SOCKET_ROUNDS_MAX, WEB_SOCKET_SEND_SIZE,
};
use crate::runtime::random::random_bytes;
pub use crate::wire::web_socket::Role;
use crate::wire::web_socket::{
    CONTROL_SIZE_MAX, Decoder, FRAME_HEAD_SIZE_MAX, Frame, Halt, Mask, Reach, copy_masked,
    encode_head,
};

/// What a close frame says: normal closure. RFC 6455 section 7.4.1
const CLOSE_NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// The head of a client's frame of the largest size: a length of 16 bits, and a mask.
const HEAD_SIZE_MASKED: usize = 8;
// A longer one would have a longer head.
const _: () = assert!(WEB_SOCKET_SEND_SIZE - HEAD_SIZE_MASKED <= u16::MAX as usize);
// A datagram is one message.
const _: () = assert!(crate::limits::DATAGRAM_SIZE_MAX <= WEB_SOCKET_SEND_SIZE - HEAD_SIZE_MASKED);
const _: () = assert!(WEB_SOCKET_JOIN_SIZE > FRAME_HEAD_SIZE_MAX + CONTROL_SIZE_MAX);

/// Masks that are drawn at once.
const MASKS_COUNT: usize = 8;

/// How the directions of a stream end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Native: an empty message ends one of them.
    Each,
    /// v1: a close frame ends both, and is sent as soon as this end has finished.
    Both,
    /// v1: the same, but this end leaves it to the other one to close, for the answer to what it
    /// has sent may still be on its way. It closes when it is dropped.
    BothLate,
}

/// One end of a WebSocket whose handshake is done.
pub struct WebSocketStream {
    inner: BoxedStream,
    role: Role,
    ends: Ends,
    decoder: Decoder,
    reach: Reach,
    /// What was read before anybody asked for it; empty from `ahead_start` on most of the time.
    /// The first `ahead_decoded` bytes of it are data, the others as they came.
    ahead: Vec<u8>,
    ahead_start: usize,
    ahead_decoded: usize,
    /// With [`Reach::OneMessage`] the beginning of a message that is not whole yet.
    partial: Vec<u8>,
    /// What ended the connection below.
    cut: Option<Cut>,
    /// Bytes on their way to `inner`, from `sent` to `filled`; whole frames but for the last one,
    /// where some of that is owed. Without memory of its own while nothing flows.
    send: Vec<u8>,
    sent: usize,
    filled: usize,
    /// So much of the last frame is yet to be given by the caller.
    owed: usize,
    /// The answer to the latest ping, which has yet to be written.
    pong: Option<Vec<u8>>,
    writing: Writing,
    close: Close,
    /// The answer of the handshake has not left: to the other end this is no WebSocket yet.
    is_answering: bool,
    /// How long nothing may pass; without end unless somebody says so.
    silence_max: Option<Duration>,
    /// Since when nothing has passed; `None` if something has since [`Stream::keep_alive`] looked.
    silent_since: Option<Instant>,
    /// What broke the connection while the silence was broken: told behind all that can be read.
    fault: Option<io::Error>,
    masks: [Mask; MASKS_COUNT],
    masks_left: usize,
}

/// Why nothing can be read from below.
#[derive(Debug)]
enum Cut {
    Ended,
    Broken(io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Open,
    /// It is over, and the other end was not told.
    Silent,
    /// It is over.
    Ended,
}

/// The close frame of this end, and the end of the connection below that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// None.
    Open,
    /// It is written, and may have yet to leave; with `is_alone` all that was written before it
    /// has left.
    Closing { is_alone: bool },
    /// It has left, or never will.
    Closed,
}

impl WebSocketStream {
    /// Takes over a connection on which the handshake is done; `received` is what has been read
    /// behind it.
    pub fn new(inner: BoxedStream, role: Role, ends: Ends, received: &[u8]) -> Self {
        Self {
            inner,
            role,
            ends,
            decoder: Decoder::new(role, ends == Ends::Each),
            reach: Reach::All,
            ahead: received.to_vec(),
            ahead_start: 0,
            ahead_decoded: 0,
            partial: Vec::new(),
            cut: None,
            send: Vec::new(),
            sent: 0,
            filled: 0,
            owed: 0,
            pong: None,
            writing: Writing::Open,
            close: Close::Open,
            is_answering: false,
            silence_max: None,
            silent_since: None,
            fault: None,
            masks: [[0; 4]; MASKS_COUNT],
            masks_left: 0,
        }
    }

    /// From now on [`Stream::keep_alive`] lets nothing be silent for longer than `silence_max`.
    pub fn limit_silence(&mut self, silence_max: Duration) {
        self.silence_max = Some(silence_max);
    }

    /// Puts the answer of a handshake in front of everything that is written; it leaves with that.
    pub fn put_answer(&mut self, answer: &[u8]) {
        self.reserve(answer.len());
        self.send[self.filled..self.filled + answer.len()].copy_from_slice(answer);
        self.filled += answer.len();
        self.is_answering = true;
    }

    /// Returns whether nothing more can be read, and if so whether the other end has said so.
    fn outcome(&self) -> Option<io::Result<()>> {
        match (self.decoder.halt(), self.ends) {
            (Some(Halt::Empty), _) | (Some(Halt::Close), Ends::Both | Ends::BothLate) => {
                return Some(Ok(()));
            }
            (Some(Halt::Close), Ends::Each) => return Some(Err(cut_short())),
            (Some(Halt::Violation(violation)), _) => {
                let error = io::Error::new(io::ErrorKind::InvalidData, violation.to_string());
                return Some(Err(error));
            }
            (None, _) => {}
        }
        match self.cut.as_ref()? {
            Cut::Ended if self.ends != Ends::Each && self.decoder.is_between_messages() => {
                Some(Ok(()))
            }
            Cut::Ended => Some(Err(cut_short())),
            Cut::Broken(error) => Some(Err(copy_of(error))),
        }
    }

    fn is_over(&self) -> bool {
        self.decoder.halt().is_some() || (self.cut.is_some() && !self.has_ahead())
    }

    fn has_ahead(&self) -> bool {
        self.ahead_start < self.ahead.len()
    }

    /// Makes data of what was read ahead, unless there are some.
    fn decode_ahead(&mut self) {
        if self.ahead_decoded > 0 || !self.has_ahead() {
            return;
        }
        let start = self.ahead_start;
        let ahead = &mut self.ahead[start..];
        let decoded = self.decoder.decode(ahead, Reach::OneMessage);
        let next = start + decoded.consumed;
        self.ahead_start = next - decoded.size;
        self.ahead
            .copy_within(start..start + decoded.size, self.ahead_start);
        self.ahead_decoded = decoded.size;
        if self.decoder.halt().is_some() {
            self.ahead.truncate(next);
        }
        self.react();
    }

    /// Takes data that were read ahead; returns how much.
    fn take_ahead(&mut self, buffer: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < buffer.len() && self.has_ahead() {
            self.decode_ahead();
            let start = self.ahead_start;
            let size = self.ahead_decoded.min(buffer.len() - taken);
            buffer[taken..taken + size].copy_from_slice(&self.ahead[start..start + size]);
            self.ahead_start += size;
            self.ahead_decoded -= size;
            taken += size;
            let is_whole = self.ahead_decoded == 0 && taken > 0;
            if self.reach == Reach::OneMessage && is_whole {
                break;
            }
        }
        taken
    }

    /// Takes the beginning of a message that was read before.
    fn take_partial(&mut self, buffer: &mut [u8]) -> usize {
        let size = self.partial.len().min(buffer.len());
        buffer[..size].copy_from_slice(&self.partial[..size]);
        if size == self.partial.len() {
            self.partial = Vec::new();
        } else {
            self.partial.drain(..size);
        }
        size
    }

    /// Does what has just been read asks for.
    fn react(&mut self) {
        let ping = self.decoder.take_ping();
        let is_closing = match self.decoder.halt() {
            Some(Halt::Empty) => self.writing == Writing::Ended,
            // It is answered even where it comes too early.
            Some(Halt::Close) => true,
            _ => false,
        };
        if is_closing {
            self.queue_close();
        } else if ping.is_some() && self.close == Close::Open {
            self.pong = ping;
        } else {
            return;
        }
        // What breaks it is told to whoever writes next.
        let _ = self.flush();
    }

    /// Reads from below into `buffer` and decodes; returns how much data there is, and whether
    /// there may be more.
    fn receive(&mut self, buffer: &mut [u8]) -> (usize, bool) {
        let size = match self.inner.read(buffer) {
            Ok(0) => {
                self.cut = Some(self.fault.take().map_or(Cut::Ended, Cut::Broken));
                return (0, false);
            }
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.cut = self.fault.take().map(Cut::Broken);
                return (0, false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return (0, true),
            Err(error) => {
                self.cut = Some(Cut::Broken(error));
                return (0, false);
            }
        };
        self.silent_since = None;
        let is_full = size == buffer.len();
        let decoded = self.decoder.decode(&mut buffer[..size], self.reach);
        if self.decoder.halt().is_none() && decoded.consumed < size {
            self.ahead = buffer[decoded.consumed..size].to_vec();
            self.ahead_start = 0;
        }
        self.react();
        (decoded.size, is_full)
    }

    /// Makes room in `send` for so many bytes more.
    fn reserve(&mut self, size: usize) {
        let needed = self.filled + size;
        if self.send.len() < needed {
            self.send.reserve_exact(needed - self.send.len());
            self.send.resize(needed, 0);
        }
    }

    /// Puts a frame of `frame_size` bytes behind what is on its way; `payload` is the first part of
    /// it, or at a client all.
    fn append(&mut self, frame: Frame, payload: &[u8], frame_size: usize) -> io::Result<()> {
        let mask = match self.role {
            Role::Client => Some(self.next_mask()?),
            Role::Server => None,
        };
        let mut head = [0; FRAME_HEAD_SIZE_MAX];
        let head_size = encode_head(frame, frame_size as u64, mask, &mut head);
        self.reserve(head_size + payload.len());
        let room = &mut self.send[self.filled..][..head_size + payload.len()];
        let (into_head, into) = room.split_at_mut(head_size);
        into_head.copy_from_slice(&head[..head_size]);
        match mask {
            Some(mask) => copy_masked(payload, into, mask),
            None => into.copy_from_slice(payload),
        }
        self.filled += head_size + payload.len();
        Ok(())
    }

    /// Returns a mask that nobody can guess: whoever chooses the data must not choose what is seen
    /// by those in between. RFC 6455 section 10.3
    fn next_mask(&mut self) -> io::Result<Mask> {
        if self.masks_left == 0 {
            let drawn: [u8; MASKS_COUNT * 4] = random_bytes()?;
            for (mask, bytes) in self.masks.iter_mut().zip(drawn.as_chunks().0) {
                *mask = *bytes;
            }
            self.masks_left = MASKS_COUNT;
        }
        self.masks_left -= 1;
        Ok(self.masks[self.masks_left])
    }

    /// Puts the close frame behind what is on its way, after which nothing is written.
    fn queue_close(&mut self) {
        if self.close != Close::Open {
            return;
        }
        self.writing = Writing::Ended;
        self.pong = None;
        let is_alone = self.sent == self.filled && !self.inner.holds_unsent();
        self.close = if self.owed == 0 && self.append(Frame::Close, &CLOSE_NORMAL, 2).is_ok() {
            Close::Closing { is_alone }
        } else {
            Close::Closed
        };
    }

    /// Hands to the stream below what is on its way.
    fn send_pending(&mut self) -> io::Result<()> {
        while self.sent < self.filled {
            match self.inner.write(&self.send[self.sent..self.filled]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(size) => self.sent += size,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        (self.sent, self.filled) = (0, 0);
        self.is_answering = false;
        Ok(())
    }

    /// Answers the latest ping, between two frames.
    fn append_pong(&mut self) -> io::Result<()> {
        match self.pong.take_if(|_| self.owed == 0) {
            Some(pong) => self.append(Frame::Pong, &pong, pong.len()),
            None => Ok(()),
        }
    }

    /// Returns what this end says to break a silence; `None` if it is not for this end to do so.
    ///
    /// The client does it for both, for as long as it may say anything; a server only where its
    /// client has ended. Once one direction is over there must be no answer, for that might come
    /// to an end that has closed.
    fn sign_of_life(&self) -> Option<Frame> {
        if self.writing != Writing::Open || self.cut.is_some() || self.fault.is_some() {
            return None;
        }
        match (self.decoder.halt(), self.role) {
            (None, Role::Client) => Some(Frame::Ping),
            (None, Role::Server) => None,
            (Some(Halt::Empty), _) => Some(Frame::Pong),
            (Some(Halt::Close | Halt::Violation(_)), _) => None,
        }
    }

    /// Says something that leaves at once, if there is nothing that it would have to wait for, and
    /// nothing that the other end has said and nobody has read.
    fn break_silence(&mut self, frame: Frame) {
        let is_clear = !self.holds_unsent()
            && self.owed == 0
            && !self.has_ahead()
            && self.inner.check() == Condition::Silent
            && has_room(self.inner.descriptor());
        // Without random bytes there is no mask; the next data will find out.
        if is_clear
            && self.append(frame, &[], 0).is_ok()
            && let Err(error) = self.flush()
            && !is_passing(&error)
        {
            self.fault = Some(error);
        }
    }

    fn send_all(&mut self) -> io::Result<()> {
        self.send_pending()?;
        self.append_pong()?;
        self.send_pending()?;
        self.inner.flush()?;
        if matches!(self.close, Close::Closing { .. }) {
            match self.inner.finish() {
                Err(error) if is_passing(&error) => return Err(error),
                // All has left, and who has closed already need not be told.
                _ => self.close = Close::Closed,
            }
        }
        Ok(())
    }

    /// Returns whether what has yet to leave is of no use to the other end: a close frame that
    /// follows its own end, or whatever comes after its close frame.
    fn is_pending_in_vain(&self) -> bool {
        match self.decoder.halt() {
            Some(Halt::Close) => true,
            Some(Halt::Empty) => self.close == Close::Closing { is_alone: true },
            _ => false,
        }
    }

    /// Writes data of a client; returns how much was taken.
    fn write_masked(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(WEB_SOCKET_SEND_SIZE - HEAD_SIZE_MASKED)];
        self.append(Frame::Binary, piece, piece.len())?;
        match self.send_pending() {
            // What is taken is taken: the rest of it is unsent.
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(piece.len()),
        }
    }

    /// Writes data of a server; returns how much was taken.
    fn write_plain(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // With its head the first part fills one record of TLS.
        let first_max = WEB_SOCKET_JOIN_SIZE - FRAME_HEAD_SIZE_MAX;
        let (first, rest) = bytes.split_at(bytes.len().min(first_max));
        self.append(Frame::Binary, first, bytes.len())?;
        self.owed = rest.len();
        match self.send_pending() {
            Err(error) if is_passing(&error) => return Ok(first.len()),
            Err(error) => return Err(error),
            Ok(()) if rest.is_empty() => return Ok(first.len()),
            Ok(()) => {}
        }
        match self.write_owed(rest) {
            Ok(size) => Ok(first.len() + size),
            Err(error) if is_passing(&error) => Ok(first.len()),
            Err(error) => Err(error),
        }
    }

    /// Goes on with the frame that was begun.
    fn write_owed(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = self.inner.write(&bytes[..bytes.len().min(self.owed)])?;
        self.owed -= size;
        Ok(size)
    }
}

impl Stream for WebSocketStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }

    /// Reads until `buffer` is full or there is nothing: poll does not tell of what is left in
    /// between.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut taken = self.take_partial(buffer);
        taken += self.take_ahead(&mut buffer[taken..]);
        let mut rounds_left = WEB_SOCKET_ROUNDS_MAX;
        let mut may_have_more = true;
        let is_enough = |stream: &Self, taken| {
            let is_whole = taken > 0 && stream.decoder.is_between_messages();
            stream.is_over() || (stream.reach == Reach::OneMessage && is_whole)
        };
        while taken < buffer.len() && may_have_more && rounds_left > 0 && !is_enough(self, taken) {
            let size;
            (size, may_have_more) = self.receive(&mut buffer[taken..]);
            taken += size;
            rounds_left -= 1;
        }
        if taken < buffer.len() && taken > 0 && !is_enough(self, taken) {
            // Without an end of it in sight, what there is of a message waits for the rest.
            if self.reach == Reach::OneMessage {
                self.partial = buffer[..taken].to_vec();
                taken = 0;
            }
        }
        match self.outcome() {
            _ if taken > 0 => Ok(taken),
            Some(Ok(())) => Ok(0),
            Some(Err(error)) => Err(error),
            // The flood may go on, but others must get their turn.
            None if may_have_more => Err(io::ErrorKind::Interrupted.into()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes data as one message; of a client at most as much as fits into its buffer.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.decoder.halt() == Some(Halt::Close) && !self.has_half_close() {
            // The other end hears no more, which is no fault: what is said to it is lost.
            return Ok(bytes.len());
        }
        if self.writing != Writing::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        self.silent_since = None;
        // A little leaves with what is on its way.
        if self.owed > 0 || self.filled + bytes.len() > WEB_SOCKET_JOIN_SIZE {
            self.send_pending()?;
        }
        if self.owed > 0 {
            return self.write_owed(bytes);
        }
        self.append_pong()?;
        match self.role {
            Role::Client => self.write_masked(bytes),
            Role::Server => self.write_plain(bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.writing == Writing::Open {
            if self.owed > 0 {
                let reason = "the stream ends within a frame";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            match self.ends {
                Ends::Each => {
                    self.append(Frame::Binary, &[], 0)?;
                    self.writing = Writing::Ended;
                    if self.decoder.halt() == Some(Halt::Empty) {
                        self.queue_close();
                    }
                }
                Ends::Both => self.queue_close(),
                Ends::BothLate => self.writing = Writing::Silent,
            }
        }
        self.flush()
    }

    fn abort(&mut self, deadline: Instant) {
        flush_until(self, deadline);
        // Nothing that looks like an end may follow.
        (self.writing, self.close) = (Writing::Ended, Close::Closed);
        (self.sent, self.filled, self.pong) = (0, 0, None);
        self.inner.abort(deadline);
    }

    fn check(&mut self) -> Condition {
        // A pong that could not leave before.
        let _ = self.flush();
        for _ in 0..WEB_SOCKET_ROUNDS_MAX {
            self.decode_ahead();
            if self.ahead_decoded > 0 {
                return Condition::Speaking;
            }
            if self.has_ahead() {
                continue;
            }
            if self.is_over() {
                return Condition::Ended;
            }
            match self.inner.check() {
                Condition::Silent => break,
                Condition::Ended => return Condition::Ended,
                Condition::Speaking => {}
            }
            let mut bytes = [0; WEB_SOCKET_CHECK_SIZE];
            match self.inner.read(&mut bytes) {
                Ok(0) => self.cut = Some(Cut::Ended),
                Ok(size) => {
                    self.ahead = bytes[..size].to_vec();
                    (self.ahead_start, self.ahead_decoded) = (0, 0);
                }
                Err(error) if is_passing(&error) => break,
                Err(error) => self.cut = Some(Cut::Broken(error)),
            }
        }
        self.rest();
        Condition::Silent
    }

    fn holds_bytes(&self) -> bool {
        self.has_ahead() || self.is_over() || self.fault.is_some() || self.inner.holds_bytes()
    }

    fn holds_unsent(&self) -> bool {
        if self.close == Close::Closed {
            return false;
        }
        self.sent < self.filled
            || matches!(self.close, Close::Closing { .. })
            || (self.pong.is_some() && self.owed == 0)
            || self.inner.holds_unsent()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.close == Close::Closed {
            return Ok(());
        }
        match self.send_all() {
            Err(error) if !is_passing(&error) && self.is_pending_in_vain() => {
                (self.sent, self.filled) = (0, 0);
                self.close = Close::Closed;
                Ok(())
            }
            result => result,
        }
    }

    fn keep_alive(&mut self) -> Option<Instant> {
        let silence_max = self.silence_max?;
        let frame = self.sign_of_life()?;
        let now = Instant::now();
        let due_at = *self.silent_since.get_or_insert(now) + silence_max;
        if now < due_at {
            return Some(due_at);
        }
        self.break_silence(frame);
        // Where it could not be broken there is no need to: something waits on its way.
        self.silent_since = Some(now);
        // A look for what is unread may have taken it from below.
        let is_ready = self.holds_bytes() || self.holds_unsent();
        Some(if is_ready { now } else { now + silence_max })
    }

    fn rest(&mut self) {
        self.inner.rest();
        if self.sent == self.filled {
            self.send = Vec::new();
            (self.sent, self.filled) = (0, 0);
        }
        if !self.has_ahead() {
            self.ahead = Vec::new();
            self.ahead_start = 0;
        }
    }

    fn keep_messages(&mut self) {
        self.reach = Reach::OneMessage;
    }

    /// A message was the end, and that of the connection may follow: a proxy in between makes a
    /// plain end of every reset, and poll tells of no such thing.
    fn has_left(&mut self) -> Option<bool> {
        if self.decoder.halt() != Some(Halt::Empty) || self.close != Close::Open {
            return None;
        }
        for _ in 0..WEB_SOCKET_ROUNDS_MAX {
            match self.inner.check() {
                Condition::Silent => break,
                Condition::Ended => return Some(true),
                Condition::Speaking => {}
            }
            // Whatever is said behind the end.
            match self.inner.read(&mut [0; WEB_SOCKET_CHECK_SIZE]) {
                Ok(0) => return Some(true),
                Err(error) if !is_passing(&error) => return Some(true),
                Ok(_) | Err(_) => {}
            }
        }
        Some(false)
    }

    fn has_half_close(&self) -> bool {
        self.ends == Ends::Each
    }
}

impl Drop for WebSocketStream {
    /// In v1 says goodbye, as far as that can be done at once. A native end is never said by
    /// accident.
    fn drop(&mut self) {
        let is_heard = self.cut.is_none() && !self.is_answering;
        if self.ends != Ends::Each && is_heard && self.owed == 0 {
            self.queue_close();
            // One that cannot take a word more is cut off by that.
            let _ = self.flush();
        }
    }
}

/// Returns the error of a stream that was cut.
fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the connection was closed without an end of the data: bytes may be missing",
    )
}

/// Returns an error that says the same.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
