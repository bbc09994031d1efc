//! The server's end of all QUIC connections: one socket, one thread.
//!
//! ```text
//!   datagram ──┬── id of a connection ──▶ its line
//!              ├── opens one, without a token ──▶ Retry
//!              ├── opens one, with its token ───▶ a new line
//!              └── id of none ──▶ a token that ends the connection
//! ```
//!
//! A stranger costs nothing until he has shown that he receives what is sent to his address, and
//! is never sent more than he has sent. Then he has a bounded number of bytes, and a while, to show
//! that he belongs to a session.
//!
//! Source: RFC 9000 sections 5.2, 8.1 and 10.3.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quiche::{Config, ConnectionId, Header, RetryConnectionIds, Type};
use rustix::event::epoll::{self, EventFlags};

use super::config::{self, ConfigError};
use super::connection::{IdChange, Quic};
use super::datagram_size_max;
use super::socket::QuicSocket;
use super::token::{OwnId, ResetTokens, RetryTokens};
use crate::limits::{
    MUX_EVENTS_MAX, MUX_FAREWELL_TIMEOUT, MUX_RECEIVE_SIZE_MAX, QUIC_ID_SIZE,
    QUIC_OPENING_SIZE_MIN, QUIC_STATELESS_ANSWERS_MAX, QUIC_STRANGER_SIZE_MAX, QUIC_STRANGERS_MAX,
};
use crate::net::certificate::Identity;
use crate::net::datagram::Batch;
use crate::net::listen::canonical;
use crate::net::meter::Meter;
use crate::net::mux::line::{
    LINE_NUMBER_MAX, Line, LineNumber, NO_LINE, Shared, parse_token, token,
};
use crate::net::mux::run::{sleep, terms_of_bridges};
use crate::net::mux::{Mux, Porter, Transport};
use crate::net::origin::{oldest_of_busiest, origin_of};
use crate::net::relay::Terms;
use crate::runtime::event::Event;
use crate::runtime::random::random_bytes;
use crate::runtime::threads::Crew;
use crate::wire::fingerprint::Fingerprint;

// What the thread itself watches.
const SOCKET: u64 = 0;
const STOP: u64 = 1;
const CLOSE: u64 = 2;

/// Sizes of the answer that ends a connection which is not here (bytes): it must look like any
/// datagram, and be smaller than what it answers (RFC 9000 section 10.3).
const RESET_SIZE: usize = 43;
const RESET_SIZE_MIN: usize = 21;

/// Whoever decides about those who come to an endpoint.
pub trait Reception: Send {
    /// Returns the certificate in force; `None` if there is none.
    fn identity(&self) -> Option<Identity>;

    /// Returns whether a connection of `address` is taken up now.
    fn lets_in(&mut self, address: SocketAddr, now: Instant) -> bool;

    /// Notes that `time` was spent on the handshake of `address`.
    fn note_cost(&mut self, address: SocketAddr, time: Duration, now: Instant);

    /// Returns who receives the streams of a connection from `address`.
    fn porter(&self, address: SocketAddr) -> Box<dyn Porter>;
}

/// A UDP socket that clients come to.
pub struct Endpoint {
    socket: Arc<QuicSocket>,
    reception: Box<dyn Reception>,
    /// The settings in force, and the certificate that they show.
    config: Config,
    shown: Fingerprint,
    keep_alive: Duration,
    /// Until when a connection has to show that it belongs to a session.
    handshake_timeout: Duration,
    retries: RetryTokens,
    resets: ResetTokens,
}

