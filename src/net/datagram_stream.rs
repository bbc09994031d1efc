//! Datagrams over a byte stream, without waiting and without memory while nothing is on its way.
//!
//! What is put in is collected and leaves with few writes. What a slow stream does not take waits
//! in bounds; beyond them datagrams are lost as a whole, as in a network that is busy.
//!
//! Source: wire protocol, sections 7 and 8, "UDP".

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::stream::BoxedStream;
use crate::limits::{DATAGRAM_BACKLOG_SIZE_MAX, DATAGRAM_BACKLOG_TOTAL_MAX, DATAGRAM_WRITE_SIZE};
use crate::wire::datagram::{DatagramDecoder, FRAMED_SIZE_MAX, Framed, LENGTH_SIZE, encode_length};

/// How a stream tells one datagram from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Not at all (v1): each datagram is one write, and each read is one datagram.
    Raw,
    /// By the length in front of each one (native).
    Framed,
}

/// What became of a datagram that was put into a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It leaves, or waits.
    Taken,
    /// Lost: the stream is too slow.
    Full,
    /// Lost: it is larger than what is passed on.
    TooLarge,
    /// Lost: a raw stream cannot tell of an empty one.
    Empty,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    More,
    /// The descriptor tells of more.
    Drained,
    /// The stream has ended.
    Ended,
}

/// The bytes that wait for all the streams of a loop.
#[derive(Debug, Default)]
pub struct Backlog {
    size: AtomicUsize,
}

/// A byte stream that carries datagrams.
pub struct DatagramStream {
    stream: BoxedStream,
    framing: Framing,
    size_max: usize,
    decoder: DatagramDecoder,
    /// What has been put in and not been written, from `written` on. Empty and without memory
    /// when nothing waits.
    pending: Vec<u8>,
    written: usize,
    /// With [`Framing::Raw`] the sizes of the datagrams that wait, of the first one what is left.
    sizes: VecDeque<usize>,
    /// The stream took no more: nothing is tried until it is writable.
    is_blocked: bool,
    backlog: Arc<Backlog>,
}

impl DatagramStream {
    /// Takes over a stream for datagrams of up to `size_max` bytes. What waits is counted in
    /// `backlog`.
    pub fn new(
        mut stream: BoxedStream,
        framing: Framing,
        size_max: usize,
        backlog: &Arc<Backlog>,
    ) -> Self {
        if framing == Framing::Raw {
            stream.keep_messages();
        }
        Self {
            stream,
            framing,
            size_max: size_max.min(FRAMED_SIZE_MAX),
            decoder: DatagramDecoder::new(size_max),
            pending: Vec::new(),
            written: 0,
            sizes: VecDeque::new(),
            is_blocked: false,
            backlog: Arc::clone(backlog),
        }
    }

