//! Both ends of UDP through a tunnel, joined by loopback connections in place of a pool.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::session_udp::{Onward, UdpSessions};
use super::slots::Kind;
use super::udp_exit::{UdpCarrier, UdpExit, serve_udp};
use super::uplink::{UdpWay, Uplink};
use crate::config::parse_url;
use crate::limits::Limits;
use crate::net::datagram::{join_received, set_buffer_sizes, tell_local_address};
use crate::net::datagram_stream::Framing;
use crate::net::resolve::Resolver;
use crate::net::stream::{Condition, PlainStream, Stream};
use crate::runtime::descriptors::raise_limit;
use crate::runtime::event::{Bell, Event};
use crate::runtime::threads::lock;

const DEADLINE: Duration = Duration::from_secs(20);
const SHORT_WAIT: Duration = Duration::from_millis(200);

/// What the pool connections of a test lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Far {
    /// The exit.
    Served,
    /// Nobody: they are kept and never read.
    Stalled,
}

struct FakePool {
    framing: Framing,
    is_hoarding: bool,
    exit: Arc<Instance>,
    carrier: UdpCarrier,
    state: Mutex<PoolState>,
    over: Mutex<Arc<Event>>,
}

struct PoolState {
    connections_left: usize,
    far: Far,
    bells: Vec<Arc<Bell>>,
    stalled: Vec<TcpStream>,
    taken_count: usize,
}

impl Uplink for FakePool {
    fn take_udp(&self, visitor: SocketAddr, bell: &Arc<Bell>) -> Option<UdpWay> {
        let mut state = lock(&self.state);
        if state.connections_left == 0 {
            state.bells.push(Arc::clone(bell));
            return None;
        }
        state.connections_left -= 1;
        state.taken_count += 1;
        let (near, far) = connection();
        match state.far {
            Far::Stalled => state.stalled.push(far),
            Far::Served => {
                let (exit, carrier) = (Arc::clone(&self.exit), self.carrier.clone());
                let far = self.way(far);
                let task = move || serve_udp(&exit, &carrier, far, Some(visitor));
                self.exit.crew.run(task).unwrap();
            }
        }
        Some(self.way(near))
    }
}

impl FakePool {
    fn way(&self, socket: TcpStream) -> UdpWay {
        let plain = PlainStream::new(OwnedFd::from(socket));
        UdpWay {
            stream: if self.is_hoarding {
                Box::new(Hoarder::new(plain))
            } else {
                Box::new(plain)
            },
            framing: self.framing,
            over: Arc::clone(&lock(&self.over)),
        }
    }

    fn refill(&self, count: usize) {
        let mut state = lock(&self.state);
        state.connections_left = count;
        state.bells.drain(..).for_each(|bell| bell.ring());
    }
}

/// A stream that keeps bytes to itself both ways, as TLS does, and gives out few at a time.
struct Hoarder {
    inner: PlainStream,
    read_ahead: VecDeque<u8>,
    unsent: Vec<u8>,
}

impl Hoarder {
    fn new(inner: PlainStream) -> Self {
        Self {
            inner,
            read_ahead: VecDeque::new(),
            unsent: Vec::new(),
        }
    }
}

impl Stream for Hoarder {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read_ahead.is_empty() {
            let mut ahead = vec![0; 65536];
            let size = self.inner.read(&mut ahead)?;
            self.read_ahead.extend(&ahead[..size]);
        }
        let few = buffer.len().min(100);
        io::Read::read(&mut self.read_ahead, &mut buffer[..few])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let size = bytes.len().min(5000);
        self.unsent.extend(&bytes[..size]);
        Ok(size)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.inner.finish()
    }

    fn abort(&mut self, deadline: Instant) {
        self.inner.abort(deadline);
    }

    fn holds_bytes(&self) -> bool {
        !self.read_ahead.is_empty()
    }

    fn check(&mut self) -> Condition {
        self.inner.check()
    }

    fn holds_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let size = self.inner.write(&self.unsent)?;
            self.unsent.drain(..size);
        }
        Ok(())
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_nonblocking(true).unwrap();
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// Both ends of a tunnel.
struct Tunnel {
    entry: Arc<Instance>,
    exit: Arc<Instance>,
    pool: Arc<FakePool>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

struct Setup {
    framing: Framing,
    is_hoarding: bool,
    options: &'static str,
    limits: Limits,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            framing: Framing::Framed,
            is_hoarding: false,
            options: "",
            limits: Limits::default(),
        }
    }
}

