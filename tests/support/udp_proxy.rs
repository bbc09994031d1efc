//! A network for datagrams: between a client and a server it loses, doubles and delays them as it
//! is told, and can change the address that the server sees, as a NAT does.
//!
//! ```text
//!   client ──▶ the one address ──▶ a socket for each client ──▶ server
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::SockRef;

use super::eventually;

/// Room for what comes while others have the processor (bytes).
const BUFFER_SIZE: usize = 4 << 20;

/// Datagrams taken from a socket before the others have their turn.
const BATCH_COUNT: usize = 64;

/// The least and the most that one is late which is overtaken.
const LATE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

/// Where the random numbers start, the same in every run.
const SEED: u64 = 0x006e_6f64_6570_6173;

/// What happens to datagrams on their way, in either direction. Nothing, unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// So many of a thousand are lost.
    pub lost: u64,
    /// So many of a thousand arrive twice.
    pub doubled: u64,
    /// So many of a thousand are a few milliseconds late, and overtaken.
    pub late: u64,
    /// How long each of them takes.
    pub delay: Duration,
    /// Larger ones are lost (bytes).
    pub size_max: Option<usize>,
}

impl Weather {
    /// Nothing happens to them.
    pub const FAIR: Self = Self {
        lost: 0,
        doubled: 0,
        late: 0,
        delay: Duration::ZERO,
        size_max: None,
    };
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that clients have sent.
    pub up: u64,
    /// Datagrams that the server has sent.
    pub down: u64,
    /// How many of both were lost, not counting those that a pause has swallowed.
    pub lost: u64,
    /// How many of both were doubled.
    pub doubled: u64,
    /// How many of both were late.
    pub late: u64,
}

/// The proxy. It has one thread; dropping it closes its sockets.
pub struct UdpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Written when an order has been given.
    order: OwnedFd,
}

struct State {
    server: SocketAddr,
    weather: Weather,
    is_paused: bool,
    is_over: bool,
    random: Random,
    flows: Vec<Flow>,
    /// What is on its way, that which arrives first on top.
    queue: BinaryHeap<Reverse<Parcel>>,
    parcels_count: u64,
    counts: Counts,
    /// Times that the loop has been round: sockets it held while it slept are closed with the next.
    turns_count: u64,
}

/// One client.
struct Flow {
    client: SocketAddr,
    /// Talks to the server alone.
    far: Arc<UdpSocket>,
}

/// The first two fields put them in order, since no two have the same number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    due: Instant,
    number: u64,
    way: Way,
    flow_index: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Up,
    Down,
}

/// Listens at a port of 127.0.0.1 for both.
pub fn bind_both() -> (TcpListener, UdpSocket) {
    eventually("a port free for TCP and UDP", || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let socket = UdpSocket::bind(listener.local_addr().ok()?).ok()?;
        Some((listener, socket))
    })
}

impl UdpProxy {
    /// Starts in front of `server`, for clients that come to `socket`.
    pub fn start(socket: UdpSocket, server: SocketAddr, weather: Weather) -> Self {
        let address = socket.local_addr().unwrap();
        prepare(&socket).unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                server,
                weather,
                is_paused: false,
                is_over: false,
                random: Random(SEED),
                flows: Vec::new(),
                queue: BinaryHeap::new(),
                parcels_count: 0,
                counts: Counts::default(),
                turns_count: 0,
            }),
            order: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap(),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, &shared)
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// Where clients are to go.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens to datagrams from now on. Those on their way arrive when they would have.
    pub fn set_weather(&self, weather: Weather) {
        self.shared.state.lock().unwrap().weather = weather;
    }

    /// From now on clients come to the server from other ports; the old ones are closed, with what
    /// was on its way to them.
    #[track_caller]
    pub fn rebind(&self) {
        let server = self.shared.state.lock().unwrap().server;
        self.lead_to(server);
    }

    /// The same, and the server that they come to is this one.
    #[track_caller]
    pub fn lead_to(&self, server: SocketAddr) {
        let mut state = self.shared.state.lock().unwrap();
        state.server = server;
        for flow in &mut state.flows {
            // The old one is still open: it cannot be the same port.
            flow.far = Arc::new(far_socket(server).unwrap());
        }
        let turns_count = state.turns_count;
        drop(state);
        self.shared.wake();
        eventually("a turn of the proxy", || {
            (self.shared.state.lock().unwrap().turns_count > turns_count).then_some(())
        });
    }

    /// From now on nothing arrives.
    pub fn pause(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.is_paused = true;
        state.queue.clear();
    }

    /// What comes from now on arrives again.
    pub fn resume(&self) {
        self.shared.state.lock().unwrap().is_paused = false;
    }

    /// What has passed so far.
    pub fn counts(&self) -> Counts {
        self.shared.state.lock().unwrap().counts
    }

    /// Clients so far.
    pub fn clients_count(&self) -> usize {
        self.shared.state.lock().unwrap().flows.len()
    }
}

