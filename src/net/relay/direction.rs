//! One direction of a relay: takes bytes from one end, holds what the other end does not take
//! yet, and passes the end of the stream on.

use std::io;
use std::time::Instant;

use rustix::pipe::SpliceFlags;

use super::exchange::Readiness;
use super::stock::{Buffer, PipeLoan, Stock};
use crate::limits::{RELAY_ROUNDS_MAX, SPLICE_STREAK, SPLICE_STREAK_MAX};
use crate::net::meter::Counter;
use crate::net::rate::{RateLimit, Turn};
use crate::net::stream::Stream;

/// Which end of a direction an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that bytes are read from.
    Source,
    /// The end that bytes are written to.
    Target,
}

/// One end is broken: reset, timed out, or gone.
#[derive(Debug)]
pub struct Broken {
    pub side: Side,
    pub error: io::Error,
}

/// When a direction can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextMove {
    AtOnce,
    /// Its turn has been booked.
    At(Instant),
    /// When poll says that an end is ready.
    WhenTold,
}

/// The end of a stream on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The source may have more.
    Open,
    /// The source has ended, which has yet to be passed on; nothing is held any more.
    Ending,
    /// The end has been passed on.
    Done,
}

/// Bytes on their way. Both kinds may be empty, kept for the next bytes of the same burst.
#[derive(Debug)]
enum Held<'a> {
    Nothing,
    Bytes {
        buffer: Buffer<'a>,
        start: usize,
        end: usize,
    },
    Pipe(PipeLoan<'a>),
}

/// What limits and counts the bytes of a direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges<'a> {
    /// Shared limit on bytes per second.
    pub limit: Option<&'a RateLimit>,
    /// Counts what is read.
    pub received: Option<&'a Counter>,
    /// Counts what is written.
    pub sent: Option<&'a Counter>,
}

/// The state of one direction.
#[derive(Debug)]
pub struct Direction<'a> {
    stock: &'a Stock,
    readiness: Readiness,
    gauges: Gauges<'a>,
    held: Held<'a>,
    phase: Phase,
    /// Whether a read may give something; false after one that did not.
    pub source_ready: bool,
    /// Whether poll has said so since the last read.
    is_announced: bool,
    /// Whether a write may take something; false after one that did not.
    pub target_ready: bool,
    /// How much of a bulk transfer this looks like: grows with reads that fill their buffer,
    /// shrinks with those that do not.
    streak: usize,
    /// The turn under `rate` that has been booked for the next read.
    turn: Option<Turn>,
    /// Whether bytes were read or written since this was last asked.
    has_moved: bool,
    /// The source is broken: what it still gives is delivered, its end is not passed on.
    is_cut: bool,
    /// Bytes in front that are not counted: those of [`Direction::put_first`].
    uncounted: usize,
    /// The target has taken bytes that have yet to leave it, as of [`Direction::note_unsent`].
    is_unsent: bool,
}

impl<'a> Direction<'a> {
    /// Makes a direction in which nothing has been read yet.
    pub fn new(stock: &'a Stock, readiness: Readiness, gauges: Gauges<'a>) -> Self {
        Self {
            stock,
            readiness,
            gauges,
            held: Held::Nothing,
            phase: Phase::Open,
            source_ready: false,
            is_announced: false,
            target_ready: true,
            streak: 0,
            turn: None,
            has_moved: false,
            is_cut: false,
            uncounted: 0,
            is_unsent: false,
        }
    }

    /// Puts bytes in front of all that will be read; they are not counted.
    ///
    /// `first` is not longer than a buffer and given before the first [`Direction::pump`].
    pub fn put_first(&mut self, first: &[u8]) {
        if first.is_empty() {
            return;
        }
        let mut buffer = self.stock.take_buffer();
        buffer.bytes[..first.len()].copy_from_slice(first);
        self.held = Held::Bytes {
            buffer,
            start: 0,
            end: first.len(),
        };
        self.uncounted = first.len();
    }

    /// Moves what can be moved now, in a bounded number of rounds.
    pub fn pump(&mut self, source: &mut dyn Stream, target: &mut dyn Stream) -> Result<(), Broken> {
        let result = self.pump_rounds(source, target);
        self.note_unsent(target);
        result
    }

