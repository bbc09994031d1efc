//! Load on TCP with small messages: ping-pong, new visitors, idle visitors.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with, sockopt,
};

/// Size of a message and of its echo (bytes).
const MESSAGE_SIZE: usize = 64;

/// When an exchange that does not come to an end counts as failed.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Local addresses that new connections use in turn. A closed connection keeps its port for a
/// minute, and one address alone would run out of ports.
const SOURCES: [Ipv4Addr; 8] = [
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::new(127, 0, 0, 3),
    Ipv4Addr::new(127, 0, 0, 4),
    Ipv4Addr::new(127, 0, 0, 5),
    Ipv4Addr::new(127, 0, 0, 6),
    Ipv4Addr::new(127, 0, 0, 7),
    Ipv4Addr::new(127, 0, 0, 8),
    Ipv4Addr::new(127, 0, 0, 9),
];

/// How often attempts are checked for their timeout.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// When so many visitors could not be served, the forwarder is full.
const IDLE_FAILURES_MAX: usize = 50;

/// How long each exchange took.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency in µs that the given share of all exchanges, in percent, did not exceed.
    pub fn percentile_us(&mut self, percent: usize) -> f64 {
        self.0.sort_unstable();
        let index = self.0.len().saturating_sub(1) * percent / 100;
        self.0
            .get(index)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// What came of one message after the other.
pub struct PingPong {
    pub seconds: f64,
    pub latencies: Latencies,
}

/// What came of connecting again and again.
pub struct Connections {
    pub seconds: f64,
    pub latencies: Latencies,
    pub errors_count: u32,
}

/// Sends a message on one connection as soon as the last one has come back.
pub fn ping_pong(address: SocketAddr, duration: Duration) -> io::Result<PingPong> {
    let mut visitor = dial(address)?;
    for _ in 0..50 {
        exchange(&mut visitor)?;
    }
    let mut latencies = Latencies::default();
    let started_at = Instant::now();
    let mut sent_at = started_at;
    while sent_at - started_at < duration {
        exchange(&mut visitor)?;
        let answered_at = Instant::now();
        latencies.add(answered_at - sent_at);
        sent_at = answered_at;
    }
    Ok(PingPong {
        seconds: (sent_at - started_at).as_secs_f64(),
        latencies,
    })
}

/// One visitor after the other, with a pause between: how long each waits for its first byte.
pub fn first_bytes(address: SocketAddr, count: usize, pause: Duration) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        thread::sleep(pause);
        let started_at = Instant::now();
        exchange(&mut dial(address)?)?;
        latencies.add(started_at.elapsed());
    }
    Ok(latencies)
}

/// Connects, exchanges one message and closes, `workers` times at once, again and again.
pub fn connections(
    address: SocketAddr,
    workers: usize,
    duration: Duration,
) -> io::Result<Connections> {
    let mut crowd = Crowd::new(address, workers)?;
    while crowd.started_at.elapsed() < duration {
        for index in 0..workers {
            if crowd.attempts[index].is_none() {
                crowd.start(index);
            }
        }
        crowd.step()?;
    }
    Ok(crowd.leave())
}

/// `count` visitors come at the same moment, exchange one message each and leave.
pub fn burst(address: SocketAddr, count: usize) -> io::Result<Connections> {
    let mut crowd = Crowd::new(address, count)?;
    (0..count).for_each(|index| crowd.start(index));
    while crowd.attempts.iter().any(Option::is_some) {
        crowd.step()?;
    }
    Ok(crowd.leave())
}

/// Visitors who come for one exchange each, many at once, all on one thread.
struct Crowd {
    address: SocketAddr,
    poll: OwnedFd,
    attempts: Vec<Option<Attempt>>,
    started_count: u32,
    started_at: Instant,
    swept_at: Instant,
    latencies: Latencies,
    errors_count: u32,
}

impl Crowd {
    fn new(address: SocketAddr, places: usize) -> io::Result<Crowd> {
        Ok(Crowd {
            address,
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            attempts: (0..places).map(|_| None).collect(),
            started_count: 0,
            started_at: Instant::now(),
            swept_at: Instant::now(),
            latencies: Latencies::default(),
            errors_count: 0,
        })
    }

    fn start(&mut self, index: usize) {
        self.started_count += 1;
        match Attempt::start(self.address, self.started_count, &self.poll, index as u64) {
            Ok(attempt) => self.attempts[index] = Some(attempt),
            Err(_) => self.errors_count += 1,
        }
    }

