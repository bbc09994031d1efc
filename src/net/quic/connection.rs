//! One QUIC connection as a transport of many streams: each pool connection is one bidirectional
//! stream that the client opens.
//!
//! ```text
//!   client ── 00, or 01 and a ticket (40 bytes) ─────▶ server
//!   client ◀─ id (4 bytes) ─────────────────────────── server
//!   client ◀──────────── bytes both ways ────────────▶ server
//! ```
//!
//! The end of a direction is FIN. A stream that is cut short is reset once what was written to it
//! has arrived: a reset overtakes what is on its way.
//!
//! Source: wire protocol, sections 4 and 8; RFC 9000.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quiche::{ConnectionId, Error, RecvInfo, Shutdown};

use super::config::IDLE_INTERVALS;
use super::piece::{Pieces, Toll};
use super::socket::QuicSocket;
use super::token::OwnId;
use super::whereabouts::Whereabouts;
use crate::limits::{
    MUX_RECEIVE_SIZE_MAX, QUIC_DATAGRAM_SIZES_MAX, QUIC_PIECE_SIZE, RESET_FLUSH_TIMEOUT,
};
use crate::net::datagram::Batch;
use crate::net::listen::canonical;
use crate::net::mux::{MuxEvent, NotOpened, StreamKey, Transport};
use crate::net::stream::{Condition, is_passing};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::signal::PoolId;
use crate::wire::ticket::{TICKET_SIZE, Ticket};

/// What a stream of v1 begins with, and what a native one does before its ticket.
const OPENING_V1: u8 = 0;
const OPENING_NATIVE: u8 = 1;

/// From one stream that the client opens to the next (RFC 9000 section 2.1).
const STREAM_STEP: u64 = 4;

/// Larger numbers of streams are not told apart by the thread that carries them.
const STREAM_MAX: u64 = 1 << 39;

/// What both ends say when they cut a stream, or end a connection; nobody reads it.
const NO_REASON: u64 = 0;

/// The turn of a stream on which others depend.
const URGENT: u8 = 0;

/// The turn of any other stream.
const ORDINARY: u8 = 127;

/// Room that any datagram fits (bytes).
const ROOM_MIN: usize = QUIC_DATAGRAM_SIZES_MAX[0];

/// One end of a QUIC connection.
pub struct Quic {
    /// Large, and handed from thread to thread.
    core: Box<quiche::Connection<Pieces>>,
    socket: Arc<QuicSocket>,
    side: Side,
    whereabouts: Whereabouts,
    streams: HashMap<StreamKey, QuicStream>,
    /// Streams that nobody uses any more, until the peer has all that they are still to bring.
    parting: HashMap<StreamKey, Parting>,
    /// When a stream among them is cut short even if not all has arrived.
    cuts_at: Option<Instant>,
    /// They are to be looked after in this turn: a datagram has come, a stream has joined them, or
    /// it is time.
    is_parting_due: bool,
    /// A datagram has come that has not been looked at.
    has_news: bool,
    events: VecDeque<MuxEvent>,
    /// Datagrams that found no room in the socket.
    held: Option<Run>,
    keep_alive: Duration,
    /// When to send a sign of life.
    alive_at: Instant,
    /// When something was last known to have come, and how much had come by then (datagrams).
    heard_at: Instant,
    heard_count: usize,
    /// How late signs of life have been since: this end stood still.
    stood_still: Duration,
    /// It ends when all has arrived.
    is_closing: bool,
    /// What ended it.
    broken: Option<io::ErrorKind>,
    received_size: u64,
    /// Streams of which the peer has said that it takes nothing more.
    stops_count: u64,
}

/// Which end this is.
enum Side {
    /// The client's, which has the socket for itself.
    Client {
        /// Taken out while it is being filled.
        batch: Option<Box<Batch>>,
        next_stream: StreamKey,
    },
    /// The server's, which is given its datagrams.
    Server,
}

