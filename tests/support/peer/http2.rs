//! HTTP/2 in the hands of a case: one connection, whose streams are sockets to the case.
//!
//! It knows no more of HPACK than fields that are written out: what it has to read it takes for
//! granted, which is enough for answers and for recorded requests.
//!
//! Source: RFC 9113; RFC 7541 section 6.2.2.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nodepass::wire::fingerprint::Fingerprint;
use nodepass::wire::signal::PoolId;
use nodepass::wire::ticket::Ticket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::stream::Stream;
use crate::support::eventually;
use crate::support::servers::{reset_on_close, set_deadline};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub const DATA: u8 = 0;
/// A request or an answer.
pub const HEADERS: u8 = 1;
/// The end of one stream, at once.
pub const RST_STREAM: u8 = 3;
/// What an end is ready for.
pub const SETTINGS: u8 = 4;
/// Is to be answered.
pub const PING: u8 = 6;
/// The end of the connection.
pub const GOAWAY: u8 = 7;
/// More room.
pub const WINDOW_UPDATE: u8 = 8;
/// More of a header block.
pub const CONTINUATION: u8 = 9;

/// Flags: the last frame of a stream's direction, of a header block, an answer.
pub const END_STREAM: u8 = 1;
/// The header block ends here.
pub const END_HEADERS: u8 = 4;
/// An answer to settings or a ping.
pub const ACK: u8 = 1;

/// `RST_STREAM` of someone who needs the stream no more.
pub const CANCEL: u32 = 8;

/// How long the connection's thread sleeps when nothing comes.
const TURN: Duration = Duration::from_millis(5);

/// What a side may send before it is told more (RFC 9113 section 6.9.2).
const WINDOW_SIZE: i64 = 65_535;

const FRAME_SIZE_MAX: usize = 16_384;
const HEADER_SIZE: usize = 9;

/// Bytes that wait for the connection, after which nothing is added.
const OUTGOING_SIZE_MAX: usize = 256 * 1024;

/// What a case says of itself to begin with.
pub struct Opening {
    /// Preface and settings.
    pub bytes: Vec<u8>,
    /// The header blocks of the first requests or answers; when they are used up, ours follow.
    pub blocks: VecDeque<Vec<u8>>,
    /// Whether a direction ends by the reset of its stream, as in programs of the 1.x line.
    pub ends_by_reset: bool,
}

/// What makes of a new stream a pool connection: it gets our end, and gives the id.
pub type Join = Box<dyn FnMut(TcpStream) -> PoolId + Send>;

/// What makes more and more bytes; `None` when it is enough.
pub type Flood = Box<dyn FnMut() -> Option<Vec<u8>> + Send>;

/// The connection. Dropping it closes it.
pub struct Mux {
    /// The certificate of the server, where we are the client.
    pub fingerprint: Option<Fingerprint>,
    orders: Option<Sender<Order>>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What has come of the other side so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// The code of its farewell.
    pub go_away: Option<u32>,
    /// Streams it has reset, and why.
    pub resets: Vec<(u32, u32)>,
    /// Frames of each kind.
    pub frames: BTreeMap<u8, usize>,
    /// Pings of ours that it has answered.
    pub pongs_count: usize,
    /// Bytes that have left.
    pub sent: u64,
    /// It has ended, or broken off.
    pub is_over: bool,
}

enum Order {
    Open(Vec<u8>, Sender<TcpStream>),
    Send(Vec<u8>),
    Flood(Flood),
    /// From now on give no window back.
    Stall,
}

/// A field of a header block, written out and never indexed.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![0x10];
    for text in [name, value] {
        encode_length(text.len(), &mut field);
        field.extend_from_slice(text);
    }
    field
}

/// A length as an integer with a prefix of seven bits (RFC 7541 section 5.1).
fn encode_length(length: usize, into: &mut Vec<u8>) {
    const PREFIX_MAX: usize = 127;
    if length < PREFIX_MAX {
        into.push(u8::try_from(length).unwrap());
        return;
    }
    into.push(127);
    let mut rest = length - PREFIX_MAX;
    while rest >= 128 {
        into.push(u8::try_from(rest % 128 + 128).unwrap());
        rest /= 128;
    }
    into.push(u8::try_from(rest).unwrap());
}

/// The header block of a request.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", method),
        (":scheme", "https"),
        (":authority", "none"),
        (":path", path),
    ];
    let fields = pseudo.iter().chain(more);
    fields
        .flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes()))
        .collect()
}