impl Drop for UdpProxy {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().is_over = true;
        self.shared.wake();
        let _ = self.thread.take().unwrap().join();
    }
}

impl Shared {
    /// Has the loop go round.
    fn wake(&self) {
        rustix::io::write(&self.order, &1_u64.to_ne_bytes()).unwrap();
    }
}

fn prepare(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = SockRef::from(socket);
    // Less than this where the system gives less.
    let _ = socket.set_recv_buffer_size(BUFFER_SIZE);
    let _ = socket.set_send_buffer_size(BUFFER_SIZE);
    Ok(())
}

fn far_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    prepare(&socket)?;
    Ok(socket)
}

fn serve(near: &UdpSocket, shared: &Shared) {
    let mut buffer = vec![0; 65536];
    loop {
        let (due, fars) = {
            let mut state = shared.state.lock().unwrap();
            if state.is_over {
                return;
            }
            state.turns_count += 1;
            state.take_up(near, &mut buffer);
            for index in 0..state.flows.len() {
                state.take_down(near, index, &mut buffer);
            }
            state.deliver_due(near);
            let due = state.queue.peek().map(|Reverse(parcel)| parcel.due);
            let fars = state.flows.iter().map(|flow| Arc::clone(&flow.far));
            (due, fars.collect::<Vec<_>>())
        };
        wait(near, shared, due, &fars);
    }
}

/// Sleeps until something can be read, an order is given, or something is due.
fn wait(near: &UdpSocket, shared: &Shared, due: Option<Instant>, fars: &[Arc<UdpSocket>]) {
    let own = [near.as_fd(), shared.order.as_fd()];
    let all = own.into_iter().chain(fars.iter().map(AsFd::as_fd));
    let mut watched: Vec<PollFd<'_>> = all
        .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
        .collect();
    let timeout = due.map(|due| {
        let left = due.saturating_duration_since(Instant::now());
        Timespec::try_from(left).unwrap()
    });
    // A signal that interrupts it makes one more turn, no more.
    let _ = poll(&mut watched, timeout.as_ref());
    // Nothing is there to be read unless an order was given.
    let _ = rustix::io::read(&shared.order, &mut [0; 8]);
}

impl State {
    /// What clients have sent.
    fn take_up(&mut self, near: &UdpSocket, buffer: &mut [u8]) {
        for _ in 0..BATCH_COUNT {
            let Ok((count, client)) = near.recv_from(buffer) else {
                return;
            };
            self.counts.up += 1;
            let known = self.flows.iter().position(|flow| flow.client == client);
            let flow_index = known.unwrap_or_else(|| {
                let far = Arc::new(far_socket(self.server).unwrap());
                self.flows.push(Flow { client, far });
                self.flows.len() - 1
            });
            self.take(near, Way::Up, flow_index, &buffer[..count]);
        }
    }

    /// What the server has sent to one of them.
    fn take_down(&mut self, near: &UdpSocket, flow_index: usize, buffer: &mut [u8]) {
        let far = Arc::clone(&self.flows[flow_index].far);
        for _ in 0..BATCH_COUNT {
            match far.recv(buffer) {
                Ok(count) => {
                    self.counts.down += 1;
                    self.take(near, Way::Down, flow_index, &buffer[..count]);
                }
                // That nobody listens there is not passed on.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            }
        }
    }

    /// One datagram meets the weather.
    fn take(&mut self, near: &UdpSocket, way: Way, flow_index: usize, bytes: &[u8]) {
        let weather = self.weather;
        if self.is_paused {
            return;
        }
        let is_too_large = weather.size_max.is_some_and(|most| bytes.len() > most);
        if is_too_large || self.random.is_one_of(weather.lost) {
            self.counts.lost += 1;
            return;
        }
        let is_doubled = self.random.is_one_of(weather.doubled);
        self.counts.doubled += u64::from(is_doubled);
        for _ in 0..1 + u32::from(is_doubled) {
            let mut delay = weather.delay;
            if self.random.is_one_of(weather.late) {
                self.counts.late += 1;
                delay += self.random.between(LATE);
            }
            if delay.is_zero() {
                self.deliver(near, way, flow_index, bytes);
                continue;
            }
            self.parcels_count += 1;
            self.queue.push(Reverse(Parcel {
                due: Instant::now() + delay,
                number: self.parcels_count,
                way,
                flow_index,
                bytes: bytes.to_vec(),
            }));
        }
    }

    fn deliver_due(&mut self, near: &UdpSocket) {
        let now = Instant::now();
        while let Some(Reverse(parcel)) = self.queue.peek()
            && parcel.due <= now
        {
            let Some(Reverse(parcel)) = self.queue.pop() else {
                return;
            };
            self.deliver(near, parcel.way, parcel.flow_index, &parcel.bytes);
        }
    }

    fn deliver(&self, near: &UdpSocket, way: Way, flow_index: usize, bytes: &[u8]) {
        let Flow { client, far } = &self.flows[flow_index];
        // What cannot be sent is lost, as in any network.
        let _ = match way {
            Way::Up => far.send(bytes),
            Way::Down => near.send_to(bytes, client),
        };
    }
}

/// Numbers that look random, the same from the same seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }

    /// Whether this is one of so many of a thousand.
    fn is_one_of(&mut self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.next() % 1000 < of_thousand
    }

    fn between(&mut self, [least, most]: [Duration; 2]) -> Duration {
        let span = u64::try_from((most - least).as_micros()).unwrap();
        least + Duration::from_micros(self.next() % span)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::{UdpProxy, Weather, bind_both};
    use crate::support::eventually;
    use crate::support::servers::UdpServer;
    use crate::support::visitors::{exchange_datagram, receive_datagram, udp_visitor};
    use std::collections::BTreeMap;
    use std::sync::mpsc;
    use std::time::Duration;

    fn start(server: &UdpServer, weather: Weather) -> (UdpProxy, UdpSocket) {
        let (_, socket) = bind_both();
        let proxy = UdpProxy::start(socket, server.address(), weather);
        let client = udp_visitor(proxy.address());
        (proxy, client)
    }

    #[test]
    fn weather_does_what_it_says_and_nothing_more() {
        const COUNT: u64 = 3000;
        let server = UdpServer::echo();
        let (proxy, client) = start(&server, Weather::FAIR);
        for index in 0..COUNT {
            exchange_datagram(&client, &index.to_be_bytes());
        }
        let counts = proxy.counts();
        assert_eq!((counts.up, counts.down), (COUNT, COUNT));
        assert_eq!(counts.lost + counts.doubled + counts.late, 0);
        proxy.set_weather(Weather {
            lost: 50,
            doubled: 100,
            late: 100,
            ..Weather::FAIR
        });
        for index in 0..COUNT {
            client.send(&index.to_be_bytes()).unwrap();
            // No more at once than buffers hold.
            while proxy.counts().up < COUNT + index.saturating_sub(100) {
                std::thread::yield_now();
            }
        }
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let (mut came, mut overtaken, mut last) = (BTreeMap::new(), 0, 0);
        let mut buffer = [0; 64];
        while let Ok(count) = client.recv(&mut buffer) {
            let index = u64::from_be_bytes(buffer[..count].try_into().unwrap());
            overtaken += u64::from(index < last);
            last = index;
            *came.entry(index).or_insert(0_u32) += 1;
        }
        let counts = proxy.counts();
        assert!((150..600).contains(&counts.lost), "{counts:?}");
        assert!((300..1200).contains(&counts.doubled), "{counts:?}");
        assert!(came.len() < usize::try_from(COUNT).unwrap());
        let twice = came.values().filter(|count| **count > 1).count();
        assert!(twice > 100 && overtaken > 100, "{twice}, {overtaken}");
    }

    #[test]
    fn delay_keeps_each_of_them_for_that_long_each_way() {
        let delay = Duration::from_millis(30);
        let server = UdpServer::echo();
        let weather = Weather {
            delay,
            ..Weather::FAIR
        };
        let (_proxy, client) = start(&server, weather);
        let began = std::time::Instant::now();
        exchange_datagram(&client, b"there and back");
        assert!(began.elapsed() >= 2 * delay);
    }

    #[test]
    fn rebound_the_server_sees_another_address_and_answers_there() {
        let (report, reported) = mpsc::channel();
        let server = UdpServer::start_at(([127, 0, 0, 1], 0).into(), move |socket, bytes, from| {
            report.send(from).unwrap();
            socket.send_to(bytes, from).unwrap();
        });
        let (proxy, client) = start(&server, Weather::FAIR);
        exchange_datagram(&client, b"before");
        let before = reported.recv().unwrap();
        proxy.rebind();
        // Nobody listens there any more.
        let probe = udp_visitor(before);
        eventually("a closed port", || probe.send(b"x").is_err().then_some(()));
        exchange_datagram(&client, b"after");
        assert_ne!(reported.recv().unwrap(), before);
        assert_eq!(proxy.clients_count(), 1);
    }

    #[test]
    fn pause_swallows_and_each_client_has_answers_of_its_own() {
        let server = UdpServer::echo();
        let (proxy, client) = start(&server, Weather::FAIR);
        let other = udp_visitor(proxy.address());
        proxy.pause();
        client.send(b"lost").unwrap();
        eventually("a datagram", || (proxy.counts().up == 1).then_some(()));
        proxy.resume();
        other.send(b"one").unwrap();
        client.send(b"two").unwrap();
        assert_eq!(receive_datagram(&other), b"one");
        assert_eq!(receive_datagram(&client), b"two");
    }
}