/// How the peer may call this end.
pub enum IdChange {
    /// From now on also so.
    Added(OwnId),
    /// No longer so.
    Retired(OwnId),
}

/// A stream that is in use.
struct QuicStream {
    preface: Option<Preface>,
    /// What it says first and found no room for.
    owed: Vec<u8>,
    toll: Toll,
    reading: Reading,
    /// The writing direction has been ended.
    is_finished: bool,
    /// The peer takes nothing more.
    is_stopped: bool,
    /// A write found no room.
    wants_room: bool,
    /// Bytes of a visitor have been written to it.
    was_used: bool,
    /// What had arrived when the peer cut the stream short, or was about to: the core forgets that
    /// with the stream.
    rescued: VecDeque<u8>,
}

/// What an open stream starts with, before it is a pool connection.
enum Preface {
    /// At the server: how it begins, as far as it has come.
    Opening(Vec<u8>),
    /// At the client: the id, as far as it has come.
    Id(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// In order.
    Ended,
    /// Cut short by the peer.
    Cut,
}

/// A stream that nobody uses any more.
struct Parting {
    toll: Toll,
    /// When it is cut short at the latest; `None` if it has been, or has ended in order.
    cut_at: Option<Instant>,
    /// Its end has yet to arrive.
    is_ending: bool,
    /// The peer has been asked to end its direction: once it has, it has taken out what had
    /// arrived.
    has_asked: bool,
    /// Bytes of a visitor were written to it.
    was_used: bool,
}

/// Datagrams of one size but for the last one.
struct Run {
    bytes: Vec<u8>,
    segment_size: usize,
}

impl Quic {
    /// Makes the server's end of a connection with `client`.
    pub fn server(
        core: quiche::Connection<Pieces>,
        socket: Arc<QuicSocket>,
        client: SocketAddr,
        keep_alive: Duration,
    ) -> Self {
        Self::new(core, socket, Side::Server, client, keep_alive)
    }

    /// Makes the client's end of a connection to `server`.
    pub fn client(
        core: quiche::Connection<Pieces>,
        socket: Arc<QuicSocket>,
        server: SocketAddr,
        keep_alive: Duration,
    ) -> Self {
        let side = Side::Client {
            batch: Some(Box::default()),
            next_stream: 0,
        };
        Self::new(core, socket, side, server, keep_alive)
    }

    fn new(
        core: quiche::Connection<Pieces>,
        socket: Arc<QuicSocket>,
        side: Side,
        peer: SocketAddr,
        keep_alive: Duration,
    ) -> Self {
        Self {
            core: Box::new(core),
            socket,
            side,
            whereabouts: Whereabouts::new(peer),
            streams: HashMap::new(),
            parting: HashMap::new(),
            cuts_at: None,
            is_parting_due: false,
            has_news: false,
            events: VecDeque::new(),
            held: None,
            keep_alive,
            alive_at: Instant::now() + keep_alive,
            heard_at: Instant::now(),
            heard_count: 0,
            stood_still: Duration::ZERO,
            is_closing: false,
            broken: None,
            received_size: 0,
            stops_count: 0,
        }
    }

    /// Returns whether the handshake is done.
    pub fn is_established(&self) -> bool {
        self.core.is_established()
    }

    /// Returns the protocol that both ends have agreed on; empty if there is none (ALPN).
    pub fn protocol(&self) -> &[u8] {
        self.core.application_proto()
    }

    /// Returns the fingerprint of the certificate that the peer has shown.
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.core.peer_cert().map(Fingerprint::of_certificate)
    }

    /// Returns what the peer says that is wrong, as an alert of TLS, if it refused the handshake.
    pub fn peer_alert(&self) -> Option<u8> {
        /// Where alerts of TLS begin among the errors of the transport (RFC 9001 section 4.8).
        const ALERTS: u64 = 0x100;
        let error = self.core.peer_error().filter(|error| !error.is_app)?;
        u8::try_from(error.error_code.checked_sub(ALERTS)?).ok()
    }

