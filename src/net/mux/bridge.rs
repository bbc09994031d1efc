//! A stream behind a descriptor of its own: two ends of a socket pair, one for the mux thread and
//! one for whoever wants to wait for it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::net::stream::{Condition, PlainStream, Stream};

/// One end of a socket pair that can be cut short, which a socket pair itself does not tell.
pub(super) struct BridgeStream {
    inner: PlainStream,
    /// What was written has been ended in order.
    is_finished: bool,
    /// This end was cut short.
    is_cut: Arc<AtomicBool>,
    /// The other one was.
    is_other_cut: Arc<AtomicBool>,
}

/// Makes both ends.
///
/// Errors: no descriptor left.
pub(super) fn bridge() -> io::Result<(BridgeStream, BridgeStream)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let (one, two) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
    let cuts = [Arc::default(), Arc::default()];
    let end = |socket: OwnedFd, own: usize| BridgeStream {
        inner: PlainStream::new(socket),
        is_finished: false,
        is_cut: Arc::clone(&cuts[own]),
        is_other_cut: Arc::clone(&cuts[1 - own]),
    };
    Ok((end(one, 0), end(two, 1)))
}

impl Stream for BridgeStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.inner.read(buffer)?;
        if size == 0 && !buffer.is_empty() && self.is_other_cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.is_finished = true;
        self.inner.finish()
    }

    fn abort(&mut self, _: Instant) {
        // An end that the other side may not have seen yet stays an end.
        if !self.is_finished {
            self.is_cut.store(true, Ordering::Release);
        }
        // What was written stays readable; the end behind it is seen as a cut. It can only fail
        // for a pair that is closed.
        let _ = self.inner.socket().shutdown(std::net::Shutdown::Both);
    }

    fn check(&mut self) -> Condition {
        self.inner.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_and_a_cut_can_be_told_apart() {
        for is_cut in [false, true] {
            let (mut one, mut two) = bridge().unwrap();
            assert_eq!(one.write(b"last words").unwrap(), 10);
            if is_cut {
                one.abort(Instant::now());
            } else {
                one.finish().unwrap();
            }
            let mut buffer = [0; 16];
            assert_eq!(two.read(&mut buffer).unwrap(), 10);
            let end = two.read(&mut buffer);
            if is_cut {
                assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            } else {
                assert_eq!(end.unwrap(), 0);
                assert_eq!(two.write(b"answer").unwrap(), 6);
                assert_eq!(one.read(&mut buffer).unwrap(), 6);
            }
        }
    }
}
