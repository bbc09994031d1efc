//! All visitors over UDP, on one thread: a session for each visitor address, with a way onward of
//! its own: a socket to the target, or a pool connection through the tunnel.
//!
//! The thread sleeps in one epoll for the listener, the bell of finished look-ups and of the
//! pool, and the two events of the shutdown. The descriptors of the sessions are in the same one,
//! or, with option `rate`, in a second epoll inside the first, so that all of them can be left
//! alone while there is no turn for replies.

mod targets;
mod tunnel;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use self::targets::LookUp;
use self::tunnel::Tunnel;
use super::gate::{Gate, Lane};
use super::instance::Instance;
use super::slots::{Kind, Slot};
use super::udp_held::Held;
use super::udp_sweep::Sweep;
use super::udp_table::{Side, Table, Token};
use super::udp_target::UdpTarget;
use super::udp_way::{WayEnd, tells_of_input, tells_of_room};
use super::uplink::Uplink;
use crate::limits::{
    DATAGRAM_ROUNDS_MAX, DATAGRAM_SIZE_MAX, DATAGRAM_TURN_ROUNDS_MAX, TUNNEL_DATAGRAM_SIZE_MAX,
    UDP_EVENTS_MAX,
};
use crate::net::datagram::{Batch, DatagramPort, Received};
use crate::net::listen::canonical;
use crate::net::rate::{Place, Turn};
use crate::runtime::event::{Bell, timespec};

// What the outer epoll tells of.
const LISTENER: u64 = 0;
const BELL: u64 = 1;
const DRAIN: u64 = 2;
const STOP: u64 = 3;
const SESSIONS: u64 = 4;

/// Where the datagrams of visitors go.
pub enum Onward {
    /// Straight to the targets of the instance.
    Targets,
    /// Through a tunnel to its other end.
    Tunnel(Arc<dyn Uplink>),
}

/// The UDP side of an instance that visitors come to: one listener and its sessions.
pub struct UdpSessions {
    instance: Arc<Instance>,
    port: DatagramPort,
    listener: UdpSocket,
    size_max: usize,
    gate: Gate,
    bell: Arc<Bell>,
    /// The descriptors of the sessions: what they give goes back to the visitors.
    back: Lane,
    table: Table<Session>,
    by_visitor: HashMap<VisitorKey, Token>,
    /// Absent while it is lent.
    batch: Option<Batch>,
    /// The place of the listener in the queue of option `rate`.
    place_received: Place,
    look_up: LookUp,
    /// What takes the place of targets where visitors go through a tunnel.
    tunnel: Option<Tunnel>,
    /// Bytes of datagrams that wait for the way onward of their visitors.
    held_size: usize,
    sweep: Sweep,
}

/// A visitor, and the address that it wrote to.
type VisitorKey = (SocketAddr, Option<IpAddr>);

struct Session {
    visitor: VisitorKey,
    link: Link,
    active_at: Instant,
    /// Freed with the session.
    _slot: Slot,
}

/// The way onward.
enum Link {
    /// Names of targets are being looked up.
    Opening {
        /// The targets in the order in which they are to be tried.
        order: Vec<usize>,
        held: Held,
    },
    /// A pool connection is not there yet.
    Waiting(Held),
    Target(UdpTarget),
    Way(WayEnd),
}

