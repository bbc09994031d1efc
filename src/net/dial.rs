//! Connects to a target: names, address families and targets tried within one deadline.
//!
//! The addresses of one name race, each starting a little after the one before it (RFC 8305
//! section 5); the targets of a list are tried one after another, each with its share of what is
//! left of the time.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::race::{Race, Source, Step, Watch, connect_udp};
use super::resolve::{ResolveError, Resolver};
use super::stream::PlainStream;
use super::targets::Targets;
use crate::config::{Address, Host};
use crate::limits::{DIAL_SHARE_MIN, DIAL_STAGGER};
use crate::runtime::event::Event;

/// Dials the targets of an instance.
pub struct Dialer {
    resolver: Resolver,
    /// The targets, and what is known about them over TCP.
    pub tcp: Targets,
    /// The same over UDP: a target that does not answer there may well do so over TCP.
    pub udp: Targets,
    source: Option<IpAddr>,
    /// Binding the source address failed: the system chooses from then on.
    source_failed: AtomicBool,
    timeout: Duration,
}

/// A connection to a target.
pub struct Dialled {
    /// The connection, non-blocking.
    pub stream: PlainStream,
    /// Where it leads.
    pub address: SocketAddr,
    /// How long the connect took.
    pub latency: Duration,
}

/// A socket for the datagrams of one visitor.
pub struct DialledUdp {
    /// The socket, non-blocking and connected to the target.
    pub socket: UdpSocket,
    /// Where it leads.
    pub address: SocketAddr,
    /// Which target that is.
    pub index: usize,
    /// Its other addresses: that this one has a way to it does not say that it answers.
    pub others: Vec<SocketAddr>,
}

/// The addresses of one target, in the order in which they should be tried.
pub type Found = Result<Vec<SocketAddr>, ResolveError>;

/// Why no target could be dialled.
#[derive(Debug)]
pub enum DialError {
    /// Each target, why not, and after how long.
    NoTarget(Vec<(Address, Failure, Duration)>),
    /// The visitor has left, or the program stops.
    NotWanted,
}

/// Why one target could not be dialled.
#[derive(Debug)]
pub enum Failure {
    /// Its name has no addresses.
    Name(ResolveError),
    /// The last of its addresses that failed.
    Connect(io::Error),
    /// None of its addresses answered in time.
    Timeout,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => f.write_str("the visitor has left"),
            Self::NoTarget(failures) => {
                for (index, (address, failure, time)) in failures.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    let milliseconds = time.as_millis();
                    write!(f, "{separator}{address}: {failure} after {milliseconds} ms")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => write!(f, "{error}"),
            Self::Connect(error) => write!(f, "{error}"),
            Self::Timeout => f.write_str("no answer"),
        }
    }
}

impl Dialer {
    /// Makes a dialer for targets that are the same for both protocols; `timeout` bounds one
    /// dial over TCP, whatever it takes.
    pub fn new(
        resolver: Resolver,
        targets: impl Fn() -> Targets,
        source: Option<IpAddr>,
        timeout: Duration,
    ) -> Self {
        Self {
            resolver,
            tcp: targets(),
            udp: targets(),
            source,
            source_failed: AtomicBool::new(false),
            timeout,
        }
    }

    /// Connects to the target whose turn it is, or to the next one that answers.
    ///
    /// Blocks: at most for the dial timeout; until the visitor is reset or the program stops.
    pub fn dial(&self, watch: Watch<'_>) -> Result<Dialled, DialError> {
        let start = Instant::now();
        let deadline = start + self.timeout;
        let order = self.tcp.order(start);
        let mut failures = Vec::new();
        for (place, index) in order.iter().enumerate() {
            let address = &self.tcp.addresses()[*index];
            let began = Instant::now();
            let left = deadline.saturating_duration_since(began);
            let others = u32::try_from(order.len() - place).unwrap_or(u32::MAX);
            let share = (left / others).max(DIAL_SHARE_MIN.min(left));
            let failure = match self.dial_target(address, began + share, watch) {
                Ok(dialled) => {
                    self.tcp
                        .note_success(*index, dialled.latency, Instant::now());
                    return Ok(dialled);
                }
                Err(_) if !watch.is_wanted() => return Err(DialError::NotWanted),
                Err(failure) => failure,
            };
            if failure.is_of_target() {
                self.tcp.note_failure(*index, Instant::now());
                self.forget(address);
            }
            failures.push((address.clone(), failure, began.elapsed()));
        }
        Err(DialError::NoTarget(failures))
    }

