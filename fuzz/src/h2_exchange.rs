//! Two ends of an HTTP/2 connection and whatever their owners do.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nodepass::wire::h2::{Connection, ErrorCode, Event, Role, Settings, StreamId};

use super::take_byte;

const REQUEST: [(&[u8], &[u8]); 4] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/"),
    (b":authority", b"none"),
];
const RESPONSE: [(&[u8], &[u8]); 1] = [(b":status", b"200")];

/// Steps of one input: fewer than pings, resets or settings may come in a burst.
const STEPS_MAX: usize = 300;

/// Neither end ever finds fault with the other one; what is written to a stream that is not reset
/// arrives, in order and whole, and once all has been read more can be written.
///
/// The first byte chooses the settings; two bytes each are a step and how it is done.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let mut pair = Pair::new(how);
    for step in input.as_chunks::<2>().0.iter().take(STEPS_MAX) {
        pair.step(*step);
    }
    pair.settle();
    pair.check_streams();
    !pair.streams.is_empty()
}

struct End {
    connection: Connection,
    /// Whether it has said that no stream is opened any more, or was told so.
    is_leaving: bool,
}

/// One direction of a stream.
#[derive(Debug, Default)]
struct Way {
    /// Bytes written and read.
    written: usize,
    read: usize,
    /// The writer has ended it, the reader has seen the end.
    is_finished: bool,
    is_ended: bool,
}

#[derive(Debug, Default)]
struct Stream {
    /// From the client, from the server.
    ways: [Way; 2],
    is_reset: bool,
    /// The server has heard of it, the client of the answer.
    is_answered: [bool; 2],
}

impl Stream {
    /// An end is told of a reset: somebody wanted it, or the server has never let the stream in.
    fn take_reset(&mut self) {
        assert!(self.is_reset || !self.is_answered[0]);
        self.is_reset = true;
    }
}

struct Pair {
    /// The client, the server.
    ends: [End; 2],
    streams: BTreeMap<StreamId, Stream>,
    now: Instant,
}

fn settings(how: u8) -> Settings {
    let stream_window = [100, 1000, 65_535, 256 * 1024][usize::from(how % 4)];
    Settings {
        stream_window,
        stream_window_max: stream_window * 4,
        streams_max: [2, 100][usize::from(how / 4 % 2)],
        output_room: [100, 3000, 256 * 1024][usize::from(how / 8 % 3)],
        ..Settings::default()
    }
}

/// Most bytes of one write or read.
const SIZE_MAX: usize = 20_300;
/// After so many bytes what is written repeats itself: no size of a buffer is a multiple of it.
const PERIOD: usize = 251;

/// What is written, over and over again: places can be told from it.
static PATTERN: [u8; PERIOD + SIZE_MAX] = {
    let mut pattern = [0; PERIOD + SIZE_MAX];
    let mut place = 0;
    while place < pattern.len() {
        pattern[place] = (place % PERIOD).to_le_bytes()[0];
        place += 1;
    }
    pattern
};

/// Returns what stands at a place of a stream.
fn bytes_at(stream: StreamId, place: usize, size: usize) -> &'static [u8] {
    let stream = usize::try_from(stream).expect("32 bits");
    let start = (stream * 7 + place) % PERIOD;
    &PATTERN[start..start + size]
}

impl Pair {
    fn new(how: u8) -> Self {
        let end = |role, how| End {
            connection: Connection::new(role, settings(how)),
            is_leaving: false,
        };
        Self {
            ends: [
                end(Role::Client, how),
                end(Role::Server, how.rotate_left(4)),
            ],
            streams: BTreeMap::new(),
            now: Instant::now(),
        }
    }

    fn step(&mut self, [step, how]: [u8; 2]) {
        let index = usize::from(step >> 7);
        let size = [0, 1, 100, 20_000][usize::from(how % 4)] + usize::from(how);
        let id = self.pick(how);
        match step & 0x7f {
            0..8 => self.request(),
            8..40 => self.write(index, id, size),
            40..56 => self.read(index, id, size),
            56..90 => drop(self.pass(index, size)),
            90..110 => self.hear(index),
            110..114 => self.finish(index, id),
            114..116 => self.reset(index, id),
            116..118 => self.ends[index].connection.ping([how; 8]),
            118..124 => self.now += Duration::from_millis(1 << (how % 14)),
            124 => self.ends[index].connection.hurry(id),
            125 if how > 250 => {
                self.ends[index].connection.go_away(ErrorCode::NO_ERROR);
                self.ends[index].is_leaving = true;
            }
            _ => drop(self.ends[index].connection.write(id, &[])),
        }
        self.ends[index].connection.check_invariants();
    }

    /// Returns the number of a stream; 1 where there is none.
    fn pick(&self, how: u8) -> StreamId {
        let count = self.streams.len().max(1);
        let found = self.streams.keys().nth(usize::from(how / 4) % count);
        found.copied().unwrap_or(1)
    }

    fn request(&mut self) {
        if let Ok(id) = self.ends[0].connection.request(&REQUEST, false) {
            self.streams.insert(id, Stream::default());
        }
    }

    fn write(&mut self, index: usize, id: StreamId, size: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let way = &mut stream.ways[index];
        let bytes = bytes_at(id, way.written, size);
        if let Ok(written) = self.ends[index].connection.write(id, bytes) {
            assert!(!way.is_finished && written <= size);
            way.written += written;
        }
    }

