//! The end of a tunnel that clients come to.
//!
//! The tunnel port is open from start to stop. In flow `-` the target address is bound as well,
//! and visitors there go to the clients; in flow `+` clients send theirs, and targets are dialled.

use std::fmt;
use std::io;
#[cfg(not(feature = "quic"))]
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::doorman::{Doorman, House};
use super::entry::{self, Way};
use super::exit::Exit;
use super::guests::Guests;
use super::instance::Instance;
#[cfg(feature = "quic")]
use super::quic::start as start_quic;
use super::report::Gauge;
use super::running::{Duty, Running, Threads};
use super::session::Surroundings;
use super::sessions::Sessions;
use super::udp_exit::UdpExit;
use crate::config::{Config, Transport};
use crate::limits::{STOP_TIMEOUT, TEND_INTERVAL};
use crate::net::cover::{CoverError, ServerCover};
use crate::net::listen::{Acceptor, Listeners, canonical};
use crate::pool::connector::is_built;
use crate::runtime::event::wait_for_any;
use crate::wire::alpn::{H2, HTTP_1_1};
use crate::wire::key::ServerKeys;
use crate::wire::offer::{Flow, Offer};

/// Why a server cannot be what its URL asks for.
#[derive(Debug)]
pub enum ServerError {
    /// No certificate.
    Cover(CoverError),
    /// This build has no such pool.
    Transport(Transport),
}

/// Returns what `config` puts around its connections.
///
/// Errors: this build cannot, or the certificate cannot be used.
pub fn prepare(config: &Config) -> Result<ServerCover, ServerError> {
    let options = &config.options;
    if !is_built(options.transport) {
        return Err(ServerError::Transport(options.transport));
    }
    let (certificate, key) = (&options.certificate_file, &options.key_file);
    let protocols: &[&[u8]] = match options.transport {
        Transport::Http2 => &[H2, HTTP_1_1],
        Transport::Tcp | Transport::Quic | Transport::WebSocket => &[],
    };
    ServerCover::new(
        options.tls,
        certificate.as_deref(),
        key.as_deref(),
        protocols,
    )
    .map_err(ServerError::Cover)
}

/// Starts a server: clients come to `tunnel`, and in flow `-` visitors to `visitors`.
///
/// Errors: the system has no room for the threads and events that this takes.
pub fn start(
    config: &Config,
    instance: Arc<Instance>,
    cover: ServerCover,
    tunnel: Listeners,
    visitors: Option<Listeners>,
) -> io::Result<Running> {
    let options = &config.options;
    let flow = match visitors {
        Some(_) => Flow::Reverse,
        None => Flow::Forward,
    };
    let offer = Offer {
        flow,
        pool_max: u32::try_from(instance.pool_room())
            .unwrap_or(u32::MAX)
            .min(options.pool_max),
        tls: options.tls,
        transport: options.transport,
    };
    let cover = Arc::new(cover);
    let sessions = Sessions::new(instance.limits.stack_size);
    let threads = Threads::new(Arc::clone(&instance))?;
    let gauge = Gauge::Server {
        mode: match offer.flow {
            Flow::Reverse => 1,
            Flow::Forward => 2,
        },
        sessions: Arc::clone(&sessions),
    };
    let starting = Running::begin(threads.clone(), gauge);
    let mut udp = None;
    if offer.flow == Flow::Forward && config.options.udp {
        let (udp_exit, carrier) = UdpExit::new(Arc::clone(&instance))?;
        threads.spawn(Duty::Visitors, "udp-exit", move || udp_exit.run())?;
        udp = Some(carrier);
    }
    let around = Surroundings {
        exit: Arc::new(Exit::new(Arc::clone(&instance), udp)),
        sessions: Arc::clone(&sessions),
        instance: Arc::clone(&instance),
    };
    let Some(callers) = tunnel.tcp else {
        unreachable!("it was asked for")
    };
    let address = canonical(callers.local_addr()?);
    let keys = match &config.key {
        Some(key) => ServerKeys::explicit(key.clone()),
        None => {
            log::warn!(
                "The URL has no key, so it is derived from the tunnel port: anyone who can reach \
                 the port can connect; write server://<key>@{address}/..."
            );
            ServerKeys::derived(address.port())
        }
    };
    let guests = Arc::new(Mutex::new(Guests::new(around.clone())));
    if let Some(socket) = tunnel.udp {
        start_quic(&around, &guests, &cover, &keys, socket)?;
        log::info!("Tunnel listening on udp {address}");
    }
    let house = House {
        keys,
        offer,
        cover: Arc::clone(&cover),
    };
    let doorman = Doorman::new(around, house, guests, Acceptor::new(callers, "Client"))?;
    threads.spawn(Duty::Service, "doorman", move || doorman.run())?;
    log::info!("Tunnel listening on tcp {address}");
    if let Some(listeners) = visitors {
        let way = Way::Tunnel(Arc::clone(&sessions));
        entry::start(&instance, &threads, listeners, &way)?;
    }
    threads.spawn(Duty::Service, "tend", move || {
        tend(&instance, &sessions, &cover);
    })?;
    starting.complete(None)
}

/// Refuses: a server without QUIC does not listen for it.
#[cfg(not(feature = "quic"))]
fn start_quic(
    _: &Surroundings,
    _: &Arc<Mutex<Guests>>,
    _: &Arc<ServerCover>,
    _: &ServerKeys,
    _: UdpSocket,
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Body of the thread `tend`: does what is due from time to time, and the last of all.
fn tend(instance: &Instance, sessions: &Sessions, cover: &ServerCover) {
    let mut reload_at = Instant::now() + instance.limits.reload_interval;
    let shutdown = &instance.shutdown;
    let mut is_draining = false;
    while !shutdown.stop.is_raised() {
        if is_draining {
            shutdown.stop.wait(TEND_INTERVAL);
        } else {
            wait_for_any([&shutdown.drain, &shutdown.stop], TEND_INTERVAL);
        }
        if shutdown.drain.is_raised() && !is_draining {
            is_draining = true;
            drain(sessions);
        }
        let now = Instant::now();
        for session in sessions.list() {
            session.tend(now, Duration::MAX);
        }
        if now >= reload_at {
            cover.reload();
            reload_at = now + instance.limits.reload_interval;
        }
    }
    sessions.close();
    sessions.muxes.close(STOP_TIMEOUT);
    if !sessions.readers.close(STOP_TIMEOUT) {
        log::warn!("Some sessions did not end in time");
    }
}

/// Lets nobody new in at the other ends. Whoever waits here for a pool connection goes as well: the
/// tunnel port is closed, so none comes any more.
fn drain(sessions: &Sessions) {
    sessions.close();
    for session in sessions.list() {
        session.drain();
    }
}

impl ServerError {
    /// Returns whether the next attempt may go better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Cover(error) => error.is_passing(),
            Self::Transport(_) => false,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cover(error) => write!(f, "{error}"),
            Self::Transport(transport) => {
                let digit = transport.digit();
                write!(f, "type={digit} is not in this build; use type=0")
            }
        }
    }
}
