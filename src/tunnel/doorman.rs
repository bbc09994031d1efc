//! Receives whoever connects to the tunnel port, on one thread: tells apart by the first bytes
//! what he wants, does the handshake, lets pool connections in.
//!
//! ```text
//!            0x16 ┌──▶ cover ──┐
//!   opening ──────┤            ▼ (the same again, inside)
//!                 ├── GET ──▶ request ──▶ answer ──▶ leaving
//!                 │              ▲          │ challenge
//!                 │              └──────────┘
//!                 │              └──▶ upgrade ──▶ pool
//!                 ├── NPC1 ─▶ ticket ──▶ pool
//!                 └── silence ─────────▶ pool, of an address with a v1 session
//! ```
//!
//! A stranger costs a descriptor and what he has sent of a head, and that only until the handshake
//! timeout: no thread, no id. When all places are taken, the address that has most of them loses
//! its oldest.
//!
//! Source: wire protocol, sections 3, 4 and 8.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::caller::{Caller, Request, Silence, Step};
use super::failures::Failures;
#[cfg(feature = "http2")]
use super::guests::NotJoined;
use super::guests::{Came, Guests, note_not_joined, shown};
#[cfg(feature = "http2")]
use super::mux_thread::{self, StreamPorter};
use super::session::{Dialect, Surroundings, Terms};
use super::spending::Spending;
use crate::config::Auth;
use crate::limits::{ACCEPT_PAUSE, CALLERS_MAX, DOORMAN_EVENTS_MAX, TEND_INTERVAL};
use crate::net::cover::ServerCover;
use crate::net::listen::{Accepting, Acceptor};
#[cfg(feature = "http2")]
use crate::net::mux::Mux;
use crate::net::origin::oldest_of_busiest;
use crate::net::stream::BoxedStream;
#[cfg(feature = "websocket")]
use crate::net::web_socket::{Ends, Role, WebSocketStream};
use crate::pool::Carrier;
use crate::runtime::event::timespec;
use crate::runtime::random::random_bytes;
use crate::runtime::threads::lock;
use crate::wire::handshake::challenge::{AnsweredChallenges, BootSecret};
use crate::wire::handshake::server::{self, Refusal, Upgrade};
use crate::wire::key::ServerKeys;
#[cfg(feature = "websocket")]
use crate::wire::offer::Flow;
use crate::wire::offer::{Offer, Transport};
use crate::wire::proof::SessionId;
use crate::wire::signal::Side;
use crate::wire::ticket::Ticket;

// What the epoll tells of; callers have larger numbers.
const LISTENER: u64 = 0;
const DRAIN: u64 = 1;
const FIRST_CALLER: u64 = 2;

/// What a server says to its callers.
pub struct House {
    /// The keys that it knows.
    pub keys: ServerKeys,
    /// What it offers.
    pub offer: Offer,
    /// The certificate.
    pub cover: Arc<ServerCover>,
}

/// The thread that receives callers.
pub struct Doorman {
    around: Surroundings,
    house: House,
    secret: BootSecret,
    answered: AnsweredChallenges,
    /// What challenges are dated from.
    started_at: Instant,
    guests: Arc<Mutex<Guests>>,
    failures: Failures,
    acceptor: Acceptor,
    /// The listener is left alone until then: the system was short of something.
    paused_until: Option<Instant>,
    epoll: OwnedFd,
    callers: HashMap<u64, Place>,
    callers_max: usize,
    /// Time that handshakes of TLS have taken of late, by address.
    cover_times: Spending,
    /// When to look at which caller again.
    wakes: BTreeSet<(Instant, u64)>,
    next_number: u64,
    tended_at: Instant,
}

/// A caller, when he is looked at again, and what his descriptor is watched for.
struct Place {
    caller: Caller,
    wake_at: Instant,
    flags: EventFlags,
}

