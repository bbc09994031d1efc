//! Both directions between two streams, without the wait for them: what the relay of one thread
//! and the loop of many streams have in common.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::direction::{Broken, Direction, Gauges, NextMove, Side};
use super::{Ahead, CloseReason, Terms};
use crate::limits::{BLOCKED_FACTOR, HALF_OPEN_TIMEOUT, RESET_FLUSH_TIMEOUT};
use crate::net::stream::Stream;

/// How the two streams tell that they are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// For as long as they are.
    Level,
    /// Once, when they become so.
    Edge,
}

/// Both directions between the application side and the other side.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// From the application side to the other.
    onward: Direction<'a>,
    /// From the other side to the application.
    back: Direction<'a>,
    /// What was told about each end.
    application_life: Life,
    other_life: Life,
    /// When bytes were last moved, where that matters.
    moved_at: Option<Instant>,
    read_timeout: Option<Duration>,
    /// Since when one direction has ended and nothing has moved in the other, where the other side
    /// knows no end of one alone.
    half_open_since: Option<Instant>,
    /// The other side has ended, and may yet leave without a hang-up that poll would tell of.
    may_leave: bool,
    ending: Option<Ending>,
    /// Both streams have been told that an end is to come by `finish`.
    has_begun: bool,
}

/// One side broke; what it had sent before is delivered to the other one.
#[derive(Debug)]
struct Ending {
    reason: CloseReason,
    deadline: Instant,
}

/// When to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There is more to do now.
    AtOnce,
    /// When an end is ready, at the latest then.
    At(Instant),
    /// When an end is ready.
    WhenTold,
}

impl<'a> Exchange<'a> {
    /// Begins with the bytes of `ahead`.
    pub fn new(ahead: Ahead<'_>, readiness: Readiness, terms: &Terms<'a>) -> Self {
        let onward = Gauges {
            limit: terms.rates.map(|rates| &rates.received),
            received: Some(&terms.meter.received),
            sent: None,
        };
        let mut onward = Direction::new(terms.stock, readiness, onward);
        // While the target was dialled, most visitors have said something.
        onward.source_ready = true;
        onward.put_first(ahead.to_other);
        let back = Gauges {
            limit: terms.rates.map(|rates| &rates.sent),
            received: None,
            sent: Some(&terms.meter.sent),
        };
        let mut back = Direction::new(terms.stock, readiness, back);
        back.put_first(ahead.to_application);
        Self {
            onward,
            back,
            application_life: Life::Alive,
            other_life: Life::Alive,
            moved_at: terms.read_timeout.map(|_| Instant::now()),
            read_timeout: terms.read_timeout,
            half_open_since: None,
            may_leave: false,
            ending: None,
            has_begun: false,
        }
    }

    /// Moves what can be moved now, in a bounded number of rounds; returns why it is over, when it
    /// is. [`Exchange::close`] is to follow then.
    pub fn step(
        &mut self,
        application: &mut dyn Stream,
        other: &mut dyn Stream,
    ) -> Option<CloseReason> {
        if !std::mem::replace(&mut self.has_begun, true) {
            application.expect_finish();
            other.expect_finish();
        }
        if self.ending.is_none() {
            let reason = match self.pump(application, other) {
                None => return None,
                Some(CloseReason::ApplicationBroke(error)) => {
                    self.onward.cut();
                    CloseReason::ApplicationBroke(error)
                }
                Some(CloseReason::OtherBroke(error)) => {
                    self.back.cut();
                    CloseReason::OtherBroke(error)
                }
                Some(reason) => return Some(reason),
            };
            let deadline = Instant::now() + RESET_FLUSH_TIMEOUT;
            self.ending = Some(Ending { reason, deadline });
        }
        self.deliver_rest(application, other)
    }

