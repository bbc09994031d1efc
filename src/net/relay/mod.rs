//! Carries bytes both ways between two streams, on the calling thread.
//!
//! Two directions, each of them open, ending or done, and one poll for both descriptors. Short
//! exchanges go through a small buffer; a direction that carries bulk between two plain sockets
//! goes through a pipe inside the kernel. Neither is held while the thread sleeps with nothing
//! on its way.
//!
//! ```text
//!  application ──read──▶ held ──write──▶ other      end of stream, then done
//!  application ◀──write── held ◀──read── other
//! ```
//!
//! The end of a stream one way is passed on that way and the other way lives. An error on one
//! end cuts the other one short, after all that was read before it has been delivered.

mod direction;
mod stock;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use self::direction::{Broken, Direction, Gauges, NextMove, Side};
pub use self::stock::Stock;
use super::meter::Meter;
use super::rate::RateLimit;
use super::stream::Stream;
use crate::limits::{BLOCKED_FACTOR, RESET_FLUSH_TIMEOUT};
use crate::runtime::event::{Event, timespec};

/// The limits of option `rate`, one for each direction.
#[derive(Debug)]
pub struct Rates {
    /// From the application side to the other.
    pub received: RateLimit,
    /// From the other side to the application.
    pub sent: RateLimit,
}

impl Rates {
    /// Makes both limits, of `megabits` per second each.
    pub fn new(megabits: u64) -> Self {
        let now = Instant::now();
        Self {
            received: RateLimit::new(megabits, now),
            sent: RateLimit::new(megabits, now),
        }
    }
}

/// Under which conditions bytes are carried.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Where buffers and pipes come from.
    pub stock: &'a Stock,
    /// Counts what the application side sends and gets.
    pub meter: &'a Meter,
    /// Limits both directions.
    pub rates: Option<&'a Rates>,
    /// The relay ends when nothing was moved either way for this long.
    pub read_timeout: Option<Duration>,
    /// The relay ends when this is raised.
    pub stop: &'a Event,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum CloseReason {
    /// Both directions came to their end.
    Finished,
    /// Nothing was moved for the time of option `read`.
    Idle,
    /// The application side broke.
    ApplicationBroke(io::Error),
    /// The other side broke.
    OtherBroke(io::Error),
    /// The program stops.
    Stopped,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("both sides ended"),
            Self::Idle => f.write_str("idle"),
            Self::ApplicationBroke(error) => write!(f, "application side broke: {error}"),
            Self::OtherBroke(error) => write!(f, "other side broke: {error}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Bytes that go ahead of everything that is read from now on, such as the header of a PROXY
/// protocol and what was read to judge it.
///
/// Each part is at most `TCP_BUFFER_SIZE_MIN` bytes long. Neither is counted: only the caller
/// knows what a visitor has said of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead<'a> {
    /// From the application side to the other.
    pub to_other: &'a [u8],
    /// From the other side to the application.
    pub to_application: &'a [u8],
}

/// Carries bytes between `application` and `other` until both directions have ended; those of
/// `ahead` come first.
///
/// Blocks: until then, or until one side breaks, both are idle, or the program stops.
pub fn relay(
    application: &mut dyn Stream,
    other: &mut dyn Stream,
    ahead: Ahead<'_>,
    terms: Terms<'_>,
) -> CloseReason {
    let mut relay = Relay::new(application, other, terms);
    relay.onward.put_first(ahead.to_other);
    relay.back.put_first(ahead.to_application);
    let reason = relay.run();
    relay.close(&reason);
    reason
}

struct Relay<'a> {
    application: &'a mut dyn Stream,
    other: &'a mut dyn Stream,
    /// From the application side to the other.
    onward: Direction<'a>,
    /// From the other side to the application.
    back: Direction<'a>,
    /// What poll has told about each end.
    application_life: Life,
    other_life: Life,
    /// When bytes were last moved, where that matters.
    moved_at: Option<Instant>,
    terms: Terms<'a>,
}

impl<'a> Relay<'a> {
    fn new(application: &'a mut dyn Stream, other: &'a mut dyn Stream, terms: Terms<'a>) -> Self {
        let onward = Gauges {
            limit: terms.rates.map(|rates| &rates.received),
            received: Some(&terms.meter.received),
            sent: None,
        };
        let mut onward = Direction::new(terms.stock, onward);
        // While the target was dialled, most visitors have said something.
        onward.source_ready = true;
        let back = Gauges {
            limit: terms.rates.map(|rates| &rates.sent),
            received: None,
            sent: Some(&terms.meter.sent),
        };
        Self {
            application,
            other,
            onward,
            back: Direction::new(terms.stock, back),
            application_life: Life::Alive,
            other_life: Life::Alive,
            moved_at: terms.read_timeout.map(|_| Instant::now()),
            terms,
        }
    }