impl Endpoint {
    /// Makes an endpoint; `reset_key` is what only the server and its clients know, `keep_alive`
    /// the interval between signs of life, `handshake_timeout` how long a stranger may stay.
    ///
    /// Errors: the certificate cannot be used; the system has no descriptor or no random bytes.
    pub fn new(
        socket: std::net::UdpSocket,
        reception: Box<dyn Reception>,
        reset_key: &[u8],
        keep_alive: Duration,
        handshake_timeout: Duration,
    ) -> io::Result<Self> {
        let identity = reception.identity().ok_or(io::ErrorKind::InvalidInput)?;
        let config = config::of_server(&identity, keep_alive).map_err(io::Error::other)?;
        Ok(Self {
            socket: Arc::new(QuicSocket::new(socket)?),
            reception,
            config,
            shown: identity.fingerprint,
            keep_alive,
            handshake_timeout,
            retries: RetryTokens::new(random_bytes()?),
            resets: ResetTokens::new(reset_key),
        })
    }

    /// Serves clients; the body of the thread `mux`.
    ///
    /// Blocks: until `close` is raised and all connections have ended. `terms` are those of
    /// visitors, and their `stop` ends connections without a session; `crew` takes what may wait.
    pub fn run(self, terms: &Terms<'_>, crew: &Crew, close: &Event) {
        let result = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|epoll| self.try_run(&epoll, terms, crew, close));
        if let Err(error) = result {
            log::error!("QUIC ended: {error}");
        }
    }

    fn try_run(
        self,
        epoll: &OwnedFd,
        terms: &Terms<'_>,
        crew: &Crew,
        close: &Event,
    ) -> io::Result<()> {
        let silent = Meter::default();
        let of_bridges = terms_of_bridges(terms, &silent);
        let members = [
            (self.socket.as_fd(), SOCKET),
            (terms.stop.as_fd(), STOP),
            (close.as_fd(), CLOSE),
        ];
        for (descriptor, what) in members {
            epoll::add(epoll, descriptor, token(NO_LINE, what), EventFlags::IN)?;
        }
        let shared = Shared {
            epoll,
            terms,
            of_bridges: &of_bridges,
            crew,
        };
        let mut running = Running {
            endpoint: self,
            shared,
            lines: HashMap::new(),
            routes: HashMap::new(),
            wakes: BTreeSet::new(),
            touched: HashSet::new(),
            next_number: NO_LINE + 1,
            watches_room: false,
            is_closed: false,
            answers_count: 0,
        };
        running.run(close)
    }
}

/// An endpoint with its connections.
struct Running<'a> {
    endpoint: Endpoint,
    shared: Shared<'a>,
    lines: HashMap<LineNumber, Place<'a>>,
    /// Which line an id is of.
    routes: HashMap<OwnId, LineNumber>,
    /// When to look at which line again.
    wakes: BTreeSet<(Instant, LineNumber)>,
    /// The lines of which something has become known in this turn.
    touched: HashSet<LineNumber>,
    next_number: LineNumber,
    /// The socket is watched for room.
    watches_room: bool,
    /// Nobody new is let in.
    is_closed: bool,
    /// Answers of this turn to those who have no connection.
    answers_count: usize,
}

/// A connection, and when it is looked at again.
struct Place<'a> {
    stage: Stage<'a>,
    wake_at: Option<Instant>,
    /// Where it came from.
    address: SocketAddr,
    ids: Vec<OwnId>,
}

enum Stage<'a> {
    Open(Box<Line<'a, Quic>>),
    /// Its last bytes leave, at most until then.
    Leaving(Box<Quic>, Instant),
}

impl Stage<'_> {
    fn quic(&self) -> &Quic {
        match self {
            Self::Open(line) => line.transport(),
            Self::Leaving(quic, _) => quic,
        }
    }

    fn quic_mut(&mut self) -> &mut Quic {
        match self {
            Self::Open(line) => line.transport_mut(),
            Self::Leaving(quic, _) => quic,
        }
    }

    /// Returns whether it does not belong to a session yet.
    fn is_stranger(&self) -> bool {
        matches!(self, Self::Open(line) if !line.has_session())
    }
}

