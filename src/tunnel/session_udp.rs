//! All visitors over UDP, on one thread: a session for each visitor address, with a socket of
//! its own to the target.
//!
//! The thread sleeps in one epoll for the listener, the bell of finished look-ups and the two
//! events of the shutdown. The sockets of the sessions are in the same one, or, with option
//! `rate`, in a second epoll inside the first, so that all of them can be left alone while there
//! is no turn for replies.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::epoll;

use super::direct::Instance;
use super::gate::Gate;
use super::slots::Kind;
use super::udp_table::{Link, Session, Table, Token, VisitorKey};
use crate::limits::{
    DATAGRAM_ROUNDS_MAX, DATAGRAM_TURN_ROUNDS_MAX, UDP_DRAIN_QUIET, UDP_EVENTS_MAX,
    UDP_OPENING_COUNT_MAX, UDP_OPENING_SIZE_MAX, UDP_OPENING_TOTAL_MAX, UDP_SESSION_BUFFER_SIZE,
    UDP_SWEEP_INTERVAL,
};
use crate::net::datagram::{Batch, DatagramPort, Received, join_received, set_buffer_sizes};
use crate::net::dial::{DialError, DialledUdp, Found};
use crate::net::listen::canonical;
use crate::net::race::Watch;
use crate::net::rate::{Place, Turn};
use crate::runtime::event::{Bell, timespec};

// What the outer epoll tells of.
const LISTENER: u64 = 0;
const BELL: u64 = 1;
const DRAIN: u64 = 2;
const STOP: u64 = 3;
const SESSIONS: u64 = 4;

/// The UDP side of an instance: one listener and its sessions.
pub struct UdpSessions {
    instance: Arc<Instance>,
    port: DatagramPort,
    listener: UdpSocket,
    outer: Gate,
    /// The sockets of the sessions, where replies have a limit.
    inner: Option<OwnedFd>,
    table: Table,
    /// Absent while it is lent.
    batch: Option<Batch>,
    /// The places in the queues of option `rate`.
    place_received: Place,
    place_sent: Place,
    look_up: LookUp,
    swept_at: Instant,
    is_draining: bool,
}

/// The look-up of names, on another thread; one at a time serves all sessions that wait.
struct LookUp {
    finder: Arc<Finder>,
    answers: Receiver<Vec<Found>>,
    is_running: bool,
    /// Bytes of datagrams that wait for it.
    held_size: usize,
}

/// What that thread gets: where to leave the answer, and how to tell.
struct Finder {
    sender: Sender<Vec<Found>>,
    bell: Bell,
}

