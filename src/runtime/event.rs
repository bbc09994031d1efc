//! A condition that threads can wait for beside their sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

/// A condition that is raised once and stays raised.
///
/// The descriptor is written once and never read, so it wakes every thread that has it in its
/// poll set, and each one that polls it later.
#[derive(Debug)]
pub struct Event {
    descriptor: OwnedFd,
    raised: AtomicBool,
}

impl Event {
    /// Makes an event that is not raised.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            descriptor: rustix::event::eventfd(0, flags)?,
            raised: AtomicBool::new(false),
        })
    }

    /// Raises the event and wakes all who wait for it.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            notify(&self.descriptor);
        }
    }

    /// Returns whether the event has been raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Returns whether the event was raised before the timeout ended.
    ///
    /// Blocks: until then.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.is_raised() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            let mut set = [PollFd::new(&self.descriptor, PollFlags::IN)];
            // An interrupted or failed poll is answered by the next look at the clock.
            let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
        }
        self.is_raised()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Raises an event when it is dropped: at the end of the thread that has it, by a panic as well.
#[derive(Debug)]
pub struct RaisedAtEnd(pub Arc<Event>);

impl Drop for RaisedAtEnd {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Sleeps until one of `events` is raised, or for `timeout`.
///
/// Blocks: until then, sometimes less: the caller looks at the events.
pub fn wait_for_any<const N: usize>(events: [&Event; N], timeout: Duration) {
    let mut set = events.map(|event| PollFd::new(event, PollFlags::IN));
    // An interrupted poll is a short sleep.
    let _ = rustix::event::poll(&mut set, Some(&timespec(timeout)));
}

/// A wake-up call for one thread that sleeps in poll: rung by others, silenced by that thread.
#[derive(Debug)]
pub struct Bell {
    descriptor: OwnedFd,
}

impl Bell {
    /// Makes a silent bell.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            descriptor: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Makes the descriptor readable.
    pub fn ring(&self) {
        notify(&self.descriptor);
    }

    /// Makes the descriptor unreadable until the next ring.
    pub fn silence(&self) {
        // "Would block" says that it was silent already.
        let _ = rustix::io::read(&self.descriptor, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Adds one to the counter of an eventfd.
fn notify(descriptor: &OwnedFd) {
    // The write can fail only when the counter is full, and then the descriptor is readable.
    let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
}

/// Returns the duration as the kernel takes it, cut to what fits.
pub fn timespec(duration: Duration) -> Timespec {
    // Its members are of other types on other processors.
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_event_stays_raised() {
        let event = Event::new().unwrap();
        assert!(!event.wait(Duration::ZERO));
        event.raise();
        event.raise();
        assert!(event.wait(Duration::ZERO));
        assert!(event.wait(Duration::from_secs(3600)));
    }

    #[test]
    fn a_bell_can_be_silenced() {
        let bell = Bell::new().unwrap();
        let is_ringing = |bell: &Bell| {
            let mut set = [PollFd::new(bell, PollFlags::IN)];
            rustix::event::poll(&mut set, Some(&timespec(Duration::ZERO))).unwrap() == 1
        };
        bell.silence();
        assert!(!is_ringing(&bell));
        bell.ring();
        bell.ring();
        assert!(is_ringing(&bell));
        bell.silence();
        assert!(!is_ringing(&bell));
    }
}
