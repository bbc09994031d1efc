//! The exit side of UDP through a tunnel, on one thread for all sessions of an instance: what a
//! pool connection brings goes to a target, and what the target answers goes back.
//!
//! ```text
//!  crew thread: slot, dial ──▶ UdpCarrier ──channel, bell──▶ thread udp-exit
//!  pool connection ──read──▶ datagrams ──▶ socket ──▶ target
//!  pool connection ◀──write── datagrams ◀── socket ◀── target
//! ```
//!
//! The thread sleeps in one epoll for its bell, the two events of the shutdown, and both
//! descriptors of each session; with option `rate` those of each direction are in an epoll of
//! their own inside it, so that a direction without a turn can be left alone.

mod carrier;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rustix::event::epoll::{self, EventFlags};

use self::carrier::visitor_address;
pub use self::carrier::{NotCarried, UdpCarrier, UdpRelay, serve_udp};
use super::gate::{Gate, Lane};
use super::instance::Instance;
use super::slots::Slot;
use super::udp_sweep::Sweep;
use super::udp_table::{Side, Table, Token};
use super::udp_target::{UdpTarget, Verdict};
use super::udp_way::{Streams, WayEnd, tells_of_input, tells_of_room};
use crate::limits::{
    DATAGRAM_TURN_ROUNDS_MAX, TUNNEL_DATAGRAM_SIZE_MAX, UDP_ARRIVALS_MAX, UDP_EVENTS_MAX,
};
use crate::net::datagram::{Batch, DatagramPort};
use crate::net::datagram_stream::Progress;
use crate::net::rate::Turn;
use crate::runtime::event::{Bell, timespec};

// What the outer epoll tells of.
const BELL: u64 = 0;
const DRAIN: u64 = 1;
const STOP: u64 = 2;
const TARGETS: u64 = 3;
const STREAMS: u64 = 4;

/// All UDP sessions of an instance whose visitors are at the other end of a tunnel.
pub struct UdpExit {
    instance: Arc<Instance>,
    arrivals: Receiver<UdpRelay>,
    bell: Arc<Bell>,
    port: DatagramPort,
    size_max: usize,
    gate: Gate,
    /// The sockets to the targets: what they give is received.
    targets: Lane,
    /// The pool connections: what they give is sent.
    streams: Lane,
    shared: Streams,
    table: Table<Session>,
    /// Absent while it is lent.
    batch: Option<Batch>,
    /// Sessions that may have more to read than their pool connections announce.
    again: VecDeque<Token>,
    sweep: Sweep,
}

struct Session {
    way: WayEnd,
    target: UdpTarget,
    visitor: SocketAddr,
    active_at: Instant,
    /// Freed with the session.
    _slot: Slot,
}

impl UdpExit {
    /// Makes the thread's body and the way to it.
    ///
    /// Errors: no descriptor or memory left.
    pub fn new(instance: Arc<Instance>) -> io::Result<(Self, UdpCarrier)> {
        let bell = Arc::new(Bell::new()?);
        let (sender, arrivals) = bounded(UDP_ARRIVALS_MAX);
        let gate = Gate::new()?;
        let is_limited = instance.rates.is_some();
        let mut batch = Batch::default();
        if is_limited {
            // A turn is short: more than one datagram may be more than it has room for.
            batch.limit_to_one();
        }
        gate.watch(&*bell, BELL)?;
        gate.watch(&instance.shutdown.drain, DRAIN)?;
        gate.watch(&instance.shutdown.stop, STOP)?;
        let limits = &instance.limits;
        let size_max = limits.udp_datagram_size_max;
        let size_max = size_max.unwrap_or(TUNNEL_DATAGRAM_SIZE_MAX);
        let carrier = UdpCarrier {
            sender,
            bell: Arc::clone(&bell),
        };
        let exit = Self {
            arrivals,
            bell,
            port: DatagramPort::new()?,
            size_max,
            targets: Lane::new(&gate, TARGETS, is_limited)?,
            streams: Lane::new(&gate, STREAMS, is_limited)?,
            gate,
            shared: Streams::new(size_max),
            table: Table::default(),
            batch: Some(batch),
            again: VecDeque::new(),
            sweep: Sweep::new(limits.udp_read_timeout, Instant::now()),
            instance,
        };
        Ok((exit, carrier))
    }