    /// Returns how many bytes have come.
    pub fn received_size(&self) -> u64 {
        self.received_size
    }

    /// Gives the peer ids for when its address changes, as many as it takes, each with the token
    /// that goes with it; returns what has changed in how the peer may call this end.
    pub fn tend_ids(&mut self, make_id: impl Fn() -> io::Result<(OwnId, u128)>) -> Vec<IdChange> {
        let mut changes = Vec::new();
        while self.core.is_established() && self.core.scids_left() > 0 {
            let Ok((id, reset_token)) = make_id() else {
                break;
            };
            let added = self
                .core
                .new_scid(&ConnectionId::from_ref(&id), reset_token, false);
            if added.is_err() {
                break;
            }
            changes.push(IdChange::Added(id));
        }
        while let Some(id) = self.core.retired_scid_next() {
            if let Ok(id) = OwnId::try_from(id.as_ref()) {
                changes.push(IdChange::Retired(id));
            }
        }
        changes
    }

    /// Takes a datagram that came from `peer` to `local_ip`; `may_move` says whether the next ones
    /// go to there, if it is genuine.
    pub fn take_datagram(
        &mut self,
        datagram: &mut [u8],
        peer: SocketAddr,
        local_ip: Option<IpAddr>,
        may_move: bool,
    ) {
        let size = u64::try_from(datagram.len()).unwrap_or(u64::MAX);
        self.received_size = self.received_size.saturating_add(size);
        self.has_news = true;
        let info = RecvInfo {
            from: self.whereabouts.known,
            to: self.socket.local(),
        };
        let is_elsewhere = peer != self.whereabouts.peer;
        let before = is_elsewhere.then(|| self.core.stats().recv);
        if let Err(error) = self.core.recv(datagram, info) {
            log::debug!("QUIC with {}: {error}", canonical(peer));
        }
        match before {
            None => self.whereabouts.note(local_ip, size),
            // What nobody else can have made, and for the first time.
            Some(before) if may_move && self.core.stats().recv > before => {
                self.move_to(peer, local_ip, size);
            }
            Some(_) => {}
        }
        if self.whereabouts.is_unproven() {
            let acknowledged_size = self.core.stats().acked_bytes;
            self.whereabouts
                .note_acknowledged(acknowledged_size, Instant::now());
        }
    }

    /// Sends to `peer` from now on, from where a datagram of `size` bytes came.
    fn move_to(&mut self, peer: SocketAddr, local_ip: Option<IpAddr>, size: u64) {
        let round_trip = self.core.path_stats().next().map(|path| path.rtt);
        let round_trip = round_trip.unwrap_or_default();
        let before = canonical(self.whereabouts.peer);
        let now = Instant::now();
        let whereabouts = &mut self.whereabouts;
        if whereabouts.note_move(peer, local_ip, size, round_trip, now) {
            log::info!("Client {before} goes on from {}", canonical(peer));
        }
    }

