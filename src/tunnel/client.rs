//! The end of a tunnel that goes to a server.
//!
//! ```text
//!   ┌──▶ handshake ──▶ control channel ──▶ session ──over──┐
//!   └───────────────── cool-down ◀─────────────────────────┘
//! ```
//!
//! One thread goes round. The pool is filled by a crew of others, visitors have theirs.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::entry::{self, Way};
use super::exit::Exit;
use super::greeting::{Greeted, Greeting, GreetingError};
use super::instance::Instance;
#[cfg(any(feature = "http2", feature = "quic"))]
use super::mux_thread;
use super::report::Gauge;
use super::running::{Duty, Running, Threads};
use super::session::{Dialect, Session, Surroundings, Terms};
use super::sessions::Sessions;
use super::udp_exit::UdpExit;
use super::warm_up::WarmUp;
use crate::config::{Address, Config, Host, TlsMode, Transport};
use crate::limits::{STOP_TIMEOUT, TEND_INTERVAL, WARM_UP_THREADS_MAX, WEB_TLS_PORT};
use crate::net::cover::{Accepts, ClientCover, CoverError};
use crate::net::dial::{DialError, Dialer};
use crate::net::listen::{ListenError, Listeners, Protocols};
use crate::net::race::Watch;
use crate::net::stream::PlainStream;
use crate::net::targets::Targets;
#[cfg(feature = "websocket")]
use crate::net::web_socket::Ends;
use crate::pool::connector::{Connector, is_built};
#[cfg(feature = "http2")]
use crate::pool::http2::Http2Trunk;
#[cfg(any(feature = "http2", feature = "quic"))]
use crate::pool::muxed::MuxedConnector;
use crate::pool::pacing::Bounds;
#[cfg(feature = "quic")]
use crate::pool::quic::QuicTrunk;
use crate::pool::tcp::{OpenError, Opening, TcpConnector};
#[cfg(feature = "websocket")]
use crate::pool::web_socket::WebSocketConnector;
use crate::runtime::cooldown::Cooldown;
use crate::runtime::event::wait_for_any;
use crate::runtime::threads::Crew;
use crate::wire::alpn::H2;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::key::{ServerKeys, TunnelKey};
use crate::wire::offer::{Flow, Offer};
use crate::wire::proof::SessionId;
use crate::wire::signal::{PoolId, Side, Signal, SignalReader, SignalWriter};

/// A client of a server.
struct Client {
    around: Surroundings,
    threads: Threads,
    tunnel: Address,
    /// What it binds in flow `+`.
    visitors: Vec<Address>,
    keys: ServerKeys,
    /// Finds the server.
    dialer: Dialer,
    warm_up_crew: Crew,
    /// The listeners for visitors have been bound.
    is_entry: bool,
    /// The server has spoken TLS where it need not: it does so from then on, or somebody could
    /// have the token of v1 by cutting one connection.
    has_spoken_tls: bool,
    /// The last native session, from which it comes back.
    last_session: Option<SessionId>,
}

/// Why there is no session, or no more.
#[derive(Debug)]
pub enum ClientError {
    /// The server cannot be reached.
    Dial(DialError),
    /// The handshake failed.
    Greeting(SocketAddr, GreetingError),
    /// This build has no such pool.
    Transport(Transport),
    /// This build has no TLS, or the system no roots.
    Cover(CoverError),
    /// No control channel.
    Open(SocketAddr, OpenError),
    /// The first pool connection is not the control channel.
    NotControl(SocketAddr, PoolId),
    /// The visitors' address cannot be bound.
    Listen(ListenError),
    /// In flow `+` there are several addresses to bind.
    ManyAddresses,
    /// The server was in flow `+` and is not any more.
    FlowChanged,
    /// The session is over.
    Over(SocketAddr, String),
    /// The system is short of something.
    System(io::Error),
}

