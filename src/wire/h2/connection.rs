//! One end of a connection: what its owner calls.
//!
//! `receive.rs` takes in what the peer sends, `turns.rs` says who may write next, `windows.rs`
//! gives back what was read.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::abuse::Allowances;
use super::error::{ConnectionError, NotOpened};
use super::flow::{ReceiveWindow, RoundTrip, SendWindow};
use super::frame::{
    END_HEADERS, END_STREAM, ErrorCode, FrameKind, PREFACE, STREAM_ID_MAX, Setting, StreamId,
    WINDOW_DEFAULT,
};
use super::heads::Block;
use super::hpack::{Decoder, Encoder, Field, Outgoing};
use super::output::Output;
use super::pieces::IdlePieces;
use super::receive::Input;
use super::settings::{Role, Settings};
use super::stream::{Inbound, Outbound, Stream, Telling, Waiting};
use crate::limits::{
    H2_FRAME_SIZE_MAX, H2_OUTPUT_EXCESS_MAX, H2_OUTPUT_EXCESS_PER_STREAM, H2_PINGS_MAX,
    H2_TURN_SIZE, HPACK_TABLE_SIZE_MAX,
};

/// One end of an HTTP/2 connection.
///
/// After each call that is not a mere question the owner sends what [`output`](Self::output) holds
/// and takes events until there are none.
pub struct Connection {
    pub(super) role: Role,
    pub(super) settings: Settings,
    pub(super) input: Input,
    /// A block of fields of which CONTINUATION frames are awaited.
    pub(super) block: Option<Block>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) streams: HashMap<StreamId, Stream>,
    /// Streams that both ends hold for open.
    pub(super) open_count: u32,
    /// The next stream that we open, as a client.
    pub(super) next_stream: StreamId,
    /// The highest stream that the peer has opened.
    pub(super) highest_stream: StreamId,
    pub(super) send: SendWindow,
    pub(super) receive: ReceiveWindow,
    /// Bytes by which windows of streams have grown.
    pub(super) growth: u32,
    pub(super) peer: Peer,
    pub(super) output: Output,
    pub(super) events: VecDeque<Pending>,
    /// Streams that wait for their turn to write, and those told of it since the last time.
    pub(super) writers: VecDeque<StreamId>,
    pub(super) turns: usize,
    /// Streams whose WINDOW_UPDATE waits for room in the output.
    pub(super) owed: VecDeque<StreamId>,
    pub(super) allowances: Allowances,
    pub(super) round_trip: RoundTrip,
    /// Pings of the owner that have not been answered.
    pub(super) pings: VecDeque<[u8; 8]>,
    pub(super) idle: IdlePieces,
    /// The last time that the owner told.
    pub(super) now: Option<Instant>,
    pub(super) has_gone_away: bool,
    /// The last of our streams that the peer will serve.
    pub(super) peer_last: Option<StreamId>,
    pub(super) failure: Option<ConnectionError>,
}

/// What the peer has said of itself.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream_window: u32,
    pub(super) streams_max: u32,
    /// Whether its settings have come.
    pub(super) has_settings: bool,
    /// Whether it has acknowledged ours.
    pub(super) knows_settings: bool,
}

/// Something that the owner is to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new stream (server).
    Request {
        /// Its number.
        stream: StreamId,
        /// What is asked for.
        fields: Vec<Field>,
        /// Nothing follows.
        is_end: bool,
    },
    /// The answer, or an interim one (client).
    Response {
        /// The stream.
        stream: StreamId,
        /// The answer.
        fields: Vec<Field>,
        /// Nothing follows.
        is_end: bool,
    },
    /// There is something to read: data or the end. Told again only after `read` had to wait, or
    /// everything was read.
    Readable(StreamId),
    /// A stream that could not write may do so now. It writes, ends or gives its turn back by
    /// writing nothing.
    Writable(StreamId),
    /// The stream is over at once. What came before can be read; `reset` drops it.
    Reset(StreamId, ErrorCode),
    /// The peer takes no streams any more; ours above `last` were reset as refused.
    GoAway {
        /// The last of our streams that is served.
        last: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// The answer to `ping`.
    Pong([u8; 8]),
}

