//! A server that a case plays against our client.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodepass::wire::fingerprint::Fingerprint;
use nodepass::wire::handshake::challenge::{AnsweredChallenges, BootSecret};
use nodepass::wire::handshake::server::{Refusal, Request, decode_request};
use nodepass::wire::key::{ServerKeys, TunnelKey};
use nodepass::wire::offer::{Offer, Transport};
use nodepass::wire::proof::SessionId;
use nodepass::wire::signal::{PoolId, Signal, SignalReader, SignalWriter};
use nodepass::wire::ticket::{PREFACE_SIZE, SessionTickets, Ticket};
use socket2::SockRef;

use super::control::Control;
use super::http2::{Mux, Opening};
use super::random;
use super::stream::{Identity, Stream};
use super::web_socket::{self, Ends, WebSocket};
use crate::support::DEADLINE;
use crate::support::servers::set_deadline;

/// The listener. What it does with a connection is the case's to say: until a pool is opened, each
/// one waits in [`PlayedServer::next_request`].
pub struct PlayedServer {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    requests: Receiver<TcpStream>,
    pool: Arc<Pool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Pool {
    state: Mutex<PoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// How connections join; `None` where they are requests.
    rules: Option<Rules>,
    control: Option<Stream>,
    idle: BTreeMap<PoolId, Stream>,
    /// Connections whose streams they are.
    muxes: Vec<Mux>,
}

/// What pool connections are made of.
pub enum Form {
    /// One TCP connection each.
    Tcp,
    /// One WebSocket each, the first ones with these answers, but for what follows from the key.
    WebSocket(VecDeque<Vec<u8>>),
    /// Streams of one connection, which begins like this.
    Http2(Option<Opening>),
}

struct Rules {
    form: Form,
    identity: Option<Identity>,
    /// Of a native session.
    tickets: Option<SessionTickets>,
    /// The ids to give out first, that of the control channel included.
    ids: VecDeque<PoolId>,
}

impl PlayedServer {
    /// Listens at an address of its own.
    pub fn start() -> Self {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = Arc::new(TcpListener::bind((ip, 0)).unwrap());
        let (report, requests) = mpsc::channel();
        let pool = Arc::new(Pool::default());
        let thread = thread::spawn({
            let (listener, pool) = (Arc::clone(&listener), Arc::clone(&pool));
            move || {
                while let Ok((socket, _)) = listener.accept() {
                    pool.admit(socket, &report);
                }
            }
        });
        Self {
            address: listener.local_addr().unwrap(),
            listener,
            requests,
            pool,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that asks for a handshake: what it has sent, head and all.
    #[track_caller]
    pub fn next_request(&self) -> (Vec<u8>, TcpStream) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let socket = self.requests.recv_timeout(left);
            let socket = socket.expect("no client asks for a handshake");
            // A pool connection of a session that has just ended says nothing and goes away.
            if let Ok(head) = read_head(&socket)
                && !head.is_empty()
            {
                return (head, socket);
            }
        }
    }

    /// From now on connections join the pool of a v1 session, and are given `ids` first.
    pub fn open_pool_v1(&self, form: Form, identity: Option<Identity>, ids: &[PoolId]) {
        self.pool.open(Rules {
            form,
            identity,
            tickets: None,
            ids: ids.iter().copied().collect(),
        });
    }

    /// Drops the pool: connections are requests again.
    pub fn close_pool(&self) {
        let dropped = std::mem::take(&mut *self.pool.state.lock().unwrap());
        drop(dropped);
    }

    /// Waits for the control channel of a v1 session.
    #[track_caller]
    pub fn control_v1(&self, key: &TunnelKey) -> Control {
        let (writer, reader) = (SignalWriter::v1(key.clone()), SignalReader::v1(key.clone()));
        Control::start(self.control(), writer, reader)
    }

    /// Carries out a v1 handshake with a client that tries a native one first, and opens the pool.
    #[track_caller]
    pub fn accept_v1(&self, key: &TunnelKey, offer: &Offer) -> Control {
        const REFUSAL: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\
                                 Content-Length: 0\r\n\r\n";
        let (_, mut hello) = self.next_request();
        hello.write_all(REFUSAL).unwrap();
        drop(hello);
        let (head, mut socket) = self.next_request();
        let (request, _) = decode_request(&head).unwrap().unwrap();
        let Request::Bearer(bearer) = request else {
            panic!("no v1 handshake but {request:?}");
        };
        let verified = bearer.verify(&ServerKeys::explicit(key.clone())).unwrap();
        let form = match offer.transport {
            Transport::WebSocket => Form::WebSocket(VecDeque::new()),
            _ => Form::Tcp,
        };
        self.open_pool_v1(form, None, &[PoolId::CONTROL]);
        socket.write_all(&verified.accept(offer)).unwrap();
        drop(socket);
        self.control_v1(key)
    }