/// Starts a client that goes to the server of `config`, and comes back whenever it loses it.
///
/// Errors: the system has no room for the threads and events that this takes.
pub fn start(config: &Config, instance: &Arc<Instance>) -> io::Result<Running> {
    let limits = &instance.limits;
    let sessions = Sessions::new(limits.stack_size);
    let threads = Threads::new(Arc::clone(instance))?;
    let gauge = Gauge::Client {
        sessions: Arc::clone(&sessions),
    };
    let starting = Running::begin(threads.clone(), gauge);
    let mut udp = None;
    if config.options.udp {
        let (udp_exit, carrier) = UdpExit::new(Arc::clone(instance))?;
        threads.spawn(Duty::Visitors, "udp-exit", move || udp_exit.run())?;
        udp = Some(carrier);
    }
    let tunnel = config.tunnel.clone();
    let targets = || {
        let balance = config.options.balance;
        Targets::new(vec![tunnel.clone()], balance, limits.fallback_interval)
    };
    let timeout = limits.tcp_dial_timeout;
    let client = Client {
        around: Surroundings {
            exit: Arc::new(Exit::new(Arc::clone(instance), udp)),
            sessions: Arc::clone(&sessions),
            instance: Arc::clone(instance),
        },
        threads: threads.clone(),
        visitors: config.targets.clone(),
        keys: match &config.key {
            Some(key) => ServerKeys::explicit(key.clone()),
            None => ServerKeys::derived(config.tunnel.port),
        },
        // Option `dial` is for targets.
        dialer: Dialer::new(instance.resolver.clone(), targets, None, timeout),
        warm_up_crew: Crew::new("warm-up", limits.stack_size, WARM_UP_THREADS_MAX),
        is_entry: false,
        has_spoken_tls: false,
        last_session: None,
        tunnel: tunnel.clone(),
    };
    threads.spawn(Duty::Service, "client", move || client.run())?;
    let farewell = move || {
        for session in sessions.list() {
            // A server that cannot be told will find out.
            let _ = session.send(&Signal::Bye);
        }
    };
    starting.complete(Some(Box::new(farewell)))
}

impl Client {
    /// Body of the thread `client`.
    fn run(mut self) {
        let instance = Arc::clone(&self.around.instance);
        let mut cooldown = Cooldown::new(instance.limits.service_cooldown);
        while !instance.shutdown.drain.is_raised() {
            let error = match self.connect() {
                Ok(session) => {
                    self.attend(&session);
                    if session.was_open() {
                        cooldown.reset();
                    }
                    ClientError::Over(session.peer(), session.reason().unwrap_or_default())
                }
                Err(error) => error,
            };
            if instance.shutdown.drain.is_raised() {
                break;
            }
            log::error!("Client error: {error}");
            if matches!(error, ClientError::FlowChanged) {
                // The listeners end with everything else.
                break;
            }
            let pause = cooldown.next_pause();
            log::info!("Trying again in {:.1} s", pause.as_secs_f64());
            instance.shutdown.drain.wait(pause);
        }
        // Visitors who wait for a pool connection are let go.
        self.around.sessions.close();
        self.warm_up_crew.close(STOP_TIMEOUT);
        self.around.sessions.muxes.close(STOP_TIMEOUT);
        if !self.around.sessions.readers.close(STOP_TIMEOUT) {
            log::warn!("The session did not end in time");
        }
    }

    /// Looks after a session until it is over.
    fn attend(&self, session: &Arc<Session>) {
        let shutdown = &self.around.instance.shutdown;
        let mut is_draining = false;
        while !session.is_over() {
            if shutdown.drain.is_raised() && !is_draining {
                is_draining = true;
                session.drain();
            }
            let pause = session.tend(Instant::now(), TEND_INTERVAL);
            let next = if is_draining {
                &shutdown.stop
            } else {
                &shutdown.drain
            };
            wait_for_any([session.ended(), next], pause);
        }
    }