    fn pump_rounds(
        &mut self,
        source: &mut dyn Stream,
        target: &mut dyn Stream,
    ) -> Result<(), Broken> {
        for _ in 0..RELAY_ROUNDS_MAX {
            self.note_unsent(target);
            if self.is_holding() {
                if !self.target_ready {
                    return Ok(());
                }
                let result = if self.is_unsent {
                    self.flush(target)
                } else {
                    self.write(target)
                };
                result.map_err(|error| Broken {
                    side: Side::Target,
                    error,
                })?;
                continue;
            }
            match self.phase {
                Phase::Open => {
                    let Some(size_max) = self.size_allowed() else {
                        return Ok(());
                    };
                    let is_plain = source.is_plain() && target.is_plain();
                    self.read(source, size_max, is_plain)
                        .map_err(|error| Broken {
                            side: Side::Source,
                            error,
                        })?;
                }
                Phase::Ending => match target.finish() {
                    Ok(()) => self.phase = Phase::Done,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.target_ready = false;
                        return Ok(());
                    }
                    Err(error) => {
                        return Err(Broken {
                            side: Side::Target,
                            error,
                        });
                    }
                },
                Phase::Done => return Ok(()),
            }
        }
        Ok(())
    }

    /// Returns how many bytes may be read now; `None` if there is nothing to read or it is not
    /// this direction's turn.
    fn size_allowed(&mut self) -> Option<usize> {
        if !self.source_ready {
            return None;
        }
        let Some(limit) = self.gauges.limit else {
            return Some(usize::MAX);
        };
        let now = Instant::now();
        let turn = *self.turn.get_or_insert_with(|| limit.book(now));
        (turn.at <= now).then_some(turn.size)
    }

    /// Reads once, into a pipe where that pays, else into a buffer.
    fn read(&mut self, source: &mut dyn Stream, size_max: usize, is_plain: bool) -> io::Result<()> {
        self.choose_carrier(is_plain);
        let is_announced = std::mem::take(&mut self.is_announced);
        let (result, capacity) = match &mut self.held {
            Held::Bytes { buffer, start, end } => {
                let capacity = buffer.bytes.len().min(size_max);
                let result = source.read(&mut buffer.bytes[..capacity]);
                (*start, *end) = (0, *result.as_ref().unwrap_or(&0));
                (result, capacity)
            }
            Held::Pipe(loan) => {
                let capacity = loan.pipe().size.min(size_max);
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let from = source.descriptor();
                let into = &loan.pipe().write_end;
                let result = rustix::pipe::splice(from, None, into, None, capacity, flags);
                loan.held = result.unwrap_or(0);
                (result.map_err(io::Error::from), capacity)
            }
            Held::Nothing => unreachable!("a carrier has just been chosen"),
        };
        self.settle_turn(*result.as_ref().unwrap_or(&0));
        match result {
            // At a byte of urgent data splice says the same as at the end: a read tells them apart.
            Ok(0) if matches!(self.held, Held::Pipe(_)) => self.streak = 0,
            Ok(0) if self.is_cut => self.phase = Phase::Done,
            Ok(0) => self.phase = Phase::Ending,
            Ok(size) => self.note_read(size, capacity),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.source_ready = false;
                    if is_announced && matches!(self.held, Held::Pipe(_)) {
                        // There is something that splice does not take: it stops for ever at a
                        // byte of urgent data, which a read passes over.
                        self.streak = 0;
                    }
                }
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
        Ok(())
    }

    /// Makes sure that there is something to carry the next bytes, of the kind that suits them.
    fn choose_carrier(&mut self, is_plain: bool) {
        let is_bulk = self.streak >= SPLICE_STREAK;
        match &self.held {
            Held::Bytes { .. } if !is_bulk => return,
            Held::Pipe(_) if is_bulk => return,
            _ => self.held = Held::Nothing,
        }
        let mut large = None;
        if is_bulk {
            if is_plain && let Some(loan) = self.stock.take_pipe() {
                self.held = Held::Pipe(loan);
                return;
            }
            large = self.stock.take_large_buffer();
        }
        let buffer = large.unwrap_or_else(|| self.stock.take_buffer());
        self.held = Held::Bytes {
            buffer,
            start: 0,
            end: 0,
        };
    }

    fn settle_turn(&mut self, size: usize) {
        if let (Some(limit), Some(turn)) = (self.gauges.limit, self.turn.take()) {
            limit.settle(turn, size);
        }
    }

    fn note_read(&mut self, size: usize, capacity: usize) {
        self.has_moved = true;
        if let Some(counter) = self.gauges.received {
            counter.add(size);
        }
        let is_full = match self.held {
            // A pipe is hardly ever filled; what a segment or two would bring is no bulk.
            Held::Pipe(_) => size >= capacity.min(SPLICE_STREAK / 64),
            _ => size == capacity,
        };
        if is_full {
            self.streak = (self.streak + size).min(SPLICE_STREAK_MAX);
        } else {
            self.streak /= 2;
            // Less than was asked for: the socket is empty, and poll will tell when it is not. An
            // end that has come with the bytes is told only once.
            self.source_ready = self.readiness == Readiness::Edge;
        }
    }

    /// Writes once.
    fn write(&mut self, target: &mut dyn Stream) -> io::Result<()> {
        let result = match &mut self.held {
            Held::Bytes { buffer, start, end } => target.write(&buffer.bytes[*start..*end]),
            Held::Pipe(loan) => {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let from = &loan.pipe().read_end;
                let into = target.descriptor();
                rustix::pipe::splice(from, None, into, None, loan.held, flags)
                    .map_err(io::Error::from)
            }
            Held::Nothing => return Ok(()),
        };
        match result {
            Ok(size) => {
                self.has_moved = true;
                match &mut self.held {
                    Held::Bytes { start, .. } => *start += size,
                    Held::Pipe(loan) => loan.held -= size,
                    Held::Nothing => {}
                }
                let uncounted = self.uncounted.min(size);
                self.uncounted -= uncounted;
                if let Some(counter) = self.gauges.sent {
                    counter.add(size - uncounted);
                }
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.target_ready = false;
                    Ok(())
                }
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Lets the target send what it has taken.
    fn flush(&mut self, target: &mut dyn Stream) -> io::Result<()> {
        // The target is believed to be writable, so some of it leaves, even if not all does.
        self.has_moved = true;
        match target.flush() {
            Ok(()) => Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.target_ready = false;
                    Ok(())
                }
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Notes whether the target holds bytes that have yet to leave it.
    ///
    /// A read of the other direction may change that: TLS answers some of what it reads.
    pub fn note_unsent(&mut self, target: &dyn Stream) {
        self.is_unsent = target.holds_unsent();
    }

    /// Notes that the source is broken: an end of stream that is yet to be read is none.
    pub fn cut(&mut self) {
        self.is_cut = true;
        self.source_ready = self.is_open();
        self.target_ready = true;
    }

    /// Carries nothing more, and passes no end on.
    pub fn give_up(&mut self) {
        self.held = Held::Nothing;
        self.phase = Phase::Done;
        self.source_ready = false;
        self.settle_turn(0);
    }

    /// Gives an empty buffer or pipe back, so that nobody holds one while he sleeps.
    pub fn rest(&mut self) {
        if !self.has_bytes() {
            self.held = Held::Nothing;
        }
    }

    /// Returns whether bytes wait for the target, here or inside it.
    pub fn is_holding(&self) -> bool {
        self.is_unsent || self.has_bytes()
    }

    fn has_bytes(&self) -> bool {
        match &self.held {
            Held::Nothing => false,
            Held::Bytes { start, end, .. } => start < end,
            Held::Pipe(loan) => loan.held > 0,
        }
    }

    /// Returns whether the source may have more.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Returns whether there is nothing left to pass on.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done && !self.is_unsent
    }

    /// Returns whether the source's next bytes are worth a wake-up.
    pub fn wants_source(&self) -> bool {
        self.phase == Phase::Open && !self.source_ready && !self.is_holding()
    }

    /// Returns whether the target's readiness is worth a wake-up.
    pub fn wants_target(&self) -> bool {
        !self.target_ready && (self.is_holding() || self.phase == Phase::Ending)
    }

    /// Returns when there is something to do that no descriptor will tell.
    pub fn next_move(&self) -> NextMove {
        let can_go_on = match self.phase {
            _ if self.is_holding() => self.target_ready,
            Phase::Ending => self.target_ready,
            Phase::Open => match self.turn {
                Some(turn) if self.source_ready => return NextMove::At(turn.at),
                _ => self.source_ready,
            },
            Phase::Done => false,
        };
        if can_go_on {
            NextMove::AtOnce
        } else {
            NextMove::WhenTold
        }
    }

    /// Returns whether bytes were read or written since the last call.
    pub fn take_has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Returns whether bytes might have been read, had it been this direction's turn.
    pub fn awaits_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// Notes that poll has announced bytes, or the end, of the source.
    pub fn announce_source(&mut self) {
        self.source_ready |= self.is_open();
        self.is_announced = self.source_ready;
    }
}

impl Drop for Direction<'_> {
    fn drop(&mut self) {
        self.settle_turn(0);
    }
}
