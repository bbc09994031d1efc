//! Pool connections as streams of QUIC: what makes the connection below, at the client's side.
//!
//! Source: wire protocol, sections 4 and 8.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::muxed::{MuxedConnector, Trunk};
use super::tcp::{OpenError, Opening};
use crate::limits::{MUX_LINES_MAX, MUX_STACK_SIZE_MIN};
use crate::net::patient::Patience;
use crate::net::quic::connection::Quic;
use crate::net::quic::{self, ConnectError};
use crate::net::tls::Judge;
use crate::runtime::event::Event;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::ticket::Ticket;

/// Makes pool connections over QUIC.
pub type QuicConnector = MuxedConnector<QuicTrunk>;

/// Makes connections of QUIC.
pub struct QuicTrunk {
    /// Where the handshake was done; UDP has the same port.
    pub address: SocketAddr,
    /// What a stream starts with.
    pub opening: Opening,
    /// Looks at the certificate of the server.
    pub judge: Judge,
    /// The certificate that it has to show.
    pub pinned: Option<Fingerprint>,
    /// For the handshake.
    pub handshake_timeout: Duration,
    /// Between signs of life.
    pub keep_alive: Duration,
}

impl Trunk for QuicTrunk {
    type Transport = Quic;

    fn connect(&self, stop: &Event) -> Result<(Quic, Option<Fingerprint>), OpenError> {
        let patience = Patience::new(self.handshake_timeout, stop);
        let judge = self.judge.clone();
        // The handshake takes more stack than the threads have that come here.
        let shake_hands = || quic::connect(self.address, judge, self.keep_alive, patience);
        let quic = thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("quic".to_owned())
                .stack_size(MUX_STACK_SIZE_MIN)
                .spawn_scoped(scope, shake_hands)
                .map_err(ConnectError::System)?;
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(ConnectError::System(io::ErrorKind::Other.into())))
        });
        let quic = quic.map_err(OpenError::Quic)?;
        let fingerprint = quic.peer_fingerprint();
        OpenError::require_pinned(self.pinned, fingerprint)?;
        Ok((quic, fingerprint))
    }

    fn ticket(&self) -> Option<Ticket> {
        self.opening.ticket()
    }

    fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    /// Programs of the 1.x line take one.
    fn lines_max(&self) -> usize {
        match self.opening {
            Opening::Silence => 1,
            Opening::Ticket(_) => MUX_LINES_MAX,
        }
    }
}