impl Setup {
    fn start(self, targets: &str) -> Tunnel {
        let limits = self.limits;
        let entry = instance(targets, self.options, &limits);
        let exit = instance(targets, self.options, &limits);
        let (body, carrier) = UdpExit::new(Arc::clone(&exit)).unwrap();
        let pool = Arc::new(FakePool {
            framing: self.framing,
            is_hoarding: self.is_hoarding,
            exit: Arc::clone(&exit),
            carrier,
            state: Mutex::new(PoolState {
                connections_left: usize::MAX,
                far: Far::Served,
                bells: Vec::new(),
                stalled: Vec::new(),
                taken_count: 0,
            }),
            over: Mutex::new(Arc::new(Event::new().unwrap())),
        });
        let listener = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        set_buffer_sizes(&listener, 4 * 1024 * 1024);
        tell_local_address(&listener).unwrap();
        if entry.rates.is_none() {
            join_received(&listener);
        }
        let address = listener.local_addr().unwrap();
        let uplink: Arc<dyn Uplink> = Arc::clone(&pool) as _;
        let onward = Onward::Tunnel(uplink);
        let sessions = UdpSessions::new(Arc::clone(&entry), listener, onward).unwrap();
        let threads = vec![
            std::thread::spawn(move || sessions.run()),
            std::thread::spawn(move || body.run()),
        ];
        Tunnel {
            entry,
            exit,
            pool,
            address,
            threads,
        }
    }
}

fn instance(targets: &str, options: &str, limits: &Limits) -> Arc<Instance> {
    let url = format!("client://key@127.0.0.1:1/{targets}?mode=1{options}");
    let (config, _) = parse_url(&url, limits).unwrap();
    let resolver = Resolver::new(
        &config.options.names,
        limits.tcp_dial_timeout,
        limits.stack_size,
    );
    Arc::new(Instance::new(&config, limits, resolver, 4096).unwrap())
}

impl Tunnel {
    fn sessions(&self) -> (usize, usize) {
        let count = |instance: &Instance| instance.slots.count(Kind::Udp);
        (count(&self.entry), count(&self.exit))
    }

    fn wait_sessions(&self, expected: (usize, usize)) {
        eventually(|| self.sessions() == expected);
    }

    fn visitor(&self) -> UdpSocket {
        let visitor = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        visitor.connect(self.address).unwrap();
        visitor.set_read_timeout(Some(DEADLINE)).unwrap();
        visitor
    }

    fn taken_count(&self) -> usize {
        lock(&self.pool.state).taken_count
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for instance in [&self.entry, &self.exit] {
            instance.shutdown.drain.raise();
            instance.shutdown.stop.raise();
        }
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok(), "a loop has panicked");
        }
    }
}