    /// Notes what datagrams have brought.
    ///
    /// Errors: the connection is over.
    pub fn look_at_what_came(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.has_news) {
            return self.ensure_open();
        }
        self.is_parting_due = true;
        let stats = self.core.stats();
        if stats.recv != self.heard_count {
            self.heard_count = stats.recv;
            (self.heard_at, self.stood_still) = (Instant::now(), Duration::ZERO);
        }
        // The core does not tell of each: not of one that could have been written to.
        let stops_count = stats.stopped_stream_count_remote;
        if stops_count != self.stops_count {
            self.stops_count = stops_count;
            let keys: Vec<StreamKey> = self.streams.keys().copied().collect();
            for key in keys {
                self.look_for_stop(key);
            }
        }
        self.ensure_open()
    }

    /// Notes that the peer takes nothing more of a stream, if it is so; returns whether it is.
    fn look_for_stop(&mut self, key: StreamKey) -> bool {
        let is_stopped = matches!(self.core.stream_capacity(key), Err(Error::StreamStopped(_)));
        if is_stopped
            && let Some(stream) = self.streams.get_mut(&key)
            && !stream.is_stopped
        {
            stream.is_stopped = true;
            stream.rescue(&mut self.core, key);
            self.events.push_back(MuxEvent::Declined(key));
        }
        is_stopped
    }

    /// Returns an error if the connection is over.
    fn ensure_open(&mut self) -> io::Result<()> {
        if let Some(kind) = self.broken {
            return Err(kind.into());
        }
        let has_failed = self.core.local_error().is_some() && !self.is_closing;
        if has_failed {
            // The peer is told what is wrong.
            self.flush();
        }
        if !has_failed && !self.core.is_closed() && !self.core.is_draining() {
            return Ok(());
        }
        let in_order = self.core.peer_error().is_some_and(|error| {
            // NO_ERROR (RFC 9000 section 20.1), and what this program says.
            error.error_code == NO_REASON
        });
        let kind = if in_order {
            io::ErrorKind::UnexpectedEof
        } else if self.core.is_timed_out() {
            io::ErrorKind::TimedOut
        } else {
            io::ErrorKind::ConnectionReset
        };
        self.broken = Some(kind);
        Err(kind.into())
    }

    /// Takes what has happened in the core.
    fn take_events(&mut self) {
        while let Some(key) = self.core.stream_readable_next() {
            self.note_readable(key);
        }
        if self.broken.is_some() {
            return;
        }
        while let Some(key) = self.core.stream_writable_next() {
            self.note_writable(key);
        }
    }

    fn note_readable(&mut self, key: StreamKey) {
        if self.parting.contains_key(&key) {
            // Nobody wants it, but the core forgets a stream only when it has been read.
            while matches!(self.core.stream_discard(key, usize::MAX), Ok((_, false))) {}
            return;
        }
        let is_new = matches!(self.side, Side::Server) && key < STREAM_MAX;
        if is_new && !self.streams.contains_key(&key) {
            let preface = Preface::Opening(Vec::new());
            self.streams.insert(key, QuicStream::new(preface));
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        if stream.is_stopped {
            stream.rescue(&mut self.core, key);
        }
        if stream.preface.is_some() {
            self.read_preface(key);
        } else {
            self.events.push_back(MuxEvent::Readable(key));
        }
    }

    fn note_writable(&mut self, key: StreamKey) {
        if !self.look_for_stop(key)
            && self.pay(key)
            && let Some(stream) = self.streams.get_mut(&key)
            && std::mem::take(&mut stream.wants_room)
        {
            self.events.push_back(MuxEvent::Writable(key));
        }
    }

    /// Reads what a stream starts with, as far as it has come.
    fn read_preface(&mut self, key: StreamKey) {
        let preface = self.streams.get_mut(&key).and_then(|it| it.preface.take());
        let Some(mut preface) = preface else {
            return;
        };
        loop {
            let (got, size) = match &mut preface {
                Preface::Opening(got) if got.first() == Some(&OPENING_NATIVE) => {
                    (got, 1 + TICKET_SIZE)
                }
                Preface::Opening(got) => (got, 1),
                Preface::Id(got) => (got, 4),
            };
            if got.len() < size {
                let mut rest = [0; 1 + TICKET_SIZE];
                match self.read(key, &mut rest[..size - got.len()]) {
                    Ok(0) => return self.refuse(key, &preface),
                    Ok(count) => got.extend_from_slice(&rest[..count]),
                    Err(error) if is_passing(&error) => {
                        if let Some(stream) = self.streams.get_mut(&key) {
                            stream.preface = Some(preface);
                        }
                        return;
                    }
                    Err(_) => return self.refuse(key, &preface),
                }
                continue;
            }
            let event = match &preface {
                Preface::Opening(got) => match got.split_first() {
                    Some((&OPENING_V1, [])) => MuxEvent::Arrived(key, None),
                    Some((&OPENING_NATIVE, ticket)) => match ticket.first_chunk() {
                        Some(ticket) => MuxEvent::Arrived(key, Some(Ticket::decode(ticket))),
                        None => return self.refuse(key, &preface),
                    },
                    _ => return self.refuse(key, &preface),
                },
                Preface::Id(got) => match <[u8; 4]>::try_from(got.as_slice()) {
                    Ok(id) => MuxEvent::Identified(key, PoolId(id)),
                    Err(_) => return self.refuse(key, &preface),
                },
            };
            self.events.push_back(event);
            return;
        }
    }

    /// Gives up a stream that does not start as it should.
    fn refuse(&mut self, key: StreamKey, preface: &Preface) {
        match preface {
            // It has not arrived yet, so it is nobody's.
            Preface::Opening(_) => self.reset(key),
            Preface::Id(_) => self.events.push_back(MuxEvent::Refused(key)),
        }
    }

    /// Writes what a stream says first, now or when there is room.
    fn owe(&mut self, key: StreamKey, bytes: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.owed.extend_from_slice(bytes);
            self.pay(key);
        }
    }

    /// Writes what a stream owes; returns whether it owes nothing any more.
    fn pay(&mut self, key: StreamKey) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else {
            return true;
        };
        while !stream.owed.is_empty() {
            match write(&mut self.core, key, &stream.toll, &stream.owed) {
                Ok(size) => drop(stream.owed.drain(..size)),
                Err(error) if is_passing(&error) => return false,
                // It is over, which its reader will find.
                Err(_) => stream.owed = Vec::new(),
            }
        }
        true
    }

    /// Looks after streams that nobody uses any more: cuts those short that are to be, once what
    /// they were to bring has arrived, and forgets those that have ended.
    fn tend_parting(&mut self, now: Instant) {
        if self.parting.is_empty() {
            return;
        }
        let core = &mut self.core;
        self.parting.retain(|key, parting| {
            let is_taken = parting.toll.is_paid()
                && (!parting.was_used || parting.has_asked && core.stream_finished(*key));
            if parting.cut_at.is_some_and(|at| is_taken || at <= now) {
                parting.cut_at = None;
                // It can only fail for one that is over.
                let _ = core.stream_shutdown(*key, Shutdown::Write, NO_REASON);
            }
            !matches!(
                core.stream_capacity(*key),
                Err(Error::InvalidStreamState(_))
            )
        });
        self.cuts_at = self.parting.values().filter_map(|it| it.cut_at).min();
    }

    /// Returns when the core is to look at the clock.
    ///
    /// It would take a standstill of this end for silence of the peer, whose datagrams may be on
    /// their way yet. Where it might, it has to wait as long as this end stood still.
    fn core_wake_at(&self) -> Option<Instant> {
        let silent_at = self.heard_at + self.keep_alive * IDLE_INTERVALS;
        let of_core = self.core.timeout_instant()?;
        let is_doubtful = Instant::now() >= silent_at;
        Some(match is_doubtful {
            true => of_core.max(silent_at + self.stood_still),
            false => of_core,
        })
    }

    /// Returns whether the peer has all that was written, and knows of the ends of streams.
    fn has_arrived(&self) -> bool {
        let is_paid = |stream: &QuicStream| stream.toll.is_paid();
        let has_parted = |parting: &Parting| parting.toll.is_paid() && !parting.is_ending;
        self.held.is_none()
            && self.streams.values().all(is_paid)
            && self.parting.values().all(has_parted)
    }

    /// Hands datagrams to the socket, as many as may leave now.
    fn flush(&mut self) {
        if let Some(run) = self.held.take()
            && !self.emit(&run.bytes, run.segment_size)
        {
            return;
        }
        let socket = Arc::clone(&self.socket);
        socket.with_scratch(|scratch| self.flush_by(scratch));
    }

    /// Sends, written into `scratch`.
    fn flush_by(&mut self, scratch: &mut [u8]) {
        let now = Instant::now();
        let (mut end, mut segment_size) = (0, 0);
        loop {
            let is_full = scratch.len() - end < ROOM_MIN;
            let written = match is_full || !self.whereabouts.may_send(end, now) {
                true => None,
                false => self.write_datagram(&mut scratch[end..]),
            };
            // Those of one run have one size.
            let is_joined = written.is_some_and(|size| end == 0 || size <= segment_size);
            if !is_joined && end > 0 {
                if !self.emit(&scratch[..end], segment_size) {
                    if let Some(size) = written {
                        self.hold(&scratch[end..end + size], size);
                    }
                    return;
                }
                if let Some(size) = written {
                    scratch.copy_within(end..end + size, 0);
                }
                end = 0;
            }
            let Some(size) = written else {
                if is_full {
                    continue;
                }
                return;
            };
            if end == 0 {
                segment_size = size;
            }
            end += size;
            if size < segment_size {
                if !self.emit(&scratch[..end], segment_size) {
                    return;
                }
                end = 0;
            }
        }
    }

    /// Writes the next datagram, if there is one; returns its size.
    fn write_datagram(&mut self, room: &mut [u8]) -> Option<usize> {
        match self.core.send(room) {
            Ok((size, _)) => Some(size),
            Err(Error::Done) => None,
            Err(error) => {
                log::debug!("QUIC: {error}");
                None
            }
        }
    }

    /// Hands datagrams to the socket; returns whether it has taken them, else they are held.
    fn emit(&mut self, bytes: &[u8], segment_size: usize) -> bool {
        let Whereabouts { peer, local_ip, .. } = self.whereabouts;
        let sent = self.socket.send(peer, local_ip, bytes, segment_size);
        match sent {
            Ok(()) => self.whereabouts.note_sent(bytes.len()),
            Err(_) => self.hold(bytes, segment_size),
        }
        sent.is_ok()
    }

    /// Keeps datagrams for later. Of two runs the second one is lost, as on the way.
    fn hold(&mut self, bytes: &[u8], segment_size: usize) {
        self.held.get_or_insert_with(|| Run {
            bytes: bytes.to_vec(),
            segment_size,
        });
    }
}

