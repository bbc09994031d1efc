//! QUIC in the hands of a case: datagrams as they come, a client that knows nothing but the
//! protocol, and one whose streams are sockets to the case.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodepass::wire::fingerprint::Fingerprint;
use nodepass::wire::signal::PoolId;
use nodepass::wire::ticket::Ticket;
use quiche::{Config, ConnectionId, RecvInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::http2::pair;
use super::random;
use crate::support::servers::reset_on_close;
use crate::support::visitors::udp_visitor;
use crate::support::{DEADLINE, eventually};

/// The name of what is spoken inside.
const ALPN: &[u8] = b"np-quic";

/// How long the thread of a link sleeps when nothing comes.
const TURN: Duration = Duration::from_millis(5);

/// What a client takes before the server has to wait, on a stream and on all of them.
const WINDOW_SIZE: u64 = 1 << 20;

const CHUNK_SIZE: usize = 16 * 1024;

/// Someone with a port of his own, and what has passed there.
pub struct Stranger {
    /// Talks to the server alone, and waits for nothing.
    pub socket: UdpSocket,
    /// Bytes so far.
    pub sent: usize,
    received: usize,
}

impl Stranger {
    /// At a port of his own.
    pub fn new(server: SocketAddr) -> Self {
        let socket = udp_visitor(server);
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            sent: 0,
            received: 0,
        }
    }

    /// Sends one datagram.
    pub fn send(&mut self, datagram: &[u8]) {
        // A full buffer loses it, as the network might.
        if let Ok(count) = self.socket.send(datagram) {
            self.sent += count;
        }
    }

    /// The next answer that is there.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        let count = self.socket.recv(&mut buffer).ok()?;
        self.received += count;
        buffer.truncate(count);
        Some(buffer)
    }

    /// Waits for an answer.
    #[track_caller]
    pub fn wait_answer(&mut self) -> Vec<u8> {
        eventually("an answer", || self.receive())
    }

    /// Whoever gives a false address must not get others more than he has sent himself.
    #[track_caller]
    pub fn check_balance(&mut self) {
        while self.receive().is_some() {}
        let (sent, received) = (self.sent, self.received);
        assert!(received <= sent, "{received} bytes for {sent} bytes");
    }
}

/// A client that knows nothing but the protocol.
pub struct Guest {
    /// Its port.
    pub stranger: Stranger,
    /// What it knows of the connection.
    pub connection: quiche::Connection,
    local: SocketAddr,
    server: SocketAddr,
}

impl Guest {
    /// Has not said a word yet.
    pub fn new(server: SocketAddr, id: &[u8]) -> Self {
        let mut config = Config::new(quiche::PROTOCOL_VERSION).unwrap();
        config.verify_peer(false);
        config.set_application_protos(&[ALPN]).unwrap();
        config.set_max_idle_timeout(20_000);
        config.set_initial_max_data(WINDOW_SIZE);
        config.set_initial_max_stream_data_bidi_local(WINDOW_SIZE);
        let stranger = Stranger::new(server);
        let local = stranger.socket.local_addr().unwrap();
        let id = ConnectionId::from_ref(id);
        let connection =
            quiche::connect(Some("localhost"), &id, local, server, &mut config).unwrap();
        Self {
            stranger,
            connection,
            local,
            server,
        }
    }

    /// Sends what is to be sent.
    pub fn speak(&mut self) {
        let mut buffer = [0; 1500];
        while let Ok((count, _)) = self.connection.send(&mut buffer) {
            self.stranger.send(&buffer[..count]);
        }
    }

    /// Takes what has come.
    pub fn listen(&mut self) {
        while let Some(mut answer) = self.stranger.receive() {
            self.hear(&mut answer);
        }
    }

    /// Takes one datagram of the server.
    pub fn hear(&mut self, answer: &mut [u8]) {
        let info = RecvInfo {
            from: self.server,
            to: self.local,
        };
        // What is no good is for the connection to know.
        let _ = self.connection.recv(answer, info);
    }

    /// Whether there is nothing more to be said.
    pub fn is_over(&self) -> bool {
        self.connection.is_closed() || self.connection.is_draining()
    }