    fn pump(
        &mut self,
        application: &mut dyn Stream,
        other: &mut dyn Stream,
    ) -> Option<CloseReason> {
        self.onward.source_ready |= application.holds_bytes();
        self.back.source_ready |= other.holds_bytes();
        if let Err(Broken { side, error }) = self.onward.pump(application, other) {
            return Some(match side {
                Side::Source => CloseReason::ApplicationBroke(error),
                Side::Target => CloseReason::OtherBroke(error),
            });
        }
        if let Err(Broken { side, error }) = self.back.pump(other, application) {
            return Some(match side {
                Side::Source => CloseReason::OtherBroke(error),
                Side::Target => CloseReason::ApplicationBroke(error),
            });
        }
        // A read of one direction may leave something to send in the stream it reads from.
        self.onward.note_unsent(other);
        // An end may have come with the bytes before it, and nothing else tells of it.
        self.onward.source_ready |= application.holds_bytes();
        self.back.source_ready |= other.holds_bytes();
        if self.onward.is_done() && self.back.is_done() {
            return Some(CloseReason::Finished);
        }
        self.may_leave = false;
        if self.back.is_done() {
            match other.has_left() {
                Some(true) => {
                    return Some(CloseReason::OtherBroke(
                        io::ErrorKind::ConnectionReset.into(),
                    ));
                }
                Some(false) => self.may_leave = true,
                None => {}
            }
        }
        let ends_as_one = !other.has_half_close();
        if ends_as_one && (self.onward.is_done() || self.back.is_done()) {
            self.half_open_since.get_or_insert_with(Instant::now);
        }
        if self.application_life.is_lost(&self.onward, &self.back) {
            return Some(CloseReason::ApplicationBroke(error_of(application)));
        }
        // One that has ended both directions may be gone: nothing was to be delivered any more.
        let has_ended_both = ends_as_one && !self.back.is_open();
        if !has_ended_both && self.other_life.is_lost(&self.back, &self.onward) {
            return Some(CloseReason::OtherBroke(error_of(other)));
        }
        None
    }

