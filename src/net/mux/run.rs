//! The sleep of a thread that has one connection of many streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use rustix::event::{PollFd, PollFlags};

use super::line::{Line, LineNumber, NO_LINE, Shared, parse_token, token};
use super::{MuxHandle, Porter, Transport};
use crate::limits::{MUX_EVENTS_MAX, MUX_FAREWELL_TIMEOUT};
use crate::net::meter::Meter;
use crate::net::relay::Terms;
use crate::runtime::event::timespec;
use crate::runtime::threads::Crew;

// What the thread itself watches.
const TRANSPORT: u64 = 0;
const STOP: u64 = 1;

/// The only line of such a thread.
const LINE: LineNumber = 1;

/// A transport that is about to get a thread.
pub struct Mux<T> {
    pub(super) transport: T,
    pub(super) handle: MuxHandle,
    /// For streams that the peer opens.
    pub(super) porter: Option<Box<dyn Porter>>,
    /// Without a session by then it ends.
    pub(super) expected_until: Instant,
}

impl<T: Transport> Mux<T> {
    /// Makes a loop for `transport`, which ends at `expected_until` unless it has been told by
    /// then which event ends it.
    ///
    /// Errors: no descriptor left.
    pub fn new(
        transport: T,
        porter: Option<Box<dyn Porter>>,
        expected_until: Instant,
    ) -> io::Result<Self> {
        Ok(Self {
            transport,
            handle: MuxHandle::new()?,
            porter,
            expected_until,
        })
    }

    /// Returns what other threads ask things of.
    pub fn handle(&self) -> MuxHandle {
        self.handle.clone()
    }

    /// Carries streams until the end; the body of the thread `mux`.
    ///
    /// Blocks: until the transport is over, the event raised that was set by
    /// [`MuxHandle::end_with`], or no stream left after [`MuxHandle::retire`]. `terms` are those of
    /// visitors; `crew` takes what may wait.
    pub fn run(self, terms: &Terms<'_>, crew: &Crew) {
        let handle = self.handle.clone();
        if let Err(error) = self.try_run(terms, crew) {
            handle.refuse_all();
            log::error!("A connection of many streams ended: {error}");
        }
    }

    fn try_run(self, terms: &Terms<'_>, crew: &Crew) -> io::Result<()> {
        let silent = Meter::default();
        let of_bridges = terms_of_bridges(terms, &silent);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let shared = Shared {
            epoll: &epoll,
            terms,
            of_bridges: &of_bridges,
            crew,
        };
        let members = [
            (self.transport.descriptor(), TRANSPORT),
            (terms.stop.as_fd(), STOP),
        ];
        for (descriptor, what) in members {
            epoll::add(&epoll, descriptor, token(NO_LINE, what), EventFlags::IN)?;
        }
        let mut line = Line::new(shared, LINE, self)?;
        let result = carry(&epoll, &mut line, terms);
        if let Err(error) = &result {
            line.break_off(error);
        }
        if let Some(transport) = line.end() {
            take_leave(transport, Instant::now() + MUX_FAREWELL_TIMEOUT);
        }
        Ok(())
    }
}

/// Returns the terms for one end of a socket pair: whoever has the other end counts and limits.
pub(in crate::net) fn terms_of_bridges<'a>(terms: &Terms<'a>, silent: &'a Meter) -> Terms<'a> {
    Terms {
        meter: silent,
        rates: None,
        read_timeout: None,
        ..*terms
    }
}

/// Carries the streams of a line until its end.
///
/// Errors: the epoll fails.
fn carry<T: Transport>(
    epoll: &OwnedFd,
    line: &mut Line<'_, T>,
    terms: &Terms<'_>,
) -> io::Result<()> {
    let mut events = Vec::with_capacity(MUX_EVENTS_MAX);
    // Whoever had the transport before may have left something.
    let mut has_more = true;
    let (mut is_watched, mut watches_room) = (true, false);
    while !line.is_done() {
        let wake_at = match has_more {
            true => Some(Instant::now()),
            false => line.wake_at(Instant::now()),
        };
        sleep(epoll, &mut events, wake_at, || line.rest())?;
        let mut is_readable = std::mem::take(&mut has_more);
        for event in &events {
            let flags = event.flags;
            match parse_token(event.data) {
                // Room to write is used below, whoever told of it.
                (NO_LINE, TRANSPORT) => is_readable |= flags.intersects(!EventFlags::OUT),
                (NO_LINE, _) => {
                    line.call_off();
                    // Once it is known there is nothing more to tell.
                    let _ = epoll::delete(epoll, terms.stop);
                }
                (_, what) => line.note(what, flags),
            }
        }
        let now = Instant::now();
        if is_readable {
            has_more = line.receive(|transport| transport.receive(now));
        }
        line.take_turns(now);
        if line.is_broken() && is_watched {
            is_watched = false;
            // It can only fail for one that is not a member.
            let _ = epoll::delete(epoll, line.transport().descriptor());
        }
        if is_watched && line.transport().holds_unsent() != watches_room {
            watches_room = !watches_room;
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, watches_room);
            let descriptor = line.transport().descriptor();
            epoll::modify(epoll, descriptor, token(NO_LINE, TRANSPORT), flags)?;
        }
    }
    Ok(())
}

/// Sleeps until something is told or it is `wake_at`; `rest` is called before a sleep.
///
/// Errors: the epoll fails.
pub(in crate::net) fn sleep(
    epoll: &OwnedFd,
    events: &mut Vec<epoll::Event>,
    wake_at: Option<Instant>,
    rest: impl FnOnce(),
) -> io::Result<()> {
    events.clear();
    let timeout = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
    if timeout != Some(Duration::ZERO) {
        rest();
    }
    let into = rustix::buffer::spare_capacity(events);
    match epoll::wait(epoll, into, timeout.map(timespec).as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sends the last bytes, and throws away what still comes, until the peer ends as well, at most
/// until `deadline`: a connection that is closed with something unread is reset, and what was sent
/// may be lost.
fn take_leave<T: Transport>(mut transport: T, deadline: Instant) {
    loop {
        let now = Instant::now();
        let is_here = transport
            .look_at_the_clock(now)
            .and_then(|()| transport.send())
            .and_then(|()| transport.receive(now));
        while transport.next_event().is_some() {}
        let left = deadline.saturating_duration_since(now);
        if is_here.is_err() || left.is_zero() {
            return;
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, transport.holds_unsent());
        let mut set = [PollFd::from_borrowed_fd(transport.descriptor(), flags)];
        let of_transport = transport
            .wake_at()
            .map(|at| at.saturating_duration_since(now));
        let timeout = of_transport.map_or(left, |timeout| timeout.min(left));
        // An interrupted poll is answered by the next try.
        let _ = rustix::event::poll(&mut set, Some(&timespec(timeout)));
    }
}