    /// Does the handshake and opens the control channel.
    fn connect(&mut self) -> Result<Arc<Session>, ClientError> {
        let instance = Arc::clone(&self.around.instance);
        let (address, stream) = self.dial()?;
        let host = self.host_name();
        let server_name = host.clone().unwrap_or_else(|| address.ip().to_string());
        let greeting = Greeting {
            address,
            host: host.as_deref(),
            server_name: &server_name,
            keys: &self.keys,
            auth: instance.options.auth,
            replaces: self.last_session,
            over_tls: cfg!(feature = "tls") && self.tunnel.port == WEB_TLS_PORT,
            has_spoken_tls: Cell::new(self.has_spoken_tls),
            dial_timeout: instance.limits.tcp_dial_timeout,
            handshake_timeout: instance.limits.handshake_timeout,
            stop: &instance.shutdown.drain,
        };
        let greeted = greeting
            .run(stream)
            .map_err(|error| ClientError::Greeting(address, error))?;
        let over_tls = greeting.has_spoken_tls.get();
        self.has_spoken_tls = over_tls;
        let agreed = self.agree(greeted);
        if !is_built(agreed.offer.transport) {
            return Err(ClientError::Transport(agreed.offer.transport));
        }
        match agreed.offer.flow {
            Flow::Forward => self.let_visitors_in()?,
            Flow::Reverse if self.is_entry => return Err(ClientError::FlowChanged),
            Flow::Reverse => {}
        }
        let way = WayToServer {
            address,
            server_name,
            over_tls,
        };
        let mut connector = self.connector(&agreed.offer, agreed.opening, way)?;
        connector.pin(agreed.pinned);
        let (id, control) = connector
            .open(&instance.shutdown.drain)
            .map_err(|error| ClientError::Open(address, error))?;
        if id != PoolId::CONTROL {
            return Err(ClientError::NotControl(address, id));
        }
        if agreed.dialect == Dialect::V1 && agreed.offer.tls == TlsMode::SelfSigned {
            // One connection is checked with the server later: all have to be like that one.
            connector.pin(control.fingerprint);
        }
        let terms = Terms {
            side: Side::Client,
            peer: address,
            dialect: agreed.dialect,
            offer: agreed.offer,
            fingerprint: None,
        };
        let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let (min, max) = (instance.options.pool_min, agreed.offer.pool_max);
        if min > max {
            log::info!("The pool has at most {max} connections, as the server has it: min={min}");
        }
        let bounds = Bounds {
            min: size(min),
            max: size(max).min(instance.pool_room()),
            interval_min: instance.limits.pool_interval_min,
            interval_max: instance.limits.pool_interval_max,
        };
        let warm_up = WarmUp::new(connector, bounds, self.warm_up_crew.clone());
        let around = self.around.clone();
        Session::start(around, terms, control.carrier, agreed.codecs, Some(warm_up))
            .map_err(ClientError::System)
    }

    /// Returns what makes the pool connections that the server offers.
    fn connector(
        &self,
        offer: &Offer,
        opening: Opening,
        way: WayToServer,
    ) -> Result<Connector, ClientError> {
        let WayToServer {
            address,
            server_name,
            ..
        } = way;
        let limits = &self.around.instance.limits;
        let (dial_timeout, handshake_timeout) = (limits.tcp_dial_timeout, limits.handshake_timeout);
        #[cfg(feature = "websocket")]
        let ends = match (&opening, offer.flow) {
            (Opening::Ticket(_), _) => Ends::Each,
            (Opening::Silence, Flow::Forward) => Ends::BothLate,
            (Opening::Silence, Flow::Reverse) => Ends::Both,
        };
        #[cfg(any(feature = "http2", feature = "websocket"))]
        let authority = authority_of(server_name.clone());
        let is_web = offer.transport == Transport::WebSocket;
        let cover = if is_web && way.over_tls && offer.tls == TlsMode::Plain {
            // It is the proxy in between that asks for TLS; what is promised is tls=0. In v1 nothing
            // but its certificate, which was good for the handshake, says who is there.
            let accepts = match &opening {
                Opening::Ticket(_) => Accepts::Anyone,
                Opening::Silence => Accepts::Verified,
            };
            ClientCover::tls(accepts, server_name, &[])
        } else {
            let protocols: &[&[u8]] = match offer.transport {
                Transport::Http2 => &[H2],
                Transport::Tcp | Transport::Quic | Transport::WebSocket => &[],
            };
            ClientCover::new(offer.tls, server_name, protocols)
        };
        #[cfg(feature = "quic")]
        if offer.transport == Transport::Quic {
            let judge = cover.and_then(|cover| cover.judge());
            let trunk = QuicTrunk {
                address,
                opening,
                judge: judge.map_err(ClientError::Cover)?,
                pinned: None,
                handshake_timeout,
                keep_alive: limits.report_interval,
            };
            let connector = MuxedConnector::new(trunk, mux_thread::launch(&self.around));
            return Ok(Connector::Quic(connector));
        }
        let tcp = TcpConnector {
            address,
            opening,
            cover: cover.map_err(ClientError::Cover)?,
            pinned: None,
            dial_timeout,
            handshake_timeout,
        };
        Ok(match offer.transport {
            #[cfg(feature = "websocket")]
            Transport::WebSocket => Connector::WebSocket(WebSocketConnector {
                tcp,
                host: authority,
                ends,
                silence_max: limits.web_socket_silence(),
            }),
            #[cfg(feature = "http2")]
            Transport::Http2 => {
                let trunk = Http2Trunk { tcp, authority };
                let launch = mux_thread::launch(&self.around);
                Connector::Http2(MuxedConnector::new(trunk, launch))
            }
            _ => Connector::Tcp(tcp),
        })
    }