/// A target that sends back what it gets.
struct Echo {
    address: SocketAddr,
    received_count: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start() -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        set_buffer_sizes(&socket, 4 * 1024 * 1024);
        socket.set_read_timeout(Some(SHORT_WAIT)).unwrap();
        let address = socket.local_addr().unwrap();
        let (received_count, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counting, stopping) = (Arc::clone(&received_count), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((size, peer)) = socket.recv_from(&mut buffer) {
                    counting.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&buffer[..size], peer);
                }
            }
        });
        Self {
            address,
            received_count,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn exchange(visitor: &UdpSocket, message: &[u8]) {
    visitor.send(message).unwrap();
    assert_eq!(receive(visitor).unwrap(), message);
}

fn receive(visitor: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let size = visitor.recv(&mut buffer)?;
    buffer.truncate(size);
    Ok(buffer)
}

/// A datagram that shows whose it is, and whether it is whole.
fn checked(visitor: usize, number: usize, size: usize) -> Vec<u8> {
    let mut datagram = format!("{visitor} {number} ").into_bytes();
    let filler = u8::try_from((visitor * 31 + number * 7) % 251).unwrap();
    datagram.resize(datagram.len() + size, filler);
    datagram
}

#[test]
fn two_hundred_sessions_get_their_own_datagrams_whole_and_in_order() {
    const ROUNDS: usize = 10;
    raise_limit();
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let visitors: Vec<UdpSocket> = (0..200).map(|_| tunnel.visitor()).collect();
    for (index, visitor) in visitors.iter().enumerate() {
        visitor.send(&checked(index, 0, 10)).unwrap();
    }
    for (index, visitor) in visitors.iter().enumerate() {
        assert_eq!(receive(visitor).unwrap(), checked(index, 0, 10));
    }
    assert_eq!(tunnel.sessions(), (200, 200));
    for (group, visitors) in visitors.chunks(20).enumerate() {
        let size = |number| [0, 1000, 1400, 9000][number % 4];
        for number in 0..ROUNDS {
            for (index, visitor) in visitors.iter().enumerate() {
                let datagram = checked(group * 20 + index, number, size(number));
                visitor.send(&datagram).unwrap();
            }
        }
        for (index, visitor) in visitors.iter().enumerate() {
            for number in 0..ROUNDS {
                let expected = checked(group * 20 + index, number, size(number));
                assert_eq!(receive(visitor).unwrap(), expected);
            }
        }
    }
    let meter = |instance: &Instance| {
        let meter = &instance.udp_meter;
        (meter.received.sum(), meter.sent.sum())
    };
    // What is sent is counted after the visitor may have it.
    eventually(|| {
        let (received, sent) = meter(&tunnel.entry);
        received == sent && meter(&tunnel.exit) == (received, sent)
    });
    assert_eq!(tunnel.taken_count(), 200);
}

#[test]
fn a_thousand_new_visitors_at_once_are_all_served() {
    if raise_limit() < 6000 {
        println!("skipped: too few descriptors");
        return;
    }
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let visitors: Vec<UdpSocket> = (0..1000).map(|_| tunnel.visitor()).collect();
    let start = Instant::now();
    for (index, visitor) in visitors.iter().enumerate() {
        visitor.send(&checked(index, 0, 100)).unwrap();
    }
    for (index, visitor) in visitors.iter().enumerate() {
        assert_eq!(receive(visitor).unwrap(), checked(index, 0, 100));
    }
    println!("1000 new sessions answered in {:?}", start.elapsed());
}

/// Prints what is lost of 20,000 datagrams of 1 kB in a second; the machine may be busy.
#[test]
fn twenty_thousand_datagrams_a_second_pass() {
    const VISITORS: usize = 4;
    const COUNT: usize = 20_000;
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let visitors: Vec<UdpSocket> = (0..VISITORS).map(|_| tunnel.visitor()).collect();
    let receivers: Vec<_> = visitors
        .iter()
        .map(|visitor| {
            set_buffer_sizes(visitor, 4 * 1024 * 1024);
            let visitor = visitor.try_clone().unwrap();
            visitor
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                std::iter::from_fn(|| visitor.recv(&mut buffer).ok())
                    .inspect(|size| assert_eq!(*size, 1000))
                    .count()
            })
        })
        .collect();
    let (start, datagram) = (Instant::now(), [7; 1000]);
    for number in 0..COUNT {
        let due = start + Duration::from_secs(1) * u32::try_from(number).unwrap() / 20_000;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        visitors[number % VISITORS].send(&datagram).unwrap();
    }
    let took = start.elapsed();
    let answered: usize = receivers.into_iter().map(|one| one.join().unwrap()).sum();
    let reached = echo.received_count.load(Ordering::Relaxed);
    println!("sent {COUNT} in {took:?}: {reached} reached the target, {answered} came back");
    assert!(answered > 0);
}

#[test]
fn a_stalled_connection_holds_up_nobody_else() {
    for options in ["", "&rate=1000"] {
        assert_stalled_connection_is_alone(options);
    }
}

