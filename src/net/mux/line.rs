//! One connection of many streams, and what its streams are used for: what a mux thread does,
//! without its sleep.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::link::{Carrying, OnEnd, Parting, StreamView, Use};
use super::{
    Command, Errand, Idle, Mux, MuxEvent, MuxHandle, MuxStream, NotOpened, Opened, Porter,
    StreamKey, Transport, Urgency,
};
use crate::limits::{MUX_STEPS_MAX, RESET_FLUSH_TIMEOUT};
use crate::net::relay::{Ahead, CloseReason, Exchange, Readiness, Terms, Wake};
use crate::net::stream::{BoxedStream, Condition, Stream};
use crate::runtime::event::Event;
use crate::runtime::threads::{Crew, lock};
use crate::wire::ticket::Ticket;

// What the epoll tells of a line, in the lower bits of the number; streams have larger numbers.
const BELL: u64 = 1;
const OVER: u64 = 2;
const FIRST_STREAM: u64 = 3;

/// Bits of a number that the epoll tells which say what of a line is meant; the others say which
/// line.
const OF_LINE_BITS: u32 = 40;

/// The number of a line among those of one thread.
pub(in crate::net) type LineNumber = u32;

/// The line that is none: what the thread itself watches.
pub(in crate::net) const NO_LINE: LineNumber = 0;

/// Most lines of one thread that can be told apart.
#[cfg(feature = "quic")]
pub(in crate::net) const LINE_NUMBER_MAX: LineNumber = (1 << (u64::BITS - OF_LINE_BITS)) - 1;

/// What the lines of one thread share.
#[derive(Clone, Copy)]
pub(in crate::net) struct Shared<'a> {
    /// Where each line watches its sockets.
    pub epoll: &'a OwnedFd,
    /// Those of visitors.
    pub terms: &'a Terms<'a>,
    /// For socket pairs: whoever has the other end counts and limits.
    pub of_bridges: &'a Terms<'a>,
    /// Takes what may wait.
    pub crew: &'a Crew,
}

/// One connection on its thread.
pub(in crate::net) struct Line<'a, T> {
    shared: Shared<'a>,
    number: LineNumber,
    transport: T,
    handle: MuxHandle,
    /// For streams that the peer opens.
    porter: Option<Box<dyn Porter>>,
    /// Without a session by then it ends.
    expected_until: Instant,
    uses: HashMap<StreamKey, Use<'a>>,
    /// Those who have something to do.
    queue: VecDeque<StreamKey>,
    /// When to look at whom again.
    wakes: BTreeSet<(Instant, StreamKey)>,
    /// What ends it: a descriptor of its own, as other lines of the thread may end with the same
    /// event.
    over: Option<OwnedFd>,
    is_retired: bool,
    /// It has been told to end.
    is_called_off: bool,
    /// The transport is over: what has come is still delivered.
    is_broken: bool,
}

/// Returns what the epoll is to tell of a line.
pub(in crate::net) fn token(line: LineNumber, what: u64) -> EventData {
    EventData::new_u64(u64::from(line) << OF_LINE_BITS | what)
}

/// Returns the line that an event is for, and what of it is meant.
pub(in crate::net) fn parse_token(data: EventData) -> (LineNumber, u64) {
    let number = data.u64();
    let line = LineNumber::try_from(number >> OF_LINE_BITS).unwrap_or(NO_LINE);
    (line, number & ((1 << OF_LINE_BITS) - 1))
}

impl<'a, T: Transport> Line<'a, T> {
    /// Makes a line of `mux`; the socket of its transport is watched by its thread.
    ///
    /// Errors: no memory left.
    pub fn new(shared: Shared<'a>, number: LineNumber, mux: Mux<T>) -> io::Result<Self> {
        let bell = token(number, BELL);
        epoll::add(shared.epoll, &mux.handle.shared.bell, bell, EventFlags::IN)?;
        Ok(Self {
            shared,
            number,
            transport: mux.transport,
            handle: mux.handle,
            porter: mux.porter,
            expected_until: mux.expected_until,
            uses: HashMap::new(),
            queue: VecDeque::new(),
            wakes: BTreeSet::new(),
            over: None,
            is_retired: false,
            is_called_off: false,
            is_broken: false,
        })
    }