    /// Returns the descriptor to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.descriptor()
    }

    /// Returns whether the descriptor should be watched for room to write.
    pub fn wants_write(&self) -> bool {
        self.is_blocked
    }

    /// Returns whether there may be datagrams that the descriptor does not announce.
    pub fn holds_bytes(&self) -> bool {
        self.stream.holds_bytes()
    }

    /// Puts a datagram in. It leaves at once, or with the next [`DatagramStream::push_out`].
    ///
    /// Errors: the stream is broken.
    pub fn put(&mut self, datagram: &[u8]) -> io::Result<Put> {
        if datagram.len() > self.size_max {
            return Ok(Put::TooLarge);
        }
        match self.framing {
            Framing::Raw if datagram.is_empty() => Ok(Put::Empty),
            Framing::Raw => {
                if !self.has_room(datagram.len()) {
                    return Ok(Put::Full);
                }
                self.append(&[datagram]);
                self.sizes.push_back(datagram.len());
                // Later it might leave in one write with the next one.
                self.push_out()?;
                Ok(Put::Taken)
            }
            Framing::Framed => {
                let Some(length) = encode_length(datagram) else {
                    return Ok(Put::TooLarge);
                };
                if self.unsent_size() + datagram.len() > DATAGRAM_WRITE_SIZE {
                    self.push_out()?;
                }
                if !self.has_room(LENGTH_SIZE + datagram.len()) {
                    return Ok(Put::Full);
                }
                self.append(&[&length, datagram]);
                Ok(Put::Taken)
            }
        }
    }

    /// Writes what waits, as far as the stream takes it; nothing while it is known to take
    /// nothing.
    ///
    /// Errors: the stream is broken.
    pub fn push_out(&mut self) -> io::Result<()> {
        while !self.is_blocked && (self.stream.holds_unsent() || self.unsent_size() > 0) {
            let result = if self.stream.holds_unsent() {
                self.stream.flush()
            } else {
                self.write_once()
            };
            match result.map_err(|error| (error.kind(), error)) {
                Err((io::ErrorKind::WouldBlock, _)) => self.is_blocked = true,
                Ok(()) | Err((io::ErrorKind::Interrupted, _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
        if self.unsent_size() == 0 {
            self.pending = Vec::new();
            self.written = 0;
        }
        Ok(())
    }

    /// Goes on writing: the descriptor has told of room.
    ///
    /// Errors: the stream is broken.
    pub fn resume(&mut self) -> io::Result<()> {
        self.is_blocked = false;
        self.push_out()
    }

    /// Reads once, into `buffer`, and calls `each` for every datagram that is whole now, and for
    /// every one that was too large and has been stepped over.
    ///
    /// `buffer` is lent for this call; with [`Framing::Raw`] it must have room for the largest
    /// datagram.
    ///
    /// Errors: the stream is broken, or it ended within a datagram.
    pub fn receive(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(Framed<'_>),
    ) -> io::Result<Progress> {
        let room = match self.framing {
            Framing::Raw => buffer.len().min(self.size_max),
            Framing::Framed => buffer.len(),
        };
        let size = match self.stream.read(&mut buffer[..room]) {
            Ok(0) if self.decoder.is_at_boundary() => return Ok(Progress::Ended),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Progress::More),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Progress::Drained);
            }
            Err(error) => return Err(error),
        };
        match self.framing {
            Framing::Raw => each(Framed::Datagram(&buffer[..size])),
            Framing::Framed => {
                let mut input = &buffer[..size];
                while let Some(framed) = self.decoder.decode(&mut input) {
                    each(framed);
                }
            }
        }
        // A read may have made the stream write something of its own.
        if self.stream.holds_unsent() {
            self.push_out()?;
        }
        let is_more = size == room || self.stream.holds_bytes();
        Ok(if is_more {
            Progress::More
        } else {
            Progress::Drained
        })
    }

    /// Breaks a silence that has become too long for those in between. What has yet to leave then
    /// leaves with [`DatagramStream::push_out`].
    pub fn keep_alive(&mut self) {
        // What waits breaks it when it can leave.
        if !self.is_blocked && self.unsent_size() == 0 {
            self.stream.keep_alive();
        }
    }

    /// Gives up memory that is needed only while datagrams flow.
    pub fn rest(&mut self) {
        self.stream.rest();
    }

    fn unsent_size(&self) -> usize {
        self.pending.len() - self.written
    }

    fn has_room(&self, size: usize) -> bool {
        self.unsent_size() + size <= DATAGRAM_BACKLOG_SIZE_MAX
            && self.backlog.size.load(Ordering::Relaxed) + size <= DATAGRAM_BACKLOG_TOTAL_MAX
    }

    fn append(&mut self, parts: &[&[u8]]) {
        // Moving no more than what has left before keeps the cost of moving in proportion.
        if self.written > self.unsent_size() {
            self.pending.drain(..self.written);
            self.written = 0;
        }
        for part in parts {
            self.pending.extend_from_slice(part);
            self.backlog.size.fetch_add(part.len(), Ordering::Relaxed);
        }
    }

    /// Writes what waits; with [`Framing::Raw`] one datagram of it.
    fn write_once(&mut self) -> io::Result<()> {
        let unsent = &self.pending[self.written..];
        let size = self.sizes.front().copied().unwrap_or(unsent.len());
        let taken = self.stream.write(&unsent[..size])?;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += taken;
        self.backlog.size.fetch_sub(taken, Ordering::Relaxed);
        if let Some(first) = self.sizes.front_mut() {
            *first -= taken;
            if *first == 0 {
                self.sizes.pop_front();
            }
        }
        Ok(())
    }
}

impl Drop for DatagramStream {
    fn drop(&mut self) {
        let size = self.unsent_size();
        self.backlog.size.fetch_sub(size, Ordering::Relaxed);
        // The stream is closed next: this only lets the other side see an end and no fault.
        let _ = self.stream.finish();
    }
}

#[cfg(test)]
mod tests;
