//! The loop of a mux thread.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};

use super::link::{Carrying, OnEnd, Parting, StreamView, Use};
use super::{
    Command, Errand, Idle, MuxEvent, MuxHandle, MuxStream, NotOpened, Opened, Porter, StreamKey,
    Transport, Urgency,
};
use crate::limits::{MUX_EVENTS_MAX, MUX_FAREWELL_TIMEOUT, MUX_STEPS_MAX, RESET_FLUSH_TIMEOUT};
use crate::net::meter::Meter;
use crate::net::relay::{Ahead, CloseReason, Exchange, Readiness, Terms, Wake};
use crate::net::stream::{BoxedStream, Condition, Stream};
use crate::runtime::event::{Event, timespec};
use crate::runtime::threads::{Crew, lock};
use crate::wire::ticket::Ticket;

// What the epoll tells of; streams have larger numbers.
const TRANSPORT: u64 = 0;
const BELL: u64 = 1;
const OVER: u64 = 2;
const STOP: u64 = 3;
const FIRST_STREAM: u64 = 4;

/// A transport that is about to get a thread.
pub struct Mux<T> {
    transport: T,
    handle: MuxHandle,
    epoll: OwnedFd,
    /// For streams that the peer opens.
    porter: Option<Box<dyn Porter>>,
    /// Without a session by then it ends.
    expected_until: Instant,
}

impl<T: Transport> Mux<T> {
    /// Makes a loop for `transport`, which ends at `expected_until` unless it has been told by
    /// then which event ends it.
    ///
    /// Errors: no descriptor left.
    pub fn new(
        transport: T,
        porter: Option<Box<dyn Porter>>,
        expected_until: Instant,
    ) -> io::Result<Self> {
        let handle = MuxHandle::new()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let members = [
            (transport.descriptor(), TRANSPORT),
            (handle.shared.bell.as_fd(), BELL),
        ];
        for (descriptor, name) in members {
            epoll::add(&epoll, descriptor, EventData::new_u64(name), EventFlags::IN)?;
        }
        Ok(Self {
            transport,
            handle,
            epoll,
            porter,
            expected_until,
        })
    }

    /// Returns what other threads ask things of.
    pub fn handle(&self) -> MuxHandle {
        self.handle.clone()
    }

    /// Carries streams until the end; the body of the thread `mux`.
    ///
    /// Blocks: until the transport is over, the event raised that was set by
    /// [`MuxHandle::end_with`], or no stream left after [`MuxHandle::retire`]. `terms` are those of
    /// visitors; `crew` takes what may wait.
    pub fn run(self, terms: &Terms<'_>, crew: &Crew) {
        let silent = Meter::default();
        let of_bridges = Terms {
            meter: &silent,
            rates: None,
            read_timeout: None,
            ..*terms
        };
        let mut running = Loop {
            terms,
            of_bridges: &of_bridges,
            crew,
            mux: self,
            uses: HashMap::new(),
            queue: VecDeque::new(),
            wakes: BTreeSet::new(),
            over: None,
            is_retired: false,
            watches_room: false,
            // Whoever had the transport before may have left something.
            has_more: true,
            is_broken: false,
        };
        running.run();
        running.end();
    }
}

/// A running loop.
struct Loop<'a, T> {
    mux: Mux<T>,
    terms: &'a Terms<'a>,
    /// For socket pairs: whoever has the other end counts and limits.
    of_bridges: &'a Terms<'a>,
    crew: &'a Crew,
    uses: HashMap<StreamKey, Use<'a>>,
    /// Those who have something to do.
    queue: VecDeque<StreamKey>,
    /// When to look at whom again.
    wakes: BTreeSet<(Instant, StreamKey)>,
    over: Option<Arc<Event>>,
    is_retired: bool,
    /// The transport is watched for room.
    watches_room: bool,
    /// The transport may have more to read than its descriptor says.
    has_more: bool,
    /// The transport is over: what has come is still delivered.
    is_broken: bool,
}

