//! One session: a pool and a control channel with one peer, the same at both ends.
//!
//! ```text
//!            control channel stands
//!   ──start──▶ checking ──peer's certificate check──▶ open ──end──▶ over
//!                 └── no check is due ──────────────────▲
//! ```
//!
//! Only v1 with a self-signed certificate has a check to wait for. Whatever ends first ends all:
//! the control channel, the pool, and through the event [`Session::over`] the visitors.
//!
//! Source: wire protocol, sections 2, 5 and 6.

mod check;
mod end;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::check::OwnCheck;
pub use self::end::SessionEnd;
use crate::limits::SILENT_INTERVALS_MAX;
use crate::net::datagram_stream::Framing;
use crate::pool::shelf::{Claim, Put};
use crate::pool::{Carrier, Pool, PoolConnection};
use crate::runtime::event::Event;
use crate::runtime::threads::lock;
use crate::tunnel::control::{Control, ControlEnd, Listener, NotSent};
use crate::tunnel::exit::Exit;
use crate::tunnel::instance::Instance;
use crate::tunnel::sessions::Sessions;
use crate::tunnel::slots::Kind;
use crate::tunnel::warm_up::WarmUp;
use crate::wire::fingerprint::{Fingerprint, FingerprintClaim};
use crate::wire::offer::{Flow, Offer, TlsMode};
use crate::wire::signal::{PoolId, Received, Side, Signal, SignalReader, SignalWriter};

/// How the two ends talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As deployed programs of the 1.x line do.
    V1,
    /// With proofs, tickets and datagrams that keep their bounds.
    Native,
}

/// What both ends have agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Which end this one is.
    pub side: Side,
    /// The other end.
    pub peer: SocketAddr,
    /// How they talk.
    pub dialect: Dialect,
    /// What the server has offered.
    pub offer: Offer,
    /// Of the server's own certificate, at the server.
    pub fingerprint: Option<Fingerprint>,
}

/// What a session is part of.
#[derive(Clone)]
pub struct Surroundings {
    pub(super) instance: Arc<Instance>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) exit: Arc<Exit>,
}

/// A live session.
pub struct Session {
    around: Surroundings,
    terms: Terms,
    pool: Pool<Order>,
    control: Control,
    /// Raised when it is over: nothing new comes in.
    ended: Arc<Event>,
    /// Raised when its visitors are cut.
    over: Arc<Event>,
    reason: Mutex<Option<SessionEnd>>,
    /// Visitors may use it.
    is_open: AtomicBool,
    check: Mutex<OwnCheck>,
    /// What fills the pool, at the client.
    warm_up: Option<WarmUp>,
    round_trip: Mutex<Duration>,
    /// Orders whose pool connection did not come.
    pool_errors: AtomicUsize,
    started_at: Instant,
}

/// What a signal has ordered for the pool connection that it names.
#[derive(Debug)]
pub enum Order {
    /// Dial and relay.
    Carry {
        /// TCP or UDP.
        kind: Kind,
        /// The visitor, if the peer has told.
        remote: Option<SocketAddr>,
    },
    /// Compare the certificate.
    Verify(FingerprintClaim),
}

impl Session {
    /// Starts a session on its control channel.
    ///
    /// `carrier` is the control channel behind its id; `warm_up` fills the pool, at the client.
    ///
    /// Errors: the system is short of descriptors or threads, or there are too many sessions.
    pub fn start(
        around: Surroundings,
        terms: Terms,
        carrier: Carrier,
        (writer, reader): (SignalWriter, SignalReader),
        warm_up: Option<WarmUp>,
    ) -> io::Result<Arc<Self>> {
        let over = Arc::new(Event::new()?);
        carrier.end_with(&over);
        let codecs = (writer, reader);
        let started = Self::start_until(&over, around, terms, carrier, codecs, warm_up);
        if started.is_err() {
            // What carries the control channel must not live on for it.
            over.raise();
        }
        started
    }

