//! Connections that are being made, several at a time.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::stream::{PlainStream, set_stream_options};
use crate::runtime::event::{Event, timespec};

/// What makes a dial pointless.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// The program stops.
    pub stop: &'a Event,
    /// The visitor's socket: a reset there ends the dial.
    pub visitor: Option<BorrowedFd<'a>>,
}

impl Watch<'_> {
    /// Returns whether there is a point in going on.
    pub fn is_wanted(&self) -> bool {
        if self.stop.is_raised() {
            return false;
        }
        let Some(visitor) = self.visitor else {
            return true;
        };
        let mut set = [PollFd::from_borrowed_fd(visitor, PollFlags::empty())];
        // A poll that fails says nothing about the visitor.
        !matches!(
            rustix::event::poll(&mut set, Some(&timespec(Duration::ZERO))),
            Ok(1..)
        )
    }
}

/// The source address of option `dial`.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The address, while it can be bound.
    pub address: Option<IpAddr>,
    /// Set when binding it fails.
    pub failed: &'a AtomicBool,
}

impl Source<'_> {
    /// Binds a socket that will connect to `target`, if there is an address for it.
    ///
    /// A failure is logged once, and the system's choice is used from then on.
    pub fn bind(&self, socket: &Socket, target: SocketAddr) {
        let Some(address) = self.address.filter(|ip| ip.is_ipv4() == target.is_ipv4()) else {
            return;
        };
        // The port is chosen when the connection is made: then only the pair of both addresses
        // has to be unique, and ports do not run out.
        let _ = setsockopt(socket, sockopt::IpBindAddressNoPort, &true);
        if let Err(error) = socket.bind(&SocketAddr::new(address, 0).into())
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            log::error!(
                "Cannot dial from {address}: {error}; from now on the system chooses the address"
            );
        }
    }
}

/// Connections that are being made.
pub struct Race<'a> {
    source: Source<'a>,
    attempts: Vec<Attempt>,
    failure: Option<io::Error>,
}

/// One of them.
pub struct Attempt {
    /// The socket, non-blocking.
    pub socket: OwnedFd,
    /// Where it leads.
    pub address: SocketAddr,
    /// When the connect began.
    pub started_at: Instant,
    /// Whatever the caller wants to remember about it.
    pub tag: usize,
}

/// What came of a wait.
pub enum Step {
    /// This one is connected and out of the race.
    Connected(Attempt),
    /// The time is over, or an attempt failed.
    Nothing,
    /// See [`Watch`].
    NotWanted,
}

impl<'a> Race<'a> {
    /// Makes a race without runners.
    pub fn new(source: Source<'a>) -> Self {
        Self {
            source,
            attempts: Vec::new(),
            failure: None,
        }
    }

    /// Starts one more connection; a failure is kept.
    pub fn start(&mut self, address: SocketAddr, tag: usize) {
        let started_at = Instant::now();
        match start_connect(address, self.source) {
            Ok(socket) => self.attempts.push(Attempt {
                socket,
                address,
                started_at,
                tag,
            }),
            Err(error) => self.failure = Some(error),
        }
    }

    /// Returns whether no connection is being made.
    pub fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Returns the last failure.
    pub fn into_failure(self) -> Option<io::Error> {
        self.failure
    }

    /// Waits for the first connection that is made.
    ///
    /// Blocks: until then, until `wake_at`, or until it is not wanted any more.
    pub fn wait(&mut self, wake_at: Instant, watch: Watch<'_>) -> Step {
        if self.attempts.is_empty() {
            return Step::Nothing;
        }
        let timeout = timespec(wake_at.saturating_duration_since(Instant::now()));
        let mut set = Vec::with_capacity(self.attempts.len() + 2);
        set.extend(
            self.attempts
                .iter()
                .map(|a| PollFd::new(&a.socket, PollFlags::OUT)),
        );
        set.push(PollFd::new(watch.stop, PollFlags::IN));
        // Nothing is asked of the visitor: only a reset wakes.
        set.extend(
            watch
                .visitor
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::empty())),
        );
        // An interrupted poll is a round in which nothing happened.
        if !matches!(rustix::event::poll(&mut set, Some(&timeout)), Ok(1..)) {
            return Step::Nothing;
        }
        let (ours, others) = set.split_at(self.attempts.len());
        if others.iter().any(|entry| !entry.revents().is_empty()) {
            return Step::NotWanted;
        }
        let ready = ours.iter().position(|entry| !entry.revents().is_empty());
        let Some(ready) = ready else {
            return Step::Nothing;
        };
        drop(set);
        let attempt = self.attempts.swap_remove(ready);
        match rustix::net::sockopt::socket_error(attempt.socket.as_fd()) {
            Ok(Ok(())) => Step::Connected(attempt),
            Ok(Err(error)) | Err(error) => {
                self.failure = Some(error.into());
                Step::Nothing
            }
        }
    }
}

/// Connects to one address, whatever source address the system chooses.
///
/// Blocks: until it is connected, at most until `deadline`, hardly longer than until `stop`.
/// Errors: those of the connect; `TimedOut`; `Interrupted` when it is to stop.
pub fn connect(address: SocketAddr, deadline: Instant, stop: &Event) -> io::Result<PlainStream> {
    let never_bound = AtomicBool::new(false);
    let source = Source {
        address: None,
        failed: &never_bound,
    };
    let watch = Watch {
        stop,
        visitor: None,
    };
    let mut race = Race::new(source);
    race.start(address, 0);
    loop {
        if race.is_empty() {
            let failure = race.into_failure();
            return Err(failure.unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match race.wait(deadline, watch) {
            Step::Connected(attempt) => return Ok(PlainStream::new(attempt.socket)),
            Step::NotWanted => return Err(io::ErrorKind::Interrupted.into()),
            Step::Nothing => {}
        }
    }
}

/// Starts a connection on a new socket that is non-blocking, prompt and kept alive.
fn start_connect(address: SocketAddr, source: Source<'_>) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    source.bind(&socket, address);
    set_stream_options(&SockRef::from(&socket))?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Makes a socket for datagrams to `address`; non-blocking.
///
/// Errors: the system has no way there, or is short of something.
pub fn connect_udp(address: SocketAddr, source: Source<'_>) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    source.bind(&socket, address);
    socket.connect(&address.into())?;
    Ok(socket.into())
}