    /// Makes a socket for datagrams to the first target of `order` that there is a way to.
    ///
    /// `found` gives the addresses of a target, by its index; `None` says that its name has to
    /// be looked up first, and is then the result of the dial.
    pub fn dial_udp(
        &self,
        order: &[usize],
        found: impl Fn(usize) -> Option<Found>,
    ) -> Option<Result<DialledUdp, DialError>> {
        let mut failures = Vec::new();
        let began = Instant::now();
        for &index in order {
            let result = found(index)?
                .map_err(Failure::Name)
                .and_then(|mut addresses| {
                    self.udp.prefer_known(index, &mut addresses);
                    self.connect_udp(index, addresses)
                });
            let failure = match result {
                Ok(dialled) => return Some(Ok(dialled)),
                Err(failure) => failure,
            };
            if failure.is_of_target() {
                self.udp.note_failure(index, Instant::now());
            }
            let address = self.udp.addresses()[index].clone();
            failures.push((address, failure, began.elapsed()));
        }
        Some(Err(DialError::NoTarget(failures)))
    }

    /// Makes a socket for datagrams to the first of a target's addresses that there is a way to.
    pub fn connect_udp(
        &self,
        index: usize,
        addresses: Vec<SocketAddr>,
    ) -> Result<DialledUdp, Failure> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut others = addresses.into_iter();
        while let Some(address) = others.next() {
            match connect_udp(address, self.source()) {
                Ok(socket) => {
                    return Ok(DialledUdp {
                        socket,
                        address,
                        index,
                        others: others.collect(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(Failure::Connect(last))
    }

    /// Measures how long a connect to each target takes, all at once; `None` for those that do
    /// not answer before `deadline`.
    ///
    /// Blocks: until all have answered, the deadline, or the program stops.
    pub fn measure(
        &self,
        indexes: &[usize],
        deadline: Instant,
        stop: &Event,
    ) -> Vec<Option<Duration>> {
        let watch = Watch {
            stop,
            visitor: None,
        };
        // Names first: the time that they take is not the target's.
        let found = self.look_up(indexes, deadline, watch);
        let mut race = Race::new(self.source());
        for (place, addresses) in found.iter().enumerate() {
            for address in addresses.iter().flatten() {
                race.start(*address, place);
            }
        }
        let mut latencies = vec![None; indexes.len()];
        while !race.is_empty() && latencies.contains(&None) && Instant::now() < deadline {
            match race.wait(deadline, watch) {
                Step::Connected(attempt) => {
                    // The first of a target's addresses counts, as with a visitor.
                    latencies[attempt.tag].get_or_insert(attempt.started_at.elapsed());
                }
                Step::NotWanted => break,
                Step::Nothing => {}
            }
        }
        for (place, index) in indexes.iter().enumerate() {
            self.tcp.note_latency(*index, latencies[place]);
            self.udp.note_latency(*index, latencies[place]);
        }
        latencies
    }

    /// Returns the addresses of some targets, all names asked for at once.
    ///
    /// Blocks: at most until `deadline`, or until they are not wanted any more.
    pub fn look_up(&self, indexes: &[usize], deadline: Instant, watch: Watch<'_>) -> Vec<Found> {
        let targets = || indexes.iter().map(|index| &self.tcp.addresses()[*index]);
        for target in targets() {
            if let Host::Name(name) = &target.host {
                self.resolver.prepare(name);
            }
        }
        let found = |target| self.addresses_of(target, deadline, watch);
        targets().map(found).collect()
    }

    /// Returns the addresses of a target if no name server need be asked for them.
    pub fn addresses_known(&self, index: usize) -> Option<Found> {
        let target = &self.udp.addresses()[index];
        let found = match &target.host {
            Host::Name(name) => self.resolver.cached(name)?.map(|found| found.to_vec()),
            literal => Ok(literal_addresses(literal)),
        };
        Some(found.map(|found| self.sorted(found, target.port)))
    }

    /// Returns the addresses of a target, in the order in which they should be tried.
    ///
    /// Blocks: for a name that is not in the cache, at most until `deadline`.
    fn addresses_of(&self, target: &Address, deadline: Instant, watch: Watch<'_>) -> Found {
        let found = match &target.host {
            Host::Name(name) => {
                let is_wanted = || watch.is_wanted();
                self.resolver.look_up(name, deadline, &is_wanted)?.to_vec()
            }
            literal => literal_addresses(literal),
        };
        Ok(self.sorted(found, target.port))
    }

    /// Forgets the addresses of a target: none of them answered, so they may have changed.
    fn forget(&self, target: &Address) {
        if let Host::Name(name) = &target.host {
            self.resolver.forget(name);
        }
    }

    /// Returns the address that connections to targets come from, while it can be bound.
    pub fn source(&self) -> Source<'_> {
        let address = self
            .source
            .filter(|_| !self.source_failed.load(Ordering::Relaxed));
        Source {
            address,
            failed: &self.source_failed,
        }
    }

    /// Puts the addresses that the source address can reach first.
    fn sorted(&self, found: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect();
        if let Some(source) = self.source {
            addresses.sort_by_key(|address| address.is_ipv4() != source.is_ipv4());
        }
        addresses
    }

    /// Connects to one target.
    fn dial_target(
        &self,
        target: &Address,
        deadline: Instant,
        watch: Watch<'_>,
    ) -> Result<Dialled, Failure> {
        let addresses = self
            .addresses_of(target, deadline, watch)
            .map_err(Failure::Name)?;
        let mut waiting = addresses.into_iter().peekable();
        let mut race = Race::new(self.source());
        let mut next_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_at || race.is_empty() {
                match waiting.next() {
                    Some(address) => {
                        race.start(address, 0);
                        next_at = now + DIAL_STAGGER;
                    }
                    None if race.is_empty() => {
                        let failure = race.into_failure();
                        return Err(failure.map_or(Failure::Timeout, Failure::Connect));
                    }
                    None => {}
                }
            }
            if now >= deadline {
                return Err(Failure::Timeout);
            }
            let wake_at = match waiting.peek() {
                Some(_) => next_at.min(deadline),
                None => deadline,
            };
            match race.wait(wake_at, watch) {
                Step::Connected(attempt) => {
                    return Ok(Dialled {
                        stream: PlainStream::new(attempt.socket),
                        address: attempt.address,
                        latency: attempt.started_at.elapsed(),
                    });
                }
                Step::NotWanted => return Err(Failure::Timeout),
                Step::Nothing => {}
            }
        }
    }
}

impl Failure {
    /// Returns whether the target is to blame, and not a shortage on this side.
    fn is_of_target(&self) -> bool {
        let Self::Connect(error) = self else {
            return true;
        };
        !matches!(
            Errno::from_io_error(error),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
        )
    }
}

/// Returns the addresses of a host that is no name. No host at all means this one.
fn literal_addresses(host: &Host) -> Vec<IpAddr> {
    match host {
        Host::Ip(ip) if ip.is_unspecified() && ip.is_ipv4() => vec![Ipv4Addr::LOCALHOST.into()],
        Host::Ip(ip) if ip.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into()],
        Host::Ip(ip) => vec![*ip],
        Host::Any | Host::Name(_) => {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        }
    }
}
