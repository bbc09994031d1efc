//! One end of a pool connection that carries the datagrams of one visitor.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;

use super::gate::{Gate, Lane};
use super::instance::Instance;
use super::uplink::UdpWay;
use crate::limits::{DATAGRAM_READ_SIZE, DATAGRAM_STREAM_ROUNDS_MAX};
use crate::net::datagram::{Received, Run};
use crate::net::datagram_stream::{Backlog, DatagramStream, Framing, Progress, Put};
use crate::net::rate::Turn;
use crate::runtime::event::Event;
use crate::wire::datagram::Framed;

/// What the pool connections of a loop share.
pub(super) struct Streams {
    size_max: usize,
    backlog: Arc<Backlog>,
    buffer: Box<[u8]>,
    run: Run,
}

/// The pool connection of a session.
pub(super) struct WayEnd {
    stream: DatagramStream,
    framing: Framing,
    over: Arc<Event>,
    watches_room: bool,
    /// Whether the loop has noted that something is to be pushed out.
    pub(super) is_marked: bool,
    /// Whether the loop has noted that something is to be read that poll does not see.
    pub(super) is_again: bool,
}

/// What reading a pool connection came to.
pub(super) struct Reading {
    /// Bytes of datagrams.
    pub(super) moved: usize,
    /// Whether there may be more; the error has broken the connection.
    pub(super) progress: io::Result<Progress>,
}

/// Returns whether an event is about something to read, or about the end.
pub(super) fn tells_of_input(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
}

/// Returns whether an event is about room to write, or about the end.
pub(super) fn tells_of_room(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR)
}

impl Streams {
    /// Makes what is shared by connections for datagrams of up to `size_max` bytes.
    pub(super) fn new(size_max: usize) -> Self {
        Self {
            size_max,
            backlog: Arc::default(),
            buffer: vec![0; DATAGRAM_READ_SIZE].into_boxed_slice(),
            run: Run::default(),
        }
    }
}

impl WayEnd {
    /// Takes a pool connection and has it watched under `name`.
    ///
    /// Errors: the system cannot watch one more.
    pub(super) fn watched(
        way: UdpWay,
        streams: &Streams,
        lane: &Lane,
        gate: &Gate,
        name: u64,
    ) -> io::Result<Self> {
        let (framing, over) = (way.framing, way.over);
        let stream = DatagramStream::new(way.stream, framing, streams.size_max, &streams.backlog);
        lane.watch(gate, &stream.descriptor(), name)?;
        Ok(Self {
            stream,
            framing,
            over,
            watches_room: false,
            is_marked: false,
            is_again: false,
        })
    }

    /// Returns whether the session between both ends is over.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_raised()
    }

    /// Returns whether there may be datagrams that the descriptor does not announce.
    pub(super) fn holds_bytes(&self) -> bool {
        self.stream.holds_bytes()
    }

    /// Breaks a silence that has become too long for those in between. To be followed by a look
    /// at what the connection holds, and by [`WayEnd::push_out`].
    pub(super) fn keep_alive(&mut self) {
        self.stream.keep_alive();
    }

    /// Gives up memory that is needed only while datagrams flow.
    pub(super) fn rest(&mut self) {
        self.stream.rest();
    }

    /// Puts datagrams of `visitor`, or for it, in; they leave with [`WayEnd::push_out`].
    ///
    /// Errors: the connection is broken.
    pub(super) fn put(
        &mut self,
        received: &Received<'_>,
        visitor: SocketAddr,
        instance: &Instance,
    ) -> io::Result<()> {
        for datagram in received.segments() {
            let reason = match self.stream.put(datagram)? {
                Put::Taken => continue,
                Put::Full => "the tunnel does not take it",
                Put::TooLarge => "it is too large for the tunnel",
                Put::Empty => "it is empty, and a program of version 1 is at the other end",
            };
            instance.notes.udp.log(format_args!(
                "Datagram of UDP visitor {visitor} lost: {reason}"
            ));
        }
        Ok(())
    }

    /// Writes what was put in, as far as the connection takes it, and has room watched for if
    /// there is a rest.
    ///
    /// Errors: the connection is broken.
    pub(super) fn push_out(&mut self, lane: &Lane, gate: &Gate, name: u64) -> io::Result<()> {
        self.stream.push_out()?;
        self.watch_room(lane, gate, name)
    }

    /// Goes on writing: there is room again.
    ///
    /// Errors: the connection is broken.
    pub(super) fn resume(&mut self, lane: &Lane, gate: &Gate, name: u64) -> io::Result<()> {
        self.stream.resume()?;
        self.watch_room(lane, gate, name)
    }

    fn watch_room(&mut self, lane: &Lane, gate: &Gate, name: u64) -> io::Result<()> {
        let is_wanted = self.stream.wants_write();
        if is_wanted != self.watches_room {
            lane.watch_room(gate, &self.stream.descriptor(), name, is_wanted)?;
            self.watches_room = is_wanted;
        }
        Ok(())
    }

    /// Reads datagrams and gives them to `send` in runs that one call can send, as if they came
    /// from `peer`; with a turn, about as many bytes as that has.
    pub(super) fn receive(
        &mut self,
        streams: &mut Streams,
        turn: Option<Turn>,
        peer: SocketAddr,
        instance: &Instance,
        mut send: impl FnMut(&Received<'_>),
    ) -> Reading {
        let room = match (self.framing, turn) {
            // What is not read of a raw datagram would look like another one.
            (Framing::Raw, _) | (_, None) => DATAGRAM_READ_SIZE,
            (Framing::Framed, Some(turn)) => turn.size.clamp(1, DATAGRAM_READ_SIZE),
        };
        let rounds_max = turn.map_or(DATAGRAM_STREAM_ROUNDS_MAX, |_| 1);
        let (run, size_max) = (&mut streams.run, streams.size_max);
        let buffer = &mut streams.buffer[..room];
        let mut moved = 0;
        let mut send_run = |run: &mut Run| {
            if let Some(received) = run.joined(peer) {
                moved += received.bytes.len();
                send(&received);
            }
            run.clear();
        };
        let mut progress = Ok(Progress::More);
        for _ in 0..rounds_max {
            progress = self.stream.receive(buffer, |framed| match framed {
                Framed::Datagram(datagram) => {
                    if !run.add(datagram) {
                        send_run(run);
                        run.add(datagram);
                    }
                }
                Framed::TooLarge { size } => {
                    instance.admits(size, size_max, "the other end of the tunnel");
                }
            });
            send_run(run);
            if !matches!(progress, Ok(Progress::More)) {
                break;
            }
        }
        Reading { moved, progress }
    }
}