/// Events as they wait: what they tell is in the stream.
#[derive(Debug)]
pub(super) enum Pending {
    Head(StreamId),
    Readable(StreamId),
    Reset(StreamId),
    GoAway(StreamId, ErrorCode),
    Pong([u8; 8]),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what is in its tables and buffers: there are secrets in it.
        f.debug_struct("Connection")
            .field("role", &self.role)
            .field("streams", &self.streams.len())
            .field("open_count", &self.open_count)
            .field("output", &self.output.size())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Returns one end of a new connection; what it says first is in the output.
    pub fn new(role: Role, settings: Settings) -> Self {
        let settings = settings.within_bounds();
        let mut connection = Self {
            role,
            input: Input::new(role),
            block: None,
            decoder: Decoder::new(HPACK_TABLE_SIZE_MAX),
            encoder: Encoder::new(),
            streams: HashMap::new(),
            open_count: 0,
            next_stream: settings.first_stream,
            highest_stream: 0,
            send: SendWindow::new(WINDOW_DEFAULT),
            receive: ReceiveWindow::new(settings.connection_window),
            growth: 0,
            peer: Peer {
                stream_window: WINDOW_DEFAULT,
                streams_max: u32::MAX,
                has_settings: false,
                knows_settings: false,
            },
            output: Output::default(),
            events: VecDeque::new(),
            writers: VecDeque::new(),
            turns: 0,
            owed: VecDeque::new(),
            allowances: Allowances::new(settings.streams_max),
            round_trip: RoundTrip::default(),
            pings: VecDeque::new(),
            idle: IdlePieces::default(),
            now: None,
            has_gone_away: false,
            peer_last: None,
            failure: None,
            settings,
        };
        connection.introduce();
        connection
    }

    fn introduce(&mut self) {
        let of_role = match self.role {
            Role::Client => {
                self.output.raw(PREFACE);
                Setting::EnablePush(0)
            }
            Role::Server => Setting::StreamsMax(self.settings.streams_max),
        };
        let list_size = u32::try_from(self.settings.header_list_size_max).unwrap_or(u32::MAX);
        let settings = [
            of_role,
            Setting::StreamWindow(self.settings.stream_window),
            Setting::HeaderListSizeMax(list_size),
        ];
        let payload = settings.map(Setting::encode).concat();
        self.output.frame(FrameKind::Settings, 0, 0, &payload);
        let more = self.settings.connection_window - WINDOW_DEFAULT;
        if more > 0 {
            self.output
                .frame(FrameKind::WindowUpdate, 0, 0, &more.to_be_bytes());
        }
    }

    /// Returns the bytes to send.
    pub fn output(&self) -> &[u8] {
        self.output.bytes()
    }

    /// Forgets the first `size` bytes of the output: they have been sent.
    pub fn sent(&mut self, size: usize) {
        self.output.remove(size);
        self.turns = 0;
        self.pay_owed_updates();
    }

    /// Opens a stream and sends the request, whose body follows by `write` unless `is_end`.
    ///
    /// Errors: see [`NotOpened`]; a server opens none.
    pub fn request(
        &mut self,
        fields: &[(&[u8], &[u8])],
        is_end: bool,
    ) -> Result<StreamId, NotOpened> {
        if self.failure.is_some() || self.has_gone_away || self.peer_last.is_some() {
            return Err(NotOpened::GoingAway);
        }
        if self.role == Role::Server || self.next_stream > STREAM_ID_MAX {
            return Err(NotOpened::NoIds);
        }
        if self.open_count >= self.peer.streams_max {
            return Err(NotOpened::PeerLimit);
        }
        if self.output.size() > self.output_bound() / 2 + self.settings.output_room / 2 {
            return Err(NotOpened::Busy);
        }
        let id = self.next_stream;
        self.next_stream += 2;
        let mut stream = self.new_stream(Inbound::AwaitHead, Outbound::Open);
        stream.is_known = true;
        self.streams.insert(id, stream);
        self.open_count += 1;
        self.send_head(id, fields, is_end);
        Ok(id)
    }