    /// Returns the connection itself.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Returns the connection itself.
    #[cfg(feature = "quic")]
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Returns whether the transport is over.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Returns whether it belongs to a session.
    #[cfg(feature = "quic")]
    pub fn has_session(&self) -> bool {
        self.over.is_some()
    }

    /// Returns whether nothing is left to do but to [`end`](Line::end) it.
    pub fn is_done(&self) -> bool {
        if self.is_called_off {
            return true;
        }
        if self.is_broken {
            let is_carrying = |of: &Use<'_>| matches!(of, Use::Carrying(_));
            return !self.uses.values().any(is_carrying);
        }
        let is_late = self.over.is_none() && Instant::now() >= self.expected_until;
        let has_ended = self.is_retired || !self.transport.can_open();
        is_late || (has_ended && self.uses.is_empty())
    }

    /// Returns when there is something to do even if nobody says so; `None` if never.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if !self.queue.is_empty() {
            return Some(now);
        }
        let next = self.wakes.first().map(|(at, _)| *at);
        if self.is_broken {
            return next;
        }
        let expected_until = self.over.is_none().then_some(self.expected_until);
        let of_transport = self.transport.wake_at();
        next.into_iter()
            .chain(expected_until)
            .chain(of_transport)
            .min()
    }

    /// Gives up memory that is needed only while bytes flow.
    pub fn rest(&mut self) {
        self.transport.rest();
    }

    /// Notes what the epoll tells of it.
    pub fn note(&mut self, what: u64, flags: EventFlags) {
        match what {
            BELL => self.handle.shared.bell.silence(),
            OVER if !self.is_broken => self.is_called_off = true,
            OVER => self.stop_all_but_the_rest(),
            number => self.note_socket(number - FIRST_STREAM, flags),
        }
    }

    /// Ends it, unless it belongs to a session: the end of that comes by itself.
    pub fn call_off(&mut self) {
        self.is_called_off |= self.over.is_none();
    }

    /// Lets the transport take what has come; returns whether there may be more than its descriptor
    /// says.
    pub fn receive(&mut self, receive: impl FnOnce(&mut T) -> io::Result<bool>) -> bool {
        if self.is_broken {
            return false;
        }
        match receive(&mut self.transport) {
            Ok(has_more) => has_more,
            Err(error) => {
                self.break_off(&error);
                false
            }
        }
    }

    /// Obeys, tells, moves and sends, each as much as there is, within a bound.
    pub fn take_turns(&mut self, now: Instant) {
        if let Err(error) = self.try_turns(now) {
            self.break_off(&error);
        }
    }

    fn try_turns(&mut self, now: Instant) -> io::Result<()> {
        if !self.is_broken {
            self.transport.look_at_the_clock(now)?;
        }
        self.obey();
        self.look_at_the_clock(now);
        self.take_events();
        for _ in 0..MUX_STEPS_MAX {
            let Some(key) = self.queue.pop_front() else {
                break;
            };
            self.step(key);
        }
        if self.is_broken {
            return Ok(());
        }
        self.transport.send()?;
        // What has left has made room for those who wait for it.
        self.take_events();
        Ok(())
    }

    /// Notes that the transport is over. What it has brought is delivered, and nothing new begins.
    pub fn break_off(&mut self, error: &io::Error) {
        if self.is_broken {
            return;
        }
        log::debug!("A connection of many streams ended: {error}");
        self.take_events();
        self.is_broken = true;
        // The peer may wait for this end to hang up, which need not wait for slow visitors.
        self.transport.hang_up();
        self.handle.refuse_all();
        let keys: Vec<StreamKey> = self.uses.keys().copied().collect();
        for key in keys {
            self.refuse(key);
            self.tell(key, PollFlags::IN | PollFlags::ERR);
        }
    }

    /// Ends what goes on although the transport is over, but for the delivery of what came before.
    fn stop_all_but_the_rest(&mut self) {
        if let Some(over) = &self.over {
            // It has told what there was to tell.
            let _ = epoll::delete(self.shared.epoll, over);
        }
        let keys: Vec<StreamKey> = self.uses.keys().copied().collect();
        for key in keys {
            self.step(key);
            if let Some(Use::Carrying(carrying)) = self.uses.get(&key)
                && !carrying.exchange.is_ending()
            {
                self.conclude(key, CloseReason::Stopped);
            }
        }
    }

    fn note_socket(&mut self, key: StreamKey, flags: EventFlags) {
        if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
            // The bits of poll and epoll are the same; 15 of them fit whatever the processor's type.
            let bits = (flags.bits() & 0x7fff).try_into().unwrap_or_default();
            let mut got = PollFlags::from_bits_truncate(bits);
            // Nobody reads any more from a pair that has hung up.
            let is_pair = carrying.on_end.is_none();
            got.set(
                PollFlags::ERR,
                got.contains(PollFlags::ERR) || is_pair && got.contains(PollFlags::HUP),
            );
            carrying.exchange.note_application(got);
            queue_up(&mut self.queue, key, carrying);
        }
    }

    /// Looks at those whose time has come.
    fn look_at_the_clock(&mut self, now: Instant) {
        while let Some((at, key)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.pop_first();
            if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
                carrying.wake_at = None;
                queue_up(&mut self.queue, key, carrying);
            }
        }
    }

    /// Does what other threads have asked for.
    fn obey(&mut self) {
        loop {
            let commands = std::mem::take(&mut lock(&self.handle.shared.state).commands);
            if commands.is_empty() {
                return;
            }
            for command in commands {
                self.obey_one(command);
            }
        }
    }

    fn obey_one(&mut self, command: Command) {
        match command {
            Command::Open(ticket, answer) => self.open(ticket.as_ref(), answer),
            Command::Identify(key, id) => self.transport.identify(key, id),
            Command::Carry(key, errand) => {
                let Errand {
                    application,
                    to_other,
                    to_application,
                    on_end,
                } = *errand;
                let ahead = Ahead {
                    to_other: &to_other,
                    to_application: &to_application,
                };
                let exchange = Exchange::new(ahead, Readiness::Edge, self.shared.terms);
                self.begin(key, exchange, application, Some(on_end));
            }
            Command::Bridge(key, far, urgency) => {
                if urgency == Urgency::Urgent {
                    self.transport.hurry(key);
                }
                let exchange =
                    Exchange::new(Ahead::default(), Readiness::Edge, self.shared.of_bridges);
                self.begin(key, exchange, far, None);
            }
            Command::Reset(key) => {
                // One that the peer has reset is still here for its owner to drop.
                self.uses.remove(&key);
                self.transport.reset(key);
            }
            Command::EndWith(over) => self.end_with(&over),
            Command::Retire => self.is_retired = true,
        }
    }

    fn open(&mut self, ticket: Option<&Ticket>, answer: SyncSender<Opened>) {
        match self.transport.open(ticket) {
            Ok(key) => {
                self.uses.insert(key, Use::Opening(answer));
            }
            // Whoever has stopped waiting needs no answer.
            Err(not_opened) => drop(answer.try_send(Err(not_opened))),
        }
    }

    fn end_with(&mut self, over: &Event) {
        if self.over.is_some() {
            return;
        }
        let data = token(self.number, OVER);
        let watched = over.as_fd().try_clone_to_owned().and_then(|own| {
            epoll::add(self.shared.epoll, &own, data, EventFlags::IN)?;
            Ok(own)
        });
        match watched {
            Ok(own) => self.over = Some(own),
            // It ends when nobody has told what ends it.
            Err(error) => log::error!("A session cannot be watched: {error}"),
        }
    }

    /// Begins to carry bytes.
    fn begin(
        &mut self,
        key: StreamKey,
        mut exchange: Exchange<'a>,
        application: BoxedStream,
        on_end: Option<OnEnd>,
    ) {
        if self.transport.has_declined(key) {
            exchange.decline();
        }
        let mut carrying = Box::new(Carrying {
            exchange,
            application,
            on_end,
            wake_at: None,
            is_queued: false,
        });
        let data = token(self.number, key + FIRST_STREAM);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let added = epoll::add(
            self.shared.epoll,
            carrying.application.descriptor(),
            data,
            flags,
        );
        if let Err(error) = added {
            self.transport.reset(key);
            self.uses.remove(&key);
            carrying.application.abort(Instant::now());
            settle(carrying, &CloseReason::ApplicationBroke(error.into()));
            return;
        }
        queue_up(&mut self.queue, key, &mut carrying);
        self.uses.insert(key, Use::Carrying(carrying));
    }

    /// Takes what has happened in the transport to those whom it concerns.
    fn take_events(&mut self) {
        while let Some(event) = self.transport.next_event() {
            match event {
                MuxEvent::Arrived(key, ticket) => {
                    let stream = self.shelve(key);
                    match &self.porter {
                        Some(porter) => porter.arrive(ticket, stream),
                        None => drop(stream),
                    }
                    // It may be wanted at once.
                    self.obey();
                }
                MuxEvent::Identified(key, id) => {
                    if let Some(Use::Opening(answer)) = self.uses.remove(&key) {
                        let stream = self.shelve(key);
                        // One that nobody waits for any more is dropped, which cuts it short.
                        let _ = answer.try_send(Ok((id, stream)));
                    }
                }
                MuxEvent::Refused(key) => self.refuse(key),
                MuxEvent::Readable(key) => self.tell(key, PollFlags::IN),
                MuxEvent::Writable(key) => self.tell(key, PollFlags::OUT),
                MuxEvent::Declined(key) => {
                    self.refuse(key);
                    if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
                        carrying.exchange.decline();
                    }
                    self.tell(key, PollFlags::IN);
                }
                MuxEvent::Reset(key) => {
                    self.refuse(key);
                    self.tell(key, PollFlags::IN | PollFlags::ERR);
                }
            }
        }
    }

    /// Gives up a stream that was opened here, if the peer has not taken it.
    fn refuse(&mut self, key: StreamKey) {
        if !matches!(self.uses.get(&key), Some(Use::Opening(_))) {
            return;
        }
        if let Some(Use::Opening(answer)) = self.uses.remove(&key) {
            self.transport.reset(key);
            let why = match self.is_broken || !self.transport.can_open() {
                true => NotOpened::Over,
                false => NotOpened::Refused,
            };
            // Whoever has stopped waiting needs no answer.
            let _ = answer.try_send(Err(why));
        }
    }

    /// Makes an idle stream of `key`.
    fn shelve(&mut self, key: StreamKey) -> MuxStream {
        let condition = Arc::new(Idle::default());
        condition.set(self.transport.check(key));
        self.uses.insert(key, Use::Idle(Arc::clone(&condition)));
        MuxStream {
            shared: Arc::clone(&self.handle.shared),
            key,
            condition,
            is_given_away: false,
        }
    }

    /// Tells whoever uses a stream what has happened to it.
    fn tell(&mut self, key: StreamKey, got: PollFlags) {
        match self.uses.get_mut(&key) {
            Some(Use::Carrying(carrying)) => {
                carrying.exchange.note_other(got);
                queue_up(&mut self.queue, key, carrying);
            }
            Some(Use::Idle(condition)) => condition.set(self.transport.check(key)),
            Some(Use::Opening(_)) | None => {}
        }
    }

    /// Moves the bytes of one stream.
    fn step(&mut self, key: StreamKey) {
        let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) else {
            return;
        };
        carrying.is_queued = false;
        let mut view = StreamView {
            transport: &mut self.transport,
            key,
        };
        let over = carrying
            .exchange
            .step(&mut *carrying.application, &mut view);
        if let Some(reason) = over {
            self.conclude(key, reason);
            return;
        }
        match carrying.exchange.wake() {
            Err(reason) => self.conclude(key, reason),
            Ok(Wake::AtOnce) => queue_up(&mut self.queue, key, carrying),
            Ok(wake) => {
                carrying.exchange.rest();
                let wake_at = match wake {
                    Wake::At(at) => Some(at),
                    Wake::AtOnce | Wake::WhenTold => None,
                };
                if wake_at != carrying.wake_at {
                    if let Some(before) = carrying.wake_at {
                        self.wakes.remove(&(before, key));
                    }
                    self.wakes.extend(wake_at.map(|at| (at, key)));
                    carrying.wake_at = wake_at;
                }
            }
        }
    }

    /// Ends a relay.
    fn conclude(&mut self, key: StreamKey, reason: CloseReason) {
        let Some(Use::Carrying(carrying)) = self.uses.remove(&key) else {
            return;
        };
        if let Some(wake_at) = carrying.wake_at {
            self.wakes.remove(&(wake_at, key));
        }
        self.close(key, carrying, reason);
    }

    /// Closes both ends of a relay that is over.
    fn close(&mut self, key: StreamKey, mut carrying: Box<Carrying<'a>>, reason: CloseReason) {
        let mut view = StreamView {
            transport: &mut self.transport,
            key,
        };
        match reason {
            CloseReason::OtherBroke(error) => {
                view.abort(Instant::now());
                self.part(carrying, error);
            }
            reason => {
                let application = &mut *carrying.application;
                carrying.exchange.close(application, &mut view, &reason);
                // Of one that has ended both ways nothing is left; of any other one nothing more
                // is wanted, and the other end must not wait for the other direction.
                view.abort(Instant::now());
                settle(carrying, &reason);
            }
        }
    }

    /// Ends everything; returns the transport if it is not over, whose last bytes have yet to leave.
    pub fn end(mut self) -> Option<T> {
        self.obey();
        self.handle.refuse_all();
        // It can only fail for one that is not a member.
        let _ = epoll::delete(self.shared.epoll, &self.handle.shared.bell);
        if let Some(over) = &self.over {
            let _ = epoll::delete(self.shared.epoll, over);
        }
        if !self.is_broken {
            self.say_last_words();
        }
        for (key, of) in std::mem::take(&mut self.uses) {
            match of {
                // Whoever has stopped waiting needs no answer.
                Use::Opening(answer) => drop(answer.try_send(Err(NotOpened::Over))),
                Use::Idle(condition) => condition.set(Condition::Ended),
                // Whoever has the other end of a pair knows by himself: what he has said last, and
                // the end behind it, are on their way.
                Use::Carrying(mut carrying) if carrying.on_end.is_none() => {
                    carrying.application.abort(Instant::now());
                }
                Use::Carrying(carrying) => self.close(key, carrying, CloseReason::Stopped),
            }
        }
        if self.is_broken {
            return None;
        }
        self.transport.close();
        Some(self.transport)
    }

    /// Passes on what those who know of the end have said last.
    fn say_last_words(&mut self) {
        let keys: Vec<StreamKey> = self.uses.keys().copied().collect();
        for key in keys {
            if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
                carrying.exchange.note_application(PollFlags::IN);
                self.step(key);
            }
        }
    }

    /// Cuts a socket off whose stream broke with `error`. What it was given leaves before that,
    /// which may take a while.
    fn part(&self, carrying: Box<Carrying<'a>>, error: io::Error) {
        let Carrying {
            application,
            on_end,
            ..
        } = *carrying;
        let mut parting = Parting {
            application: Some(application),
            on_end,
            reason: CloseReason::OtherBroke(error),
        };
        // One that finds no thread is cut off at once, when it is dropped.
        let _ = self.shared.crew.run(move || {
            parting.cut_off(Instant::now() + RESET_FLUSH_TIMEOUT);
        });
    }
}

/// Closes the socket of a relay that is over, and tells of it.
fn settle(carrying: Box<Carrying<'_>>, reason: &CloseReason) {
    let Carrying {
        application,
        on_end,
        ..
    } = *carrying;
    drop(application);
    if let Some(on_end) = on_end {
        on_end(reason);
    }
}

/// Puts a stream into the queue of those who have something to do.
fn queue_up(queue: &mut VecDeque<StreamKey>, key: StreamKey, carrying: &mut Carrying<'_>) {
    if !carrying.is_queued {
        carrying.is_queued = true;
        queue.push_back(key);
    }
}