    fn run(&mut self) -> CloseReason {
        loop {
            self.onward.source_ready |= self.application.holds_bytes();
            self.back.source_ready |= self.other.holds_bytes();
            if let Err(Broken { side, error }) = self.onward.pump(self.application, self.other) {
                return match side {
                    Side::Source => CloseReason::ApplicationBroke(error),
                    Side::Target => CloseReason::OtherBroke(error),
                };
            }
            if let Err(Broken { side, error }) = self.back.pump(self.other, self.application) {
                return match side {
                    Side::Source => CloseReason::OtherBroke(error),
                    Side::Target => CloseReason::ApplicationBroke(error),
                };
            }
            // A read of one direction may leave something to send in the stream it reads from.
            self.onward.note_unsent(self.other);
            if self.onward.is_done() && self.back.is_done() {
                return CloseReason::Finished;
            }
            if self.application_life.is_lost(&self.onward, &self.back) {
                return CloseReason::ApplicationBroke(error_of(self.application));
            }
            if self.other_life.is_lost(&self.back, &self.onward) {
                return CloseReason::OtherBroke(error_of(self.other));
            }
            if let Some(reason) = self.wait() {
                return reason;
            }
        }
    }

    /// Sleeps until there is something to do; returns a reason to end, if there is one.
    fn wait(&mut self) -> Option<CloseReason> {
        self.onward.rest();
        self.back.rest();
        let timeout = match self.time_left() {
            Ok(timeout) => timeout,
            Err(reason) => return Some(reason),
        };
        if timeout != Some(Duration::ZERO) {
            self.application.rest();
            self.other.rest();
        }
        let timeout = timeout.map(timespec);
        let wanted = |wants_source: bool, wants_target: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, wants_source);
            flags.set(PollFlags::OUT, wants_target);
            flags
        };
        let of_application = wanted(self.onward.wants_source(), self.back.wants_target());
        let of_other = wanted(self.back.wants_source(), self.onward.wants_target());
        let (application_got, other_got, is_stopped) = {
            let (application, other) = (self.application.descriptor(), self.other.descriptor());
            // The poll set has room for both ends; one that has hung up gives its place to the
            // stop event, which may be in it more than once.
            let stop = PollFd::new(self.terms.stop, PollFlags::IN);
            let mut set = [
                if self.application_life != Life::Alive && of_application.is_empty() {
                    stop.clone()
                } else {
                    PollFd::from_borrowed_fd(application, of_application)
                },
                if self.other_life != Life::Alive && of_other.is_empty() {
                    stop.clone()
                } else {
                    PollFd::from_borrowed_fd(other, of_other)
                },
                stop,
            ];
            match rustix::event::poll(&mut set, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return None,
                Err(error) => return Some(CloseReason::OtherBroke(error.into())),
            }
            (
                set[0].revents(),
                set[1].revents(),
                !set[2].revents().is_empty(),
            )
        };
        if is_stopped {
            return Some(CloseReason::Stopped);
        }
        let application = note_events(application_got, &mut self.onward, &mut self.back);
        let other = note_events(other_got, &mut self.back, &mut self.onward);
        self.application_life = self.application_life.max(application);
        self.other_life = self.other_life.max(other);
        None
    }

    /// Returns how long poll may sleep, or that nothing has moved for too long.
    fn time_left(&mut self) -> Result<Option<Duration>, CloseReason> {
        let has_moved = self.onward.take_has_moved() | self.back.take_has_moved();
        let moves = [self.onward.next_move(), self.back.next_move()];
        let idle_at = match (self.terms.read_timeout, &mut self.moved_at) {
            (Some(timeout), Some(moved_at)) => {
                if has_moved {
                    *moved_at = Instant::now();
                }
                let is_blocked = self.onward.is_holding() || self.back.is_holding();
                let factor = if is_blocked { BLOCKED_FACTOR } else { 1 };
                Some(*moved_at + timeout * factor)
            }
            _ => None,
        };
        if moves.contains(&NextMove::AtOnce) {
            return Ok(Some(Duration::ZERO));
        }
        let turns = moves.into_iter().filter_map(|next| match next {
            NextMove::At(turn_at) => Some(turn_at),
            NextMove::AtOnce | NextMove::WhenTold => None,
        });
        let Some(next) = turns.chain(idle_at).min() else {
            return Ok(None);
        };
        let now = Instant::now();
        if idle_at.is_some_and(|at| at <= now) {
            return Err(CloseReason::Idle);
        }
        Ok(Some(next.saturating_duration_since(now)))
    }

    /// Ends both streams in the way that tells each side what happened.
    fn close(&mut self, reason: &CloseReason) {
        let deadline = Instant::now() + RESET_FLUSH_TIMEOUT;
        match reason {
            CloseReason::Finished => {}
            // Who is owed nothing sees an ordinary end; who is owed something must not take what
            // he got for the whole.
            CloseReason::Idle => {
                end_idle(self.other, self.onward.is_holding());
                end_idle(self.application, self.back.is_holding());
            }
            CloseReason::Stopped => {
                self.application.abort(Instant::now());
                self.other.abort(Instant::now());
            }
            CloseReason::ApplicationBroke(_) => {
                deliver_rest(&mut self.onward, self.application, self.other, deadline);
                self.other.abort(deadline);
            }
            CloseReason::OtherBroke(_) => {
                deliver_rest(&mut self.back, self.other, self.application, deadline);
                self.application.abort(deadline);
            }
        }
    }
}