impl UdpSessions {
    /// Takes over a bound, non-blocking listener.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new(instance: Arc<Instance>, listener: UdpSocket, onward: Onward) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let gate = Gate::new()?;
        let is_limited = instance.rates.is_some();
        let mut batch = Batch::default();
        if is_limited {
            // A turn is short: more than one datagram may be more than it has room for.
            batch.limit_to_one();
        }
        gate.watch(&listener, LISTENER)?;
        gate.watch(&*bell, BELL)?;
        gate.watch(&instance.shutdown.drain, DRAIN)?;
        gate.watch(&instance.shutdown.stop, STOP)?;
        let limits = &instance.limits;
        let size_max_or = |default| limits.udp_datagram_size_max.unwrap_or(default);
        let (size_max, tunnel) = match onward {
            Onward::Targets => (size_max_or(DATAGRAM_SIZE_MAX), None),
            Onward::Tunnel(uplink) => {
                let size_max = size_max_or(TUNNEL_DATAGRAM_SIZE_MAX);
                (size_max, Some(Tunnel::new(uplink, size_max)))
            }
        };
        Ok(Self {
            port: DatagramPort::new()?,
            listener,
            size_max,
            back: Lane::new(&gate, SESSIONS, is_limited)?,
            gate,
            look_up: LookUp::new(&bell),
            bell,
            table: Table::default(),
            by_visitor: HashMap::new(),
            batch: Some(batch),
            place_received: Place::default(),
            tunnel,
            held_size: 0,
            sweep: Sweep::new(limits.udp_read_timeout, Instant::now()),
            instance,
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
            let timeout = self.sleep_duration(turn_at, now).map(timespec);
            events.clear();
            let into = rustix::buffer::spare_capacity(&mut events);
            // An interrupted or failed wait is a round in which nothing happened.
            let _ = epoll::wait(&self.gate.epoll, into, timeout.as_ref());
            let now = Instant::now();
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.receive_from_visitors(now),
                    BELL => self.answer_bell(now),
                    DRAIN => self.drain(),
                    STOP => return,
                    SESSIONS => self.take_turn_back(now),
                    name => self.serve(name, event.flags, now),
                }
            }
            self.finish_round(now);
            self.look_around(now);
        }
    }

    /// No new sessions from now on; those that are open end when they are quiet.
    fn drain(&mut self) {
        self.sweep.drain();
        self.gate.forget(&self.instance.shutdown.drain);
    }

    fn is_over(&self, now: Instant) -> bool {
        let mut sessions = self.table.iter();
        self.sweep.is_draining() && sessions.all(|session| Sweep::is_quiet(session.active_at, now))
    }

    /// Leaves a side alone while it waits for its turn; returns until when.
    fn wait_for_turns(&mut self, now: Instant) -> Option<Instant> {
        let received = self.place_received.waits_until(now);
        self.gate
            .set_open(&self.listener, LISTENER, received.is_none());
        let sent = self.back.wait_for_turn(&mut self.gate, now);
        [received, sent].into_iter().flatten().min()
    }

    fn sleep_duration(&self, turn_at: Option<Instant>, now: Instant) -> Option<Duration> {
        let sweep = (!self.table.is_empty()).then(|| self.sweep.sleep_duration(now));
        let turn = turn_at.map(|at| at.saturating_duration_since(now));
        let tunnel = self.tunnel.as_ref();
        let tunnel = tunnel.and_then(|tunnel| tunnel.sleep_duration(&self.back, now));
        [sweep, turn, tunnel].into_iter().flatten().min()
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

    /// Passes datagrams of a visitor on.
    fn pass_on(&mut self, received: &Received<'_>, now: Instant) {
        // Nobody can be answered at port 0.
        if received.peer.port() == 0
            || !self
                .instance
                .admits(received.segment_size, self.size_max, "a visitor")
        {
            return;
        }
        let visitor = (received.peer, received.local);
        let token = match self.by_visitor.get(&visitor) {
            Some(token) => *token,
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
            Link::Target(target) => {
                let (socket, address) = (&target.dialled.socket, target.dialled.address);
                if let Err(error) = self.port.send(socket, address, received) {
                    self.note_target(token, &error);
                }
            }
            Link::Way(_) => self.put(token, received),
            Link::Opening { held, .. } | Link::Waiting(held) => {
                for datagram in received.segments() {
                    held.put(datagram, &mut self.held_size);
                }
            }
        }
    }

    /// Opens a session for a new visitor.
    fn open(&mut self, visitor: VisitorKey, now: Instant) -> Option<Token> {
        if self.sweep.is_draining() {
            return None;
        }
        let slot = self.instance.take_slot(Kind::Udp, canonical(visitor.0))?;
        if self.tunnel.is_some() {
            return self.open_to_tunnel(visitor, slot, now);
        }
        self.open_to_target(visitor, slot, now)
    }

    fn insert(&mut self, visitor: VisitorKey, slot: Slot, link: Link, now: Instant) -> Token {
        let token = self.table.insert(Session {
            visitor,
            link,
            active_at: now,
            _slot: slot,
        });
        self.by_visitor.insert(visitor, token);
        token
    }

    /// Replaces what held the datagrams of a visitor by its way onward, and passes them on.
    fn link(&mut self, token: Token, link: Link) {
        let Some(session) = self.table.get(token) else {
            return;
        };
        let peer = session.visitor.0;
        let (Link::Opening { held, .. } | Link::Waiting(held)) =
            std::mem::replace(&mut session.link, link)
        else {
            return;
        };
        for datagram in held.release(&mut self.held_size) {
            let received = Received {
                peer,
                local: None,
                bytes: &datagram,
                segment_size: datagram.len(),
            };
            match self.table.get(token).map(|session| &session.link) {
                Some(Link::Way(_)) => self.put(token, &received),
                Some(Link::Target(target)) => {
                    let (socket, address) = (&target.dialled.socket, target.dialled.address);
                    if let Err(error) = self.port.send(socket, address, &received) {
                        self.note_target(token, &error);
                    }
                }
                _ => return,
            }
        }
    }

    /// Somebody has an answer: the look-up, or the pool.
    fn answer_bell(&mut self, now: Instant) {
        self.bell.silence();
        self.take_found(now);
        self.serve_waiting(now);
        self.sweep.ask();
    }

    /// Lets sessions that have something send it back, as far as one turn goes.
    fn take_turn_back(&mut self, now: Instant) {
        let instance = Arc::clone(&self.instance);
        let Some(limit) = instance.rates.as_ref().map(|rates| &rates.sent) else {
            return;
        };
        let Some(turn) = self.back.take_turn(limit, now) else {
            return;
        };
        let mut moved = 0;
        for _ in 0..DATAGRAM_TURN_ROUNDS_MAX {
            let Some(name) = self.next_ready() else {
                break;
            };
            moved += self.receive(name, Some(turn), now);
            if moved >= turn.size {
                break;
            }
        }
        limit.settle(turn, moved);
    }

    /// Returns the name of a descriptor that has something.
    fn next_ready(&mut self) -> Option<u64> {
        self.next_again()
            .map(|token| token.name(Side::Stream))
            .or_else(|| self.back.next_ready())
    }

    /// Serves a session that the outer epoll tells of.
    fn serve(&mut self, name: u64, flags: EventFlags, now: Instant) {
        let (token, side) = Token::of_name(name);
        if side == Side::Stream && tells_of_room(flags) {
            self.resume(token);
        }
        if tells_of_input(flags) && !self.back.is_limited() {
            self.receive(name, None, now);
        }
    }

    /// Passes what one session has sent back to its visitor; returns how many bytes.
    fn receive(&mut self, name: u64, turn: Option<Turn>, now: Instant) -> usize {
        match Token::of_name(name) {
            (token, Side::Target) => self.receive_from_target(token, now),
            (token, Side::Stream) => self.receive_from_tunnel(token, turn, now),
        }
    }

    /// Ends the sessions that are over.
    fn look_around(&mut self, now: Instant) {
        self.give_up_waiting(now);
        if !self.sweep.is_due(now) {
            return;
        }
        let sweep = &self.sweep;
        let is_resting = |session: &Session| {
            matches!(session.link, Link::Way(_)) && sweep.is_resting(session.active_at, now)
        };
        for token in self.table.tokens_where(is_resting) {
            self.keep_alive(token);
        }
        let sweep = &self.sweep;
        let is_over = |session: &Session| {
            let is_way_over = matches!(&session.link, Link::Way(way) if way.is_over());
            is_way_over || sweep.is_idle(session.active_at, now)
        };
        for token in self.table.tokens_where(is_over) {
            self.close(token, "idle or over");
        }
    }

    fn close(&mut self, token: Token, reason: &str) {
        // Its descriptor leaves the epoll when it is closed.
        let Some(session) = self.table.remove(token) else {
            return;
        };
        self.by_visitor.remove(&session.visitor);
        if let Link::Opening { held, .. } | Link::Waiting(held) = session.link {
            held.release(&mut self.held_size);
        }
        let visitor = canonical(session.visitor.0);
        log::debug!("UDP visitor {visitor} ended: {reason}");
    }
}

/// Sends datagrams back to a visitor, from the address that it wrote to.
fn send_back(
    (port, listener): (&DatagramPort, &UdpSocket),
    (peer, local): VisitorKey,
    received: &Received<'_>,
    instance: &Instance,
) {
    match port.send_to(listener, peer, local, received) {
        Ok(()) => instance.udp_meter.sent.add(received.bytes.len()),
        // The way back is full, or the visitor's network is gone: datagrams get lost.
        Err(error) => instance.notes.udp.log(format_args!(
            "Datagrams to visitor {} lost: {error}",
            canonical(peer)
        )),
    }
}

/// Returns how often to receive before others get their turn.
fn rounds_max(turn: Option<Turn>) -> usize {
    match turn {
        Some(_) => DATAGRAM_TURN_ROUNDS_MAX,
        None => DATAGRAM_ROUNDS_MAX,
    }
}
