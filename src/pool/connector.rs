//! Makes the pool connections of a session: the client's side.

use std::sync::Arc;

use super::PoolConnection;
#[cfg(feature = "http2")]
use super::http2::Http2Connector;
#[cfg(feature = "quic")]
use super::quic::QuicConnector;
use super::tcp::{OpenError, TcpConnector};
#[cfg(feature = "websocket")]
use super::web_socket::WebSocketConnector;
use crate::runtime::event::Event;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::offer::Transport;
use crate::wire::signal::PoolId;

/// Returns whether pools of this type are in this build.
pub fn is_built(transport: Transport) -> bool {
    match transport {
        Transport::Tcp => true,
        Transport::Http2 => cfg!(feature = "http2"),
        Transport::WebSocket => cfg!(feature = "websocket"),
        Transport::Quic => cfg!(feature = "quic"),
    }
}

/// Makes the pool connections of a session.
pub enum Connector {
    /// Each over a connection of its own.
    Tcp(TcpConnector),
    /// Each over a connection of its own, in frames.
    #[cfg(feature = "websocket")]
    WebSocket(WebSocketConnector),
    /// All over one.
    #[cfg(feature = "http2")]
    Http2(Http2Connector),
    /// All over one, by UDP.
    #[cfg(feature = "quic")]
    Quic(QuicConnector),
}

impl Connector {
    /// Makes a connection.
    ///
    /// Blocks: for the dial timeout and then for the handshake timeout, and again as long for the
    /// id; hardly longer than until `stop`.
    /// Errors: what [`OpenError`] lists.
    pub fn open(&self, stop: &Event) -> Result<(PoolId, PoolConnection), OpenError> {
        match self {
            Self::Tcp(connector) => connector.open(stop),
            #[cfg(feature = "websocket")]
            Self::WebSocket(connector) => connector.open(stop),
            #[cfg(feature = "http2")]
            Self::Http2(connector) => connector.open(stop),
            #[cfg(feature = "quic")]
            Self::Quic(connector) => connector.open(stop),
        }
    }

    /// From now on only the certificate `pinned` is good.
    pub fn pin(&mut self, pinned: Option<Fingerprint>) {
        match self {
            Self::Tcp(connector) => connector.pinned = pinned,
            #[cfg(feature = "websocket")]
            Self::WebSocket(connector) => connector.tcp.pinned = pinned,
            #[cfg(feature = "http2")]
            Self::Http2(connector) => connector.trunk.tcp.pinned = pinned,
            #[cfg(feature = "quic")]
            Self::Quic(connector) => connector.trunk.pinned = pinned,
        }
    }

    /// Lets what many connections share end when `over` is raised.
    #[cfg_attr(not(any(feature = "http2", feature = "quic")), allow(unused_variables))]
    pub fn end_with(&self, over: &Arc<Event>) {
        match self {
            Self::Tcp(_) => {}
            #[cfg(feature = "websocket")]
            Self::WebSocket(_) => {}
            #[cfg(feature = "http2")]
            Self::Http2(connector) => connector.end_with(over),
            #[cfg(feature = "quic")]
            Self::Quic(connector) => connector.end_with(over),
        }
    }
}
