//! Whoever comes to a server's tunnel port by QUIC.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::guests::{Came, Guests};
use super::mux_thread::StreamPorter;
use super::session::Surroundings;
use super::session_tcp::terms;
use super::spending::Spending;
use crate::net::certificate::Identity;
use crate::net::cover::ServerCover;
use crate::net::mux::Porter;
use crate::net::origin::origin_of;
use crate::net::quic::endpoint::{Endpoint, Reception};
use crate::runtime::threads::lock;
use crate::wire::key::ServerKeys;
use crate::wire::offer::Transport;

/// What the streams of a QUIC connection are.
const QUIC: Came = Came {
    transport: Transport::Quic,
    is_covered: true,
};

/// Decides about those who come.
struct QuicReception {
    guests: Arc<Mutex<Guests>>,
    cover: Arc<ServerCover>,
    /// Time that handshakes have taken of late, by origin.
    handshake_times: Spending,
}

/// Starts the thread that has the socket of all QUIC clients.
///
/// Errors: the certificate cannot be used, or the system has no room for another thread.
pub fn start(
    around: &Surroundings,
    guests: &Arc<Mutex<Guests>>,
    cover: &Arc<ServerCover>,
    keys: &ServerKeys,
    socket: UdpSocket,
) -> io::Result<()> {
    let reception = QuicReception {
        guests: Arc::clone(guests),
        cover: Arc::clone(cover),
        handshake_times: Spending::default(),
    };
    let limits = &around.instance.limits;
    let reset_key = keys.as_slice().first().map(|key| key.as_bytes());
    let endpoint = Endpoint::new(
        socket,
        Box::new(reception),
        reset_key.unwrap_or_default(),
        limits.report_interval,
        limits.handshake_timeout,
    )?;
    let instance = Arc::clone(&around.instance);
    let run = move || {
        let shutdown = &instance.shutdown;
        let terms = terms(&instance, &shutdown.stop);
        endpoint.run(&terms, &instance.crew, &shutdown.drain);
    };
    let started = around.sessions.muxes.run(run);
    started.map_err(|refused| io::Error::other(refused.to_string()))
}

impl Reception for QuicReception {
    fn identity(&self) -> Option<Identity> {
        self.cover.identity()
    }

    fn lets_in(&mut self, address: SocketAddr, now: Instant) -> bool {
        let is_known = lock(&self.guests).knows(address.ip());
        let exhausted_until = self
            .handshake_times
            .exhausted_until(origin_of(address), now);
        is_known || exhausted_until.is_none()
    }

    fn note_cost(&mut self, address: SocketAddr, time: Duration, now: Instant) {
        self.handshake_times.spend(origin_of(address), time, now);
    }

    fn porter(&self, address: SocketAddr) -> Box<dyn Porter> {
        Box::new(StreamPorter {
            guests: Arc::clone(&self.guests),
            address,
            came: QUIC,
        })
    }
}
