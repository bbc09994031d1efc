//! Pool connections as streams of HTTP/2: what makes the connections below, at the client's side.
//!
//! Source: wire protocol, sections 4 and 8.

use std::time::Duration;

use super::muxed::{MuxedConnector, Trunk};
use super::tcp::{OpenError, TcpConnector};
use crate::net::mux::http2::Http2;
use crate::runtime::event::Event;
use crate::wire::alpn::H2;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::ticket::Ticket;

/// Makes pool connections over HTTP/2.
pub type Http2Connector = MuxedConnector<Http2Trunk>;

/// Makes connections of HTTP/2.
pub struct Http2Trunk {
    /// Makes what is below, and has the tickets; its cover is TLS, with the protocol `h2`.
    pub tcp: TcpConnector,
    /// What the server is called in requests.
    pub authority: String,
}

impl Trunk for Http2Trunk {
    type Transport = Http2;

    fn connect(&self, stop: &Event) -> Result<(Http2, Option<Fingerprint>), OpenError> {
        let tcp = &self.tcp;
        let socket = tcp.dial(stop)?;
        let covered = tcp.cover.put_on_tls(socket, tcp.patience(stop));
        let (tls, fingerprint) = covered.map_err(OpenError::Cover)?;
        OpenError::require_pinned(tcp.pinned, fingerprint)?;
        if tls.protocol() != Some(H2) {
            return Err(OpenError::NotHttp2);
        }
        let transport = Http2::client(tls, self.authority.clone());
        Ok((transport, fingerprint))
    }

    fn ticket(&self) -> Option<Ticket> {
        self.tcp.ticket()
    }

    fn handshake_timeout(&self) -> Duration {
        self.tcp.handshake_timeout
    }
}
