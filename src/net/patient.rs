//! Reads and writes of non-blocking streams that wait: until a deadline, or until the program, or
//! what the stream belongs to, stops.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::stream::{Stream, is_passing};
use crate::runtime::event::{Event, timespec};

/// How long to wait, and for whom not.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// Until when.
    pub deadline: Instant,
    /// Raised when nobody is interested any more.
    pub stop: &'a Event,
}

impl<'a> Patience<'a> {
    /// Begins to wait, for `timeout` from now on.
    pub fn new(timeout: Duration, stop: &'a Event) -> Self {
        Self {
            deadline: Instant::now() + timeout,
            stop,
        }
    }

    /// Writes all of `bytes`.
    ///
    /// Blocks: until they have left this process.
    /// Errors: those of the stream; `TimedOut`; `Interrupted` when it is to stop.
    pub fn write_all(self, stream: &mut dyn Stream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(size) => bytes = &bytes[size..],
                Err(error) => self.wait_after(error, stream, PollFlags::OUT)?,
            }
        }
        loop {
            match stream.flush() {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_after(error, stream, PollFlags::OUT)?,
            }
        }
    }

    /// Reads what is there into `buffer`, which is not empty; 0 at the end of the stream.
    ///
    /// Blocks: until there is something.
    /// Errors: as [`Patience::write_all`].
    pub fn read(self, stream: &mut dyn Stream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match stream.read(buffer) {
                Ok(size) => return Ok(size),
                Err(error) => self.wait_after(error, stream, PollFlags::IN)?,
            }
        }
    }

    /// Reads as many bytes as fit into `buffer`.
    ///
    /// Blocks: until they are there.
    /// Errors: as [`Patience::write_all`]; `UnexpectedEof` when the stream ends before.
    pub fn read_exact(self, stream: &mut dyn Stream, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(stream, &mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                size => filled += size,
            }
        }
        Ok(())
    }

    /// Waits until a call that would have blocked is worth another try; returns any other error.
    fn wait_after(
        self,
        error: io::Error,
        stream: &dyn Stream,
        events: PollFlags,
    ) -> io::Result<()> {
        if !is_passing(&error) {
            return Err(error);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // There is more to read, which no poll tells; a flood of nothing must not go on for ever.
        if error.kind() == io::ErrorKind::Interrupted && !self.stop.is_raised() {
            return Ok(());
        }
        let mut set = [
            PollFd::from_borrowed_fd(stream.descriptor(), events),
            PollFd::new(self.stop, PollFlags::IN),
        ];
        // An interrupted poll is followed by another try.
        let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
        if self.stop.is_raised() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}
