//! One end of an HTTP/2 connection whose peer says anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nodepass::limits::{H2_OUTPUT_EXCESS_MAX, H2_OUTPUT_EXCESS_PER_STREAM, H2_TURN_SIZE};
use nodepass::wire::h2::frame::{FrameHeader, FrameKind, HEADER_SIZE, PREFACE, StreamId};
use nodepass::wire::h2::{Connection, ConnectionError, ErrorCode, Event, Role, Settings};

use super::mutation::Xorshift;
use super::{recordings, take_byte, with_byte};

const REQUEST: [(&[u8], &[u8]); 4] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/"),
    (b":authority", b"none"),
];
const RESPONSE: [(&[u8], &[u8]); 1] = [(b":status", b"200")];

/// What is heard does not depend on how it is cut. Whatever the owner does meanwhile, counts and
/// output stay bounded, no event comes for ever, and after an error there is only that error.
///
/// The first byte is the role, whether the preface and the first settings are left out, and how the
/// input is cut; the second one is what the owner does.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let steps = take_byte(&mut input);
    let mut said = Vec::new();
    if how & 2 != 0 {
        if how & 1 == 0 {
            said.extend_from_slice(PREFACE);
        }
        said.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    }
    said.extend_from_slice(input);
    let piece_size = 1 + usize::from(how / 4) * 5;
    let whole = listen(end(how), &said, said.len().max(1));
    assert_eq!(listen(end(how), &said, piece_size), whole);
    serve(end(how), &said, piece_size, steps);
    whole.outcome.is_ok() && !whole.events.is_empty()
}

fn settings(how: u8) -> Settings {
    let (window, streams_max) = match how & 4 {
        0 => (1000, 3),
        _ => (256 * 1024, 100),
    };
    Settings {
        stream_window: window,
        streams_max,
        ..Settings::default()
    }
}

fn end(how: u8) -> Connection {
    if how & 1 == 0 {
        return Connection::new(Role::Server, settings(how));
    }
    let mut client = Connection::new(Role::Client, settings(how));
    for _ in 0..9 {
        client
            .request(&REQUEST, false)
            .expect("no limit is known yet");
    }
    client.sent(client.output().len());
    client
}

/// What an owner hears who says nothing.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    outcome: Result<(), ConnectionError>,
    events: Vec<Event>,
    data: BTreeMap<StreamId, Vec<u8>>,
    open_count: u32,
}

fn listen(mut end: Connection, said: &[u8], piece_size: usize) -> Heard {
    let now = Instant::now();
    let mut outcome = Ok(());
    for piece in said.chunks(piece_size) {
        outcome = end.receive(piece, now);
        if outcome.is_err() {
            assert_eq!(end.receive(&[0; 9], now), outcome);
            check_farewell(end.output());
            break;
        }
    }
    let open_count = end.open_count();
    let events: Vec<_> = std::iter::from_fn(|| end.next_event())
        .take(said.len() + 8)
        .collect();
    assert!(events.len() < said.len() + 8);
    let mut data = BTreeMap::new();
    let mut buffer = [0; 512];
    for event in &events {
        if let Event::Readable(id) = event {
            let all: &mut Vec<u8> = data.entry(*id).or_default();
            while let Ok(size @ 1..) = end.read(*id, &mut buffer, now) {
                all.extend_from_slice(&buffer[..size]);
            }
        }
    }
    assert!(data.values().map(Vec::len).sum::<usize>() <= said.len());
    Heard {
        outcome,
        events,
        data,
        open_count,
    }
}

/// Checks that the last frame of the output is a GOAWAY.
fn check_farewell(mut output: &[u8]) {
    let mut last = None;
    while let Some((header, rest)) = output.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::decode(header);
        (last, output) = (Some(header.kind), &rest[header.size..]);
    }
    assert_eq!((last, output), (Some(FrameKind::GoAway), &[][..]));
}

