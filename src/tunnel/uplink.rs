//! What the entry side of a tunnel asks of it: pool connections to the other end.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::net::datagram_stream::Framing;
use crate::net::stream::BoxedStream;
use crate::runtime::event::{Bell, Event};

/// Where the visitors of an entry side go: pool connections to the other end.
pub trait Uplink: Send + Sync {
    /// Takes a pool connection for the datagrams of `visitor` and signals it to the other end.
    ///
    /// `None` when there is none now; then `bell` is rung as soon as it is worth asking again.
    fn take_udp(&self, visitor: SocketAddr, bell: &Arc<Bell>) -> Option<UdpWay>;
}

/// A pool connection for the datagrams of one visitor.
pub struct UdpWay {
    /// The connection, non-blocking.
    pub stream: BoxedStream,
    /// How it tells one datagram from the next.
    pub framing: Framing,
    /// Raised when the session that it belongs to is over: the way ends.
    pub over: Arc<Event>,
}