impl Doorman {
    /// Makes a doorman for the callers of a listener.
    ///
    /// Errors: the system has no descriptor left or no random bytes.
    pub fn new(
        around: Surroundings,
        house: House,
        guests: Arc<Mutex<Guests>>,
        acceptor: Acceptor,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let drain = &around.instance.shutdown.drain;
        for (descriptor, name) in [(acceptor.as_fd(), LISTENER), (drain.as_fd(), DRAIN)] {
            let data = epoll::EventData::new_u64(name);
            epoll::add(&epoll, descriptor, data, EventFlags::IN)?;
        }
        let now = Instant::now();
        Ok(Self {
            secret: BootSecret::new(random_bytes()?),
            answered: AnsweredChallenges::default(),
            started_at: now,
            guests,
            failures: Failures::default(),
            acceptor,
            paused_until: None,
            epoll,
            callers: HashMap::new(),
            // Strangers must leave descriptors for visitors.
            callers_max: CALLERS_MAX.min(around.instance.descriptors_max / 8).max(1),
            cover_times: Spending::default(),
            wakes: BTreeSet::new(),
            next_number: FIRST_CALLER,
            tended_at: now,
            around,
            house,
        })
    }

    /// Receives callers until the program drains; the body of the thread `doorman`.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(DOORMAN_EVENTS_MAX);
        while !self.around.instance.shutdown.drain.is_raised() {
            let now = Instant::now();
            let tend_at = self.tended_at + TEND_INTERVAL;
            let callers_at = self.wakes.first().map(|(at, _)| *at);
            let wakes = [callers_at, self.paused_until, Some(tend_at)];
            let wake_at = wakes.into_iter().flatten().min().unwrap_or(tend_at);
            let timeout = timespec(wake_at.saturating_duration_since(now));
            events.clear();
            let into = rustix::buffer::spare_capacity(&mut events);
            // An interrupted or failed wait is a round in which nothing happened.
            let _ = epoll::wait(&self.epoll, into, Some(&timeout));
            let now = Instant::now();
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.receive(now),
                    DRAIN => return,
                    number => self.attend(number),
                }
            }
            self.look_at_the_clock(now);
        }
    }

    /// Does what is due.
    fn look_at_the_clock(&mut self, now: Instant) {
        while let Some((at, number)) = self.wakes.first().copied()
            && at <= now
            && !self.around.instance.shutdown.drain.is_raised()
        {
            self.attend(number);
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.watch_listener(EventFlags::IN);
        }
        if now >= self.tended_at + TEND_INTERVAL {
            self.tended_at = now;
            lock(&self.guests).tend(now);
        }
    }

    /// Takes those in who have come.
    fn receive(&mut self, now: Instant) {
        let mut arrivals = Vec::new();
        let accepting = self
            .acceptor
            .accept_some(|socket, address| arrivals.push((socket, address)));
        if accepting == Accepting::Short {
            self.paused_until = Some(now + ACCEPT_PAUSE);
            self.watch_listener(EventFlags::empty());
        }
        for (socket, address) in arrivals {
            if self.callers.len() >= self.callers_max {
                self.evict();
            }
            let number = self.next_number;
            self.next_number += 1;
            let timeout = self.around.instance.limits.handshake_timeout;
            let silence = lock(&self.guests).silence_of(address.ip());
            let silence = silence.map(|time| Silence {
                time,
                is_covered: self.house.offer.is_covered(),
            });
            let caller = Caller::new(socket, address, silence, now, timeout);
            let data = epoll::EventData::new_u64(number);
            let flags = EventFlags::IN;
            if let Err(error) = epoll::add(&self.epoll, caller.descriptor(), data, flags) {
                log::debug!("Connection of {address} closed: {error}");
                continue;
            }
            let wake_at = caller.first_look_at();
            self.keep(number, caller, wake_at, flags);
        }
    }

    /// Gives a caller his place until `wake_at`, while his descriptor is watched for `flags`.
    fn keep(&mut self, number: u64, caller: Caller, wake_at: Instant, flags: EventFlags) {
        self.wakes.insert((wake_at, number));
        let place = Place {
            caller,
            wake_at,
            flags,
        };
        self.callers.insert(number, place);
    }

    fn watch_listener(&self, flags: EventFlags) {
        let data = epoll::EventData::new_u64(LISTENER);
        // It can only fail for one that is not a member.
        let _ = epoll::modify(&self.epoll, &self.acceptor, data, flags);
    }

    /// Makes room: of the address with the most callers the one who has been here longest goes.
    fn evict(&mut self) {
        let callers = self.callers.iter();
        let places = callers.map(|(number, place)| (place.caller.origin(), *number));
        if let Some(oldest) = oldest_of_busiest(places) {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u64) -> Option<Place> {
        let place = self.callers.remove(&number)?;
        self.wakes.remove(&(place.wake_at, number));
        Some(place)
    }

    /// Goes on with a caller as far as he has got.
    fn attend(&mut self, number: u64) {
        let Some(place) = self.remove(number) else {
            return;
        };
        let mut caller = place.caller;
        loop {
            let now = Instant::now();
            match self.advance(&mut caller, now) {
                Step::Wait { until, flags } => {
                    self.watch(number, caller, place.flags, (until, flags));
                    return;
                }
                Step::Asks(request) => self.answer(&mut caller, request, now),
                Step::Refused(refusal) => self.refuse(&mut caller, &refusal, now),
                Step::Upgrades(_) if self.house.offer.transport != Transport::WebSocket => {
                    self.refuse(&mut caller, &Refusal::WebSocket, now);
                }
                Step::Joins(ticket) => {
                    if let Some(step) = self.find_place(&mut caller, ticket.as_ref(), now) {
                        self.watch(number, caller, place.flags, step);
                    } else {
                        self.join(caller, ticket.as_ref(), None);
                    }
                    return;
                }
                Step::Upgrades(upgrade) => {
                    if let Some(step) = self.find_place(&mut caller, upgrade.ticket(), now) {
                        self.watch(number, caller, place.flags, step);
                    } else {
                        self.join(caller, upgrade.ticket(), Some(&upgrade));
                    }
                    return;
                }
                #[cfg(feature = "http2")]
                Step::Multiplexes(ticket) => {
                    // The loop has a place of its own to watch it.
                    let _ = epoll::delete(&self.epoll, caller.descriptor());
                    self.multiplex(caller, ticket.as_ref());
                    return;
                }
                Step::Done(why) => {
                    log::debug!("Connection of {} closed: {why}", caller.address());
                    return;
                }
            }
        }
    }

    /// Waits for what a caller does next, or for `until`; he is watched for `before` now.
    fn watch(
        &mut self,
        number: u64,
        caller: Caller,
        before: EventFlags,
        (until, flags): (Instant, EventFlags),
    ) {
        let data = epoll::EventData::new_u64(number);
        let is_watched =
            flags == before || epoll::modify(&self.epoll, caller.descriptor(), data, flags).is_ok();
        if is_watched {
            self.keep(number, caller, until, flags);
        }
    }

    /// Goes on with a caller, within what his address may use of the processor.
    fn advance(&mut self, caller: &mut Caller, now: Instant) -> Step {
        if !caller.is_in_cover() || lock(&self.guests).knows(caller.address().ip()) {
            return caller.advance(&self.house.cover, now);
        }
        let origin = caller.origin();
        if let Some(until) = self.cover_times.exhausted_until(origin, now) {
            return caller.hold_back(until);
        }
        let step = caller.advance(&self.house.cover, now);
        self.cover_times.spend(origin, now.elapsed(), now);
        step
    }

    /// Returns until when a pool connection waits for a place, and what it is watched for
    /// meanwhile; `None` if it does not.
    fn find_place(
        &self,
        caller: &mut Caller,
        ticket: Option<&Ticket>,
        now: Instant,
    ) -> Option<(Instant, EventFlags)> {
        if lock(&self.guests).has_place(&shown(ticket), caller.address()) {
            return None;
        }
        match caller.wait_for_place(now) {
            Some(Step::Wait { until, flags }) => Some((until, flags)),
            _ => None,
        }
    }

    /// Adds a pool connection to the session that it belongs to.
    fn join(&self, caller: Caller, ticket: Option<&Ticket>, upgrade: Option<&Upgrade>) {
        // The pool has no use for what watches callers.
        let _ = epoll::delete(&self.epoll, caller.descriptor());
        let address = caller.address();
        let (transport, stream, is_covered) = match upgrade {
            None => {
                let (stream, is_covered) = caller.into_stream();
                (Transport::Tcp, stream, is_covered)
            }
            Some(upgrade) => {
                let (stream, is_covered) = self.upgrade(caller, upgrade);
                (Transport::WebSocket, stream, is_covered)
            }
        };
        let came = Came {
            transport,
            is_covered,
        };
        let carrier = Carrier::Stream(stream);
        let joined = lock(&self.guests).join(&shown(ticket), address, came, carrier);
        if let Err(not_joined) = joined {
            note_not_joined(address, not_joined);
        }
    }

    /// Makes a WebSocket of a caller; the answer leaves with the first that it is told.
    #[cfg(feature = "websocket")]
    fn upgrade(&self, mut caller: Caller, upgrade: &Upgrade) -> (BoxedStream, bool) {
        let ends = match (upgrade.ticket(), self.house.offer.flow) {
            (Some(_), _) => Ends::Each,
            (None, Flow::Reverse) => Ends::BothLate,
            (None, Flow::Forward) => Ends::Both,
        };
        let received = caller.take_input();
        let (stream, is_covered) = caller.into_stream();
        let mut stream = WebSocketStream::new(stream, Role::Server, ends, &received);
        stream.put_answer(&upgrade.accept());
        stream.limit_silence(self.around.instance.limits.web_socket_silence());
        (Box::new(stream), is_covered)
    }

    /// Returns the connection as it is: a server without WebSocket does not offer it, and so no
    /// caller comes here.
    #[cfg(not(feature = "websocket"))]
    fn upgrade(&self, caller: Caller, _: &Upgrade) -> (BoxedStream, bool) {
        caller.into_stream()
    }

    /// Gives an HTTP/2 connection a thread of its own, if its first stream belongs to a session.
    #[cfg(feature = "http2")]
    fn multiplex(&self, caller: Caller, ticket: Option<&Ticket>) {
        let address = caller.address();
        let admits = lock(&self.guests).admits(&shown(ticket), address, HTTP2);
        let Some(transport) = caller.into_http2().filter(|_| admits) else {
            return note_not_joined(address, NotJoined("its first stream has no session"));
        };
        let porter = StreamPorter {
            guests: Arc::clone(&self.guests),
            address,
            came: HTTP2,
        };
        let expected_until = self.expected_until(Instant::now());
        let mux = Mux::new(transport, Some(Box::new(porter)), expected_until);
        let started = mux.and_then(|mux| mux_thread::start(&self.around, mux));
        if let Err(error) = started {
            log::error!("Connection of {address} cannot be served: {error}");
        }
    }

    fn answer(&mut self, caller: &mut Caller, request: Request, now: Instant) {
        let result = match request {
            Request::Bearer(bearer) => self.accept_v1(caller, bearer, now),
            Request::Hello(hello) => self.challenge(caller, hello, now),
            Request::Proof(proof) => self.accept_native(caller, proof, now),
            // They are told apart before, in a step of their own.
            Request::WebSocket(_) => Err(Refusal::WebSocket),
        };
        if let Err(refusal) = result {
            self.refuse(caller, &refusal, now);
        }
    }

    fn challenge(
        &mut self,
        caller: &mut Caller,
        hello: server::Hello,
        now: Instant,
    ) -> Result<(), Refusal> {
        let random = random_bytes().map_err(|_| Refusal::Busy)?;
        let age = now - self.started_at;
        caller.answer(hello.challenge(&self.secret, age, random));
        Ok(())
    }

    fn accept_v1(
        &mut self,
        caller: &mut Caller,
        bearer: server::BearerRequest,
        now: Instant,
    ) -> Result<(), Refusal> {
        let verified = bearer.verify(&self.house.keys)?;
        if self.around.instance.options.auth == Auth::NativeOnly {
            return Err(Refusal::NativeOnly);
        }
        let address = caller.address();
        self.failures.forgive(caller.origin());
        let seed = self.seed_for(address)?;
        let terms = self.terms(address, Dialect::V1);
        let until = self.expected_until(now);
        lock(&self.guests).admit_v1(terms, verified.key(), until, seed);
        caller.answer_last(Some(verified.accept(&self.house.offer)), now);
        Ok(())
    }

    fn accept_native(
        &mut self,
        caller: &mut Caller,
        proof: server::ProofRequest,
        now: Instant,
    ) -> Result<(), Refusal> {
        let age = now - self.started_at;
        let verified = proof.verify(&self.house.keys, &self.secret, &mut self.answered, age)?;
        let address = caller.address();
        self.failures.forgive(caller.origin());
        let seed = self.seed_for(address)?;
        let id = random_bytes().map_err(|_| Refusal::Busy)?;
        let terms = self.terms(address, Dialect::Native);
        let fingerprint = terms.fingerprint;
        let accepted = verified.accept(SessionId(id), &self.house.offer, fingerprint);
        let until = self.expected_until(now);
        lock(&self.guests).admit_native(terms, accepted.session, accepted.replaces, until, seed);
        caller.answer_last(Some(accepted.answer), now);
        Ok(())
    }

    /// Returns where the ids of a new session of `address` begin.
    ///
    /// Errors: there is no room for one more.
    fn seed_for(&mut self, address: SocketAddr) -> Result<u32, Refusal> {
        if !lock(&self.guests).make_room(address.ip()) {
            return Err(Refusal::Busy);
        }
        let seed = random_bytes().map_err(|_| Refusal::Busy)?;
        Ok(u32::from_be_bytes(seed))
    }

    fn terms(&self, peer: SocketAddr, dialect: Dialect) -> Terms {
        Terms {
            side: Side::Server,
            peer,
            dialect,
            offer: self.house.offer,
            fingerprint: self.house.cover.fingerprint(),
        }
    }

    fn expected_until(&self, now: Instant) -> Instant {
        // It connects, and with TLS does a handshake, each of which may take that long.
        now + self.around.instance.limits.handshake_timeout * 2
    }

    fn refuse(&mut self, caller: &mut Caller, refusal: &Refusal, now: Instant) {
        let address = caller.address();
        let mut delay = Duration::ZERO;
        if refusal.is_wrong_key() {
            // He is answered before he is given up.
            let longest = self.around.instance.limits.handshake_timeout / 2;
            delay = self.failures.note(caller.origin(), now).min(longest);
        }
        let is_worth_a_look = matches!(
            refusal,
            Refusal::NativeOnly | Refusal::Version | Refusal::Challenge(_) | Refusal::Busy
        );
        if refusal.is_wrong_key() || is_worth_a_look {
            let notes = &self.around.instance.notes;
            notes
                .handshakes
                .log(format_args!("Handshake from {address} refused: {refusal}"));
        } else {
            log::debug!("Handshake from {address} refused: {refusal}");
        }
        caller.answer_last(refusal.answer(), now + delay);
    }
}

/// What the streams of an HTTP/2 connection are.
#[cfg(feature = "http2")]
const HTTP2: Came = Came {
    transport: Transport::Http2,
    is_covered: true,
};