    /// Sends the response, whose body follows by `write` unless `is_end`. Nothing happens on a
    /// stream that is over, or has its response.
    pub fn respond(&mut self, stream: StreamId, fields: &[(&[u8], &[u8])], is_end: bool) {
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        if found.reset.is_some() || found.outbound != Outbound::AwaitHead {
            return;
        }
        found.outbound = Outbound::Open;
        self.send_head(stream, fields, is_end);
    }

    fn send_head(&mut self, id: StreamId, fields: &[(&[u8], &[u8])], is_end: bool) {
        let mut block = Vec::new();
        let outgoing: Vec<Outgoing> = fields
            .iter()
            .map(|&(name, value)| Outgoing {
                name,
                value,
                is_sensitive: self.settings.secret_names.contains(&name),
            })
            .collect();
        self.encoder.encode(&outgoing, &mut block);
        let mut rest = &block[..];
        let mut kind = FrameKind::Headers;
        loop {
            let (part, after) = rest.split_at(rest.len().min(H2_FRAME_SIZE_MAX));
            rest = after;
            let mut flags = 0;
            if is_end && kind == FrameKind::Headers {
                flags |= END_STREAM;
            }
            if rest.is_empty() {
                flags |= END_HEADERS;
            }
            self.output.frame(kind, flags, id, part);
            if rest.is_empty() {
                break;
            }
            kind = FrameKind::Continuation;
        }
        if is_end && let Some(stream) = self.streams.get_mut(&id) {
            stream.outbound = Outbound::Ended;
        }
        self.settle(id);
    }

    /// Reads into `buffer`, as from a socket: `Ok(0)` at the end of the peer's direction.
    ///
    /// Errors: `WouldBlock` when nothing has come, `ConnectionReset` after a reset,
    /// `ConnectionAborted` when the connection is over, `NotConnected` for a stream that is not
    /// there.
    pub fn read(&mut self, stream: StreamId, buffer: &mut [u8], now: Instant) -> io::Result<usize> {
        let mut part = self.peek(stream)?;
        let mut size = 0;
        while !part.is_empty() && size < buffer.len() {
            let part_size = part.len().min(buffer.len() - size);
            buffer[size..size + part_size].copy_from_slice(&part[..part_size]);
            size += part_size;
            self.consume(stream, part_size, now);
            // Not `peek`: the end is told by the next call, which returns nothing else.
            part = self
                .streams
                .get(&stream)
                .map_or(&[], |found| found.pieces.first());
        }
        Ok(size)
    }

    /// Returns bytes that can be read, as many as lie side by side; empty at the end. [`consume`]
    /// says how many were used.
    ///
    /// Errors: as [`read`](Self::read).
    ///
    /// [`consume`]: Self::consume
    pub fn peek(&mut self, stream: StreamId) -> io::Result<&[u8]> {
        let found = self
            .streams
            .get_mut(&stream)
            .ok_or(ErrorKind::NotConnected)?;
        if found.pieces.size() == 0 {
            if found.has_inbound_ended() {
                found.inbound = Inbound::Told;
            } else if found.reset.is_some() {
                found.inbound = Inbound::Cut;
                found.is_reset_told = true;
                self.settle(stream);
                return Err(ErrorKind::ConnectionReset.into());
            } else if self.failure.is_some() {
                return Err(ErrorKind::ConnectionAborted.into());
            } else {
                found.telling = Telling::Armed;
                return Err(ErrorKind::WouldBlock.into());
            }
            self.settle(stream);
        }
        Ok(self
            .streams
            .get(&stream)
            .map_or(&[], |found| found.pieces.first()))
    }

