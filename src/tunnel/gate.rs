//! An epoll, some members of which can be left alone for a while.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::limits::DATAGRAM_ROUNDS_MAX;
use crate::net::rate::{Place, RateLimit, Turn};
use crate::runtime::event::timespec;

/// The outer epoll, in which some members can be left alone for a while.
pub(super) struct Gate {
    /// The epoll itself.
    pub(super) epoll: OwnedFd,
    /// Members that are left alone, as bits.
    closed: u64,
}

impl Gate {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            closed: 0,
        })
    }

    pub(super) fn watch(&self, member: &impl AsFd, name: u64) -> io::Result<()> {
        let data = EventData::new_u64(name);
        Ok(epoll::add(&self.epoll, member, data, EventFlags::IN)?)
    }

    pub(super) fn forget(&self, member: &impl AsFd) {
        // It can only fail for one that is not a member.
        let _ = epoll::delete(&self.epoll, member);
    }

    pub(super) fn set_open(&mut self, member: &impl AsFd, name: u64, is_open: bool) {
        let bit = 1 << name;
        if is_open == (self.closed & bit == 0) {
            return;
        }
        self.closed ^= bit;
        let flags = if is_open {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        // It can only fail for one that is not a member.
        let _ = epoll::modify(&self.epoll, member, EventData::new_u64(name), flags);
    }
}

/// The sockets of sessions whose datagrams go one way.
///
/// They are in the outer epoll or, with option `rate`, in one of their own inside it, so that all
/// of them can be left alone while that way has no turn.
pub(super) struct Lane {
    name: u64,
    inner: Option<OwnedFd>,
    place: Place,
}

impl Lane {
    /// Makes a lane without members; `name` is that of the inner epoll in the outer one.
    ///
    /// Errors: no descriptor left.
    pub(super) fn new(gate: &Gate, name: u64, is_limited: bool) -> io::Result<Self> {
        let mut inner = None;
        if is_limited {
            let members = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            gate.watch(&members, name)?;
            inner = Some(members);
        }
        Ok(Self {
            name,
            inner,
            place: Place::default(),
        })
    }

    /// Returns whether the members wait for turns.
    pub(super) fn is_limited(&self) -> bool {
        self.inner.is_some()
    }

    /// Returns how many batches of one member are received before others get their turn.
    pub(super) fn rounds_max(&self) -> usize {
        if self.is_limited() {
            1
        } else {
            DATAGRAM_ROUNDS_MAX
        }
    }

    /// Watches a socket for something to read. It leaves when it is closed.
    ///
    /// Errors: the system cannot watch one more.
    pub(super) fn watch(&self, gate: &Gate, member: &impl AsFd, name: u64) -> io::Result<()> {
        let epoll = self.inner.as_ref().unwrap_or(&gate.epoll);
        let data = EventData::new_u64(name);
        Ok(epoll::add(epoll, member, data, EventFlags::IN)?)
    }

    /// Watches a member for room to write as well, or not any more. That needs no turn, so the
    /// outer epoll always tells of it.
    ///
    /// Errors: the system cannot watch one more.
    pub(super) fn watch_room(
        &self,
        gate: &Gate,
        member: &impl AsFd,
        name: u64,
        is_wanted: bool,
    ) -> io::Result<()> {
        let data = EventData::new_u64(name);
        match (self.is_limited(), is_wanted) {
            (true, true) => epoll::add(&gate.epoll, member, data, EventFlags::OUT)?,
            (true, false) => epoll::delete(&gate.epoll, member)?,
            (false, _) => {
                let room = if is_wanted {
                    EventFlags::OUT
                } else {
                    EventFlags::empty()
                };
                epoll::modify(&gate.epoll, member, data, EventFlags::IN | room)?;
            }
        }
        Ok(())
    }

    /// Leaves all members alone while they wait for their turn; returns until when.
    pub(super) fn wait_for_turn(&self, gate: &mut Gate, now: Instant) -> Option<Instant> {
        let turn_at = self.place.waits_until(now);
        if let Some(inner) = &self.inner {
            gate.set_open(inner, self.name, turn_at.is_none());
        }
        turn_at
    }

    /// Returns whether the members wait for their turn.
    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        self.place.waits_until(now).is_some()
    }

    /// Returns the turn if it has come, or goes on waiting for it.
    pub(super) fn take_turn(&mut self, limit: &RateLimit, now: Instant) -> Option<Turn> {
        self.place.take_turn(limit, now)
    }

    /// Returns the name of a member that has something to read, where there are turns.
    ///
    /// The kernel puts one that it has told of at the end of its queue, so each one comes round,
    /// however busy another one is.
    pub(super) fn next_ready(&self) -> Option<u64> {
        let mut events = Vec::with_capacity(1);
        let into = rustix::buffer::spare_capacity(&mut events);
        // An interrupted look finds the same again in the next round.
        let _ = epoll::wait(self.inner.as_ref()?, into, Some(&timespec(Duration::ZERO)));
        events.first().map(|event| event.data.u64())
    }
}