fn assert_stalled_connection_is_alone(options: &'static str) {
    let echo = Echo::start();
    let setup = Setup {
        options,
        ..Setup::default()
    };
    let tunnel = setup.start(&echo.address.to_string());
    lock(&tunnel.pool.state).far = Far::Stalled;
    let stalled = tunnel.visitor();
    stalled.send(b"first").unwrap();
    eventually(|| tunnel.taken_count() == 1);
    lock(&tunnel.pool.state).far = Far::Served;
    let other = tunnel.visitor();
    for round in 0..50 {
        for _ in 0..40 {
            stalled.send(&[0; 8000]).unwrap();
        }
        exchange(&other, &checked(1, round, 500));
    }
    assert_eq!(tunnel.sessions(), (2, 1));
    // What it does not take is lost, and the connection carries on once it is read.
    let far = lock(&tunnel.pool.state).stalled.pop().unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 65536];
    eventually(|| far.peek(&mut [0]).is_ok());
    while let Ok(size) = io::Read::read(&mut &far, &mut buffer) {
        received += size;
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(received > 8000);
}

#[test]
fn sessions_end_when_their_tunnel_is_over() {
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let visitors = [tunnel.visitor(), tunnel.visitor()];
    for visitor in &visitors {
        exchange(visitor, b"before");
    }
    assert_eq!(tunnel.sessions(), (2, 2));
    let start = Instant::now();
    let next = Arc::new(Event::new().unwrap());
    let over = std::mem::replace(&mut *lock(&tunnel.pool.over), next);
    over.raise();
    tunnel.pool.carrier.look_around();
    tunnel.wait_sessions((0, 0));
    assert!(start.elapsed() < Duration::from_millis(900));
    exchange(&visitors[0], b"after");
    assert_eq!(tunnel.sessions(), (1, 1));
}