    /// Delivers what the broken side had sent before it broke, as far as that goes now.
    fn deliver_rest<'b>(
        &mut self,
        application: &'b mut (dyn Stream + 'b),
        other: &'b mut (dyn Stream + 'b),
    ) -> Option<CloseReason> {
        let ending = self.ending.take()?;
        let (direction, source, target) = match ending.reason {
            CloseReason::ApplicationBroke(_) => (&mut self.onward, application, other),
            _ => (&mut self.back, other, application),
        };
        // An error of either end says that nothing more can be done.
        let is_over = direction.pump(source, target).is_err()
            || direction.is_done()
            || Instant::now() >= ending.deadline
            // The source has nothing more.
            || (direction.next_move() == NextMove::WhenTold && !direction.wants_target());
        if is_over {
            return Some(ending.reason);
        }
        self.ending = Some(ending);
        None
    }

    /// Returns what each end should tell: first the application side, then the other.
    pub fn wants(&self) -> (PollFlags, PollFlags) {
        let wanted = |wants_source: bool, wants_target: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, wants_source);
            flags.set(PollFlags::OUT, wants_target);
            flags
        };
        match self.ending.as_ref().map(|ending| &ending.reason) {
            None => (
                wanted(self.onward.wants_source(), self.back.wants_target()),
                wanted(
                    self.back.wants_source() || self.may_leave,
                    self.onward.wants_target(),
                ),
            ),
            Some(CloseReason::ApplicationBroke(_)) => (
                PollFlags::empty(),
                wanted(false, self.onward.wants_target()),
            ),
            Some(_) => (wanted(false, self.back.wants_target()), PollFlags::empty()),
        }
    }

    /// Returns whether the application side and the other side may still tell something new. One
    /// of which nothing is wanted either is better not asked, for it would tell it over and over.
    pub fn are_alive(&self) -> (bool, bool) {
        (
            self.application_life == Life::Alive,
            self.other_life == Life::Alive,
        )
    }

    /// Notes what the application side has told.
    pub fn note_application(&mut self, got: PollFlags) {
        let life = note_events(got, &mut self.onward, &mut self.back);
        self.application_life = self.application_life.max(life);
    }

    /// Notes what the other side has told.
    pub fn note_other(&mut self, got: PollFlags) {
        let life = note_events(got, &mut self.back, &mut self.onward);
        self.other_life = self.other_life.max(life);
    }

    /// Notes that the other side takes nothing more, although it has ended its own direction in
    /// order: what it has said stands, and what is on its way to it is thrown away.
    pub fn decline(&mut self) {
        self.onward.give_up();
    }

    /// Returns whether one side broke and only the rest of what it sent is delivered.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Gives up the memory that is needed only while bytes flow. To be called before a sleep.
    pub fn rest(&mut self) {
        self.onward.rest();
        self.back.rest();
    }

    /// Returns when to go on.
    ///
    /// Errors: nothing has moved for too long.
    pub fn wake(&mut self) -> Result<Wake, CloseReason> {
        let has_moved = self.onward.take_has_moved() | self.back.take_has_moved();
        if let Some(ending) = &self.ending {
            let direction = match ending.reason {
                CloseReason::ApplicationBroke(_) => &self.onward,
                _ => &self.back,
            };
            return Ok(match direction.next_move() {
                NextMove::AtOnce => Wake::AtOnce,
                NextMove::At(turn_at) => Wake::At(turn_at.min(ending.deadline)),
                NextMove::WhenTold => Wake::At(ending.deadline),
            });
        }
        let moves = [self.onward.next_move(), self.back.next_move()];
        let idle_at = match (self.read_timeout, &mut self.moved_at) {
            (Some(timeout), Some(moved_at)) => {
                if has_moved {
                    *moved_at = Instant::now();
                }
                // What comes of the turn may be nothing: a word that only kept the stream alive.
                let is_queued = self.onward.awaits_turn() || self.back.awaits_turn();
                let is_blocked = self.onward.is_holding() || self.back.is_holding();
                let factor = if is_blocked { BLOCKED_FACTOR } else { 1 };
                (!is_queued).then_some(*moved_at + timeout * factor)
            }
            _ => None,
        };
        if moves.contains(&NextMove::AtOnce) {
            return Ok(Wake::AtOnce);
        }
        let turns = moves.into_iter().filter_map(|next| match next {
            NextMove::At(turn_at) => Some(turn_at),
            NextMove::AtOnce | NextMove::WhenTold => None,
        });
        let half_open_at = match &mut self.half_open_since {
            Some(since) => {
                // What is said to a side that has ended is no sign of life.
                let is_moving = has_moved || self.onward.awaits_turn() || self.back.awaits_turn();
                if is_moving && !self.back.is_done() {
                    *since = Instant::now();
                }
                (!self.back.is_holding()).then_some(*since + HALF_OPEN_TIMEOUT)
            }
            None => None,
        };
        let Some(next) = turns.chain(idle_at).chain(half_open_at).min() else {
            return Ok(Wake::WhenTold);
        };
        if half_open_at.is_some_and(|at| at <= Instant::now()) {
            return Err(CloseReason::Finished);
        }
        if idle_at.is_some_and(|at| at <= Instant::now()) {
            return Err(CloseReason::Idle);
        }
        Ok(Wake::At(next))
    }

    /// Ends both streams in the way that tells each side what happened.
    ///
    /// Blocks: where a side broke, until the other one has sent what it was given, at most for
    /// `RESET_FLUSH_TIMEOUT`.
    pub fn close(
        &self,
        application: &mut dyn Stream,
        other: &mut dyn Stream,
        reason: &CloseReason,
    ) {
        let deadline = Instant::now() + RESET_FLUSH_TIMEOUT;
        match reason {
            // One that was given no end sees an ordinary one when it is closed.
            CloseReason::Finished => {
                application.forgo_finish();
                other.forgo_finish();
            }
            // Who is owed nothing sees an ordinary end; who is owed something must not take what
            // he got for the whole.
            CloseReason::Idle => {
                end_idle(other, self.onward.is_holding());
                end_idle(application, self.back.is_holding());
            }
            CloseReason::Stopped => {
                application.abort(Instant::now());
                other.abort(Instant::now());
            }
            CloseReason::ApplicationBroke(_) => other.abort(deadline),
            CloseReason::OtherBroke(_) => application.abort(deadline),
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

/// What was told about the life of one end.
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

/// Tells both directions of an end what has been told of it: `from` reads from it, `to` writes to
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