    /// Waits a little for something to happen, and goes on with those it happened to.
    fn step(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(self.attempts.len());
        epoll::wait(&self.poll, spare_capacity(&mut events), Some(&SHORT_WAIT))?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
            let Some(attempt) = self.attempts[index].as_mut() else {
                continue;
            };
            match attempt.step(&self.poll, *event) {
                Ok(false) => continue,
                Ok(true) => self.latencies.add(attempt.started_at.elapsed()),
                Err(_) => self.errors_count += 1,
            }
            // Closes the connection, the visitor first, as visitors do.
            self.attempts[index] = None;
        }
        if self.swept_at.elapsed() > SWEEP_INTERVAL {
            self.swept_at = Instant::now();
            for slot in &mut self.attempts {
                let late = |attempt: &mut Attempt| attempt.started_at.elapsed() > EXCHANGE_TIMEOUT;
                self.errors_count += u32::from(slot.take_if(late).is_some());
            }
        }
        Ok(())
    }

    fn leave(self) -> Connections {
        Connections {
            seconds: self.started_at.elapsed().as_secs_f64(),
            latencies: self.latencies,
            errors_count: self.errors_count,
        }
    }
}

/// Longest wait of a crowd, so that clocks are looked at.
const SHORT_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// One short connection.
struct Attempt {
    socket: OwnedFd,
    started_at: Instant,
    sent: bool,
    received_count: usize,
}

impl Attempt {
    fn start(address: SocketAddr, number: u32, poll: &OwnedFd, key: u64) -> Result<Attempt, Errno> {
        let started_at = Instant::now();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if address.ip().is_loopback() {
            // The port is chosen when connecting: only then are ports in use elsewhere free to
            // take. A kernel that does not know this option chooses now.
            let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
            let source = SOURCES[number as usize % SOURCES.len()];
            bind(&socket, &SocketAddrV4::new(source, 0))?;
        }
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        epoll::add(
            poll,
            &socket,
            epoll::EventData::new_u64(key),
            epoll::EventFlags::OUT,
        )?;
        Ok(Attempt {
            socket,
            started_at,
            sent: false,
            received_count: 0,
        })
    }

    /// Goes on after an event; true when the whole echo is here.
    fn step(&mut self, poll: &OwnedFd, event: epoll::Event) -> Result<bool, Errno> {
        if !self.sent {
            // After a failed connect this reports why.
            let sent_count = send(&self.socket, &[b'x'; MESSAGE_SIZE], SendFlags::NOSIGNAL)?;
            if sent_count != MESSAGE_SIZE {
                return Err(Errno::AGAIN);
            }
            self.sent = true;
            epoll::modify(poll, &self.socket, event.data, epoll::EventFlags::IN)?;
            return Ok(false);
        }
        let mut buffer = [0; MESSAGE_SIZE];
        match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, 0)) => Err(Errno::CONNRESET),
            Ok((_, count)) if buffer[..count].iter().all(|byte| *byte == b'x') => {
                self.received_count += count;
                Ok(self.received_count >= MESSAGE_SIZE)
            }
            Ok(_) => Err(Errno::BADMSG),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Visitors that have exchanged one message and stay.
pub struct IdleVisitors {
    address: SocketAddr,
    visitors: Vec<TcpStream>,
}

impl IdleVisitors {
    pub fn new(address: SocketAddr) -> IdleVisitors {
        IdleVisitors {
            address,
            visitors: Vec::new(),
        }
    }

    /// Adds visitors until there are `count`. Gives up early when the forwarder is full.
    pub fn grow_to(&mut self, count: usize) {
        let mut failures = 0;
        while self.visitors.len() < count && failures < IDLE_FAILURES_MAX {
            let visitor = dial(self.address).and_then(|mut visitor| {
                exchange(&mut visitor)?;
                Ok(visitor)
            });
            match visitor {
                Ok(visitor) => self.visitors.push(visitor),
                Err(_) => failures += 1,
            }
        }
    }

    pub fn count(&self) -> usize {
        self.visitors.len()
    }

    /// How many of the visitors still get an answer.
    pub fn count_alive(&mut self) -> usize {
        self.visitors
            .iter_mut()
            .filter_map(|visitor| exchange(visitor).ok())
            .count()
    }
}

/// Whether a message sent to the address comes back.
pub fn is_answered(address: SocketAddr) -> bool {
    dial(address)
        .and_then(|mut visitor| exchange(&mut visitor))
        .is_ok()
}

fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let visitor = TcpStream::connect_timeout(&address, EXCHANGE_TIMEOUT)?;
    visitor.set_nodelay(true)?;
    visitor.set_read_timeout(Some(EXCHANGE_TIMEOUT))?;
    Ok(visitor)
}

fn exchange(visitor: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [b'x'; MESSAGE_SIZE];
    visitor.write_all(&buffer)?;
    visitor.read_exact(&mut buffer)
}