/// The header block by which a pool connection is opened.
pub fn pool_request(ticket: Option<&Ticket>) -> Vec<u8> {
    let ticket = ticket.map(Ticket::encode_header);
    let more = ticket.as_deref().map(|value| ("nodepass-ticket", value));
    request("POST", "/stream", more.as_slice())
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags, d, e, f, g];
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes a whole frame from the front of `input`: kind, flags, stream, payload.
pub fn take_frame(input: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let &[a, b, c, kind, flags, d, e, f, g] = input.first_chunk()?;
    let size = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
    if input.len() < HEADER_SIZE + size {
        return None;
    }
    let mut bytes: Vec<u8> = input.drain(..HEADER_SIZE + size).collect();
    let payload = bytes.split_off(HEADER_SIZE);
    Some((kind, flags, u32::from_be_bytes([d, e, f, g]), payload))
}

impl Opening {
    /// That of a client which knows the protocol and has no wishes.
    pub fn of_client() -> Self {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(Self::of_server().bytes);
        Self {
            bytes,
            ..Self::of_server()
        }
    }

    /// The same of a server.
    pub fn of_server() -> Self {
        // No push, and all that a stream may want before we give it more.
        let settings = [0, 2, 0, 0, 0, 0, 0, 4, 0, 1, 0xff, 0xff];
        Self {
            bytes: frame(SETTINGS, 0, 0, &settings),
            blocks: VecDeque::new(),
            ends_by_reset: false,
        }
    }
}

impl Mux {
    /// Serves a connection that we have opened.
    pub fn client(below: Stream, opening: Opening) -> Self {
        let fingerprint = below.fingerprint();
        let mut mux = Self::start(below, opening, None);
        mux.fingerprint = fingerprint;
        mux
    }

    /// Serves a connection that was opened to us: each new stream is given to `join`.
    pub fn server(below: Stream, opening: Opening, join: Join) -> Self {
        Self::start(below, opening, Some(join))
    }

    fn start(below: Stream, opening: Opening, join: Option<Join>) -> Self {
        below.socket().set_nonblocking(true).unwrap();
        let (orders, to_do) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let connection = Connection {
            below,
            preface_left: if join.is_some() { PREFACE.len() } else { 0 },
            is_server: join.is_some(),
            join,
            blocks: opening.blocks,
            ends_by_reset: opening.ends_by_reset,
            seen: Arc::clone(&seen),
            incoming: Vec::new(),
            outgoing: opening.bytes,
            flood: None,
            is_stalled: false,
            streams: BTreeMap::new(),
            next_stream: 1,
            window_initial: WINDOW_SIZE,
            window: WINDOW_SIZE,
        };
        Self {
            fingerprint: None,
            orders: Some(orders),
            seen,
            thread: Some(thread::spawn(move || connection.serve(&to_do))),
        }
    }

    /// Opens a stream with the next of the blocks that were given, or else `block`, and a first
    /// byte of its body. What was made of it shows when it is read.
    pub fn open(&self, block: Vec<u8>) -> io::Result<TcpStream> {
        let (reply, socket) = mpsc::channel();
        self.order(Order::Open(block, reply));
        socket.recv().map_err(|_| ErrorKind::BrokenPipe.into())
    }

    /// Opens a pool connection; the id that it is given.
    ///
    /// Errors: it is closed instead.
    pub fn join(&self, ticket: Option<&Ticket>) -> io::Result<(PoolId, TcpStream)> {
        let mut socket = self.open(pool_request(ticket))?;
        let mut id = [0; 4];
        socket.read_exact(&mut id)?;
        Ok((PoolId(id), socket))
    }

    /// Sends these bytes, whatever they are.
    pub fn send(&self, bytes: &[u8]) {
        self.order(Order::Send(bytes.to_vec()));
    }

    /// Sends more and more, as fast as it is taken.
    pub fn flood(&self, flood: Flood) {
        self.order(Order::Flood(flood));
    }

    /// From now on gives the other side no window back.
    pub fn stall(&self) {
        self.order(Order::Stall);
    }

    fn order(&self, order: Order) {
        // A connection that has ended is for the case to find out.
        let _ = self.orders.as_ref().unwrap().send(order);
    }

    /// What has come so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until the other side has put an end to it; what it has said.
    #[track_caller]
    pub fn wait_over(&self) -> Seen {
        eventually("the end of the connection of HTTP/2", || {
            let seen = self.seen();
            seen.is_over.then_some(seen)
        })
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Two ends of one connection, of which the first waits for nothing.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
    }
    set_deadline(&far);
    near.set_nonblocking(true).unwrap();
    (near, far)
}

/// What the thread of a connection knows.
struct Connection {
    below: Stream,
    /// Bytes of the preface that have not come.
    preface_left: usize,
    is_server: bool,
    join: Option<Join>,
    blocks: VecDeque<Vec<u8>>,
    ends_by_reset: bool,
    seen: Arc<Mutex<Seen>>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    flood: Option<Flood>,
    is_stalled: bool,
    streams: BTreeMap<u32, Bridge>,
    next_stream: u32,
    /// What the other side takes on a new stream, and now on the connection.
    window_initial: i64,
    window: i64,
}