/// Ends a stream on which nothing has moved for too long.
fn end_idle(stream: &mut dyn Stream, is_owed_bytes: bool) {
    if is_owed_bytes {
        stream.abort(Instant::now());
    } else {
        // It is closed right after; one that cannot take a word more is cut off by that.
        let _ = stream.finish();
    }
}

/// What poll has told about the life of one end. One that is not alive leaves the poll set when
/// nothing more is wanted of it, for poll would report the same over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Alive,
    /// Nothing more comes from there, or only what can be read without a wake-up.
    HungUp,
    /// It is reset.
    Broken,
}

impl Life {
    /// Returns whether an end is of no more use: all that it had sent has been read, `from` it, and
    /// bytes that are still to come cannot be delivered `to` it.
    fn is_lost(self, from: &Direction<'_>, to: &Direction<'_>) -> bool {
        self == Self::Broken && !from.is_open() && !to.is_done()
    }
}

/// Tells both directions of an end what poll has seen there: `from` reads from it, `to` writes to
/// it.
fn note_events(got: PollFlags, from: &mut Direction<'_>, to: &mut Direction<'_>) -> Life {
    let is_broken = got.intersects(PollFlags::ERR | PollFlags::NVAL);
    let hung_up = is_broken || got.contains(PollFlags::HUP);
    if hung_up || got.contains(PollFlags::IN) {
        // Reading comes first: bytes that arrived before a reset are still there, and the read
        // after them brings the error.
        from.announce_source();
    }
    if hung_up || got.contains(PollFlags::OUT) {
        to.target_ready = true;
    }
    if is_broken {
        Life::Broken
    } else if hung_up {
        Life::HungUp
    } else {
        Life::Alive
    }
}

/// Returns what broke a stream.
fn error_of(stream: &dyn Stream) -> io::Error {
    let error = socket2::SockRef::from(&stream.descriptor()).take_error();
    error
        .ok()
        .flatten()
        .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// Delivers what a broken source had sent before it broke, until `deadline`.
fn deliver_rest(
    direction: &mut Direction<'_>,
    source: &mut dyn Stream,
    target: &mut dyn Stream,
    deadline: Instant,
) {
    direction.cut();
    // An error of either end says that nothing more can be done.
    while direction.pump(source, target).is_ok() && !direction.is_done() {
        let now = Instant::now();
        let is_blocked = direction.wants_target();
        let wake_at = match direction.next_move() {
            NextMove::AtOnce => now,
            NextMove::At(turn_at) => turn_at.min(deadline),
            NextMove::WhenTold if is_blocked => deadline,
            // The source has nothing more.
            NextMove::WhenTold => return,
        };
        if now >= deadline {
            return;
        }
        let timeout = timespec(wake_at.saturating_duration_since(now));
        let mut set = [PollFd::from_borrowed_fd(
            target.descriptor(),
            PollFlags::OUT,
        )];
        let watched = if is_blocked { &mut set[..] } else { &mut [] };
        if rustix::event::poll(watched, Some(&timeout)).is_ok_and(|count| count > 0) {
            direction.target_ready = true;
        }
    }
}