impl<'a, T: Transport> Loop<'a, T> {
    fn run(&mut self) {
        let stop = EventData::new_u64(STOP);
        if let Err(error) = epoll::add(&self.mux.epoll, self.terms.stop, stop, EventFlags::IN) {
            self.break_off(&error.into());
        }
        let mut events = Vec::with_capacity(MUX_EVENTS_MAX);
        while !self.is_done() {
            if let Err(error) = self.sleep(&mut events) {
                self.break_off(&error);
                return;
            }
            let mut is_readable = std::mem::take(&mut self.has_more);
            for event in &events {
                let flags = event.flags;
                match event.data.u64() {
                    // Room to write is used below, whoever told of it.
                    TRANSPORT => is_readable |= flags.intersects(!EventFlags::OUT),
                    BELL => self.mux.handle.shared.bell.silence(),
                    OVER if !self.is_broken => return,
                    OVER => self.stop_all_but_the_rest(),
                    // The end of a session ends what belongs to it, and comes by itself.
                    STOP if self.over.is_none() => return,
                    STOP => drop(epoll::delete(&self.mux.epoll, self.terms.stop)),
                    number => self.note_socket(number - FIRST_STREAM, flags),
                }
            }
            let now = Instant::now();
            if is_readable && !self.is_broken {
                match self.mux.transport.receive(now) {
                    Ok(has_more) => self.has_more = has_more,
                    Err(error) => self.break_off(&error),
                }
            }
            if let Err(error) = self.take_turns(now) {
                self.break_off(&error);
            }
        }
    }

    fn is_done(&self) -> bool {
        if self.is_broken {
            let is_carrying = |of: &Use<'_>| matches!(of, Use::Carrying(_));
            return !self.uses.values().any(is_carrying);
        }
        let is_late = self.over.is_none() && Instant::now() >= self.mux.expected_until;
        let has_ended = self.is_retired || !self.mux.transport.can_open();
        is_late || (has_ended && self.uses.is_empty())
    }