    /// Connects to the server, whose name is asked for each time.
    fn dial(&self) -> Result<(SocketAddr, PlainStream), ClientError> {
        let instance = &self.around.instance;
        if let Host::Name(name) = &self.tunnel.host {
            instance.resolver.forget(name);
        }
        let watch = Watch {
            stop: &instance.shutdown.drain,
            visitor: None,
        };
        let dialled = self.dialer.dial(watch).map_err(ClientError::Dial)?;
        Ok((dialled.address, dialled.stream))
    }

    /// Returns the name of the server, if it has one.
    fn host_name(&self) -> Option<String> {
        let of_option = self.around.instance.options.server_name.clone();
        of_option.or_else(|| match &self.tunnel.host {
            Host::Name(name) => Some(name.clone()),
            Host::Ip(_) | Host::Any => None,
        })
    }

    /// Takes a handshake apart.
    fn agree(&mut self, greeted: Greeted) -> Agreed {
        match greeted {
            Greeted::Native(verified) => {
                self.last_session = Some(verified.session.id());
                let offer = verified.offer;
                let pinned = verified
                    .fingerprint
                    .filter(|_| offer.tls == TlsMode::SelfSigned);
                let (writer, reader, issuer) = verified.session.into_client();
                Agreed {
                    dialect: Dialect::Native,
                    offer,
                    pinned,
                    codecs: (writer, reader),
                    opening: Opening::Ticket(Mutex::new(issuer)),
                }
            }
            Greeted::V1(offer, key) => Agreed::v1(offer, key),
        }
    }

    /// Binds the visitors' address, once: it stays open while the client looks for its server.
    fn let_visitors_in(&mut self) -> Result<(), ClientError> {
        if self.is_entry {
            return Ok(());
        }
        let [address] = &self.visitors[..] else {
            return Err(ClientError::ManyAddresses);
        };
        let instance = &self.around.instance;
        let protocols = Protocols::for_visitors(&instance.options);
        let timeout = instance.limits.tcp_dial_timeout;
        let is_wanted = || !instance.shutdown.drain.is_raised();
        let listeners =
            Listeners::bind(address, protocols, &instance.resolver, timeout, &is_wanted)
                .map_err(ClientError::Listen)?;
        let way = Way::Tunnel(Arc::clone(&self.around.sessions));
        entry::start(instance, &self.threads, listeners, &way).map_err(ClientError::System)?;
        self.is_entry = true;
        Ok(())
    }
}

/// How the handshake came to the server.
struct WayToServer {
    address: SocketAddr,
    /// Its name, or its address.
    server_name: String,
    /// Inside TLS, as the port asks for.
    over_tls: bool,
}

/// Returns a name or an address as a URL has it.
#[cfg(any(feature = "http2", feature = "websocket"))]
fn authority_of(server_name: String) -> String {
    if server_name.contains(':') {
        format!("[{server_name}]")
    } else {
        server_name
    }
}

/// What a handshake has led to.
struct Agreed {
    dialect: Dialect,
    offer: Offer,
    /// The certificate that pool connections have to show.
    pinned: Option<Fingerprint>,
    codecs: (SignalWriter, SignalReader),
    opening: Opening,
}

impl Agreed {
    fn v1(offer: Offer, key: TunnelKey) -> Self {
        Self {
            dialect: Dialect::V1,
            offer,
            pinned: None,
            codecs: (SignalWriter::v1(key.clone()), SignalReader::v1(key)),
            opening: Opening::Silence,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => write!(f, "cannot reach the server: {error}"),
            Self::Greeting(address, error) => write!(f, "handshake with {address}: {error}"),
            Self::Transport(transport) => {
                let digit = transport.digit();
                write!(
                    f,
                    "the server wants type={digit}, which is not in this build; set type=0 there"
                )
            }
            Self::Cover(error) => write!(f, "{error}"),
            Self::Open(address, error) => {
                write!(f, "no control channel to {address}: {error}")
            }
            Self::NotControl(address, id) => write!(
                f,
                "no control channel to {address}: the first pool connection has the id {id}"
            ),
            Self::Listen(error) => write!(f, "{error}"),
            Self::ManyAddresses => f.write_str(
                "the server dials the targets (flow +), so this side binds its target address and \
                 takes one; name one target",
            ),
            Self::FlowChanged => f.write_str(
                "the server sends visitors now instead of taking them; starting anew without a \
                 listener for them",
            ),
            Self::Over(address, reason) => write!(f, "session with {address} ended: {reason}"),
            Self::System(error) => write!(f, "the system refuses: {error}"),
        }
    }
}