/// One stream, and the socket that the case has the other end of.
struct Bridge {
    socket: TcpStream,
    /// Comes from the stream, goes to the socket.
    arrived: VecDeque<u8>,
    /// Bytes of a request's body that are not for the pool connection.
    skip_count: usize,
    has_arrived_all: bool,
    has_sent_all: bool,
    window: i64,
}

impl Connection {
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
            match self.turn() {
                Ok(moved) => is_busy |= moved,
                Err(_) => break,
            }
            if !is_busy {
                self.wait();
            }
        }
        // Whoever waits for a stream is told by its end.
        self.streams.clear();
        self.seen.lock().unwrap().is_over = true;
        // Orders are no longer done; those that are answered find nobody.
        while orders.recv().is_ok() {}
    }

    /// What is on its way leaves, as far as that is possible at once.
    fn leave(mut self) {
        let _ = self.turn();
        let _ = self.below.finish();
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(block, reply) => {
                let stream = self.next_stream;
                self.next_stream += 2;
                let block = self.blocks.pop_front().unwrap_or(block);
                self.say(HEADERS, END_HEADERS, stream, &block);
                self.say(DATA, 0, stream, &[0]);
                let far = self.bridge(stream);
                // The window holds more than a byte; how much is accounted for all the same.
                self.streams.get_mut(&stream).unwrap().window -= 1;
                self.window -= 1;
                let _ = reply.send(far);
            }
            Order::Send(bytes) => self.outgoing.extend(bytes),
            Order::Flood(flood) => self.flood = Some(flood),
            Order::Stall => self.is_stalled = true,
        }
    }

    fn bridge(&mut self, stream: u32) -> TcpStream {
        let (near, far) = pair();
        self.streams.insert(
            stream,
            Bridge {
                socket: near,
                arrived: VecDeque::new(),
                skip_count: usize::from(self.is_server),
                has_arrived_all: false,
                has_sent_all: false,
                window: self.window_initial,
            },
        );
        far
    }

    fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.outgoing.extend(frame(kind, flags, stream, payload));
    }

    /// Sleeps until something can be read or written, or for a while: orders are seen that late.
    fn wait(&self) {
        let below = self.below.socket();
        let events = if self.outgoing.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let mut watched = vec![PollFd::new(below, events)];
        for bridge in self.streams.values() {
            if !bridge.has_sent_all && bridge.window > 0 && self.window > 0 {
                watched.push(PollFd::new(&bridge.socket, PollFlags::IN));
            }
        }
        let timeout = Timespec::try_from(TURN).unwrap();
        let _ = poll(&mut watched, Some(&timeout));
    }

    /// Moves what can be moved. Errors: the connection is over.
    fn turn(&mut self) -> io::Result<bool> {
        let mut has_moved = self.read_below()?;
        while let Some((kind, flags, stream, payload)) = take_frame(&mut self.incoming) {
            self.take(kind, flags, stream, &payload);
        }
        has_moved |= self.serve_bridges();
        while let Some(flood) = &mut self.flood {
            if self.outgoing.len() >= OUTGOING_SIZE_MAX {
                break;
            }
            match flood() {
                Some(bytes) => self.outgoing.extend(bytes),
                None => self.flood = None,
            }
        }
        has_moved |= self.write_below()?;
        Ok(has_moved)
    }

    fn read_below(&mut self) -> io::Result<bool> {
        const ROUNDS_MAX: usize = 16;
        let mut buffer = [0; 32 * 1024];
        for round in 0..ROUNDS_MAX {
            match self.below.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let skipped = count.min(self.preface_left);
                    self.preface_left -= skipped;
                    self.incoming.extend_from_slice(&buffer[skipped..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(round > 0),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write_below(&mut self) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match self.below.write(&self.outgoing[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.outgoing.drain(..sent);
        self.seen.lock().unwrap().sent += u64::try_from(sent).unwrap();
        match self.below.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(sent > 0),
        }
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        *self.seen.lock().unwrap().frames.entry(kind).or_default() += 1;
        match kind {
            DATA => {
                let Some(bridge) = self.streams.get_mut(&stream) else {
                    return self.give_back(0, payload.len());
                };
                let skipped = bridge.skip_count.min(payload.len());
                bridge.skip_count -= skipped;
                bridge.arrived.extend(&payload[skipped..]);
                bridge.has_arrived_all |= flags & END_STREAM != 0;
            }
            HEADERS => {
                if let Some(mut join) = self.join.take() {
                    let far = self.bridge(stream);
                    let id = join(far);
                    self.join = Some(join);
                    // An answer of 200 and nothing else.
                    let block = self.blocks.pop_front().unwrap_or_else(|| vec![0x88]);
                    self.say(HEADERS, END_HEADERS, stream, &block);
                    self.say(DATA, 0, stream, &id.0);
                    let bridge = self.streams.get_mut(&stream).unwrap();
                    bridge.window -= 4;
                    self.window -= 4;
                }
                if flags & END_STREAM != 0
                    && let Some(bridge) = self.streams.get_mut(&stream)
                {
                    bridge.has_arrived_all = true;
                }
            }
            RST_STREAM => {
                let code = u32::from_be_bytes(*payload.first_chunk().unwrap());
                self.seen.lock().unwrap().resets.push((stream, code));
                if let Some(bridge) = self.streams.get_mut(&stream) {
                    bridge.has_arrived_all = true;
                    bridge.has_sent_all = true;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                self.take_settings(payload);
                self.say(SETTINGS, ACK, 0, b"");
            }
            PING if flags & ACK == 0 => self.say(PING, ACK, 0, payload),
            PING => self.seen.lock().unwrap().pongs_count += 1,
            GOAWAY => {
                let code = u32::from_be_bytes(*payload[4..].first_chunk().unwrap());
                self.seen.lock().unwrap().go_away = Some(code);
            }
            WINDOW_UPDATE => {
                let more = i64::from(u32::from_be_bytes(*payload.first_chunk().unwrap()));
                if stream == 0 {
                    self.window += more;
                } else if let Some(bridge) = self.streams.get_mut(&stream) {
                    bridge.window += more;
                }
            }
            _ => {}
        }
    }

    fn take_settings(&mut self, payload: &[u8]) {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        for &[a, b, c, d, e, f] in payload.as_chunks::<6>().0 {
            if [a, b] == INITIAL_WINDOW_SIZE {
                let size = i64::from(u32::from_be_bytes([c, d, e, f]));
                let change = size - self.window_initial;
                self.window_initial = size;
                for bridge in self.streams.values_mut() {
                    bridge.window += change;
                }
            }
        }
    }

    /// Tells the other side that there is room again.
    fn give_back(&mut self, stream: u32, size: usize) {
        if size > 0 && !self.is_stalled {
            let more = u32::try_from(size).unwrap().to_be_bytes();
            self.say(WINDOW_UPDATE, 0, stream, &more);
        }
    }

    fn serve_bridges(&mut self) -> bool {
        let mut has_moved = false;
        let streams: Vec<u32> = self.streams.keys().copied().collect();
        for stream in streams {
            let mut bridge = self.streams.remove(&stream).unwrap();
            has_moved |= self.write_socket(stream, &mut bridge);
            has_moved |= self.read_socket(stream, &mut bridge);
            let is_done =
                bridge.has_sent_all && bridge.has_arrived_all && bridge.arrived.is_empty();
            if !is_done {
                self.streams.insert(stream, bridge);
            }
        }
        has_moved
    }

    fn write_socket(&mut self, stream: u32, bridge: &mut Bridge) -> bool {
        let mut moved = 0;
        while !bridge.arrived.is_empty() {
            let (front, _) = bridge.arrived.as_slices();
            match bridge.socket.write(front) {
                Ok(count) => {
                    moved += count;
                    bridge.arrived.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    // The case has gone, so nobody wants the rest.
                    self.say(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
                    bridge.arrived.clear();
                    (bridge.has_arrived_all, bridge.has_sent_all) = (true, true);
                }
            }
        }
        if bridge.arrived.is_empty() && bridge.has_arrived_all {
            // It may be gone already.
            let _ = bridge.socket.shutdown(Shutdown::Write);
        }
        self.give_back(0, moved);
        if !bridge.has_arrived_all {
            self.give_back(stream, moved);
        }
        moved > 0
    }

    fn read_socket(&mut self, stream: u32, bridge: &mut Bridge) -> bool {
        let mut has_moved = false;
        let mut buffer = [0; FRAME_SIZE_MAX];
        while !bridge.has_sent_all && self.outgoing.len() < OUTGOING_SIZE_MAX {
            let room = bridge.window.min(self.window).max(0);
            let room = usize::try_from(room).unwrap().min(buffer.len());
            if room == 0 {
                break;
            }
            match bridge.socket.read(&mut buffer[..room]) {
                Ok(0) if self.ends_by_reset => {
                    self.say(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
                    (bridge.has_arrived_all, bridge.has_sent_all) = (true, true);
                }
                Ok(0) => {
                    self.say(DATA, END_STREAM, stream, b"");
                    bridge.has_sent_all = true;
                }
                Ok(count) => {
                    self.say(DATA, 0, stream, &buffer[..count]);
                    let size = i64::try_from(count).unwrap();
                    bridge.window -= size;
                    self.window -= size;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.say(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
                    reset_on_close(&bridge.socket);
                    (bridge.has_arrived_all, bridge.has_sent_all) = (true, true);
                }
            }
            has_moved = true;
        }
        has_moved
    }
}