    /// Serves until the program stops; the body of the thread `udp-exit`.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(UDP_EVENTS_MAX);
        loop {
            let now = Instant::now();
            if self.is_over(now) {
                return;
            }
            let received_at = self.targets.wait_for_turn(&mut self.gate, now);
            let sent_at = self.streams.wait_for_turn(&mut self.gate, now);
            let timeout = self.sleep_duration([received_at, sent_at], now);
            let timeout = timeout.map(timespec);
            events.clear();
            let into = rustix::buffer::spare_capacity(&mut events);
            // An interrupted or failed wait is a round in which nothing happened.
            let _ = epoll::wait(&self.gate.epoll, into, timeout.as_ref());
            let now = Instant::now();
            for event in &events {
                match event.data.u64() {
                    BELL => self.answer_bell(now),
                    DRAIN => self.drain(),
                    STOP => return,
                    TARGETS => self.take_turn(Side::Target, now),
                    STREAMS => self.take_turn(Side::Stream, now),
                    name => self.serve(name, event.flags, now),
                }
            }
            self.receive_again(now);
            self.look_around(now);
        }
    }

    /// Sessions end when they are quiet from now on.
    fn drain(&mut self) {
        self.sweep.drain();
        self.gate.forget(&self.instance.shutdown.drain);
    }

    fn is_over(&self, now: Instant) -> bool {
        let mut sessions = self.table.iter();
        self.sweep.is_draining()
            && self.arrivals.is_empty()
            && sessions.all(|session| Sweep::is_quiet(session.active_at, now))
    }

    fn sleep_duration(&self, turns: [Option<Instant>; 2], now: Instant) -> Option<Duration> {
        if !self.again.is_empty() && !self.streams.is_waiting(now) {
            return Some(Duration::ZERO);
        }
        let sweep = (!self.table.is_empty()).then(|| self.sweep.sleep_duration(now));
        let turns = turns.into_iter().flatten();
        let turn = turns.min().map(|at| at.saturating_duration_since(now));
        [sweep, turn].into_iter().flatten().min()
    }

    /// There are new sessions, or some are over.
    fn answer_bell(&mut self, now: Instant) {
        self.bell.silence();
        while let Ok(relay) = self.arrivals.try_recv() {
            let visitor = visitor_address(relay.visitor);
            if let Err(error) = self.admit(relay, visitor, now) {
                self.instance.note_udp_not_served(visitor, error);
            }
        }
        self.sweep.ask();
    }

    fn admit(&mut self, relay: UdpRelay, visitor: SocketAddr, now: Instant) -> io::Result<()> {
        let address = relay.target.address;
        let (gate, shared) = (&self.gate, &self.shared);
        let (targets, streams) = (&self.targets, &self.streams);
        let token = self.table.insert_with(|token| {
            let name = token.name(Side::Target);
            let target = UdpTarget::watched(relay.target, targets, gate, name)?;
            let name = token.name(Side::Stream);
            let way = WayEnd::watched(relay.way, shared, streams, gate, name)?;
            Ok::<_, io::Error>(Session {
                way,
                target,
                visitor,
                active_at: now,
                _slot: relay.slot,
            })
        })?;
        log::debug!("UDP visitor {visitor} connected to {address}");
        self.note_held_bytes(token);
        Ok(())
    }

    /// Moves what one direction has, as far as one turn goes.
    fn take_turn(&mut self, side: Side, now: Instant) {
        let instance = Arc::clone(&self.instance);
        let Some(rates) = &instance.rates else {
            return;
        };
        let (lane, limit) = match side {
            Side::Target => (&mut self.targets, &rates.received),
            Side::Stream => (&mut self.streams, &rates.sent),
        };
        let Some(turn) = lane.take_turn(limit, now) else {
            return;
        };
        let mut moved = 0;
        for _ in 0..DATAGRAM_TURN_ROUNDS_MAX {
            moved += match side {
                Side::Target => match self.targets.next_ready() {
                    Some(name) => self.receive_from_target(Token::of_name(name).0, now),
                    None => break,
                },
                Side::Stream => match self.next_stream() {
                    Some(token) => self.receive_from_stream(token, Some(turn), now),
                    None => break,
                },
            };
            if moved >= turn.size {
                break;
            }
        }
        limit.settle(turn, moved);
    }

    /// Returns a session whose pool connection has something.
    fn next_stream(&mut self) -> Option<Token> {
        self.next_again()
            .or_else(|| Some(Token::of_name(self.streams.next_ready()?).0))
    }

    /// Serves a session that the outer epoll tells of.
    fn serve(&mut self, name: u64, flags: EventFlags, now: Instant) {
        let (token, side) = Token::of_name(name);
        if side == Side::Stream && tells_of_room(flags) {
            self.resume(token);
        }
        if !tells_of_input(flags) || self.streams.is_limited() {
            return;
        }
        match side {
            Side::Target => self.receive_from_target(token, now),
            Side::Stream => self.receive_from_stream(token, None, now),
        };
    }

    /// Reads what no descriptor announces.
    fn receive_again(&mut self, now: Instant) {
        if self.streams.is_limited() && !self.again.is_empty() {
            self.take_turn(Side::Stream, now);
            return;
        }
        for _ in 0..self.again.len() {
            if let Some(token) = self.next_again() {
                self.receive_from_stream(token, None, now);
            }
        }
    }

    /// Passes what came through the tunnel on to the target; returns how many bytes.
    fn receive_from_stream(&mut self, token: Token, turn: Option<Turn>, now: Instant) -> usize {
        let Some(session) = self.table.get(token) else {
            return 0;
        };
        let (port, instance) = (&self.port, &*self.instance);
        let (socket, address) = (
            &session.target.dialled.socket,
            session.target.dialled.address,
        );
        let mut refusal = None;
        let reading = session
            .way
            .receive(&mut self.shared, turn, address, instance, |received| {
                session.active_at = now;
                match port.send(socket, address, received) {
                    Ok(()) => instance.udp_meter.sent.add(received.bytes.len()),
                    // A full queue loses datagrams, as a network does.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => refusal = Some(error),
                }
            });
        match reading.progress {
            Ok(Progress::Ended) => self.close(token, "the other end has ended it"),
            Err(error) => self.close(token, &error.to_string()),
            Ok(_) => {
                self.note_held_bytes(token);
                // The reading may have made the stream write.
                self.push_out(token);
                if let Some(error) = refusal {
                    self.note_target(token, &error);
                }
            }
        }
        reading.moved
    }

    /// Passes what a target has sent on to the other end of the tunnel; returns how many bytes.
    fn receive_from_target(&mut self, token: Token, now: Instant) -> usize {
        // The batch is lent out of `self` so that the session can be changed meanwhile.
        let Some(mut batch) = self.batch.take() else {
            return 0;
        };
        let mut moved = 0;
        for _ in 0..self.targets.rounds_max() {
            moved += self.pass_back(token, &mut batch, now);
            if !batch.is_full() {
                break;
            }
        }
        self.batch = Some(batch);
        self.push_out(token);
        moved
    }

    fn pass_back(&mut self, token: Token, batch: &mut Batch, now: Instant) -> usize {
        let Some(session) = self.table.get(token) else {
            return 0;
        };
        if let Err(error) = self.port.receive(&session.target.dialled.socket, batch) {
            self.note_target(token, &error);
            return 0;
        }
        session.active_at = now;
        let instance = &*self.instance;
        session.target.note_answer(&instance.dialer, now);
        let mut moved = 0;
        for received in batch.iter() {
            if !instance.admits(received.segment_size, self.size_max, "a target") {
                continue;
            }
            moved += received.bytes.len();
            instance.udp_meter.received.add(received.bytes.len());
            if let Err(error) = session.way.put(&received, session.visitor, instance) {
                self.close(token, &error.to_string());
                break;
            }
        }
        moved
    }

    /// Looks at an error that a call on a target's socket gave.
    fn note_target(&mut self, token: Token, error: &io::Error) {
        let Some(session) = self.table.get(token) else {
            return;
        };
        let visitor = session.visitor;
        let verdict = session.target.judge(error, visitor, &self.instance.dialer);
        match verdict {
            Verdict::Stays => {}
            Verdict::Moves(next) => {
                let address = next.address;
                let name = token.name(Side::Target);
                match UdpTarget::watched(next, &self.targets, &self.gate, name) {
                    Ok(target) => session.target = target,
                    Err(error) => return self.close(token, &error.to_string()),
                }
                log::debug!("UDP visitor {visitor} connected to {address}");
            }
            Verdict::Ends => self.close(token, "its target refuses"),
        }
    }

    /// Lets the rest of what was put in leave: there is room again.
    fn resume(&mut self, token: Token) {
        let name = token.name(Side::Stream);
        if let Some(session) = self.table.get(token)
            && let Err(error) = session.way.resume(&self.streams, &self.gate, name)
        {
            self.close(token, &error.to_string());
        }
    }

    fn push_out(&mut self, token: Token) {
        let name = token.name(Side::Stream);
        if let Some(session) = self.table.get(token)
            && let Err(error) = session.way.push_out(&self.streams, &self.gate, name)
        {
            self.close(token, &error.to_string());
        }
    }

    fn next_again(&mut self) -> Option<Token> {
        let token = self.again.pop_front()?;
        if let Some(session) = self.table.get(token) {
            session.way.is_again = false;
        }
        Some(token)
    }

    fn note_held_bytes(&mut self, token: Token) {
        if let Some(session) = self.table.get(token)
            && session.way.holds_bytes()
            && !std::mem::replace(&mut session.way.is_again, true)
        {
            self.again.push_back(token);
        }
    }

    /// Ends the sessions that are over.
    fn look_around(&mut self, now: Instant) {
        if !self.sweep.is_due(now) {
            return;
        }
        let sweep = &self.sweep;
        let is_resting = |session: &Session| sweep.is_resting(session.active_at, now);
        for token in self.table.tokens_where(is_resting) {
            self.keep_alive(token);
        }
        let sweep = &self.sweep;
        let is_over =
            |session: &Session| session.way.is_over() || sweep.is_idle(session.active_at, now);
        for token in self.table.tokens_where(is_over) {
            self.close(token, "idle or over");
        }
    }

    /// Lets nobody in between take a quiet session for a dead one, and gives up what it does not
    /// need.
    fn keep_alive(&mut self, token: Token) {
        if let Some(session) = self.table.get(token) {
            session.way.keep_alive();
            session.way.rest();
        }
        self.note_held_bytes(token);
        self.push_out(token);
    }

    fn close(&mut self, token: Token, reason: &str) {
        // Its descriptors leave the epoll when they are closed.
        if let Some(session) = self.table.remove(token) {
            log::debug!("UDP visitor {} ended: {reason}", session.visitor);
        }
    }
}
