//! The way to a stop: signals, and the two events that lead everything to its end.
//!
//! First `drain`: listeners close, nobody new comes in, open connections go on. Then `stop`:
//! what is still open ends. Each is raised once.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
#[cfg(feature = "master")]
use std::sync::{Arc, atomic::AtomicBool};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
#[cfg(feature = "master")]
use signal_hook::consts::SIGXFSZ;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::event::{Event, timespec};

/// The two steps of a stop.
#[derive(Debug)]
pub struct Shutdown {
    /// No new visitors: watched by listeners.
    pub drain: Event,
    /// No visitors any more: watched by sessions.
    pub stop: Event,
}

impl Shutdown {
    /// Makes a shutdown that has not begun.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            drain: Event::new()?,
            stop: Event::new()?,
        })
    }
}

/// SIGINT and SIGTERM as something to wait for.
#[derive(Debug)]
pub struct Signals {
    receiver: UnixStream,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM for the whole process.
    ///
    /// Errors: no descriptor left, or the system refuses the handler.
    pub fn install() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGINT, sender.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGTERM, sender)?;
        Ok(Self { receiver })
    }

    /// Has a write to a file that is as large as it may be fail, instead of ending the process.
    ///
    /// Errors: the system refuses the handler.
    #[cfg(feature = "master")]
    pub fn outlive_file_limit() -> io::Result<()> {
        let is_seen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGXFSZ, is_seen).map(drop)
    }

    /// Returns whether a signal has come that nobody has taken yet.
    pub fn is_pending(&self) -> bool {
        let mut set = [PollFd::new(&self.receiver, PollFlags::IN)];
        // A poll that fails tells nothing.
        matches!(
            rustix::event::poll(&mut set, Some(&timespec(Duration::ZERO))),
            Ok(1..)
        )
    }

    /// Returns whether a signal came before the deadline; takes that one signal.
    ///
    /// Blocks: until a signal, until `deadline`, or until `event` is raised.
    pub fn wait(&self, deadline: Option<Instant>, event: Option<&Event>) -> bool {
        loop {
            if matches!(rustix::io::read(&self.receiver, &mut [0; 1]), Ok(1)) {
                return true;
            }
            if event.is_some_and(Event::is_raised) {
                return false;
            }
            let timeout = match deadline.map(|at| at.checked_duration_since(Instant::now())) {
                None => None,
                Some(Some(left)) => Some(timespec(left)),
                Some(None) => return false,
            };
            let receiver = PollFd::new(&self.receiver, PollFlags::IN);
            // A failed poll is answered by the next round; the interruption by the handler
            // itself is the usual case.
            let _ = match event {
                Some(event) => {
                    let descriptor = event.as_fd();
                    let event = PollFd::new(&descriptor, PollFlags::IN);
                    rustix::event::poll(&mut [receiver, event], timeout.as_ref())
                }
                None => rustix::event::poll(&mut [receiver], timeout.as_ref()),
            };
        }
    }
}