    /// Counts `size` of the bytes that `peek` returned as read.
    pub fn consume(&mut self, stream: StreamId, size: usize, now: Instant) {
        self.now = Some(now);
        let Some(found) = self.streams.get_mut(&stream) else {
            return;
        };
        let size = size.min(found.pieces.first().len());
        found.pieces.remove(size, &mut self.idle);
        found.receive.consume(size);
        if found.pieces.size() == 0 && size > 0 {
            if found.telling == Telling::Told {
                found.telling = Telling::Armed;
            }
            if found.inbound == Inbound::Ended || found.reset.is_some() {
                // The end came while data were left to read: it has yet to be told of.
                self.tell(stream);
            }
        }
        self.update_stream(stream, now);
    }

    /// Ends our direction of the stream.
    ///
    /// Errors: `BrokenPipe` when it has been ended, else as [`write`](Self::write); never
    /// `WouldBlock`.
    pub fn finish(&mut self, stream: StreamId) -> io::Result<()> {
        self.writable_stream(stream)?;
        self.output.frame(FrameKind::Data, END_STREAM, stream, &[]);
        self.give_turn_back(stream);
        if let Some(found) = self.streams.get_mut(&stream) {
            found.outbound = Outbound::Ended;
            found.waiting = Waiting::No;
        }
        self.settle(stream);
        Ok(())
    }