    fn start_until(
        over: &Arc<Event>,
        around: Surroundings,
        terms: Terms,
        carrier: Carrier,
        (writer, reader): (SignalWriter, SignalReader),
        warm_up: Option<WarmUp>,
    ) -> io::Result<Arc<Self>> {
        let queue_max = around.instance.limits.signal_queue_max;
        let idle_max = usize::try_from(terms.offer.pool_max).unwrap_or(usize::MAX);
        let stream = carrier.into_control_stream()?;
        let session = Arc::new(Self {
            pool: Pool::new(idle_max, queue_max),
            control: Control::new(stream, writer, queue_max)?,
            ended: Arc::new(Event::new()?),
            over: Arc::clone(over),
            reason: Mutex::default(),
            is_open: AtomicBool::new(false),
            check: Mutex::default(),
            warm_up,
            round_trip: Mutex::default(),
            pool_errors: AtomicUsize::new(0),
            started_at: Instant::now(),
            around,
            terms,
        });
        let sessions = &session.around.sessions;
        if !sessions.add(Arc::clone(&session)) {
            return Err(io::Error::other("there are as many sessions as may be"));
        }
        let reading = Arc::clone(&session);
        if let Err(refused) = sessions.readers.run(move || reading.read_control(reader)) {
            session.end(SessionEnd::NoRoom(refused.to_string()));
            return Err(io::Error::other(refused.to_string()));
        }
        if let Some(warm_up) = &session.warm_up {
            warm_up.end_with(&session.over);
        }
        if !session.awaits_check() {
            session.open();
        }
        session.refill();
        Ok(session)
    }

    /// Body of the thread `ctl-read`.
    fn read_control(self: &Arc<Self>, reader: SignalReader) {
        let instance = &self.around.instance;
        let guard = Guard(self);
        let end = self.control.run(
            reader,
            &Receiver(self),
            instance.limits.report_interval,
            &self.ended,
            &instance.shutdown.stop,
        );
        self.end(SessionEnd::Control(end));
        self.control.close();
        if lock(&self.reason)
            .as_ref()
            .is_some_and(SessionEnd::is_gentle)
        {
            // The peer has left in order, and what it has sent to visitors is still on its way.
            instance
                .shutdown
                .stop
                .wait(instance.limits.shutdown_timeout);
        }
        drop(guard);
    }

    /// Ends the session, unless it is over already.
    pub fn end(&self, why: SessionEnd) {
        {
            let mut reason = lock(&self.reason);
            if reason.is_some() {
                return;
            }
            if self.terms.side == Side::Server {
                let level = if why.is_ordinary() {
                    log::Level::Info
                } else {
                    log::Level::Warn
                };
                log::log!(level, "Session with {} ended: {why}", self.terms.peer);
            }
            *reason = Some(why);
        }
        self.around.sessions.remove(self);
        self.pool.close();
        lock(&self.check).taken = None;
        self.ended.raise();
    }

    /// Returns whether it is over.
    pub fn is_over(&self) -> bool {
        self.ended.is_raised()
    }

    /// Returns the event that is raised when it is over: nothing new comes in.
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Returns why it is over, in words; `None` while it is live.
    pub fn reason(&self) -> Option<String> {
        lock(&self.reason).as_ref().map(SessionEnd::to_string)
    }

    /// Returns the event that is raised when its visitors are cut: when it is over or, where the
    /// peer has left in order, a while later.
    pub fn over(&self) -> Arc<Event> {
        Arc::clone(&self.over)
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.terms.peer
    }

    /// What this session is part of.
    pub(super) fn around(&self) -> &Surroundings {
        &self.around
    }

    /// Returns how datagrams travel on its pool connections.
    pub fn framing(&self) -> Framing {
        match self.terms.dialect {
            Dialect::V1 => Framing::Raw,
            Dialect::Native => Framing::Framed,
        }
    }

    /// Returns how many pool connections are idle.
    pub fn idle_count(&self) -> usize {
        self.pool.idle_count()
    }

    /// Returns whether one more pool connection may become idle.
    pub fn has_room(&self) -> bool {
        self.pool.has_room()
    }

    /// Returns the latest round trip of the control channel.
    pub fn round_trip(&self) -> Duration {
        *lock(&self.round_trip)
    }

    /// Returns whether it has been open for visitors.
    pub fn was_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Sends a signal. A session that cannot be told anything is over.
    pub fn send(&self, signal: &Signal) -> Result<(), NotSent> {
        let result = self.control.send(signal);
        if result == Err(NotSent::Broken) {
            let error = io::ErrorKind::BrokenPipe.into();
            self.end(SessionEnd::Control(ControlEnd::Broke(error)));
        }
        result
    }

