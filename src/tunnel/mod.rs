//! What the cores do: listeners, sessions, targets.
//!
//! | module | owns |
//! |---|---|
//! | [`server`], [`client`], `direct` | what differs by role |
//! | [`instance`], [`running`] | what all of a role's threads share; their start and end |
//! | `doorman`, `quic`, `caller`, [`guests`], `failures`, `spending` | whoever comes to a server's tunnel port |
//! | [`greeting`] | a client's handshake |
//! | [`session`], [`control`], [`warm_up`] | one session: its control channel, its pool |
//! | [`sessions`] | who gets the next visitor |
//! | [`entry`], [`exit`] | the end that visitors come to, the end that dials |
//! | `session_tcp`, [`session_udp`], [`udp_exit`] | visitors |

mod caller;
pub mod client;
pub mod control;
mod direct;
mod doorman;
pub mod entry;
pub mod exit;
mod failures;
mod gate;
pub mod greeting;
pub mod guests;
pub mod instance;
#[cfg(any(feature = "http2", feature = "quic"))]
mod mux_thread;
#[cfg(feature = "quic")]
mod quic;
mod report;
pub mod running;
pub mod server;
pub mod session;
mod session_tcp;
pub mod session_udp;
pub mod sessions;
pub mod slots;
mod spending;
pub mod udp_exit;
mod udp_held;
mod udp_sweep;
mod udp_table;
mod udp_target;
#[cfg(test)]
mod udp_tests;
mod udp_way;
pub mod uplink;
pub mod warm_up;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use self::instance::{Instance, announce_room, pool_room};
use self::running::Running;
use self::server::ServerError;
use crate::config::{Address, Config, Core, Mode, Transport};
use crate::limits::Limits;
use crate::net::listen::{ListenError, Listeners, Protocols};
use crate::net::resolve::Resolver;
use crate::runtime::cooldown::Cooldown;
use crate::runtime::shutdown::Signals;

/// Why an instance cannot run.
#[derive(Debug)]
pub enum RunError {
    /// No listener; a retry can help.
    Listen(ListenError),
    /// A server cannot be what its URL asks for; with a certificate or a shortage a retry can help.
    Server(ServerError),
    /// The system is short of something; a retry can help.
    System(io::Error),
    /// A thread that everything depends on ended by a panic; a retry can help.
    Panic,
    /// It has to start anew, for a reason that has been logged.
    Anew,
    /// This core is no part of this build.
    NoCore(Core),
}

impl RunError {
    /// Returns whether the next attempt may go better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Listen(_) | Self::System(_) | Self::Panic | Self::Anew => true,
            Self::Server(error) => error.is_passing(),
            Self::NoCore(_) => false,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => write!(f, "{error}"),
            Self::Server(error) => write!(f, "{error}"),
            Self::Anew => f.write_str("starting anew"),
            Self::Panic => f.write_str("a thread ended by a panic; please report what it said"),
            Self::System(error) => write!(f, "the system refuses: {error}"),
            Self::NoCore(core) => write!(
                f,
                "{}:// is not in this build, which has server:// and client://",
                core.name()
            ),
        }
    }
}

/// Runs a configuration until a signal ends it.
///
/// What cannot run is logged as `<Core> error: …` and tried again after a pause that grows while
/// it keeps failing.
///
/// Blocks: until SIGINT or SIGTERM, and then until the connections that are open have ended or
/// the shutdown timeout is over.
/// Errors: it will never run; the reason has been logged.
pub fn run(
    config: &Config,
    limits: &Limits,
    signals: &Signals,
    descriptors_max: usize,
) -> Result<(), RunError> {
    let title = title(config.core);
    let mut cooldown = Cooldown::new(limits.service_cooldown);
    loop {
        let error = match start(config, limits, signals, descriptors_max) {
            Ok(running) => {
                let is_told = signals.wait(None, Some(running.failed()));
                log::info!("{title} stopping");
                let has_panicked = running.has_panicked();
                running.stop(signals);
                log::info!("{title} stopped");
                match (is_told, has_panicked) {
                    (true, _) => return Ok(()),
                    (false, true) => RunError::Panic,
                    (false, false) => RunError::Anew,
                }
            }
            // What failed only because a signal came is no failure.
            Err(_) if signals.wait(Some(Instant::now()), None) => return Ok(()),
            Err(error) => error,
        };
        log::error!("{title} error: {error}");
        if !error.is_passing() {
            return Err(error);
        }
        if cooldown.wait(signals) {
            return Ok(());
        }
    }
}

