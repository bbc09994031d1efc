//! An epoll, some members of which can be left alone for a while.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;

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
        let data = epoll::EventData::new_u64(name);
        Ok(epoll::add(
            &self.epoll,
            member,
            data,
            epoll::EventFlags::IN,
        )?)
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
            epoll::EventFlags::IN
        } else {
            epoll::EventFlags::empty()
        };
        // It can only fail for one that is not a member.
        let _ = epoll::modify(&self.epoll, member, epoll::EventData::new_u64(name), flags);
    }
}
