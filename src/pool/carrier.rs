//! What a pool connection is carried by.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::net::mux::{MuxStream, Urgency};
use crate::net::stream::{BoxedStream, Condition, Stream};
use crate::runtime::event::Event;

/// What a pool connection is carried by.
pub enum Carrier {
    /// A connection of its own; whoever uses it has a thread for it.
    Stream(BoxedStream),
    /// A stream of a connection that carries many; the thread of that one relays.
    Muxed(MuxStream),
}

impl Carrier {
    /// Returns what an idle connection is about to do; bytes that have come are kept.
    pub fn check(&mut self) -> Condition {
        match self {
            Self::Stream(stream) => stream.check(),
            Self::Muxed(stream) => stream.check(),
        }
    }

    /// Breaks a silence that has become too long for those in between.
    pub fn keep_alive(&mut self) {
        match self {
            Self::Stream(stream) => {
                stream.keep_alive();
                stream.rest();
            }
            // Its connection is kept alive as a whole.
            Self::Muxed(_) => {}
        }
    }

    /// Returns a stream that has a descriptor of its own.
    ///
    /// Errors: no descriptor left.
    pub fn into_stream(self) -> io::Result<BoxedStream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Muxed(stream) => stream.into_stream(Urgency::Ordinary),
        }
    }

    /// Returns the same for a control channel, on which all others depend.
    ///
    /// Errors: no descriptor left.
    pub fn into_control_stream(self) -> io::Result<BoxedStream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Muxed(stream) => stream.into_stream(Urgency::Urgent),
        }
    }

    /// Lets it end, if it has no descriptor of its own, when `over` is raised.
    pub fn end_with(&self, over: &Arc<Event>) {
        match self {
            Self::Stream(_) => {}
            Self::Muxed(stream) => stream.end_with(Arc::clone(over)),
        }
    }

    /// Ends a connection whose visitor is not served, as [`refuse`] does.
    pub fn refuse(self) {
        match self {
            Self::Stream(mut stream) => refuse(&mut *stream),
            // Dropped, it is cut short.
            Self::Muxed(_) => {}
        }
    }
}

/// Ends a pool connection whose visitor is not served. A plain end would leave him the other
/// direction, and his place at the other end for as long as he keeps that open.
pub fn refuse(stream: &mut dyn Stream) {
    // One that is gone already needs no word.
    let _ = stream.finish();
    stream.abort(Instant::now());
}