/// Starts what the configuration asks for.
fn start(
    config: &Config,
    limits: &Limits,
    signals: &Signals,
    descriptors_max: usize,
) -> Result<Running, RunError> {
    let timeout = limits.tcp_dial_timeout;
    let options = &config.options;
    let resolver = Resolver::new(&options.names, timeout, limits.stack_size);
    let starting = Start {
        config,
        limits,
        signals,
        descriptors_max,
        resolver,
    };
    match config.core {
        Core::Server => starting.server(),
        Core::Client => starting.client(),
        Core::Master => Err(RunError::NoCore(config.core)),
    }
}

/// A start: finds out which listeners there are, and with them which mode it is.
struct Start<'a> {
    config: &'a Config,
    limits: &'a Limits,
    signals: &'a Signals,
    descriptors_max: usize,
    resolver: Resolver,
}

impl Start<'_> {
    fn server(&self) -> Result<Running, RunError> {
        let cover = server::prepare(self.config).map_err(RunError::Server)?;
        let of_tunnel = Protocols {
            tcp: true,
            // Handshakes come by TCP, pool connections by QUIC to the same port.
            udp: self.config.options.transport == Transport::Quic,
            joins_datagrams: true,
        };
        let tunnel = self.bind(&self.config.tunnel, of_tunnel);
        let tunnel = tunnel.map_err(RunError::Listen)?;
        let visitors = self.bind_visitors()?;
        let instance = self.instance(true)?;
        server::start(self.config, instance, cover, tunnel, visitors).map_err(RunError::System)
    }

    /// Binds the target address of a server; `None` in flow `+`, where targets are dialled.
    fn bind_visitors(&self) -> Result<Option<Listeners>, RunError> {
        let (mode, targets) = (self.config.options.mode, &self.config.targets);
        if mode == Mode::Two {
            return Ok(None);
        }
        let [target] = &targets[..] else {
            // Only the automatic mode allows several.
            log::info!("Mode 2 (forward) chosen: there are several targets to dial");
            return Ok(None);
        };
        match (self.bind(target, self.protocols()), mode) {
            (Ok(listeners), Mode::Auto) => {
                log::info!("Mode 1 (reverse) chosen: {target} can be bound here");
                Ok(Some(listeners))
            }
            (Ok(listeners), _) => Ok(Some(listeners)),
            (Err(error), Mode::Auto) if error.is_taken() => {
                log::info!("Mode 2 (forward) chosen: {error}");
                Ok(None)
            }
            (Err(error), _) => Err(RunError::Listen(error)),
        }
    }

    fn client(&self) -> Result<Running, RunError> {
        let mode = self.config.options.mode;
        let tunnel = &self.config.tunnel;
        if mode == Mode::Two {
            return self.dual_end_client();
        }
        let listeners = match (self.bind(tunnel, self.protocols()), mode) {
            (Ok(listeners), Mode::Auto) => {
                log::info!("Mode 1 (single-end) chosen: {tunnel} can be bound here");
                listeners
            }
            (Ok(listeners), _) => listeners,
            (Err(error), Mode::Auto) if error.is_taken() => {
                log::info!("Mode 2 (dual-end) chosen: {error}");
                return self.dual_end_client();
            }
            (Err(error), _) => return Err(RunError::Listen(error)),
        };
        direct::start(self.instance(false)?, listeners).map_err(RunError::System)
    }

    fn dual_end_client(&self) -> Result<Running, RunError> {
        client::start(self.config, &self.instance(true)?).map_err(RunError::System)
    }

    fn bind(&self, address: &Address, protocols: Protocols) -> Result<Listeners, ListenError> {
        let timeout = self.limits.tcp_dial_timeout;
        let is_wanted = || !self.signals.is_pending();
        Listeners::bind(address, protocols, &self.resolver, timeout, &is_wanted)
    }

    fn protocols(&self) -> Protocols {
        Protocols::for_visitors(&self.config.options)
    }

    /// Makes what the threads will share, and says what has been started.
    fn instance(&self, is_dual_end: bool) -> Result<Arc<Instance>, RunError> {
        let title = title(self.config.core);
        log::info!("{title} started: {}", self.config.to_url());
        let options = &self.config.options;
        let idle_max = match self.config.core {
            Core::Server => usize::try_from(options.pool_max).unwrap_or(usize::MAX),
            Core::Client if is_dual_end => usize::try_from(options.pool_min).unwrap_or(usize::MAX),
            Core::Client | Core::Master => 0,
        };
        let pool_count = idle_max.min(pool_room(self.descriptors_max));
        announce_room(options, self.descriptors_max, pool_count);
        let resolver = self.resolver.clone();
        let instance = Instance::new(self.config, self.limits, resolver, self.descriptors_max);
        instance.map(Arc::new).map_err(RunError::System)
    }
}

/// Returns the name of a core as log lines have it.
fn title(core: Core) -> &'static str {
    match core {
        Core::Server => "Server",
        Core::Client => "Client",
        Core::Master => "Master",
    }
}