impl QuicStream {
    fn new(preface: Preface) -> Self {
        Self {
            preface: Some(preface),
            owed: Vec::new(),
            toll: Toll::default(),
            reading: Reading::Open,
            is_finished: false,
            is_stopped: false,
            wants_room: false,
            was_used: false,
            rescued: VecDeque::new(),
        }
    }

    /// Reads from the core.
    fn read(
        &mut self,
        core: &mut quiche::Connection<Pieces>,
        key: StreamKey,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        match self.reading {
            Reading::Open => {}
            Reading::Ended => return Ok(0),
            Reading::Cut => return Err(io::ErrorKind::ConnectionReset.into()),
        }
        match core.stream_recv(key, buffer) {
            Ok((size, is_end)) => {
                if is_end {
                    self.reading = Reading::Ended;
                }
                match (size, is_end) {
                    (0, false) => Err(io::ErrorKind::WouldBlock.into()),
                    (size, _) => Ok(size),
                }
            }
            Err(Error::Done) => Err(io::ErrorKind::WouldBlock.into()),
            Err(_) => {
                self.reading = Reading::Cut;
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
    }

    /// Takes out of the core what has arrived; it is no more than the window of the stream.
    fn rescue(&mut self, core: &mut quiche::Connection<Pieces>, key: StreamKey) {
        let mut buffer = vec![0; QUIC_PIECE_SIZE];
        while let Ok(size) = self.read(core, key, &mut buffer)
            && size > 0
        {
            self.rescued.extend(&buffer[..size]);
        }
    }
}

/// Writes to a stream, as much as the peer and the path take now.
fn write(
    core: &mut quiche::Connection<Pieces>,
    key: StreamKey,
    toll: &Toll,
    bytes: &[u8],
) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let capacity = core.stream_capacity(key).map_err(broken_pipe)?;
        let size = (bytes.len() - sent).min(capacity).min(QUIC_PIECE_SIZE);
        let taken = match size {
            0 => 0,
            size => match core.stream_send_zc(key, toll.piece(&bytes[sent..sent + size]), false) {
                Ok((taken, _)) => taken,
                Err(Error::Done) => 0,
                Err(error) => return Err(broken_pipe(error)),
            },
        };
        if taken == 0 {
            // From now on it tells when there is room.
            let _ = core.stream_writable(key, 1);
            break;
        }
        sent += taken;
    }
    match sent {
        0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
        sent => Ok(sent),
    }
}

