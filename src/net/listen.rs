//! Listeners: binds them, and accepts visitors whatever the system is short of.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::datagram::{join_received, set_buffer_sizes, tell_local_address};
use super::resolve::{ResolveError, Resolver};
use super::stream::set_stream_options;
use crate::config::address::{Address, Host};
use crate::config::options::Options;
use crate::limits::{
    ACCEPT_BACKLOG, ACCEPT_BATCH_MAX, ACCEPT_PAUSE, FREE_PORT_TRIES_MAX, UDP_LISTENER_BUFFER_SIZE,
};
use crate::runtime::descriptors;
use crate::runtime::event::Event;
use crate::runtime::log::Repeated;

/// Why a listener cannot be had.
#[derive(Debug)]
pub struct ListenError {
    what: &'static str,
    address: Address,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    Name(ResolveError),
    Bind(io::Error),
}

impl ListenError {
    /// Returns whether the address is not for this program: another one has it, or another host, or
    /// only others may have it.
    pub fn is_taken(&self) -> bool {
        let taken = [
            io::ErrorKind::AddrInUse,
            io::ErrorKind::AddrNotAvailable,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::InvalidInput,
        ];
        matches!(&self.reason, Reason::Bind(error) if taken.contains(&error.kind()))
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {} {}: ", self.what, self.address)?;
        match &self.reason {
            Reason::Name(error) => write!(f, "{error}"),
            Reason::Bind(error) => {
                write!(f, "{error}")?;
                match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; ports below 1024 take root or CAP_NET_BIND_SERVICE")
                    }
                    io::ErrorKind::AddrInUse => {
                        f.write_str("; stop the program that has it, or choose another port")
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        f.write_str("; it is no address of this host")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for ListenError {}

/// The listeners of one address, both on the same port.
#[derive(Debug)]
pub struct Listeners {
    /// For TCP, unless it is left out.
    pub tcp: Option<TcpListener>,
    /// For UDP, unless it is left out.
    pub udp: Option<UdpSocket>,
}

impl Listeners {
    /// Binds the listeners of `address`.
    ///
    /// Port 0 takes a port that is free for each protocol that is wanted.
    ///
    /// Blocks: while a name is resolved, at most `timeout`, and hardly longer than `is_wanted`
    /// says so.
    /// Errors: the address is in use, not one of this host, or not allowed; a retry can help.
    pub fn bind(
        address: &Address,
        protocols: Protocols,
        resolver: &Resolver,
        timeout: Duration,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Self, ListenError> {
        let error = |what, reason| ListenError {
            what,
            address: address.clone(),
            reason,
        };
        let first = if protocols.tcp { "tcp" } else { "udp" };
        let candidates = candidates(&address.host, address.port, resolver, timeout, is_wanted)
            .map_err(|reason| error(first, Reason::Name(reason)))?;
        let bind_udp = |address| bind_udp(address, protocols.joins_datagrams);
        let mut tries = FREE_PORT_TRIES_MAX;
        loop {
            tries -= 1;
            let mut udp_candidates = candidates.clone();
            let mut tcp = None;
            if protocols.tcp {
                let (listener, bound) = bind_first(&candidates, bind_tcp)
                    .map_err(|reason| error("tcp", Reason::Bind(reason)))?;
                tcp = Some(listener);
                // UDP goes to just that address and port.
                udp_candidates = vec![bound];
            }
            if !protocols.udp {
                return Ok(Self { tcp, udp: None });
            }
            match bind_first(&udp_candidates, bind_udp) {
                Ok((socket, _)) => {
                    return Ok(Self {
                        tcp,
                        udp: Some(socket),
                    });
                }
                // The port that was free for TCP may not be free for UDP.
                Err(reason)
                    if address.port == 0
                        && tries > 0
                        && reason.kind() == io::ErrorKind::AddrInUse => {}
                Err(reason) => return Err(error("udp", Reason::Bind(reason))),
            }
        }
    }
}

/// What to listen for.
#[derive(Clone, Copy, Debug)]
pub struct Protocols {
    /// Connections.
    pub tcp: bool,
    /// Datagrams.
    pub udp: bool,
    /// Several datagrams may be received as one.
    pub joins_datagrams: bool,
}

impl Protocols {
    /// Returns what `options` ask for where visitors come.
    pub fn for_visitors(options: &Options) -> Self {
        Self {
            tcp: options.tcp,
            udp: options.udp,
            // With option `rate` datagrams come one by one, as its turns do.
            joins_datagrams: options.rate.is_none(),
        }
    }
}

/// Returns the addresses to try, the best first.
fn candidates(
    host: &Host,
    port: u16,
    resolver: &Resolver,
    timeout: Duration,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let addresses = match host {
        Host::Ip(ip) => vec![*ip],
        // The socket for IPv6 takes IPv4 as well; a system without IPv6 has only the other one.
        Host::Any => vec![
            Ipv6Addr::UNSPECIFIED.into(),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ],
        Host::Name(name) => {
            let deadline = Instant::now() + timeout;
            resolver.look_up(name, deadline, is_wanted)?.to_vec()
        }
    };
    Ok(addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}

/// Binds the first address that can be bound; returns the error of the last one otherwise.
fn bind_first<T>(
    candidates: &[SocketAddr],
    bind: impl Fn(SocketAddr) -> io::Result<(T, SocketAddr)>,
) -> io::Result<(T, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in candidates {
        match bind(*address) {
            // With the port taken in one family, the other one would get half the visitors.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
            bound => return bound,
        }
    }
    Err(last)
}

fn bind_tcp(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // Connections of the last run that linger must not keep the port from this one.
    socket.set_reuse_address(true)?;
    bind_both_families(&socket, address)?;
    set_stream_options(&SockRef::from(&socket))?;
    socket.listen(ACCEPT_BACKLOG)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn bind_udp(address: SocketAddr, joins_datagrams: bool) -> io::Result<(UdpSocket, SocketAddr)> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    bind_both_families(&socket, address)?;
    let socket = UdpSocket::from(socket);
    set_buffer_sizes(&socket, UDP_LISTENER_BUFFER_SIZE);
    if joins_datagrams {
        join_received(&socket);
    }
    tell_local_address(&socket)?;
    let bound = socket.local_addr()?;
    Ok((socket, bound))
}

/// Binds; a wildcard of IPv6 takes IPv4 as well.
fn bind_both_families(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())
}

/// Accepts connections and hands each one to `admit`, until `drain` is raised; `who` comes there,
/// as log lines call him.
///
/// The socket that is handed over is non-blocking.
///
/// Blocks: until then. `admit` must not.
pub fn accept_until(
    drain: &Event,
    listener: TcpListener,
    who: &'static str,
    mut admit: impl FnMut(OwnedFd, SocketAddr),
) {
    let mut acceptor = Acceptor::new(listener, who);
    while !drain.is_raised() {
        let mut set = [
            PollFd::new(&acceptor, PollFlags::IN),
            PollFd::new(drain, PollFlags::IN),
        ];
        // An interrupted poll is answered by an accept that finds nobody.
        let _ = rustix::event::poll(&mut set, None);
        if drain.is_raised() {
            return;
        }
        if let Accepting::Short = acceptor.accept_some(&mut admit) {
            drain.wait(ACCEPT_PAUSE);
        }
    }
}

/// A listener, and what it takes to accept whatever the system is short of.
///
/// When descriptors run out, visitors are turned away at once instead of waiting in the backlog
/// for a service that does not come.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    who: &'static str,
    shortage: Repeated,
    spare: Option<OwnedFd>,
}

/// How an accept went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// The listener tells when there are more.
    Well,
    /// The system is short of something: let `ACCEPT_PAUSE` pass before the next try.
    Short,
}

impl Acceptor {
    /// Takes over a listener, non-blocking; `who` comes there, as log lines call him.
    pub fn new(listener: TcpListener, who: &'static str) -> Self {
        Self {
            listener,
            who,
            shortage: Repeated::new(Level::Warn, "connections refused for want of descriptors"),
            spare: descriptors::take_one().ok(),
        }
    }

    /// Accepts those who wait, up to a bound, and hands each one to `admit`. Does not wait.
    pub fn accept_some(&mut self, mut admit: impl FnMut(OwnedFd, SocketAddr)) -> Accepting {
        for _ in 0..ACCEPT_BATCH_MAX {
            match accept(&self.listener) {
                Ok((socket, address)) => admit(socket, address),
                Err(Errno::AGAIN) => break,
                // The visitor left before he was accepted, or his network reported an error.
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
                Err(error @ (Errno::MFILE | Errno::NFILE)) => {
                    self.shortage.log(format_args!(
                        "{} refused: {error}; raise the limit of open files (ulimit -n)",
                        self.who
                    ));
                    // The spare descriptor makes room to accept one and hang up on him.
                    drop(self.spare.take());
                    drop(accept(&self.listener));
                    self.spare = descriptors::take_one().ok();
                    if self.spare.is_none() {
                        return Accepting::Short;
                    }
                }
                Err(error) => {
                    self.shortage.log(format_args!(
                        "Cannot accept connections: {error}; trying again"
                    ));
                    return Accepting::Short;
                }
            }
        }
        if self.spare.is_none() {
            self.spare = descriptors::take_one().ok();
        }
        Accepting::Well
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn accept(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, address) = rustix::net::acceptfrom_with(listener, flags)?;
    // A connection without an address has been reset meanwhile.
    let address = address.and_then(|any| SocketAddr::try_from(any).ok());
    Ok((socket, canonical(address.ok_or(Errno::CONNABORTED)?)))
}

/// Returns the address as its owner would write it: one of IPv4 that came to a socket for both
/// families is IPv4-mapped.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        // Keeps the scope of a link-local address.
        IpAddr::V6(_) => address,
    }
}
