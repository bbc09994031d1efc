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
mod exchange;
mod stock;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

pub use self::exchange::{Exchange, Readiness, Wake};
pub use self::stock::Stock;
use super::meter::Meter;
use super::rate::RateLimit;
use super::stream::Stream;
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
    let mut exchange = Exchange::new(ahead, Readiness::Level, &terms);
    let reason = loop {
        if let Some(reason) = exchange.step(application, other) {
            break reason;
        }
        if let Err(reason) = wait(&mut exchange, application, other, terms.stop) {
            break reason;
        }
    };
    exchange.close(application, other, &reason);
    reason
}

/// Keeps both ends alive before a sleep until `wake_at`; returns until when to sleep then.
fn keep_alive(
    exchange: &Exchange<'_>,
    application: &mut dyn Stream,
    other: &mut dyn Stream,
    wake_at: Option<Instant>,
) -> Option<Instant> {
    // The rest of what a broken side sent has little time.
    if exchange.is_ending() {
        return wake_at;
    }
    let (of_application, of_other) = exchange.wants();
    let ends: [(&mut dyn Stream, PollFlags); 2] =
        [(application, of_application), (other, of_other)];
    // What an end says may be more than is taken from it now: then it is not silent.
    let due_at = ends.map(|(end, wanted)| {
        let is_heard = wanted.contains(PollFlags::IN);
        is_heard.then(|| end.keep_alive()).flatten()
    });
    due_at.into_iter().chain([wake_at]).flatten().min()
}

/// Sleeps until there is something to do.
///
/// Errors: a reason to end.
fn wait(
    exchange: &mut Exchange<'_>,
    application: &mut dyn Stream,
    other: &mut dyn Stream,
    stop: &Event,
) -> Result<(), CloseReason> {
    exchange.rest();
    let left_until = |at: Instant| at.saturating_duration_since(Instant::now());
    let timeout = match exchange.wake()? {
        Wake::AtOnce => Some(Duration::ZERO),
        Wake::At(at) => keep_alive(exchange, application, other, Some(at)).map(left_until),
        Wake::WhenTold => keep_alive(exchange, application, other, None).map(left_until),
    };
    if timeout != Some(Duration::ZERO) {
        application.rest();
        other.rest();
    }
    let timeout = timeout.map(timespec);
    let (of_application, of_other) = exchange.wants();
    let (is_application_alive, is_other_alive) = exchange.are_alive();
    let (application_got, other_got, is_stopped) = {
        // The poll set has room for both ends; one that has hung up gives its place to the stop
        // event, which may be in it more than once.
        let stop = PollFd::new(stop, PollFlags::IN);
        let mut set = [
            if !is_application_alive && of_application.is_empty() {
                stop.clone()
            } else {
                PollFd::from_borrowed_fd(application.descriptor(), of_application)
            },
            if !is_other_alive && of_other.is_empty() {
                stop.clone()
            } else {
                PollFd::from_borrowed_fd(other.descriptor(), of_other)
            },
            stop,
        ];
        // The rest of what a broken side sent is delivered even while the program stops.
        let watched = match exchange.is_ending() {
            false => &mut set[..],
            true if !of_application.is_empty() => &mut set[..1],
            true if !of_other.is_empty() => &mut set[1..2],
            true => &mut [],
        };
        match rustix::event::poll(watched, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(CloseReason::OtherBroke(error.into())),
        }
        let got = set.map(|entry| entry.revents());
        (got[0], got[1], !got[2].is_empty())
    };
    if is_stopped {
        return Err(CloseReason::Stopped);
    }
    exchange.note_application(application_got);
    exchange.note_other(other_got);
    Ok(())
}