    /// Goes on until `is_done`.
    #[track_caller]
    pub fn wait(&mut self, what: &str, mut is_done: impl FnMut(&mut quiche::Connection) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_done(&mut self.connection) {
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
            self.turn();
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Says what is to be said, and hears what there is.
    pub fn turn(&mut self) {
        self.speak();
        self.listen();
        if self.connection.timeout().is_some_and(|left| left.is_zero()) {
            self.connection.on_timeout();
        }
    }

    /// Waits until there is a connection.
    #[track_caller]
    pub fn establish(&mut self) {
        self.wait("a connection", |connection| connection.is_established());
    }

    /// Waits until the server has ended it. It does what it can to stay.
    #[track_caller]
    pub fn wait_over(&mut self) {
        const PING_INTERVAL: Duration = Duration::from_millis(50);
        let mut pinged_at = Instant::now();
        self.wait("the end of the connection", |connection| {
            if pinged_at.elapsed() > PING_INTERVAL {
                pinged_at = Instant::now();
                // There is nothing to keep alive if it is over.
                let _ = connection.send_ack_eliciting();
            }
            connection.is_closed() || connection.is_draining()
        });
    }
}

/// A connection whose streams are sockets to the case. Dropping it closes it.
pub struct Link {
    /// The certificate of the server.
    pub fingerprint: Option<Fingerprint>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// Begins with these bytes.
    Open(Vec<u8>, Sender<TcpStream>),
    /// Resets our direction of a stream, and wants no more of the other one.
    Reset(u64),
    /// From now on take nothing from any stream.
    Stall,
}

impl Link {
    /// Connects.
    ///
    /// Errors: there is no connection to be had.
    pub fn dial(server: SocketAddr) -> io::Result<Self> {
        let mut guest = Guest::new(server, &random::<16>());
        guest.wait("a connection", |connection| {
            connection.is_established() || connection.is_closed()
        });
        if !guest.connection.is_established() {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let certificate = guest.connection.peer_cert();
        let fingerprint = certificate.map(Fingerprint::of_certificate);
        let (orders, to_do) = mpsc::channel();
        let served = Served {
            guest,
            is_stalled: false,
            streams: BTreeMap::new(),
            next_stream: 0,
        };
        let thread = thread::spawn(move || served.serve(&to_do));
        Ok(Self {
            fingerprint,
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Opens a stream that begins with `opening`. What was made of it shows when it is read.
    pub fn open(&self, opening: &[u8]) -> io::Result<TcpStream> {
        let (reply, socket) = mpsc::channel();
        self.order(Order::Open(opening.to_vec(), reply));
        socket.recv().map_err(|_| ErrorKind::BrokenPipe.into())
    }

    /// Opens a pool connection, in v1 without a ticket; the id that it is given.
    ///
    /// Errors: it is closed instead.
    pub fn join(&self, ticket: Option<&Ticket>) -> io::Result<(PoolId, TcpStream)> {
        let opening = match ticket {
            Some(ticket) => [&[1][..], &ticket.encode()].concat(),
            None => vec![0],
        };
        self.join_with(&opening)
    }

    /// The same with other first bytes.
    pub fn join_with(&self, opening: &[u8]) -> io::Result<(PoolId, TcpStream)> {
        let mut socket = self.open(opening)?;
        let mut id = [0; 4];
        socket.read_exact(&mut id)?;
        Ok((PoolId(id), socket))
    }

    /// Resets the stream that was the `index`-th to be opened.
    pub fn reset(&self, index: u64) {
        self.order(Order::Reset(index * 4));
    }

    /// From now on takes nothing from any stream, so that the server has to wait.
    pub fn stall(&self) {
        self.order(Order::Stall);
    }

    fn order(&self, order: Order) {
        // A connection that has ended is for the case to find out.
        let _ = self.orders.as_ref().unwrap().send(order);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// What the thread of a link knows.
struct Served {
    guest: Guest,
    is_stalled: bool,
    streams: BTreeMap<u64, Bridge>,
    next_stream: u64,
}

/// One stream, and the socket that the case has the other end of.
struct Bridge {
    socket: TcpStream,
    /// Comes from the stream, goes to the socket.
    arrived: Vec<u8>,
    has_arrived_all: bool,
    /// Comes from the socket, goes to the stream.
    leaving: Vec<u8>,
    has_read_all: bool,
    has_sent_all: bool,
}

impl Served {
    fn serve(mut self, orders: &Receiver<Order>) {
        loop {
            let mut is_busy = false;
            loop {
                match orders.try_recv() {
                    Ok(order) => {
                        self.obey(order);
                        is_busy = true;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.leave(),
                }
            }
            self.guest.turn();
            is_busy |= self.serve_bridges();
            self.guest.speak();
            if self.guest.is_over() {
                break;
            }
            if !is_busy {
                self.wait();
            }
        }
        // Whoever waits for a stream is told by its end.
        self.streams.clear();
        // Orders are no longer done; those that are answered find nobody.
        while orders.recv().is_ok() {}
    }

    /// What is on its way leaves, as far as that is possible at once.
    fn leave(mut self) {
        self.serve_bridges();
        self.guest.speak();
        // It may be over already.
        let _ = self.guest.connection.close(true, 0, b"");
        self.guest.speak();
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(opening, reply) => {
                let (near, far) = pair();
                self.streams.insert(
                    self.next_stream,
                    Bridge {
                        socket: near,
                        arrived: Vec::new(),
                        has_arrived_all: false,
                        leaving: opening,
                        has_read_all: false,
                        has_sent_all: false,
                    },
                );
                self.next_stream += 4;
                let _ = reply.send(far);
            }
            Order::Reset(stream) => {
                self.abandon(stream);
                self.streams.remove(&stream);
            }
            Order::Stall => self.is_stalled = true,
        }
    }

    /// Ends both directions at once. One that has ended stays as it is.
    fn abandon(&mut self, stream: u64) {
        let connection = &mut self.guest.connection;
        let _ = connection.stream_shutdown(stream, quiche::Shutdown::Write, 0);
        let _ = connection.stream_shutdown(stream, quiche::Shutdown::Read, 0);
    }

    /// Sleeps until something can be read, or for a while: orders are seen that late.
    fn wait(&self) {
        let mut watched = vec![PollFd::new(&self.guest.stranger.socket, PollFlags::IN)];
        for bridge in self.streams.values() {
            if !bridge.has_read_all && bridge.leaving.is_empty() {
                watched.push(PollFd::new(&bridge.socket, PollFlags::IN));
            }
        }
        let timeout = Timespec::try_from(TURN).unwrap();
        let _ = poll(&mut watched, Some(&timeout));
    }

    fn serve_bridges(&mut self) -> bool {
        let mut has_moved = false;
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for stream in streams {
            let mut bridge = self.streams.remove(&stream).unwrap();
            has_moved |= self.arrive(stream, &mut bridge);
            has_moved |= self.leave_for(stream, &mut bridge);
            let is_done =
                bridge.has_sent_all && bridge.has_arrived_all && bridge.arrived.is_empty();
            if !is_done {
                self.streams.insert(stream, bridge);
            }
        }
        has_moved
    }

    /// From the stream to the socket.
    fn arrive(&mut self, stream: u64, bridge: &mut Bridge) -> bool {
        let mut has_moved = false;
        let mut buffer = [0; CHUNK_SIZE];
        loop {
            while !bridge.arrived.is_empty() {
                match bridge.socket.write(&bridge.arrived) {
                    Ok(count) => drop(bridge.arrived.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return has_moved,
                    // The case has gone, so nobody wants the rest.
                    Err(_) => return self.give_up(stream, bridge),
                }
                has_moved = true;
            }
            if bridge.has_arrived_all {
                // It may be gone already.
                let _ = bridge.socket.shutdown(Shutdown::Write);
            }
            if bridge.has_arrived_all || self.is_stalled {
                return has_moved;
            }
            match self.guest.connection.stream_recv(stream, &mut buffer) {
                Ok((count, is_last)) => {
                    bridge.arrived.extend(&buffer[..count]);
                    bridge.has_arrived_all = is_last;
                    has_moved = true;
                }
                Err(quiche::Error::StreamReset(_)) => {
                    // The case sees it as what it is.
                    reset_on_close(&bridge.socket);
                    return self.give_up(stream, bridge);
                }
                // Nothing there yet, or not even the stream.
                Err(_) => return has_moved,
            }
        }
    }

    /// There is no more of either direction.
    fn give_up(&mut self, stream: u64, bridge: &mut Bridge) -> bool {
        self.abandon(stream);
        bridge.arrived.clear();
        (bridge.has_arrived_all, bridge.has_sent_all) = (true, true);
        true
    }

    /// From the socket to the stream.
    fn leave_for(&mut self, stream: u64, bridge: &mut Bridge) -> bool {
        let mut has_moved = false;
        let mut buffer = [0; CHUNK_SIZE];
        while !bridge.has_sent_all {
            if bridge.leaving.is_empty() && !bridge.has_read_all {
                match bridge.socket.read(&mut buffer) {
                    Ok(0) => bridge.has_read_all = true,
                    Ok(count) => bridge.leaving.extend(&buffer[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => return self.give_up(stream, bridge),
                }
            }
            let (bytes, is_last) = (&bridge.leaving, bridge.has_read_all);
            match self.guest.connection.stream_send(stream, bytes, is_last) {
                Ok(count) => {
                    bridge.leaving.drain(..count);
                    bridge.has_sent_all = is_last && bridge.leaving.is_empty();
                    has_moved = true;
                }
                // No room, on the stream or for one more.
                Err(quiche::Error::Done | quiche::Error::StreamLimit) => break,
                // Nobody wants it.
                Err(_) => bridge.has_sent_all = true,
            }
        }
        has_moved
    }
}