#[test]
fn idle_sessions_end_at_both_ends() {
    let echo = Echo::start();
    let setup = Setup {
        limits: Limits {
            udp_read_timeout: Duration::from_millis(300),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let tunnel = setup.start(&echo.address.to_string());
    let visitor = tunnel.visitor();
    exchange(&visitor, b"first");
    tunnel.wait_sessions((0, 0));
    exchange(&visitor, b"second");
    assert_eq!(tunnel.taken_count(), 2);
}

#[test]
fn datagrams_wait_for_a_pool_connection_and_not_for_ever() {
    let echo = Echo::start();
    let setup = Setup {
        limits: Limits {
            pool_get_timeout: Duration::from_millis(400),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let tunnel = setup.start(&echo.address.to_string());
    tunnel.pool.refill(0);
    let visitors = [tunnel.visitor(), tunnel.visitor()];
    for visitor in &visitors {
        visitor.send(b"one").unwrap();
        visitor.send(b"").unwrap();
        visitor.send(b"three").unwrap();
    }
    tunnel.wait_sessions((2, 0));
    // There is one for whoever came first.
    tunnel.pool.refill(1);
    for expected in [&b"one"[..], b"", b"three"] {
        assert_eq!(receive(&visitors[0]).unwrap(), expected);
    }
    tunnel.wait_sessions((1, 1));
    visitors[1].set_read_timeout(Some(SHORT_WAIT)).unwrap();
    assert!(receive(&visitors[1]).is_err());
    tunnel.pool.refill(1);
    visitors[1].set_read_timeout(Some(DEADLINE)).unwrap();
    exchange(&visitors[1], b"four");
}

#[test]
fn a_connection_that_ends_or_breaks_ends_its_session_alone() {
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let other = tunnel.visitor();
    exchange(&other, b"other");
    lock(&tunnel.pool.state).far = Far::Stalled;
    let visitor = tunnel.visitor();
    for is_garbage in [false, true] {
        visitor.send(b"lost").unwrap();
        tunnel.wait_sessions((2, 1));
        let far = lock(&tunnel.pool.state).stalled.pop().unwrap();
        if is_garbage {
            // A datagram that is cut by the end.
            io::Write::write_all(&mut &far, &[1, 0, 7]).unwrap();
        }
        drop(far);
        tunnel.wait_sessions((1, 1));
    }
    lock(&tunnel.pool.state).far = Far::Served;
    exchange(&visitor, b"again");
    exchange(&other, b"still there");
}

#[test]
fn raw_connections_carry_datagrams_one_by_one() {
    let echo = Echo::start();
    let setup = Setup {
        framing: Framing::Raw,
        ..Setup::default()
    };
    let tunnel = setup.start(&echo.address.to_string());
    let visitor = tunnel.visitor();
    visitor.send(b"").unwrap();
    for size in [1, 1000, 8000] {
        exchange(&visitor, &checked(1, 2, size));
    }
}

#[test]
fn streams_that_hold_bytes_both_ways_lose_none() {
    for options in ["", "&rate=1000"] {
        let echo = Echo::start();
        let setup = Setup {
            options,
            is_hoarding: true,
            ..Setup::default()
        };
        let tunnel = setup.start(&echo.address.to_string());
        let visitors = [tunnel.visitor(), tunnel.visitor()];
        for round in 0..20 {
            let number = |visitor: usize, part: usize| checked(visitor, round * 4 + part, 3000);
            for (index, visitor) in visitors.iter().enumerate() {
                for part in 0..4 {
                    visitor.send(&number(index, part)).unwrap();
                }
            }
            for (index, visitor) in visitors.iter().enumerate() {
                for part in 0..4 {
                    assert_eq!(receive(visitor).unwrap(), number(index, part));
                }
            }
        }
    }
}

#[test]
fn datagrams_over_the_size_of_the_tunnel_are_dropped_alone() {
    let echo = Echo::start();
    let tunnel = Setup::default().start(&echo.address.to_string());
    let visitor = tunnel.visitor();
    visitor.send(&[1; 16385]).unwrap();
    exchange(&visitor, &[2; 16384]);
    exchange(&visitor, b"");
}

#[test]
fn datagrams_pass_under_a_rate_in_both_directions() {
    let echo = Echo::start();
    let setup = Setup {
        options: "&rate=8",
        ..Setup::default()
    };
    let tunnel = setup.start(&echo.address.to_string());
    let visitors: Vec<UdpSocket> = (0..3).map(|_| tunnel.visitor()).collect();
    let start = Instant::now();
    for round in 0..100 {
        for (index, visitor) in visitors.iter().enumerate() {
            exchange(visitor, &checked(index, round, 990));
        }
    }
    // 300 kB at 1 MB a second.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(200), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_target_that_refuses_gives_its_visitor_to_the_next() {
    let echo = Echo::start();
    let closed = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let targets = format!("{},{}", closed.local_addr().unwrap(), echo.address);
    drop(closed);
    let tunnel = Setup::default().start(&targets);
    let visitor = tunnel.visitor();
    visitor.set_read_timeout(Some(SHORT_WAIT)).unwrap();
    eventually(|| {
        visitor.send(b"anybody?").unwrap();
        receive(&visitor).is_ok()
    });
}

#[test]
fn a_stop_lets_sessions_go_on_until_they_are_quiet() {
    let echo = Echo::start();
    let mut tunnel = Setup::default().start(&echo.address.to_string());
    let visitor = tunnel.visitor();
    exchange(&visitor, b"before");
    tunnel.exit.shutdown.drain.raise();
    for _ in 0..10 {
        exchange(&visitor, b"during");
        std::thread::sleep(Duration::from_millis(100));
    }
    let exit = tunnel.threads.pop().unwrap();
    eventually(|| exit.is_finished());
    tunnel.wait_sessions((0, 0));
    tunnel.entry.shutdown.drain.raise();
    eventually(|| tunnel.threads[0].is_finished());
    exit.join().unwrap();
    // The exit is gone: what comes is refused, and nobody waits for it.
    let (near, far) = connection();
    let way = tunnel.pool.way(far);
    serve_udp(&tunnel.exit, &tunnel.pool.carrier, way, None);
    near.set_nonblocking(false).unwrap();
    assert_eq!(near.peek(&mut [0]).unwrap(), 0);
}