impl UdpSessions {
    /// Takes over a bound, non-blocking listener.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new(instance: Arc<Instance>, listener: UdpSocket) -> io::Result<Self> {
        let (sender, answers) = bounded(1);
        let bell = Bell::new()?;
        let outer = Gate::new()?;
        let mut inner = None;
        let mut batch = Batch::default();
        if instance.rates.is_some() {
            let sessions = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            outer.watch(&sessions, SESSIONS)?;
            inner = Some(sessions);
            // A turn is short: more than one datagram may be more than it has room for.
            batch.limit_to_one();
        }
        outer.watch(&listener, LISTENER)?;
        outer.watch(&bell, BELL)?;
        outer.watch(&instance.shutdown.drain, DRAIN)?;
        outer.watch(&instance.shutdown.stop, STOP)?;
        Ok(Self {
            port: DatagramPort::new()?,
            instance,
            listener,
            outer,
            inner,
            table: Table::default(),
            batch: Some(batch),
            place_received: Place::default(),
            place_sent: Place::default(),
            look_up: LookUp {
                finder: Arc::new(Finder { sender, bell }),
                answers,
                is_running: false,
                held_size: 0,
            },
            swept_at: Instant::now(),
            is_draining: false,
        })
    }

    /// Serves until the program stops; the body of the thread `udp`.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(UDP_EVENTS_MAX);
        loop {
            let now = Instant::now();
            if self.is_over(now) {
                return;
            }
            let turn_at = self.wait_for_turns(now);
            let timeout = self.sleep_duration(turn_at).map(timespec);
            events.clear();
            let into = rustix::buffer::spare_capacity(&mut events);
            // An interrupted or failed wait is a round in which nothing happened.
            let _ = epoll::wait(&self.outer.epoll, into, timeout.as_ref());
            let now = Instant::now();
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.receive_from_visitors(now),
                    BELL => self.take_found(now),
                    DRAIN => self.drain(),
                    STOP => return,
                    SESSIONS => self.receive_from_targets(now),
                    token => {
                        self.receive_from_target(Token::from_u64(token), now);
                    }
                }
            }
            self.sweep(now);
        }
    }

    /// No new sessions from now on; those that are open end when they are quiet.
    fn drain(&mut self) {
        self.is_draining = true;
        self.outer.forget(&self.instance.shutdown.drain);
    }

    fn is_over(&self, now: Instant) -> bool {
        let quiet_at = |session: &Session| session.active_at + UDP_DRAIN_QUIET;
        self.is_draining && self.table.iter().all(|session| quiet_at(session) <= now)
    }

    /// Leaves a side alone while it waits for its turn; returns until when.
    fn wait_for_turns(&mut self, now: Instant) -> Option<Instant> {
        let received = self.place_received.waits_until(now);
        let sent = self.place_sent.waits_until(now);
        self.outer
            .set_open(&self.listener, LISTENER, received.is_none());
        if let Some(inner) = &self.inner {
            self.outer.set_open(inner, SESSIONS, sent.is_none());
        }
        [received, sent].into_iter().flatten().min()
    }

    fn sleep_duration(&self, turn_at: Option<Instant>) -> Option<Duration> {
        let sweep = (!self.table.is_empty()).then(|| self.sweep_interval());
        let turn = turn_at.map(|at| at.saturating_duration_since(Instant::now()));
        [sweep, turn].into_iter().flatten().min()
    }

    fn receive_from_visitors(&mut self, now: Instant) {
        let instance = Arc::clone(&self.instance);
        let limit = instance.rates.as_ref().map(|rates| &rates.received);
        let mut turn = None;
        if let Some(limit) = limit {
            turn = self.place_received.take_turn(limit, now);
            if turn.is_none() {
                return;
            }
        }
        // The batch is lent out of `self` so that the sessions can be changed meanwhile.
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        let mut moved = 0;
        for _ in 0..rounds_max(turn) {
            if let Err(error) = self.port.receive(&self.listener, &mut batch) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    let notes = &self.instance.notes;
                    notes.udp.log(format_args!(
                        "Cannot receive datagrams of visitors: {error}"
                    ));
                }
                break;
            }
            for received in batch.iter() {
                moved += received.bytes.len();
                self.pass_on(&received, now);
            }
            if !batch.is_full() || turn.is_some_and(|turn| moved >= turn.size) {
                break;
            }
        }
        self.batch = Some(batch);
        if let (Some(limit), Some(turn)) = (limit, turn) {
            limit.settle(turn, moved);
        }
    }

    /// Passes datagrams of a visitor on to its target.
    fn pass_on(&mut self, received: &Received<'_>, now: Instant) {
        // Nobody can be answered at port 0.
        if received.peer.port() == 0 || !self.instance.admits(received, "a visitor") {
            return;
        }
        let visitor = (received.peer, received.local);
        let token = match self.table.find(&visitor) {
            Some(token) => token,
            None => match self.open(visitor, now) {
                Some(token) => token,
                None => return,
            },
        };
        let Some(session) = self.table.get(token) else {
            return;
        };
        session.active_at = now;
        self.instance.udp_meter.received.add(received.bytes.len());
        match &mut session.link {
            Link::Open { target, .. } => {
                let result = self.port.send(&target.socket, target.address, received);
                self.note_target(token, result);
            }
            Link::Opening {
                held, held_size, ..
            } => {
                for datagram in received.segments() {
                    let size = datagram.len();
                    // Beyond that they are lost, as in a network that is busy.
                    if held.len() < UDP_OPENING_COUNT_MAX
                        && *held_size + size <= UDP_OPENING_SIZE_MAX
                        && self.look_up.held_size + size <= UDP_OPENING_TOTAL_MAX
                    {
                        *held_size += size;
                        self.look_up.held_size += size;
                        held.push(datagram.to_vec());
                    }
                }
            }
        }
    }

    /// Opens a session for a new visitor.
    fn open(&mut self, visitor: VisitorKey, now: Instant) -> Option<Token> {
        if self.is_draining {
            return None;
        }
        let address = canonical(visitor.0);
        let slot = self.instance.take_slot(Kind::Udp, address)?;
        let dialer = &self.instance.dialer;
        let order = dialer.udp.order(now);
        let known = dialer.dial_udp(&order, |index| dialer.addresses_known(index));
        if let Some(Err(error)) = &known {
            self.note_not_dialled(visitor, error);
            return None;
        }
        let token = self.table.insert(Session {
            visitor,
            link: Link::Opening {
                order,
                held: Vec::new(),
                held_size: 0,
            },
            active_at: now,
            _slot: slot,
        });
        match known {
            Some(Ok(target)) => self.link(token, target),
            _ => self.look_up(),
        }
        Some(token)
    }

    /// Has the names of the targets looked up on another thread.
    fn look_up(&mut self) {
        if self.look_up.is_running {
            return;
        }
        let deadline = Instant::now() + self.instance.limits.udp_dial_timeout;
        let (instance, finder) = (Arc::clone(&self.instance), Arc::clone(&self.look_up.finder));
        let task = move || {
            let watch = Watch {
                stop: &instance.shutdown.stop,
                visitor: None,
            };
            let all: Vec<usize> = (0..instance.dialer.udp.addresses().len()).collect();
            let found = instance.dialer.look_up(&all, deadline, watch);
            // There is room for one answer, and nobody asks before it has been taken.
            let _ = finder.sender.try_send(found);
            finder.bell.ring();
        };
        match self.instance.crew.run(task) {
            Ok(()) => self.look_up.is_running = true,
            Err(refused) => {
                let notes = &self.instance.notes;
                notes
                    .refused
                    .log(format_args!("UDP visitors refused: {refused}"));
                for token in self.table.tokens_where(Session::is_opening) {
                    self.close(token);
                }
            }
        }
    }

    /// Connects the sessions that waited for a look-up.
    fn take_found(&mut self, now: Instant) {
        self.look_up.finder.bell.silence();
        let Ok(found) = self.look_up.answers.try_recv() else {
            return;
        };
        self.look_up.is_running = false;
        for token in self.table.tokens_where(Session::is_opening) {
            let Some(session) = self.table.get(token) else {
                continue;
            };
            session.active_at = now;
            let visitor = session.visitor;
            let Link::Opening { order, .. } = &session.link else {
                continue;
            };
            let dialer = &self.instance.dialer;
            match dialer.dial_udp(order, |index| found.get(index).cloned()) {
                Some(Ok(target)) => self.link(token, target),
                Some(Err(error)) => {
                    self.note_not_dialled(visitor, &error);
                    self.close(token);
                }
                None => self.close(token),
            }
        }
    }

    /// Connects a session with its target and sends what has been waiting.
    fn link(&mut self, token: Token, target: DialledUdp) {
        let Some(session) = self.table.get(token) else {
            return;
        };
        set_buffer_sizes(&target.socket, UDP_SESSION_BUFFER_SIZE);
        let epoll = match &self.inner {
            // With option `rate` datagrams come one by one, as its turns do.
            Some(inner) => inner,
            None => {
                join_received(&target.socket);
                &self.outer.epoll
            }
        };
        let data = epoll::EventData::new_u64(token.to_u64());
        let watched = epoll::add(epoll, &target.socket, data, epoll::EventFlags::IN);
        let address = target.address;
        log::debug!(
            "UDP visitor {} connected to {address}",
            canonical(session.visitor.0)
        );
        let peer = session.visitor.0;
        let open = Link::Open {
            target,
            has_answered: false,
        };
        let before = std::mem::replace(&mut session.link, open);
        if let Err(error) = watched {
            let notes = &self.instance.notes;
            notes
                .refused
                .log(format_args!("UDP visitor refused: {error}"));
            self.close(token);
        }
        let Link::Opening {
            held, held_size, ..
        } = before
        else {
            return;
        };
        self.look_up.held_size -= held_size;
        for datagram in &held {
            let Some(session) = self.table.get(token) else {
                return;
            };
            let Link::Open { target, .. } = &session.link else {
                return;
            };
            let received = Received {
                peer,
                local: None,
                bytes: datagram,
                segment_size: datagram.len(),
            };
            let result = self.port.send(&target.socket, address, &received);
            self.note_target(token, result);
        }
    }

    /// Lets targets that have something send it back, as far as one turn goes.
    fn receive_from_targets(&mut self, now: Instant) {
        let instance = Arc::clone(&self.instance);
        let Some(limit) = instance.rates.as_ref().map(|rates| &rates.sent) else {
            return;
        };
        let Some(turn) = self.place_sent.take_turn(limit, now) else {
            return;
        };
        let mut moved = 0;
        for _ in 0..DATAGRAM_TURN_ROUNDS_MAX {
            // The kernel puts a socket that it has told of at the end of its queue, so each one
            // comes round, however busy another one is.
            let Some(token) = self.next_ready() else {
                break;
            };
            moved += self.receive_from_target(token, now);
            if moved >= turn.size {
                break;
            }
        }
        limit.settle(turn, moved);
    }

    /// Returns a session whose target has something.
    fn next_ready(&self) -> Option<Token> {
        let mut events = Vec::with_capacity(1);
        let into = rustix::buffer::spare_capacity(&mut events);
        // An interrupted look finds the same again in the next round.
        let _ = epoll::wait(self.inner.as_ref()?, into, Some(&timespec(Duration::ZERO)));
        let event = events.first()?;
        Some(Token::from_u64(event.data.u64()))
    }

    /// Passes what one target has sent back to its visitor; returns how many bytes.
    fn receive_from_target(&mut self, token: Token, now: Instant) -> usize {
        // The batch is lent out of `self` so that the session can be changed meanwhile.
        let Some(mut batch) = self.batch.take() else {
            return 0;
        };
        let rounds_max = if self.inner.is_some() {
            1
        } else {
            DATAGRAM_ROUNDS_MAX
        };
        let mut moved = 0;
        for _ in 0..rounds_max {
            moved += self.pass_back(token, &mut batch, now);
            if !batch.is_full() {
                break;
            }
        }
        self.batch = Some(batch);
        moved
    }

    fn pass_back(&mut self, token: Token, batch: &mut Batch, now: Instant) -> usize {
        let Some(session) = self.table.get(token) else {
            return 0;
        };
        let Link::Open {
            target,
            has_answered,
        } = &mut session.link
        else {
            return 0;
        };
        if let Err(error) = self.port.receive(&target.socket, batch) {
            self.note_target(token, Err(error));
            return 0;
        }
        session.active_at = now;
        let (peer, local) = session.visitor;
        if !std::mem::replace(has_answered, true) {
            let targets = &self.instance.dialer.udp;
            targets.note_success(target.index, Duration::ZERO, now);
            targets.note_address(target.index, target.address);
        }
        let mut moved = 0;
        for received in batch.iter() {
            if !self.instance.admits(&received, "a target") {
                continue;
            }
            let size = received.bytes.len();
            moved += size;
            match self.port.send_to(&self.listener, peer, local, &received) {
                Ok(()) => self.instance.udp_meter.sent.add(size),
                // The way back is full, or the visitor's network is gone: datagrams get lost.
                Err(error) => self.instance.notes.udp.log(format_args!(
                    "Datagrams to visitor {} lost: {error}",
                    canonical(peer)
                )),
            }
        }
        moved
    }

    /// Looks at what a call on a target's socket came to.
    ///
    /// ICMP messages of one target concern its own session alone. One that refuses twice without
    /// an answer in between, or at once, gives up its visitor, to another address of its name or
    /// to another target, if there is one.
    fn note_target(&mut self, token: Token, result: io::Result<()>) {
        let Err(error) = result else { return };
        if error.kind() == io::ErrorKind::WouldBlock {
            return;
        }
        let Some(session) = self.table.get(token) else {
            return;
        };
        let visitor = canonical(session.visitor.0);
        let Link::Open {
            target,
            has_answered,
        } = &mut session.link
        else {
            return;
        };
        log::debug!(
            "UDP target {} of visitor {visitor}: {error}",
            target.address
        );
        let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
        if !is_refused || std::mem::take(has_answered) {
            return;
        }
        let (index, others) = (target.index, std::mem::take(&mut target.others));
        let dialer = &self.instance.dialer;
        if let Ok(next) = dialer.connect_udp(index, others) {
            self.link(token, next);
        } else if dialer.udp.has_choice(index) {
            dialer.udp.note_failure(index, Instant::now());
            self.close(token);
        }
    }

    fn note_not_dialled(&self, visitor: VisitorKey, error: &DialError) {
        let address = canonical(visitor.0);
        let notes = &self.instance.notes;
        notes
            .not_dialled
            .log(format_args!("UDP visitor {address} not served: {error}"));
    }

    fn sweep_interval(&self) -> Duration {
        let longest = if self.is_draining {
            UDP_DRAIN_QUIET / 4
        } else {
            UDP_SWEEP_INTERVAL
        };
        (self.instance.limits.udp_read_timeout / 4).clamp(Duration::from_millis(1), longest)
    }

    /// Ends the sessions that have been idle for too long.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept_at) < self.sweep_interval() {
            return;
        }
        self.swept_at = now;
        let timeout = self.instance.limits.udp_read_timeout;
        let is_idle = |session: &Session| session.active_at + timeout <= now;
        for token in self.table.tokens_where(is_idle) {
            self.close(token);
        }
    }

    fn close(&mut self, token: Token) {
        // The socket leaves the epoll when it is closed.
        let Some(session) = self.table.remove(token) else {
            return;
        };
        if let Link::Opening { held_size, .. } = session.link {
            self.look_up.held_size -= held_size;
        }
        log::debug!("UDP visitor {} ended", canonical(session.visitor.0));
    }
}

/// Returns how often to receive before others get their turn.
fn rounds_max(turn: Option<Turn>) -> usize {
    match turn {
        Some(_) => DATAGRAM_TURN_ROUNDS_MAX,
        None => DATAGRAM_ROUNDS_MAX,
    }
}