    /// Carries out a native handshake, however many connections it takes, and opens the pool.
    #[track_caller]
    pub fn accept_native(
        &self,
        key: &TunnelKey,
        offer: &Offer,
        identity: Option<&Identity>,
    ) -> Control {
        let fingerprint = identity.map(|identity| identity.fingerprint);
        self.accept_showing(key, offer, identity, fingerprint)
    }

    /// The same, where the handshake tells of another certificate than pool connections show.
    #[track_caller]
    pub fn accept_showing(
        &self,
        key: &TunnelKey,
        offer: &Offer,
        identity: Option<&Identity>,
        fingerprint: Option<Fingerprint>,
    ) -> Control {
        let (writer, reader) = self.shake_hands(key, offer, identity, fingerprint).unwrap();
        Control::start(self.control(), writer, reader)
    }

    /// Carries out a native handshake as far as it goes, and opens the pool if it succeeds.
    ///
    /// Errors: the client was refused, and told so.
    #[track_caller]
    pub fn shake_hands(
        &self,
        key: &TunnelKey,
        offer: &Offer,
        identity: Option<&Identity>,
        fingerprint: Option<Fingerprint>,
    ) -> Result<(SignalWriter, SignalReader), Refusal> {
        let keys = ServerKeys::explicit(key.clone());
        let secret = BootSecret::new(random());
        let mut answered = AnsweredChallenges::default();
        let now = Duration::from_secs(1);
        loop {
            let (mut head, mut socket) = self.next_request();
            // The client may go on where it was answered.
            while !head.is_empty() {
                let (request, _) = decode_request(&head).unwrap().unwrap();
                match request {
                    Request::Hello(hello) => {
                        let answer = hello.challenge(&secret, now, random());
                        socket.write_all(&answer).unwrap();
                        head = read_head(&socket).unwrap_or_default();
                    }
                    Request::Proof(proof) => {
                        let verified = proof.verify(&keys, &secret, &mut answered, now);
                        let verified = verified.inspect_err(|refusal| {
                            let _ = socket.write_all(&refusal.answer().unwrap());
                        })?;
                        let accepted = verified.accept(SessionId(random()), offer, fingerprint);
                        let (writer, reader, tickets) = accepted.session.into_server();
                        let form = match offer.transport {
                            Transport::WebSocket => Form::WebSocket(VecDeque::new()),
                            _ => Form::Tcp,
                        };
                        self.pool.open(Rules {
                            form,
                            identity: identity.cloned(),
                            tickets: Some(tickets),
                            ids: VecDeque::from([PoolId::CONTROL]),
                        });
                        socket.write_all(&accepted.answer).unwrap();
                        return Ok((writer, reader));
                    }
                    other => panic!("no native handshake but {other:?}"),
                }
            }
        }
    }

    /// Waits for the connection with the id 0.
    #[track_caller]
    pub fn control(&self) -> Stream {
        self.pool
            .wait("the control channel", |state| state.control.take())
    }

    /// Waits for `count` idle pool connections; their ids.
    #[track_caller]
    pub fn wait_idle(&self, count: usize) -> Vec<PoolId> {
        self.pool.wait("idle pool connections", |state| {
            (state.idle.len() >= count).then(|| state.idle.keys().copied().collect())
        })
    }

    /// Takes the pool connection `id`, once it is there.
    #[track_caller]
    pub fn take(&self, id: PoolId) -> Stream {
        self.pool
            .wait("that pool connection", |state| state.idle.remove(&id))
    }

    /// Sends the signal `signal` makes of the id of an idle pool connection, and takes that.
    #[track_caller]
    pub fn send_visitor(&self, control: &Control, signal: fn(PoolId) -> Signal) -> Stream {
        let id = self.wait_idle(1)[0];
        let stream = self.take(id);
        control.send(signal(id));
        stream
    }
}

impl Drop for PlayedServer {
    fn drop(&mut self) {
        // Wakes the accept call, which no close would.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        self.close_pool();
        let _ = self.thread.take().unwrap().join();
    }
}

impl Pool {
    fn open(&self, rules: Rules) {
        let new = PoolState {
            rules: Some(rules),
            ..PoolState::default()
        };
        let old = std::mem::replace(&mut *self.state.lock().unwrap(), new);
        // Not under the lock, which a connection may wait for before it ends.
        drop(old);
    }

