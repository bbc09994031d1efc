//! A TCP proxy between the two ends of a tunnel that can tell their connections apart, and cut,
//! freeze or delay them. It knows the native dialect without TLS, over TCP and WebSocket. What
//! comes to the same port by UDP it leaves to a [`UdpProxy`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodepass::wire::first_bytes::NATIVE_MAGIC;
use nodepass::wire::signal::PoolId;
use nodepass::wire::ticket::PREFACE_SIZE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::eventually;
use super::servers::reset_on_close;
use super::udp_proxy::{UdpProxy, Weather, bind_both};
use super::visitors::try_dial;

/// How long the loop sleeps when nothing happens: orders are seen that late.
const TURN: Duration = Duration::from_millis(5);

/// Bytes from the start of a connection by which it is told what it is.
const START_SIZE_MAX: usize = 1024;

/// A binary message of WebSocket from a server that holds an id, without that.
const ID_MESSAGE: &[u8] = &[0x82, 4];

/// Bytes on their way in one direction, after which its source is not read.
const QUEUE_SIZE_MAX: usize = 4 << 20;

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All that there are.
    All,
    /// Control channels.
    Control,
    /// Pool connections that have carried nothing but their id.
    Idle,
}

/// How connections die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Both sides see an end of stream.
    Finished,
    /// Both sides see a reset.
    Reset,
    /// The client sees a reset, the server nothing at all.
    SilentForServer,
}

/// The proxy. It has a thread for TCP and one for UDP; dropping it resets all connections.
pub struct Proxy {
    address: SocketAddr,
    datagrams: UdpProxy,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    server: SocketAddr,
    delay: Duration,
    connections: Vec<Connection>,
    /// Neither old nor new connections carry anything.
    is_frozen: bool,
    /// Times that the loop has been round: what it held while it slept is gone with the next one.
    turns_count: u64,
    is_over: bool,
}

struct Connection {
    client: Side,
    server: Option<Side>,
    /// When the server is dialled.
    dial_at: Instant,
    is_frozen: bool,
    /// Bytes so far that the client and the server have sent.
    sent: [u64; 2],
    /// The first bytes of each.
    starts: [Vec<u8>; 2],
}

/// One socket, and what is to be written to it.
struct Side {
    socket: TcpStream,
    queue: VecDeque<(Instant, Parcel)>,
    queue_size: usize,
    /// Its end of stream was read.
    is_ended: bool,
    /// The other side's end of stream was passed on to it.
    is_finished: bool,
}

enum Parcel {
    Bytes(Vec<u8>),
    End,
}

impl Proxy {
    /// Starts in front of `server`.
    pub fn start(server: SocketAddr) -> Self {
        Self::start_with_delay(server, Duration::ZERO)
    }

    /// The same, where everything arrives `delay` later, each way, as far as that can be done
    /// without the kernel: the start of a connection arrives that late as well, but the one who
    /// dials it does not wait for that.
    pub fn start_with_delay(server: SocketAddr, delay: Duration) -> Self {
        let weather = Weather {
            delay,
            ..Weather::FAIR
        };
        Self::start_in(server, weather)
    }