impl<'a> Running<'a> {
    fn run(&mut self, close: &Event) -> io::Result<()> {
        let mut batch = Box::<Batch>::default();
        let mut events = Vec::with_capacity(MUX_EVENTS_MAX);
        let mut has_more = false;
        while !(self.is_closed && self.lines.is_empty()) {
            let next = self.wakes.first().map(|(at, _)| *at);
            let wake_at = if has_more { Some(Instant::now()) } else { next };
            sleep(self.shared.epoll, &mut events, wake_at, || {})?;
            let mut is_readable = std::mem::take(&mut has_more);
            for event in &events {
                let flags = event.flags;
                match parse_token(event.data) {
                    (NO_LINE, SOCKET) => {
                        is_readable |= flags.intersects(!EventFlags::OUT);
                        if flags.contains(EventFlags::OUT) {
                            self.touch_blocked();
                        }
                    }
                    (NO_LINE, STOP) => self.call_off(),
                    (NO_LINE, _) => {
                        self.is_closed = true;
                        // Once it is known there is nothing more to tell.
                        let _ = epoll::delete(self.shared.epoll, close);
                    }
                    (number, what) => self.note(number, what, flags),
                }
            }
            if is_readable {
                has_more = self.receive(&mut batch);
            }
            let now = Instant::now();
            while let Some((at, number)) = self.wakes.first().copied()
                && at <= now
            {
                self.wakes.pop_first();
                if let Some(place) = self.lines.get_mut(&number) {
                    place.wake_at = None;
                }
                self.touched.insert(number);
            }
            for number in std::mem::take(&mut self.touched) {
                self.take_turns(number);
            }
            self.watch_room()?;
        }
        Ok(())
    }

    /// Passes on what the epoll tells of a line.
    fn note(&mut self, number: LineNumber, what: u64, flags: EventFlags) {
        if let Some(Place {
            stage: Stage::Open(line),
            ..
        }) = self.lines.get_mut(&number)
        {
            line.note(what, flags);
            self.touched.insert(number);
        }
    }

    /// Ends the connections that do not belong to a session.
    fn call_off(&mut self) {
        // Once it is known there is nothing more to tell.
        let _ = epoll::delete(self.shared.epoll, self.shared.terms.stop);
        self.is_closed = true;
        for (number, place) in &mut self.lines {
            if let Stage::Open(line) = &mut place.stage {
                line.call_off();
                self.touched.insert(*number);
            }
        }
    }

    /// Lets those go on who have datagrams that found no room.
    fn touch_blocked(&mut self) {
        for (number, place) in &self.lines {
            if place.stage.quic().holds_unsent() {
                self.touched.insert(*number);
            }
        }
    }