    /// Lets a connection join, or hands it over as a request.
    fn admit(self: &Arc<Self>, socket: TcpStream, requests: &Sender<TcpStream>) {
        set_deadline(&socket);
        let mut state = self.state.lock().unwrap();
        let Some(rules) = &mut state.rules else {
            // Nobody may be waiting any more.
            let _ = requests.send(socket);
            return;
        };
        if let Form::Http2(opening) = &mut rules.form {
            let opening = opening.take().unwrap_or_else(Opening::of_server);
            let identity = rules.identity.as_ref().map(Identity::for_http2);
            if let Ok(below) = Stream::accept(socket, identity.as_ref()) {
                let pool = Arc::clone(self);
                let join = Box::new(move |far| pool.take_stream(far));
                state.muxes.push(Mux::server(below, opening, join));
            }
            return;
        }
        // An error closes it, which is all that it is told.
        if let Ok((id, stream)) = rules.join(socket) {
            state.place(id, stream);
            self.changed.notify_all();
        }
    }

    /// A new stream of HTTP/2 joins; its id.
    fn take_stream(&self, far: TcpStream) -> PoolId {
        let mut state = self.state.lock().unwrap();
        let ids = state.rules.as_mut().map(|rules| &mut rules.ids);
        let id = ids.and_then(VecDeque::pop_front);
        let id = id.unwrap_or_else(|| PoolId(random()));
        state.place(id, Stream::Plain(far));
        self.changed.notify_all();
        id
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, mut find: impl FnMut(&mut PoolState) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = find(&mut state) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Whoever cleans up needs it whole.
                drop(state);
                panic!("not within {DEADLINE:?}: {what}");
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl PoolState {
    fn place(&mut self, id: PoolId, stream: Stream) {
        if id == PoolId::CONTROL {
            self.control = Some(stream);
        } else {
            self.idle.insert(id, stream);
        }
    }
}

impl Rules {
    fn join(&mut self, socket: TcpStream) -> io::Result<(PoolId, Stream)> {
        let mut stream = Stream::accept(socket, self.identity.as_ref())?;
        let upgrade = match self.form {
            Form::WebSocket(_) => Some(web_socket::read_head(&mut stream)?),
            _ => None,
        };
        if let Some(tickets) = &mut self.tickets {
            let ticket = match &upgrade {
                Some(request) => web_socket::header(request, "NodePass-Ticket")
                    .and_then(|value| Ticket::decode_header(value.as_bytes())),
                None => {
                    let mut preface = [0; PREFACE_SIZE];
                    stream.read_exact(&mut preface)?;
                    Ticket::decode_preface(&preface).ok().flatten()
                }
            };
            let ticket = ticket.ok_or(io::ErrorKind::InvalidData)?;
            tickets
                .redeem(&ticket)
                .map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
        if let Some(request) = upgrade {
            stream = self.upgrade(stream, &request)?;
        }
        let id = self.ids.pop_front().unwrap_or_else(|| PoolId(random()));
        stream.write_all(&id.0)?;
        stream.flush()?;
        Ok((id, stream))
    }

    /// Answers the request of an upgrade.
    fn upgrade(&mut self, mut stream: Stream, request: &[u8]) -> io::Result<Stream> {
        const PLAIN: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                             Sec-Websocket-Accept: (key)\r\nUpgrade: websocket\r\n\r\n";
        let accept = web_socket::accept_value(request).ok_or(io::ErrorKind::InvalidData)?;
        let recorded = match &mut self.form {
            Form::WebSocket(answers) => answers.pop_front(),
            _ => None,
        };
        let answer = recorded.unwrap_or_else(|| PLAIN.as_bytes().to_vec());
        let old = web_socket::header(&answer, "Sec-WebSocket-Accept").unwrap();
        let answer = str::from_utf8(&answer).unwrap().replace(old, &accept);
        stream.write_all(answer.as_bytes())?;
        let ends = match self.tickets {
            Some(_) => Ends::EmptyMessage,
            None => Ends::CloseFrame,
        };
        Ok(Stream::WebSocket(Box::new(WebSocket::accepted(
            stream, ends,
        ))))
    }
}

/// Reads the head of a request, all that comes before its empty line and that; empty where the
/// connection ends instead.
pub fn read_head(mut socket: &TcpStream) -> io::Result<Vec<u8>> {
    set_deadline(socket);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte)? == 0 {
            return Ok(Vec::new());
        }
        head.push(byte[0]);
    }
    Ok(head)
}