fn broken_pipe(_: Error) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Transport for Quic {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn holds_unsent(&self) -> bool {
        self.broken.is_none() && self.held.is_some()
    }

    fn receive(&mut self, _: Instant) -> io::Result<bool> {
        let Side::Client { batch, .. } = &mut self.side else {
            self.ensure_open()?;
            return Ok(false);
        };
        let server = self.whereabouts.known;
        let mut batch = batch.take().unwrap_or_default();
        let before = self.received_size;
        let mut has_more = true;
        while has_more {
            match self.socket.receive(&mut batch) {
                Ok(()) => batch.take_each(|datagram, peer, local_ip| {
                    if (peer.ip(), peer.port()) == (server.ip(), server.port()) {
                        self.take_datagram(datagram, server, local_ip, false);
                    }
                }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Errors of datagrams that were sent are losses on the way.
                Err(_) => has_more = false,
            }
            let size = self.received_size - before;
            if size >= u64::try_from(MUX_RECEIVE_SIZE_MAX).unwrap_or(u64::MAX) {
                break;
            }
        }
        if let Side::Client { batch: place, .. } = &mut self.side {
            *place = Some(batch);
        }
        self.look_at_what_came()?;
        Ok(has_more)
    }

    fn send(&mut self) -> io::Result<()> {
        if let Some(kind) = self.broken {
            return Err(kind.into());
        }
        if std::mem::take(&mut self.is_parting_due) {
            self.tend_parting(Instant::now());
        }
        if self.is_closing && self.has_arrived() {
            self.hang_up();
        }
        self.flush();
        self.ensure_open()
    }

    fn next_event(&mut self) -> Option<MuxEvent> {
        if self.events.is_empty() {
            self.take_events();
        }
        self.events.pop_front()
    }

    fn open(&mut self, ticket: Option<&Ticket>) -> Result<StreamKey, NotOpened> {
        if self.broken.is_some() || self.is_closing {
            return Err(NotOpened::Over);
        }
        let Side::Client { next_stream, .. } = &mut self.side else {
            return Err(NotOpened::Refused);
        };
        if self.core.peer_streams_left_bidi() == 0 {
            return Err(NotOpened::Full);
        }
        let key = *next_stream;
        if key >= STREAM_MAX {
            return Err(NotOpened::Over);
        }
        // This is what makes it.
        let made = self.core.stream_priority(key, ORDINARY, true);
        made.map_err(|_| NotOpened::Over)?;
        *next_stream += STREAM_STEP;
        let preface = Preface::Id(Vec::new());
        self.streams.insert(key, QuicStream::new(preface));
        match ticket {
            None => self.owe(key, &[OPENING_V1]),
            Some(ticket) => self.owe(key, &[&[OPENING_NATIVE][..], &ticket.encode()].concat()),
        }
        Ok(key)
    }

    fn identify(&mut self, key: StreamKey, id: PoolId) {
        self.owe(key, &id.0);
    }

    fn hurry(&mut self, key: StreamKey) {
        // It can only fail for one that is over.
        let _ = self.core.stream_priority(key, URGENT, true);
    }

    fn has_declined(&self, key: StreamKey) -> bool {
        self.streams
            .get(&key)
            .is_some_and(|stream| stream.is_stopped)
    }

    fn read(&mut self, key: StreamKey, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = self.streams.get_mut(&key) else {
            return Err(io::ErrorKind::ConnectionReset.into());
        };
        if !stream.rescued.is_empty() {
            return stream.rescued.read(buffer);
        }
        match stream.read(&mut self.core, key, buffer) {
            // Nothing more comes.
            Err(error) if is_passing(&error) && self.broken.is_some() => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            result => result,
        }
    }

    fn check(&self, key: StreamKey) -> Condition {
        let Some(stream) = self.streams.get(&key) else {
            return Condition::Ended;
        };
        let is_open = stream.reading == Reading::Open;
        if !stream.rescued.is_empty() || is_open && self.core.stream_readable_len(key, 1) > 0 {
            Condition::Speaking
        // What is readable without bytes is an end, of whichever kind.
        } else if !is_open
            || stream.is_stopped
            || self.broken.is_some()
            || self.core.stream_readable(key)
            || self.core.stream_finished(key)
        {
            Condition::Ended
        } else {
            Condition::Silent
        }
    }

    fn write(&mut self, key: StreamKey, bytes: &[u8]) -> io::Result<usize> {
        let is_paid = self.pay(key);
        let Some(stream) = self.streams.get_mut(&key) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if self.broken.is_some() || stream.is_stopped || stream.is_finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let result = match is_paid {
            true => write(&mut self.core, key, &stream.toll, bytes),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        stream.was_used |= result.is_ok();
        let is_all = matches!(result, Ok(size) if size == bytes.len());
        stream.wants_room |= !is_all;
        result
    }

    fn finish(&mut self, key: StreamKey) -> io::Result<()> {
        let is_paid = self.pay(key);
        let Some(stream) = self.streams.get_mut(&key) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if self.broken.is_some() || stream.is_stopped {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !is_paid {
            stream.wants_room = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !stream.is_finished {
            self.core.stream_send(key, &[], true).map_err(broken_pipe)?;
            stream.is_finished = true;
        }
        Ok(())
    }

    fn reset(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.remove(&key) else {
            return;
        };
        if self.broken.is_some() {
            return;
        }
        if stream.reading == Reading::Open {
            // It can only fail for one that is over.
            let _ = self.core.stream_shutdown(key, Shutdown::Read, NO_REASON);
        }
        let now = Instant::now();
        let parting = Parting {
            toll: stream.toll,
            cut_at: (!stream.is_finished).then_some(now + RESET_FLUSH_TIMEOUT),
            is_ending: stream.is_finished,
            has_asked: stream.reading == Reading::Open,
            was_used: stream.was_used && !stream.is_stopped,
        };
        self.parting.insert(key, parting);
        self.is_parting_due = true;
    }

    fn can_open(&self) -> bool {
        self.broken.is_none()
    }

    fn close(&mut self) {
        self.is_closing = true;
    }

    fn hang_up(&mut self) {
        // It can only fail for one that is over.
        let _ = self.core.close(true, NO_REASON, b"");
        self.flush();
    }

    fn rest(&mut self) {}

    fn wake_at(&self) -> Option<Instant> {
        let times = [
            self.core_wake_at(),
            Some(self.alive_at),
            self.cuts_at,
            self.whereabouts.wake_at(Instant::now()),
        ];
        times.into_iter().flatten().min()
    }

    fn look_at_the_clock(&mut self, now: Instant) -> io::Result<()> {
        if self.alive_at <= now {
            self.stood_still += now - self.alive_at;
            self.alive_at = now + self.keep_alive;
            // It can only fail for one that is over, or not yet there.
            let _ = self.core.send_ack_eliciting();
        }
        if self.core_wake_at().is_some_and(|at| at <= now) {
            self.core.on_timeout();
        }
        self.is_parting_due |= self.cuts_at.is_some_and(|at| at <= now);
        self.ensure_open()
    }
}
