//! What a stream is used for, and its view as an end of a relay.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::{Idle, Opened, StreamKey, Transport};
use crate::net::relay::{CloseReason, Exchange};
use crate::net::stream::{BoxedStream, Condition, Stream};

/// Told why a relay ended.
pub type OnEnd = Box<dyn FnOnce(&CloseReason) + Send>;

/// What a stream is used for.
pub(super) enum Use<'a> {
    /// It was opened here, and the peer has yet to answer.
    Opening(SyncSender<Opened>),
    /// It waits for a visitor.
    Idle(Arc<Idle>),
    /// It carries bytes.
    Carrying(Box<Carrying<'a>>),
}

/// A relay between a socket and a stream.
pub(super) struct Carrying<'a> {
    pub exchange: Exchange<'a>,
    pub application: BoxedStream,
    pub on_end: Option<OnEnd>,
    /// When to go on at the latest.
    pub wake_at: Option<Instant>,
    /// It is in the queue of those who have something to do.
    pub is_queued: bool,
}

/// A socket that is to be cut off; that is done when it is dropped, if not before.
pub(super) struct Parting {
    pub application: Option<BoxedStream>,
    pub on_end: Option<OnEnd>,
    pub reason: CloseReason,
}

impl Parting {
    /// Cuts it off.
    ///
    /// Blocks: until what it was given has left, at most until `deadline`.
    pub fn cut_off(&mut self, deadline: Instant) {
        if let Some(mut application) = self.application.take() {
            application.abort(deadline);
        }
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        self.cut_off(Instant::now());
        if let Some(on_end) = self.on_end.take() {
            on_end(&self.reason);
        }
    }
}

/// A stream as the relay sees it.
pub(super) struct StreamView<'t, T> {
    pub transport: &'t mut T,
    pub key: StreamKey,
}

impl<T: Transport> Stream for StreamView<'_, T> {
    /// That of all streams: nobody waits for it in the name of one.
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.transport.descriptor()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.transport.read(self.key, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.transport.write(self.key, bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.transport.finish(self.key)
    }

    fn abort(&mut self, _: Instant) {
        self.transport.reset(self.key);
    }

    fn check(&mut self) -> Condition {
        self.transport.check(self.key)
    }

    fn holds_bytes(&self) -> bool {
        self.transport.check(self.key) != Condition::Silent
    }
}