    /// Takes what has come, up to a bound; returns whether there may be more.
    fn receive(&mut self, batch: &mut Batch) -> bool {
        self.answers_count = 0;
        let mut left = MUX_RECEIVE_SIZE_MAX;
        let socket = Arc::clone(&self.endpoint.socket);
        while left > 0 {
            match socket.receive(batch) {
                Ok(()) => batch.take_each(|datagram, peer, local_ip| {
                    left = left.saturating_sub(datagram.len());
                    self.take_datagram(datagram, peer, local_ip);
                }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Errors of datagrams that were sent are losses on the way.
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes a datagram to its connection, or answers it.
    fn take_datagram(&mut self, datagram: &mut [u8], peer: SocketAddr, local_ip: Option<IpAddr>) {
        const LONG_HEADER: u8 = 0x80;
        let Some((first, rest)) = datagram.split_first() else {
            return;
        };
        if first & LONG_HEADER == 0 {
            let Some(id) = rest.first_chunk::<QUIC_ID_SIZE>().copied() else {
                return;
            };
            match self.routes.get(&id) {
                Some(number) => self.pass_on(*number, datagram, peer, local_ip),
                None => self.disown(&id, datagram.len(), peer, local_ip),
            }
            return;
        }
        let Ok(header) = Header::from_slice(datagram, QUIC_ID_SIZE) else {
            return;
        };
        let id = OwnId::try_from(header.dcid.as_ref()).ok();
        if let Some(number) = id.and_then(|id| self.routes.get(&id)) {
            return self.pass_on(*number, datagram, peer, local_ip);
        }
        let is_answer = header.ty == Type::VersionNegotiation;
        if self.is_closed || is_answer || datagram.len() < QUIC_OPENING_SIZE_MIN {
            return;
        }
        if !quiche::version_is_supported(header.version) {
            return self.negotiate(&header, peer, local_ip);
        }
        if header.ty != Type::Initial {
            return;
        }
        let now = Instant::now();
        let token = header.token.as_deref().unwrap_or_default();
        let original_id = id.and_then(|id| {
            let original_id = self.endpoint.retries.check(token, peer, &id, now)?;
            Some((id, original_id.to_vec()))
        });
        let Some((id, original_id)) = original_id else {
            return self.retry(&header, peer, local_ip, now);
        };
        match self.admit(id, &original_id, peer, now) {
            Ok(Some(number)) => self.pass_on(number, datagram, peer, local_ip),
            Ok(None) => {}
            Err(error) => log::error!("QUIC client {} is refused: {error}", canonical(peer)),
        }
    }

    fn pass_on(
        &mut self,
        number: LineNumber,
        datagram: &mut [u8],
        peer: SocketAddr,
        local_ip: Option<IpAddr>,
    ) {
        let Some(place) = self.lines.get_mut(&number) else {
            return;
        };
        self.touched.insert(number);
        // Nobody sends a stranger to another address, or by him something to somebody else.
        let may_move = !place.stage.is_stranger();
        let quic = place.stage.quic_mut();
        if quic.is_established() {
            return quic.take_datagram(datagram, peer, local_ip, may_move);
        }
        // What a handshake costs is mostly spent when its datagrams come.
        let began_at = Instant::now();
        quic.take_datagram(datagram, peer, local_ip, false);
        let reception = &mut self.endpoint.reception;
        reception.note_cost(canonical(place.address), began_at.elapsed(), began_at);
    }

    /// Tells a peer that its connection is not here.
    fn disown(&mut self, id: &OwnId, size: usize, peer: SocketAddr, local_ip: Option<IpAddr>) {
        let answer_size = RESET_SIZE.min(size.saturating_sub(1));
        if answer_size < RESET_SIZE_MIN || !self.may_answer() {
            return;
        }
        let Ok(mut answer) = random_bytes::<RESET_SIZE>() else {
            return;
        };
        // As the header of a datagram of an open connection begins.
        answer[0] = answer[0] & 0x3f | 0x40;
        let token = self.endpoint.resets.of(id).to_be_bytes();
        let start = answer_size - token.len();
        answer[start..answer_size].copy_from_slice(&token);
        self.answer(&answer[..answer_size], peer, local_ip);
    }

    /// Tells a peer which versions there are.
    fn negotiate(&mut self, header: &Header<'_>, peer: SocketAddr, local_ip: Option<IpAddr>) {
        let mut answer = [0; QUIC_OPENING_SIZE_MIN];
        if self.may_answer()
            && let Ok(size) = quiche::negotiate_version(&header.scid, &header.dcid, &mut answer)
        {
            self.answer(&answer[..size], peer, local_ip);
        }
    }

    /// Has a peer show that it receives what is sent to its address.
    fn retry(
        &mut self,
        header: &Header<'_>,
        peer: SocketAddr,
        local_ip: Option<IpAddr>,
        now: Instant,
    ) {
        let Ok(id) = random_bytes() else {
            return;
        };
        let token = self.endpoint.retries.issue(peer, &header.dcid, &id, now);
        let mut answer = [0; QUIC_OPENING_SIZE_MIN];
        let new_id = ConnectionId::from_ref(&id);
        let (scid, dcid) = (&header.scid, &header.dcid);
        let written = quiche::retry(scid, dcid, &new_id, &token, header.version, &mut answer);
        if let Ok(size) = written {
            self.answer(&answer[..size], peer, local_ip);
        }
    }

    /// Returns whether one more of those who have no connection is answered in this turn.
    fn may_answer(&mut self) -> bool {
        self.answers_count += 1;
        self.answers_count <= QUIC_STATELESS_ANSWERS_MAX
    }

    fn answer(&self, datagram: &[u8], peer: SocketAddr, local_ip: Option<IpAddr>) {
        // One that finds no room is lost, as on the way.
        let _ = self
            .endpoint
            .socket
            .send(peer, local_ip, datagram, datagram.len());
    }

    /// Takes up a connection; `None` if it is not wanted now.
    ///
    /// Errors: this end cannot be set up.
    fn admit(
        &mut self,
        id: OwnId,
        original_id: &[u8],
        peer: SocketAddr,
        now: Instant,
    ) -> io::Result<Option<LineNumber>> {
        let address = canonical(peer);
        if !self.endpoint.reception.lets_in(address, now) {
            return Ok(None);
        }
        self.make_room();
        self.endpoint.renew_config().map_err(io::Error::other)?;
        let endpoint = &mut self.endpoint;
        let reset_token = endpoint.resets.of(&id);
        endpoint.config.set_stateless_reset_token(Some(reset_token));
        endpoint
            .config
            .set_max_send_udp_payload_size(datagram_size_max(peer));
        let own_id = ConnectionId::from_ref(&id);
        let ids = RetryConnectionIds {
            original_destination_cid: &ConnectionId::from_ref(original_id),
            retry_source_cid: &own_id,
        };
        let local = endpoint.socket.local();
        let core = quiche::accept_with_retry(&own_id, ids, local, peer, &mut endpoint.config)
            .map_err(io::Error::other)?;
        let socket = Arc::clone(&endpoint.socket);
        let quic = Quic::server(core, socket, peer, endpoint.keep_alive);
        let porter = endpoint.reception.porter(address);
        // The handshake of TLS and the first stream may take that long each.
        let expected_until = now + 2 * endpoint.handshake_timeout;
        let mux = Mux::new(quic, Some(porter), expected_until)?;
        let number = self.free_number();
        let line = Line::new(self.shared, number, mux)?;
        let place = Place {
            stage: Stage::Open(Box::new(line)),
            wake_at: None,
            address: peer,
            ids: vec![id],
        };
        self.lines.insert(number, place);
        self.routes.insert(id, number);
        Ok(Some(number))
    }

    /// Makes room for one more stranger: of the origin with the most of them the one who has been
    /// here longest goes.
    fn make_room(&mut self) {
        let strangers = self.lines.iter().filter(|(_, it)| it.stage.is_stranger());
        let places = strangers.map(|(number, it)| (origin_of(it.address), *number));
        if places.clone().count() >= QUIC_STRANGERS_MAX
            && let Some(oldest) = oldest_of_busiest(places)
        {
            self.drop_line(oldest);
        }
    }

    fn free_number(&mut self) -> LineNumber {
        loop {
            let number = self.next_number;
            self.next_number = match number {
                LINE_NUMBER_MAX => NO_LINE + 1,
                number => number + 1,
            };
            if !self.lines.contains_key(&number) {
                return number;
            }
        }
    }

    /// Lets a connection do what there is to do.
    fn take_turns(&mut self, number: LineNumber) {
        let Some(place) = self.lines.get_mut(&number) else {
            return;
        };
        let now = Instant::now();
        let is_over = match &mut place.stage {
            Stage::Open(line) => {
                line.receive(|quic| quic.look_at_what_came().map(|()| false));
                line.take_turns(now);
                let is_stranger = !line.has_session();
                is_stranger && line.transport().received_size() > QUIC_STRANGER_SIZE_MAX
            }
            Stage::Leaving(quic, deadline) => {
                let result = quic.look_at_what_came();
                let result = result.and_then(|()| quic.look_at_the_clock(now));
                let result = result.and_then(|()| quic.send());
                while quic.next_event().is_some() {}
                let is_late = now >= *deadline;
                if is_late {
                    quic.hang_up();
                }
                is_late || result.is_err()
            }
        };
        if is_over {
            return self.drop_line(number);
        }
        self.tend_ids(number);
        if matches!(&self.lines[&number].stage, Stage::Open(line) if line.is_done()) {
            self.part_with(number);
        }
        self.note_wake(number, now);
    }

    /// Keeps the ids of a connection up to date.
    fn tend_ids(&mut self, number: LineNumber) {
        let Some(place) = self.lines.get_mut(&number) else {
            return;
        };
        let resets = &self.endpoint.resets;
        let changes = place.stage.quic_mut().tend_ids(|| {
            let id = random_bytes()?;
            Ok((id, resets.of(&id)))
        });
        for change in changes {
            match change {
                IdChange::Added(id) => {
                    place.ids.push(id);
                    self.routes.insert(id, number);
                }
                IdChange::Retired(id) => {
                    place.ids.retain(|other| *other != id);
                    self.routes.remove(&id);
                }
            }
        }
    }

    /// Ends a connection whose line is done; its last bytes may take a while.
    fn part_with(&mut self, number: LineNumber) {
        let Some(place) = self.remove(number) else {
            return;
        };
        let Stage::Open(line) = place.stage else {
            return;
        };
        let Some(mut quic) = line.end() else {
            self.forget_ids(&place.ids);
            return;
        };
        if quic.send().is_err() {
            self.forget_ids(&place.ids);
            return;
        }
        let deadline = Instant::now() + MUX_FAREWELL_TIMEOUT;
        let stage = Stage::Leaving(Box::new(quic), deadline);
        let place = Place {
            stage,
            wake_at: None,
            ..place
        };
        self.lines.insert(number, place);
    }

    /// Ends a connection at once.
    fn drop_line(&mut self, number: LineNumber) {
        let Some(place) = self.remove(number) else {
            return;
        };
        self.forget_ids(&place.ids);
        if let Stage::Open(line) = place.stage
            && let Some(mut quic) = line.end()
        {
            quic.hang_up();
        }
    }

    fn remove(&mut self, number: LineNumber) -> Option<Place<'a>> {
        let place = self.lines.remove(&number)?;
        if let Some(wake_at) = place.wake_at {
            self.wakes.remove(&(wake_at, number));
        }
        Some(place)
    }

    fn forget_ids(&mut self, ids: &[OwnId]) {
        for id in ids {
            self.routes.remove(id);
        }
    }

    /// Notes when to look at a connection again.
    fn note_wake(&mut self, number: LineNumber, now: Instant) {
        let Some(place) = self.lines.get_mut(&number) else {
            return;
        };
        let wake_at = match &place.stage {
            Stage::Open(line) => line.wake_at(now),
            Stage::Leaving(quic, deadline) => {
                quic.wake_at().into_iter().chain(Some(*deadline)).min()
            }
        };
        if wake_at != place.wake_at {
            if let Some(before) = place.wake_at {
                self.wakes.remove(&(before, number));
            }
            self.wakes.extend(wake_at.map(|at| (at, number)));
            place.wake_at = wake_at;
        }
    }

    /// Watches the socket for room while a connection has something to send.
    fn watch_room(&mut self) -> io::Result<()> {
        let mut places = self.lines.values();
        let wants_room = places.any(|place| place.stage.quic().holds_unsent());
        if wants_room != self.watches_room {
            self.watches_room = wants_room;
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, wants_room);
            let data = token(NO_LINE, SOCKET);
            epoll::modify(self.shared.epoll, &*self.endpoint.socket, data, flags)?;
        }
        Ok(())
    }
}

impl Endpoint {
    /// Takes the certificate that is in force now.
    fn renew_config(&mut self) -> Result<(), ConfigError> {
        let identity = self.reception.identity();
        if let Some(identity) = identity.filter(|it| it.fingerprint != self.shown) {
            self.config = config::of_server(&identity, self.keep_alive)?;
            self.shown = identity.fingerprint;
        }
        Ok(())
    }
}