    /// The same, where `weather` is for UDP, of which TCP sees the delay alone.
    pub fn start_in(server: SocketAddr, weather: Weather) -> Self {
        let delay = weather.delay;
        let (listener, socket) = bind_both();
        let datagrams = UdpProxy::start(socket, server, weather);
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            server,
            delay,
            connections: Vec::new(),
            is_frozen: false,
            turns_count: 0,
            is_over: false,
        }));
        let thread = thread::spawn({
            let state = Arc::clone(&state);
            move || serve(&listener, &state)
        });
        Self {
            address,
            datagrams,
            state,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What becomes of UDP.
    pub fn datagrams(&self) -> &UdpProxy {
        &self.datagrams
    }

    /// Kills these connections; how many there were. On return both sides can see it.
    #[track_caller]
    pub fn kill(&self, which: Which, death: Death) -> usize {
        let mut state = self.state.lock().unwrap();
        let turns_count = state.turns_count;
        let mut count = 0;
        state.connections.retain_mut(|connection| {
            let is_meant = connection.is(which);
            count += usize::from(is_meant);
            !is_meant || connection.die(death)
        });
        drop(state);
        // A socket is not closed before the loop has dropped its copies.
        eventually("a turn of the proxy", || {
            (self.state.lock().unwrap().turns_count > turns_count).then_some(())
        });
        count
    }

    /// From now on these carry nothing, and stay open; with [`Which::All`] new ones neither, and
    /// nothing passes by UDP. How many connections and senders of datagrams there were.
    pub fn freeze(&self, which: Which) -> usize {
        let mut clients_count = 0;
        if which == Which::All {
            self.datagrams.pause();
            clients_count = self.datagrams.clients_count();
        }
        let mut state = self.state.lock().unwrap();
        state.is_frozen |= which == Which::All;
        let meant = state.connections.iter_mut().filter(|one| one.is(which));
        clients_count + meant.map(|one| one.is_frozen = true).count()
    }

    /// Whatever was frozen goes on.
    pub fn thaw(&self) {
        self.datagrams.resume();
        let mut state = self.state.lock().unwrap();
        state.is_frozen = false;
        for connection in &mut state.connections {
            connection.is_frozen = false;
        }
    }

    /// Connections of that kind.
    pub fn count(&self, which: Which) -> usize {
        let state = self.state.lock().unwrap();
        state.connections.iter().filter(|one| one.is(which)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill(Which::All, Death::Reset);
        self.state.lock().unwrap().is_over = true;
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(listener: &TcpListener, state: &Mutex<State>) {
    loop {
        let mut timeout = TURN;
        {
            let mut state = state.lock().unwrap();
            if state.is_over {
                return;
            }
            state.turns_count += 1;
            state.accept(listener);
            let now = Instant::now();
            let (server, delay, is_frozen) = (state.server, state.delay, state.is_frozen);
            state.connections.retain_mut(|connection| {
                if is_frozen || connection.is_frozen {
                    return true;
                }
                connection.turn(server, delay, now).is_ok()
            });
            let dues = state.connections.iter().filter_map(Connection::due);
            if let Some(due) = dues.min() {
                timeout = timeout.min(due.saturating_duration_since(now));
            }
        }
        wait(listener, state, timeout);
    }
}

/// Bytes of the head of an HTTP message that stands at the front, its empty line included.
fn head_size(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Sleeps until something can be read, or `timeout`.
fn wait(listener: &TcpListener, state: &Mutex<State>, timeout: Duration) {
    let mut sockets = vec![listener.as_fd().try_clone_to_owned().unwrap()];
    {
        let state = state.lock().unwrap();
        let moving = state
            .connections
            .iter()
            .filter(|one| !state.is_frozen && !one.is_frozen);
        let sides = moving.flat_map(|one| [Some(&one.client), one.server.as_ref()]);
        let open = sides.flatten().filter(|side| !side.is_ended);
        // Copies, since the connections may be killed while we wait.
        sockets.extend(open.map(|side| side.socket.as_fd().try_clone_to_owned().unwrap()));
    }
    let mut watched: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(timeout).unwrap();
    // A signal that interrupts it makes one more turn, no more.
    let _ = poll(&mut watched, Some(&timeout));
}

impl State {
    fn accept(&mut self, listener: &TcpListener) {
        while let Ok((socket, _)) = listener.accept() {
            let Ok(client) = Side::new(socket) else {
                continue;
            };
            self.connections.push(Connection {
                client,
                server: None,
                dial_at: Instant::now() + self.delay,
                is_frozen: self.is_frozen,
                sent: [0; 2],
                starts: [Vec::new(), Vec::new()],
            });
        }
    }
}

impl Connection {
    fn is(&self, which: Which) -> bool {
        let Some((id, opening_sizes)) = self.pool_id() else {
            return which == Which::All;
        };
        match which {
            Which::All => true,
            Which::Control => id == PoolId::CONTROL,
            Which::Idle => id != PoolId::CONTROL && self.sent == opening_sizes,
        }
    }

    /// The id of a pool connection, and how many bytes each side has said until it was given.
    fn pool_id(&self) -> Option<(PoolId, [u64; 2])> {
        let [up, down] = &self.starts;
        let (up_size, id_at) = if up.starts_with(NATIVE_MAGIC) {
            (PREFACE_SIZE, 0)
        } else {
            let request_size = head_size(up)?;
            let request = str::from_utf8(&up[..request_size]).ok()?;
            if !request
                .to_ascii_lowercase()
                .contains("\r\nupgrade: websocket")
            {
                return None;
            }
            let answer_size = head_size(down)?;
            if !down[answer_size..].starts_with(ID_MESSAGE) {
                return None;
            }
            (request_size, answer_size + ID_MESSAGE.len())
        };
        let id = PoolId(*down[id_at..].first_chunk()?);
        let sizes = [up_size, id_at + id.0.len()];
        Some((id, sizes.map(|size| u64::try_from(size).unwrap())))
    }

    /// Returns whether something is left of it.
    fn die(&mut self, death: Death) -> bool {
        match death {
            Death::Finished => {
                let _ = self.client.socket.shutdown(Shutdown::Both);
                if let Some(server) = &self.server {
                    let _ = server.socket.shutdown(Shutdown::Both);
                }
                false
            }
            Death::Reset => {
                reset_on_close(&self.client.socket);
                if let Some(server) = &self.server {
                    reset_on_close(&server.socket);
                }
                false
            }
            Death::SilentForServer => {
                // A socket that nobody knows, so that closing it here is the end of the client's.
                let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let nobody = TcpStream::connect(nobody.local_addr().unwrap()).unwrap();
                reset_on_close(&self.client.socket);
                self.client.socket = nobody;
                self.is_frozen = true;
                true
            }
        }
    }

    /// When something that is on its way arrives.
    fn due(&self) -> Option<Instant> {
        let first = |side: &Side| side.queue.front().map(|(due, _)| *due);
        let dial = self.server.is_none().then_some(self.dial_at);
        let server = self.server.as_ref().and_then(first);
        [dial, first(&self.client), server]
            .into_iter()
            .flatten()
            .min()
    }

    /// Moves what can be moved. Errors: it is over, for good or ill.
    fn turn(&mut self, server: SocketAddr, delay: Duration, now: Instant) -> io::Result<()> {
        let far = match &mut self.server {
            Some(far) => far,
            None if now < self.dial_at => return Ok(()),
            None => {
                let dialled = try_dial(server).and_then(Side::new);
                let dialled = dialled.inspect_err(|_| reset_on_close(&self.client.socket))?;
                self.server.insert(dialled)
            }
        };
        let near = &mut self.client;
        let [up, down] = &mut self.starts;
        let [up_count, down_count] = &mut self.sent;
        let moved = near
            .read_into(far, delay, up, up_count)
            .and_then(|()| far.read_into(near, delay, down, down_count))
            .and_then(|()| near.write_due(now))
            .and_then(|()| far.write_due(now));
        if let Err(error) = moved {
            // What one side sees the other one sees too.
            reset_on_close(&near.socket);
            reset_on_close(&far.socket);
            return Err(error);
        }
        if near.is_finished && far.is_finished {
            return Err(ErrorKind::NotConnected.into());
        }
        Ok(())
    }
}

impl Side {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            queue: VecDeque::new(),
            queue_size: 0,
            is_ended: false,
            is_finished: false,
        })
    }

    /// Reads what is there and queues it for `other`.
    fn read_into(
        &mut self,
        other: &mut Self,
        delay: Duration,
        start: &mut Vec<u8>,
        count: &mut u64,
    ) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        while !self.is_ended && other.queue_size < QUEUE_SIZE_MAX {
            let due = Instant::now() + delay;
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    self.is_ended = true;
                    other.queue.push_back((due, Parcel::End));
                }
                Ok(size) => {
                    let bytes = &buffer[..size];
                    let room = START_SIZE_MAX.saturating_sub(start.len());
                    start.extend(bytes.iter().take(room));
                    *count += u64::try_from(size).unwrap();
                    other.queue_size += size;
                    other.queue.push_back((due, Parcel::Bytes(bytes.to_vec())));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what has arrived.
    fn write_due(&mut self, now: Instant) -> io::Result<()> {
        while let Some((due, parcel)) = self.queue.front_mut() {
            if *due > now {
                break;
            }
            let Parcel::Bytes(bytes) = parcel else {
                self.is_finished = true;
                self.queue.pop_front();
                // It may be gone already.
                let _ = self.socket.shutdown(Shutdown::Write);
                continue;
            };
            match self.socket.write(bytes) {
                Ok(size) => {
                    bytes.drain(..size);
                    self.queue_size -= size;
                    if bytes.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