    /// Adds a pool connection whose id both ends know; false if it is not wanted.
    pub fn add(self: &Arc<Self>, id: PoolId, connection: PoolConnection) -> bool {
        match self.pool.put(id, connection) {
            Put::Shelved => {
                self.send_check();
                if self.is_entry() {
                    self.around.sessions.notify();
                }
            }
            Put::Claimed(connection, order) => self.carry_out(id, connection, order),
            Put::Refused(_) => {
                log::debug!("Pool connection {id} is not needed");
                return false;
            }
        }
        true
    }

    /// Takes an idle pool connection for a visitor, who must then be signalled.
    pub fn take_next(&self) -> Option<(PoolId, Carrier)> {
        if !self.is_entry() || !self.was_open() {
            return None;
        }
        let (id, connection) = self.pool.take_next()?;
        self.note_take();
        Some((id, connection.carrier))
    }

    /// Returns whether visitors come to this end.
    fn is_entry(&self) -> bool {
        let entry = match self.terms.offer.flow {
            Flow::Reverse => Side::Server,
            Flow::Forward => Side::Client,
        };
        self.terms.side == entry
    }

    fn note_take(&self) {
        if let Some(warm_up) = &self.warm_up {
            warm_up.note_take(self.idle_count());
        }
    }

    /// Makes new pool connections, as many as are missing; at the client.
    pub fn refill(self: &Arc<Self>) {
        if let Some(warm_up) = &self.warm_up {
            warm_up.refill(self, self.around.sessions.waiting_count());
        }
    }

    /// Winds down: the program stops, and only those who are in are served.
    pub fn drain(&self) {
        if let Some(warm_up) = &self.warm_up {
            warm_up.wind_down();
        }
        if !self.is_entry() {
            // The other end sends nobody new; who is on his way is still served.
            self.renew_pool();
        }
    }

    /// What fills the pool, at the client.
    pub(super) fn warm_up(&self) -> Option<&WarmUp> {
        self.warm_up.as_ref()
    }

    /// Does what is due from time to time; returns the pause until the next time.
    pub fn tend(self: &Arc<Self>, now: Instant, pause: Duration) -> Duration {
        let limits = &self.around.instance.limits;
        let grace = if self.is_entry() {
            Duration::ZERO
        } else {
            limits.pool_get_timeout
        };
        for (id, order) in self.pool.tend(now, grace) {
            self.pool_errors.fetch_add(1, Ordering::Relaxed);
            if let Order::Carry { remote, .. } = order {
                let visitor = remote.unwrap_or(self.terms.peer);
                let notes = &self.around.instance.notes;
                notes.not_dialled.log(format_args!(
                    "Visitor {visitor} not served: its pool connection {id} did not come within \
                     {:.1} s",
                    limits.pool_get_timeout.as_secs_f64()
                ));
            }
        }
        if self.terms.dialect == Dialect::Native {
            // 1.x programs read nothing before there is a visitor: it would pile up.
            self.pool.keep_alive();
        }
        let idle_count = self.idle_count();
        if self.pool_errors.load(Ordering::Relaxed) > idle_count / 2 {
            log::warn!("Too many pool connections did not come: all idle ones are made anew");
            self.renew_pool();
        }
        if now > self.started_at + limits.pool_get_timeout {
            // By now the peer has answered it, or never will.
            lock(&self.check).taken = None;
        }
        let checking_time = limits.report_interval * SILENT_INTERVALS_MAX;
        if self.awaits_check() && !self.was_open() && now > self.started_at + checking_time {
            self.end(SessionEnd::Unchecked);
        }
        let Some(warm_up) = &self.warm_up else {
            return pause;
        };
        let pause = warm_up.look(idle_count).min(pause);
        let is_draining = self.around.instance.shutdown.drain.is_raised();
        if !is_draining && self.is_entry() {
            // This end decides who is taken, so it may drop as well.
            self.pool.trim(warm_up.level_allowed());
        } else if !is_draining && warm_up.is_surplus(idle_count) {
            log::debug!("Quiet: {idle_count} idle pool connections are more than it takes");
            self.renew_pool();
        }
        self.refill();
        pause
    }