    /// Ends the stream at once and forgets it. What was written before leaves first; what has not
    /// been read is dropped.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        let Some(found) = self.streams.get(&stream) else {
            return;
        };
        if !found.is_closed() && self.failure.is_none() {
            self.output
                .frame(FrameKind::ResetStream, 0, stream, &code.0.to_be_bytes());
        }
        self.give_turn_back(stream);
        self.remove(stream);
    }

    /// Returns how many bytes can be read now.
    pub fn readable_size(&self, stream: StreamId) -> usize {
        self.streams
            .get(&stream)
            .map_or(0, |found| found.pieces.size())
    }

    /// Whether the peer has ended its direction in order: nothing comes beyond what can be read now.
    pub fn has_ended(&self, stream: StreamId) -> bool {
        self.streams
            .get(&stream)
            .is_some_and(Stream::has_inbound_ended)
    }

    /// Whether the stream was reset, or is not there: nothing comes beyond what can be read now.
    pub fn is_reset(&self, stream: StreamId) -> bool {
        let found = self.streams.get(&stream);
        found.is_none_or(|found| found.reset.is_some())
    }

    /// Whether the stream is there, closed ones included that have something left to read or tell.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns how many streams are open between the two ends.
    pub fn open_count(&self) -> u32 {
        self.open_count
    }

    /// Returns how many streams can be opened now, as far as the peer's limit and numbers go.
    pub fn openable_count(&self) -> u32 {
        let is_ending = self.failure.is_some() || self.has_gone_away || self.peer_last.is_some();
        if is_ending || self.role == Role::Server || self.next_stream > STREAM_ID_MAX {
            return 0;
        }
        let numbers = (STREAM_ID_MAX - self.next_stream) / 2 + 1;
        numbers.min(self.peer.streams_max.saturating_sub(self.open_count))
    }

    /// Whether the peer's settings have come: until then its limits are not known.
    pub fn has_peer_settings(&self) -> bool {
        self.peer.has_settings
    }

    /// Returns the round trip, once it has been measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip.value()
    }

    /// Asks the peer for an answer with this data. Of many at a time only the latest are told of.
    pub fn ping(&mut self, data: [u8; 8]) {
        if self.failure.is_some() {
            return;
        }
        if self.pings.len() >= H2_PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back(data);
        self.output.frame(FrameKind::Ping, 0, 0, &data);
    }

    /// Tells the peer that no stream is opened or accepted any more; those that are open go on.
    pub fn go_away(&mut self, code: ErrorCode) {
        if self.has_gone_away || self.failure.is_some() {
            return;
        }
        self.has_gone_away = true;
        self.send_go_away(code);
    }

    pub(super) fn send_go_away(&mut self, code: ErrorCode) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&self.highest_stream.to_be_bytes());
        payload[4..].copy_from_slice(&code.0.to_be_bytes());
        self.output.frame(FrameKind::GoAway, 0, 0, &payload);
    }

    /// Whether no stream is there and none can be opened: the connection may be closed.
    pub fn is_spent(&self) -> bool {
        let is_ending = self.failure.is_some() || self.has_gone_away || self.peer_last.is_some();
        self.streams.is_empty() && (is_ending || self.next_stream > STREAM_ID_MAX)
    }

    /// Checks what must hold between two calls, whatever the peer has said: for tests and fuzzing.
    ///
    /// Panics: where it does not hold.
    pub fn check_invariants(&self) {
        let streams = || self.streams.values();
        let counted = streams().filter(|stream| stream.is_counted).count();
        assert_eq!(usize::try_from(self.open_count), Ok(counted));
        assert!(streams().all(|stream| stream.is_counted != stream.is_closed()));
        assert!(streams().all(|stream| !stream.is_done()));
        let growth = streams().map(|stream| stream.receive.size() - self.settings.stream_window);
        assert_eq!(self.growth, growth.sum::<u32>());
        assert!(self.growth <= self.settings.growth_max);
        let streams_max = usize::try_from(self.settings.streams_max).unwrap_or(usize::MAX);
        if self.role == Role::Server {
            assert!(counted <= streams_max && self.streams.len() / 2 <= streams_max);
        }
        let window_max = self.settings.stream_window_max.max(WINDOW_DEFAULT);
        let unread_max = usize::try_from(window_max).unwrap_or(usize::MAX);
        assert!(streams().all(|stream| stream.pieces.size() <= unread_max));
    }

    /// Bytes that may wait to be sent: a peer that makes us wait with more does not read.
    pub(super) fn output_bound(&self) -> usize {
        let for_streams = usize::try_from(self.settings.streams_max)
            .unwrap_or(usize::MAX)
            .saturating_mul(H2_OUTPUT_EXCESS_PER_STREAM);
        (self.settings.output_room + H2_OUTPUT_EXCESS_MAX).saturating_add(for_streams)
    }

    /// Data that one stream may write while others wait (bytes).
    pub(super) fn turn_size(&self) -> usize {
        (self.settings.output_room / 4).clamp(1, H2_TURN_SIZE)
    }

    pub(super) fn new_stream(&self, inbound: Inbound, outbound: Outbound) -> Stream {
        let send = SendWindow::new(self.peer.stream_window);
        let receive = ReceiveWindow::new(self.settings.stream_window);
        Stream::new(inbound, outbound, send, receive)
    }

    /// Returns the stream if our direction is open.
    pub(super) fn writable_stream(&mut self, stream: StreamId) -> io::Result<&mut Stream> {
        let found = self
            .streams
            .get_mut(&stream)
            .ok_or(ErrorKind::NotConnected)?;
        if found.reset.is_some() {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if self.failure.is_some() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        match found.outbound {
            Outbound::Open => Ok(found),
            Outbound::AwaitHead => Err(ErrorKind::InvalidInput.into()),
            Outbound::Ended => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// After a change: counts a stream out that is closed, and forgets it when it is done.
    pub(super) fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.is_counted && stream.is_closed() {
            stream.is_counted = false;
            self.open_count -= 1;
        }
        if stream.is_done() {
            self.remove(id);
        }
    }

    /// Forgets a stream.
    pub(super) fn remove(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if stream.is_counted {
            self.open_count -= 1;
        }
        if stream.waiting == Waiting::Owner {
            self.turns = self.turns.saturating_sub(1);
        }
        self.growth -= stream.receive.size() - self.settings.stream_window;
        // What still names the stream is passed over when it comes up; it must not pile up.
        let names_max = 2 * self.streams.len() + 64;
        if self.writers.len() > names_max {
            self.writers.retain(|id| self.streams.contains_key(id));
        }
        if self.owed.len() > names_max {
            self.owed.retain(|id| self.streams.contains_key(id));
        }
        if self.streams.capacity() > names_max * 4 {
            self.streams.shrink_to(names_max);
        }
    }
}