    fn read(&mut self, index: usize, id: StreamId, size: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let way = &mut stream.ways[1 - index];
        let mut buffer = vec![0; size.max(1)];
        match self.ends[index].connection.read(id, &mut buffer, self.now) {
            Ok(0) => {
                assert!(way.is_finished && way.read == way.written);
                way.is_ended = true;
            }
            Ok(size) => {
                assert_eq!(buffer[..size], *bytes_at(id, way.read, size));
                way.read += size;
                assert!(way.read <= way.written);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => stream.take_reset(),
            Err(_) => {}
        }
    }

    fn finish(&mut self, index: usize, id: StreamId) {
        if self.ends[index].connection.finish(id).is_ok()
            && let Some(stream) = self.streams.get_mut(&id)
        {
            assert!(!stream.ways[index].is_finished);
            stream.ways[index].is_finished = true;
        }
    }

    fn reset(&mut self, index: usize, id: StreamId) {
        let end = &self.ends[index].connection;
        // An end that has not heard of the stream has nothing to reset.
        if end.is_open(id) {
            self.stream(id).is_reset = true;
            self.ends[index].connection.reset(id, ErrorCode::CANCEL);
        }
    }

    /// Moves up to `size` bytes of what an end has to say to the other one; returns how many.
    fn pass(&mut self, index: usize, size: usize) -> usize {
        let output = self.ends[index].connection.output();
        let bytes = output[..output.len().min(size)].to_vec();
        let other = &mut self.ends[1 - index].connection;
        other
            .receive(&bytes, self.now)
            .expect("nobody has done anything wrong");
        self.ends[index].connection.sent(bytes.len());
        bytes.len()
    }

    /// Takes all events of an end.
    fn hear(&mut self, index: usize) {
        for count in 0.. {
            assert!(count < 10_000, "events without end");
            let Some(event) = self.ends[index].connection.next_event() else {
                break;
            };
            match event {
                Event::Request {
                    stream: id, is_end, ..
                } => {
                    assert!(!is_end);
                    self.ends[index].connection.respond(id, &RESPONSE, false);
                    self.stream(id).is_answered[0] = true;
                }
                Event::Response {
                    stream: id, is_end, ..
                } => {
                    assert!(!is_end);
                    self.stream(id).is_answered[1] = true;
                }
                Event::Writable(id) => self.write(index, id, 300),
                Event::Reset(id, _) => self.stream(id).take_reset(),
                Event::GoAway { last, .. } => {
                    self.ends[index].is_leaving = true;
                    assert!(last == 0 || self.streams.contains_key(&last) || index == 1);
                }
                Event::Readable(_) | Event::Pong(_) => {}
            }
        }
    }

    fn stream(&mut self, id: StreamId) -> &mut Stream {
        self.streams
            .get_mut(&id)
            .expect("one that the client has opened")
    }

    /// Has everything said, heard and read.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "they never come to rest");
            let mut moved = self.pass(0, usize::MAX) + self.pass(1, usize::MAX);
            for index in [0, 1] {
                self.hear(index);
                for id in self.streams.keys().copied().collect::<Vec<_>>() {
                    let before = self.streams[&id].ways[1 - index].read;
                    self.read(index, id, 16 * 1024);
                    moved += self.streams[&id].ways[1 - index].read - before;
                }
            }
            let has_output = self
                .ends
                .iter()
                .any(|end| !end.connection.output().is_empty());
            if moved == 0 && !has_output {
                break;
            }
        }
    }

    fn check_streams(&mut self) {
        for (id, stream) in &self.streams {
            if stream.is_reset {
                continue;
            }
            for way in &stream.ways {
                assert_eq!(
                    (way.read, way.is_ended),
                    (way.written, way.is_finished),
                    "{id}"
                );
            }
            let is_over = stream.ways.iter().all(|way| way.is_ended);
            for end in &self.ends {
                assert_eq!(end.connection.is_open(*id), !is_over, "{id}");
            }
        }
        // All windows have been given back, and nobody is before anybody else.
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            for index in [0, 1] {
                let stream = &self.streams[&id];
                if stream.is_reset || stream.ways[index].is_finished || !stream.is_answered[0] {
                    continue;
                }
                let before = stream.ways[index].written;
                self.write(index, id, 1);
                assert_eq!(self.streams[&id].ways[index].written, before + 1, "{id}");
                self.pass(index, usize::MAX);
            }
        }
        let open = self
            .streams
            .values()
            .filter(|stream| !stream.is_reset && !stream.ways.iter().all(|way| way.is_finished));
        let open_count = u32::try_from(open.count()).expect("few streams");
        assert_eq!(self.ends[0].connection.open_count(), open_count);
        assert_eq!(self.ends[1].connection.open_count(), open_count);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Open, tell, hear, write both ways, tell, read, end; then a reset.
    let visit: &[u8] = &[
        0, 0, 60, 255, 0xd8, 0, 60, 255, 0xd8, 255, 8, 3, 0x88, 3, 60, 3, 0xbc, 3, 60, 255, 0xa8,
        3, 40, 3, 110, 0, 0xee, 0,
    ];
    let reset: &[u8] = &[0, 0, 56, 255, 0xda, 1, 8, 7, 8, 3, 90, 1, 114, 0];
    [0x00, 0x11, 0x2a, 0x9f, 0x65]
        .iter()
        .map(|how| [&[*how], visit, visit, reset, visit].concat())
        .chain([vec![0xff, 0, 0]])
        .collect()
}
