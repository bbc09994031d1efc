//! What the cores do: listeners, sessions, targets.

pub mod direct;
mod gate;
mod report;
mod session_tcp;
mod session_udp;
pub mod slots;
mod udp_table;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, Instant};

use self::direct::{Direct, announce_room};
use crate::config::{Config, Core, Mode};
use crate::limits::{COOLDOWN_FACTOR_MAX, Limits};
use crate::net::listen::{ListenError, Listeners, Protocols};
use crate::net::resolve::Resolver;
use crate::runtime::shutdown::Signals;

/// Why an instance cannot run.
#[derive(Debug)]
pub enum RunError {
    /// No listener; a retry can help.
    Listen(ListenError),
    /// The system is short of something; a retry can help.
    System(io::Error),
    /// A thread that everything depends on ended; a retry can help.
    Panic,
    /// The address is taken, and a client that goes to a server is no part of this version.
    NoServerMode(Option<ListenError>),
    /// This core is no part of this version.
    NoCore(Core),
}

impl RunError {
    /// Returns whether the next attempt may go better.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Listen(_) | Self::System(_) | Self::Panic)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ADVICE: &str = "this version forwards with client://…?mode=1 only";
        match self {
            Self::Listen(error) => write!(f, "{error}"),
            Self::Panic => f.write_str("a thread ended by a panic; please report what it said"),
            Self::System(error) => write!(f, "the system refuses: {error}"),
            Self::NoServerMode(None) => {
                write!(f, "mode=2 needs a tunnel to a server; {ADVICE}")
            }
            Self::NoServerMode(Some(error)) => {
                write!(
                    f,
                    "{error}, so this is a tunnel to a server (mode=0); {ADVICE}"
                )
            }
            Self::NoCore(core) => write!(f, "{}:// cannot run yet; {ADVICE}", core.name()),
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
    let title = match config.core {
        Core::Server => "Server",
        Core::Client => "Client",
        Core::Master => "Master",
    };
    let mut cooldown = Cooldown::new(limits.service_cooldown);
    loop {
        let error = match start(config, limits, signals, descriptors_max) {
            Ok(direct) => {
                let is_told = signals.wait(None, Some(direct.failed()));
                log::info!("{title} stopping");
                direct.stop(signals);
                log::info!("{title} stopped");
                if is_told {
                    return Ok(());
                }
                RunError::Panic
            }
            // What failed only because a signal came is no failure.
            Err(_) if signals.wait(Some(Instant::now()), None) => return Ok(()),
            Err(error) => error,
        };
        log::error!("{title} error: {error}");
        if !error.is_passing() {
            return Err(error);
        }
        let pause = cooldown.next(RandomState::new().hash_one(()));
        log::info!("Trying again in {:.1} s", pause.as_secs_f64());
        if signals.wait(Some(Instant::now() + pause), None) {
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
) -> Result<Direct, RunError> {
    if config.core != Core::Client {
        return Err(RunError::NoCore(config.core));
    }
    let options = &config.options;
    if options.mode == Mode::Two {
        return Err(RunError::NoServerMode(None));
    }
    let timeout = limits.tcp_dial_timeout;
    let resolver = Resolver::new(&options.names, timeout, limits.stack_size);
    let tunnel = &config.tunnel;
    let protocols = Protocols {
        tcp: options.tcp,
        udp: options.udp,
        // With option `rate` datagrams come one by one, as its turns do.
        joins_datagrams: options.rate.is_none(),
    };
    let is_wanted = || !signals.is_pending();
    let bound = Listeners::bind(tunnel, protocols, &resolver, timeout, &is_wanted);
    let listeners = match (bound, options.mode) {
        (Ok(listeners), Mode::Auto) => {
            log::info!("Mode 1 (single-end) chosen: {tunnel} can be bound here");
            listeners
        }
        (Ok(listeners), _) => listeners,
        (Err(error), Mode::Auto) if error.is_taken() => {
            return Err(RunError::NoServerMode(Some(error)));
        }
        (Err(error), _) => return Err(RunError::Listen(error)),
    };
    log::info!("Client started: {}", config.to_url());
    announce_room(options, descriptors_max);
    Direct::start(config, limits, resolver, listeners, descriptors_max).map_err(RunError::System)
}

/// The pause before a restart: doubled while restarts keep failing, never the same twice, so that
/// many programs that lost the same server do not come back in step.
#[derive(Debug)]
struct Cooldown {
    first: Duration,
    next: Duration,
}

impl Cooldown {
    fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// Returns the next pause: up to a quarter longer than its step, as `random` has it.
    fn next(&mut self, random: u64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.first * COOLDOWN_FACTOR_MAX);
        let share = u32::try_from(random % 256).unwrap_or_default();
        pause + pause * share / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_varies() {
        let mut cooldown = Cooldown::new(Duration::from_secs(3));
        let pauses: Vec<u64> = (0..6).map(|_| cooldown.next(0).as_secs()).collect();
        assert_eq!(pauses, [3, 6, 12, 24, 30, 30]);
        let longest = cooldown.next(u64::MAX);
        assert!(longest > Duration::from_secs(37) && longest < Duration::from_secs(38));
    }
}