    /// Notes that the transport is over. What it has brought is delivered, and nothing new begins.
    fn break_off(&mut self, error: &io::Error) {
        if self.is_broken {
            return;
        }
        log::debug!("A connection of many streams ended: {error}");
        self.take_events();
        self.is_broken = true;
        // It can only fail for one that is not a member.
        let _ = epoll::delete(&self.mux.epoll, self.mux.transport.descriptor());
        // The peer may wait for this end to hang up, which need not wait for slow visitors.
        self.mux.transport.hang_up();
        self.refuse_commands();
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
            let _ = epoll::delete(&self.mux.epoll, over);
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

    fn refuse_commands(&mut self) {
        let commands = {
            let mut state = lock(&self.mux.handle.shared.state);
            state.is_over = true;
            std::mem::take(&mut state.commands)
        };
        for command in commands {
            command.cancel();
        }
    }

    /// Obeys, tells, moves and sends, each as much as there is, within a bound.
    fn take_turns(&mut self, now: Instant) -> io::Result<()> {
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
        self.mux.transport.send()?;
        // What has left has made room for those who wait for it.
        self.take_events();
        self.watch_room()
    }

    /// Sleeps until something is to be done.
    fn sleep(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        events.clear();
        let is_busy = self.has_more || !self.queue.is_empty();
        let timeout = if is_busy {
            Some(Duration::ZERO)
        } else {
            self.mux.transport.rest();
            let is_expected = self.over.is_none() && !self.is_broken;
            let expected_until = is_expected.then_some(self.mux.expected_until);
            let next = self.wakes.first().map(|(at, _)| *at);
            let wake_at = next.into_iter().chain(expected_until).min();
            wake_at.map(|at| at.saturating_duration_since(Instant::now()))
        };
        let into = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.mux.epoll, into, timeout.map(timespec).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Watches the transport for room while it has something to send.
    fn watch_room(&mut self) -> io::Result<()> {
        let wants_room = self.mux.transport.holds_unsent();
        if wants_room != self.watches_room {
            self.watches_room = wants_room;
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, wants_room);
            let data = EventData::new_u64(TRANSPORT);
            epoll::modify(
                &self.mux.epoll,
                self.mux.transport.descriptor(),
                data,
                flags,
            )?;
        }
        Ok(())
    }

    fn note_socket(&mut self, key: StreamKey, flags: EventFlags) {
        if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
            // The bits of poll and epoll are the same.
            let bits = u16::try_from(flags.bits() & 0xffff).unwrap_or_default();
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
            let commands = std::mem::take(&mut lock(&self.mux.handle.shared.state).commands);
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
            Command::Identify(key, id) => self.mux.transport.identify(key, id),
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
                let exchange = Exchange::new(ahead, Readiness::Edge, self.terms);
                self.begin(key, exchange, application, Some(on_end));
            }
            Command::Bridge(key, far, urgency) => {
                if urgency == Urgency::Urgent {
                    self.mux.transport.hurry(key);
                }
                let exchange = Exchange::new(Ahead::default(), Readiness::Edge, self.of_bridges);
                self.begin(key, exchange, far, None);
            }
            Command::Reset(key) => {
                // One that the peer has reset is still here for its owner to drop.
                self.uses.remove(&key);
                self.mux.transport.reset(key);
            }
            Command::EndWith(over) => self.end_with(over),
            Command::Retire => self.is_retired = true,
        }
    }

    fn open(&mut self, ticket: Option<&Ticket>, answer: SyncSender<Opened>) {
        match self.mux.transport.open(ticket) {
            Ok(key) => {
                self.uses.insert(key, Use::Opening(answer));
            }
            // Whoever has stopped waiting needs no answer.
            Err(not_opened) => drop(answer.try_send(Err(not_opened))),
        }
    }

    fn end_with(&mut self, over: Arc<Event>) {
        if self.over.is_some() {
            return;
        }
        let data = EventData::new_u64(OVER);
        match epoll::add(&self.mux.epoll, &over, data, EventFlags::IN) {
            Ok(()) => self.over = Some(over),
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
        if self.mux.transport.has_declined(key) {
            exchange.decline();
        }
        let mut carrying = Box::new(Carrying {
            exchange,
            application,
            on_end,
            wake_at: None,
            is_queued: false,
        });
        let data = EventData::new_u64(key + FIRST_STREAM);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let added = epoll::add(
            &self.mux.epoll,
            carrying.application.descriptor(),
            data,
            flags,
        );
        if let Err(error) = added {
            self.mux.transport.reset(key);
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
        while let Some(event) = self.mux.transport.next_event() {
            match event {
                MuxEvent::Arrived(key, ticket) => {
                    let stream = self.shelve(key);
                    match &self.mux.porter {
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
            self.mux.transport.reset(key);
            let why = match self.is_broken || !self.mux.transport.can_open() {
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
        condition.set(self.mux.transport.check(key));
        self.uses.insert(key, Use::Idle(Arc::clone(&condition)));
        MuxStream {
            shared: Arc::clone(&self.mux.handle.shared),
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
            Some(Use::Idle(condition)) => condition.set(self.mux.transport.check(key)),
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
            transport: &mut self.mux.transport,
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
            transport: &mut self.mux.transport,
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

    /// Ends everything.
    fn end(mut self) {
        self.obey();
        self.refuse_commands();
        let deadline = Instant::now() + MUX_FAREWELL_TIMEOUT;
        if !self.is_broken {
            self.say_last_words(deadline);
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
        if !self.is_broken {
            self.mux.transport.close();
            self.send_until(deadline);
            self.drain_until(deadline);
        }
    }

    /// Passes on what those who know of the end have said last.
    fn say_last_words(&mut self, deadline: Instant) {
        let keys: Vec<StreamKey> = self.uses.keys().copied().collect();
        for key in keys {
            if let Some(Use::Carrying(carrying)) = self.uses.get_mut(&key) {
                carrying.exchange.note_application(PollFlags::IN);
                self.step(key);
            }
        }
        self.send_until(deadline);
    }

    /// Sends what there is, at most until `deadline`.
    fn send_until(&mut self, deadline: Instant) {
        loop {
            let is_sent = self.mux.transport.send().is_err() || !self.mux.transport.holds_unsent();
            let left = deadline.saturating_duration_since(Instant::now());
            if is_sent || left.is_zero() {
                return;
            }
            let descriptor = self.mux.transport.descriptor();
            let mut set = [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)];
            // An interrupted poll is answered by the next try.
            let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
        }
    }

    /// Throws away what still comes, until the peer ends as well, at most until `deadline`: a
    /// connection that is closed with something unread is reset, and what was sent may be lost.
    fn drain_until(&mut self, deadline: Instant) {
        while self.mux.transport.receive(Instant::now()).is_ok() {
            while self.mux.transport.next_event().is_some() {}
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let descriptor = self.mux.transport.descriptor();
            let mut set = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
            // An interrupted poll is answered by the next try.
            let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
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
        let _ = self.crew.run(move || {
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