    /// Has both ends drop their idle pool connections, without loss of a visitor who is on his
    /// way: the end that visitors come to drops them first, and signals for those that were taken
    /// before are still obeyed.
    pub fn renew_pool(&self) {
        self.pool_errors.store(0, Ordering::Relaxed);
        // A channel that cannot be told ends the session anyway.
        let _ = self.send(&Signal::Flush);
        self.drop_idle();
    }

    fn drop_idle(&self) {
        if let Some(warm_up) = &self.warm_up {
            warm_up.note_renewal();
        }
        if self.is_entry() {
            self.pool.flush();
        } else {
            self.pool.retire(Instant::now());
        }
    }

    fn obey(self: &Arc<Self>, signal: Signal) {
        match signal {
            Signal::Tcp { .. } | Signal::Udp { .. } if self.is_entry() => {
                log::debug!(
                    "{} signals a visitor, who would come to this end",
                    self.peer()
                );
            }
            Signal::Tcp { remote, id } => {
                let kind = Kind::Tcp;
                self.take_order(id, Order::Carry { kind, remote });
            }
            Signal::Udp { remote, id } => {
                let kind = Kind::Udp;
                self.take_order(id, Order::Carry { kind, remote });
            }
            Signal::Verify { id, fp } if self.terms.offer.tls != TlsMode::Plain => {
                self.verify(id, fp);
            }
            Signal::Flush => {
                self.drop_idle();
                self.refill();
            }
            Signal::Bye => self.end(SessionEnd::PeerStops),
            // Pings and pongs are the control channel's own.
            Signal::Verify { .. } | Signal::Ping | Signal::Pong => {}
        }
    }

    fn take_order(self: &Arc<Self>, id: PoolId, order: Order) {
        let deadline = Instant::now() + self.around.instance.limits.pool_get_timeout;
        match self.pool.claim(id, order, deadline) {
            Claim::Ready(connection, order) => {
                self.carry_out(id, connection, order);
                self.refill();
            }
            Claim::Waiting => {}
            Claim::Refused(_) => {
                self.pool_errors.fetch_add(1, Ordering::Relaxed);
                let notes = &self.around.instance.notes;
                notes.refused.log(format_args!(
                    "Signal for pool connection {id} refused: too many wait, or one for the same"
                ));
            }
        }
    }

    fn carry_out(self: &Arc<Self>, id: PoolId, connection: PoolConnection, order: Order) {
        match order {
            Order::Carry { kind, remote } => {
                self.note_take();
                self.around
                    .exit
                    .carry(self, connection.carrier, kind, remote);
            }
            Order::Verify(claim) => self.compare(connection.fingerprint, claim),
        }
        log::debug!("Pool connection {id} is in use");
    }

    /// Lets visitors in.
    fn open(&self) {
        if self.is_open.swap(true, Ordering::AcqRel) {
            return;
        }
        log::info!("Session with {} is up: {}", self.terms.peer, self.terms);
        self.around.sessions.notify();
    }
}

/// Lets the visitors of a session go when its thread ends, by a panic as well.
struct Guard<'a>(&'a Session);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.end(SessionEnd::Panic);
        self.0.over.raise();
    }
}

/// What the control channel works for.
struct Receiver<'a>(&'a Arc<Session>);

impl Listener for Receiver<'_> {
    fn receive(&self, received: Received) {
        let session = self.0;
        match received {
            Received::Signal(signal) => session.obey(signal),
            Received::UnknownAction { action } => {
                log::debug!("Signal '{action}' of {} is unknown", session.terms.peer);
            }
            Received::Unreadable(error) => {
                let peer = session.terms.peer;
                let notes = &session.around.instance.notes;
                notes
                    .unreadable
                    .log(format_args!("Signal of {peer} skipped: {error}"));
            }
        }
    }

    fn note_round_trip(&self, time: Duration) {
        *lock(&self.0.round_trip) = time;
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dialect = match self.dialect {
            Dialect::V1 => "v1",
            Dialect::Native => "native",
        };
        let flow = match self.offer.flow {
            Flow::Reverse => "reverse",
            Flow::Forward => "forward",
        };
        let (tls, transport) = (self.offer.tls.digit(), self.offer.transport.digit());
        write!(f, "{dialect}, {flow}, tls={tls}, type={transport}")
    }
}