/// Does on each event and between them what an owner may, in an order that `steps` chooses.
fn serve(mut end: Connection, said: &[u8], piece_size: usize, steps: u8) {
    let mut steps = Xorshift::new(steps.into());
    let mut now = Instant::now();
    let settings = settings(u8::MAX);
    let per_stream = H2_OUTPUT_EXCESS_PER_STREAM * 100;
    let output_max = settings.output_room + H2_OUTPUT_EXCESS_MAX + per_stream + 2 * H2_TURN_SIZE;
    let mut known = Vec::new();
    for piece in said.chunks(piece_size) {
        now += Duration::from_millis(1 << steps.below(10));
        let outcome = end.receive(piece, now);
        let mut events_count = 0;
        while let Some(event) = end.next_event() {
            events_count += 1;
            assert!(events_count < 10_000);
            act(&mut end, &event, &mut known, now, &mut steps);
        }
        interfere(&mut end, &known, now, &mut steps);
        end.check_invariants();
        assert!(end.open_count() <= 100);
        assert!(end.output().len() < output_max);
        end.sent(steps.below(2 * end.output().len() + 1));
        if outcome.is_err() {
            break;
        }
    }
    for id in known {
        end.reset(id, ErrorCode::CANCEL);
        assert!(!end.is_open(id) && end.readable_size(id) == 0);
    }
}

fn act(
    end: &mut Connection,
    event: &Event,
    known: &mut Vec<StreamId>,
    now: Instant,
    steps: &mut Xorshift,
) {
    match *event {
        Event::Request { stream, .. } => {
            known.push(stream);
            end.respond(stream, &RESPONSE, steps.below(8) == 0);
        }
        Event::Response { stream, .. } => known.push(stream),
        Event::Readable(id) => {
            let mut buffer = [0; 333];
            while steps.below(6) > 0 && matches!(end.read(id, &mut buffer, now), Ok(1..)) {}
        }
        Event::Writable(id) => drop(end.write(id, &[1; 100])),
        Event::Reset(id, _) if steps.below(2) == 0 => end.reset(id, ErrorCode::CANCEL),
        Event::Reset(..) | Event::GoAway { .. } | Event::Pong(_) => {}
    }
}

fn interfere(end: &mut Connection, known: &[StreamId], now: Instant, steps: &mut Xorshift) {
    let id = match known.len() {
        0 => 1,
        count => known[steps.below(count)],
    };
    match steps.below(12) {
        0 => drop(end.finish(id)),
        1 | 2 => drop(end.write(id, &[7; 40_000])),
        3 => end.reset(id, ErrorCode::CANCEL),
        4 => end.hurry(id),
        5 => end.ping([steps.byte(); 8]),
        6 => drop(end.request(&REQUEST, steps.below(4) == 0)),
        7 if steps.below(20) == 0 => end.go_away(ErrorCode::NO_ERROR),
        8 => {
            let size = end.peek(id).map_or(0, <[u8]>::len);
            end.consume(id, steps.below(size + 2), now);
        }
        _ => {}
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for recording in &recordings::CONNECTIONS[4..] {
        for (how, side) in [(4, "client"), (13, "server")] {
            let said = &recordings::said(recording, side)[1];
            seeds.push(with_byte(how, &with_byte(3, said)));
        }
    }
    for (how, said) in (4..).zip(exchange()) {
        seeds.push(with_byte(how, &with_byte(5, &said)));
    }
    seeds
}

/// Returns what a client and a server say with everything in it.
fn exchange() -> [Vec<u8>; 2] {
    let mut ends =
        [Role::Client, Role::Server].map(|role| Connection::new(role, Settings::default()));
    let mut said = [Vec::new(), Vec::new()];
    let now = Instant::now();
    for index in 0..4 {
        let id = ends[0].request(&REQUEST, false).expect("a stream");
        ends[0].write(id, &[index; 700]).expect("room");
        ends[1].ping([index; 8]);
        pass(&mut ends, &mut said, now);
        while ends[1].next_event().is_some() {}
        ends[1].respond(id, &RESPONSE, false);
        ends[1].write(id, &[index; 900]).expect("room");
        pass(&mut ends, &mut said, now);
        if index % 2 == 0 {
            ends[0].finish(id).expect("it is open");
            ends[1].finish(id).expect("it is open");
        } else {
            ends[0].reset(id, ErrorCode::CANCEL);
        }
        pass(&mut ends, &mut said, now);
    }
    ends[1].go_away(ErrorCode::NO_ERROR);
    pass(&mut ends, &mut said, now);
    said
}

/// Moves what each end has to say to the other one.
fn pass(ends: &mut [Connection; 2], said: &mut [Vec<u8>; 2], now: Instant) {
    for index in [0, 1, 0, 1] {
        let output = ends[index].output().to_vec();
        ends[index].sent(output.len());
        ends[1 - index]
            .receive(&output, now)
            .expect("they understand each other");
        said[index].extend(output);
    }
}
