//! Many streams: their numbers, their turns, their memory.

use std::io::ErrorKind;

use super::*;
use crate::limits::H2_OUTPUT_ROOM;
use crate::wire::h2::ErrorCode;
use crate::wire::h2::NotOpened;
use crate::wire::h2::frame::STREAM_ID_MAX;

#[test]
fn five_thousand_streams_one_after_another_leave_nothing_behind() {
    let mut pair = Pair::new();
    for index in 0..5000_u32 {
        let id = pair.open();
        pair.client.write(id, b"request").unwrap();
        pair.server.write(id, b"answer").unwrap();
        pair.pump();
        if index % 5 == 0 {
            // A visitor that leaves at once, at 5,000 in a minute.
            pair.client.reset(id, ErrorCode::CANCEL);
        } else {
            pair.client.finish(id).unwrap();
            pair.server.finish(id).unwrap();
        }
        pair.pump();
        if index % 5 == 0 {
            pair.server.reset(id, ErrorCode::CANCEL);
        } else {
            assert_eq!(pair.read(End::Client, id), (b"answer".to_vec(), true));
            assert_eq!(pair.read(End::Server, id), (b"request".to_vec(), true));
        }
        pair.events(End::Client);
        pair.events(End::Server);
        pair.now += Duration::from_millis(12);
    }
    for end in [&pair.client, &pair.server] {
        assert_eq!((end.open_count(), end.streams.len()), (0, 0));
        let capacities = [
            end.streams.capacity(),
            end.events.capacity(),
            end.writers.capacity(),
            end.owed.capacity(),
            end.pings.capacity(),
        ];
        assert!(
            capacities.iter().all(|capacity| *capacity <= 256),
            "{capacities:?}"
        );
        assert!(
            end.output.capacity() <= 64 * 1024,
            "{}",
            end.output.capacity()
        );
        assert_eq!(end.growth, 0);
    }
}

#[test]
fn an_idle_stream_takes_little_memory() {
    let size = size_of::<super::super::stream::Stream>();
    assert!(size <= 256, "{size}");
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.write(id, &pattern(200_000)).unwrap();
    pair.pump();
    pair.read(End::Server, id);
    let stream = &pair.server.streams[&id];
    assert_eq!(stream.pieces.memory() + stream.heads.capacity(), 0);
}

#[test]
fn five_hundred_streams_at_once_work_side_by_side() {
    let mut pair = Pair::new();
    let ids: Vec<StreamId> = (0..500).map(|_| pair.open()).collect();
    for &id in &ids {
        pair.client.write(id, &id.to_be_bytes()).unwrap();
    }
    pair.pump();
    for &id in &ids {
        assert_eq!(
            pair.read(End::Server, id),
            (id.to_be_bytes().to_vec(), false)
        );
    }
    // All of them leave at once.
    for &id in &ids {
        pair.client.reset(id, ErrorCode::CANCEL);
    }
    pair.pump();
    let is_reset = |event: &Event| matches!(event, Event::Reset(_, ErrorCode::CANCEL));
    assert_eq!(
        pair.events(End::Server)
            .iter()
            .filter(|event| is_reset(event))
            .count(),
        500
    );
    assert_eq!(pair.server.open_count(), 0);
}

#[test]
fn a_reader_that_stalls_does_not_hold_up_another() {
    let mut pair = Pair::new();
    let (stalled, lively) = (pair.open(), pair.open());
    let all = pattern(1_000_000);
    let mut stalled_size = 0;
    while let Ok(size) = pair.client.write(stalled, &all[stalled_size..]) {
        stalled_size += size;
        pair.pump();
    }
    assert_eq!(stalled_size, 256 * 1024);
    // As much as the connection's window many times over.
    let mut read_size = 0;
    for _ in 0..40 {
        let mut written = 0;
        while written < all.len() {
            written += pair.client.write(lively, &all[written..]).unwrap();
            pair.pump();
            read_size += pair.read(End::Server, lively).0.len();
            pair.pump();
            pair.events(End::Client);
        }
    }
    read_size += pair.read(End::Server, lively).0.len();
    assert_eq!(read_size, 40_000_000);
    assert_eq!(pair.server.readable_size(stalled), 256 * 1024);
}

/// How an owner takes events.
#[derive(Clone, Copy, Debug)]
enum Habit {
    OneByOne,
    AllFirst,
}

#[test]
fn writers_take_turns() {
    for habit in [Habit::OneByOne, Habit::AllFirst] {
        let mut pair = Pair::new();
        let ids: Vec<StreamId> = (0..20).map(|_| pair.open()).collect();
        let mut written = vec![0_usize; 40];
        let chunk = pattern(300_000);
        let mut write = |pair: &mut Pair, id: StreamId| {
            loop {
                match pair.client.write(id, &chunk) {
                    Ok(size) => written[usize::try_from(id / 2).unwrap()] += size,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        return;
                    }
                }
            }
        };
        for &id in &ids {
            write(&mut pair, id);
        }
        for _ in 0..2000 {
            // The way takes little at a time, and the readers read everything.
            let size = pair.client.output().len().min(40_000);
            let bytes = pair.client.output()[..size].to_vec();
            pair.server.receive(&bytes, pair.now).unwrap();
            pair.client.sent(size);
            for &id in &ids {
                pair.read(End::Server, id);
            }
            pair.events(End::Server);
            pair.move_bytes(End::Server);
            match habit {
                Habit::OneByOne => {
                    while let Some(event) = pair.client.next_event() {
                        if let Event::Writable(id) = event {
                            write(&mut pair, id);
                        }
                    }
                }
                Habit::AllFirst => {
                    for event in pair.events(End::Client) {
                        if let Event::Writable(id) = event {
                            write(&mut pair, id);
                        }
                    }
                }
            }
            assert!(pair.client.output().len() <= H2_OUTPUT_ROOM + 20_000);
        }
        let sizes: Vec<usize> = ids.iter().map(|id| written[*id as usize / 2]).collect();
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(
            *least > 2_000_000 && most - least <= 600_000,
            "{habit:?}: {sizes:?}"
        );
    }
}

#[test]
fn what_others_depend_on_waits_for_no_turn() {
    let mut pair = Pair::new();
    let [urgent, bulk, waiting, new] = std::array::from_fn(|_| pair.open());
    pair.client.hurry(urgent);
    pair.client.write(waiting, b"has spoken").unwrap();
    // Nothing leaves from here on.
    while pair.client.write(bulk, &[0; 64 * 1024]).is_ok() {}
    let blocked = pair.client.write(waiting, b"x");
    assert_eq!(blocked.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(pair.client.write(urgent, b"ping").unwrap(), 4);
    assert_eq!(pair.client.write(urgent, b"ping").unwrap(), 4);
    assert_eq!(pair.client.write(new, b"name").unwrap(), 4);
    let blocked = pair.client.write(new, b"more");
    assert_eq!(blocked.unwrap_err().kind(), ErrorKind::WouldBlock);
    let size = pair.client.output().len();
    assert!(size <= H2_OUTPUT_ROOM + 32 * 1024, "{size}");
    while pair.client.write(urgent, &[0; 64 * 1024]).is_ok() {}
    let size = pair.client.output().len();
    assert!(size <= 2 * H2_OUTPUT_ROOM, "{size}");
}

#[test]
fn a_turn_that_is_not_used_passes_on() {
    let mut pair = Pair::new();
    let (first, second, third) = (pair.open(), pair.open(), pair.open());
    let chunk = pattern(1_000_000);
    // First words need no turn.
    pair.client.write(second, b"name").unwrap();
    pair.client.write(third, b"name").unwrap();
    while pair.client.write(first, &chunk[..100_000]).is_ok() {}
    while pair.client.output().len() < H2_OUTPUT_ROOM {
        pair.client.write(second, &chunk[..10_000]).unwrap();
    }
    assert!(pair.client.write(second, &chunk).is_err());
    assert!(pair.client.write(third, &chunk).is_err());
    pair.pump();
    pair.read(End::Server, first);
    pair.pump();
    let mut order = Vec::new();
    while let Some(event) = pair.client.next_event() {
        let Event::Writable(id) = event else {
            continue;
        };
        order.push(id);
        // Its source has nothing more.
        pair.client.write(id, &[]).unwrap();
    }
    order.sort_unstable();
    assert_eq!(order, [first, second, third]);
}

#[test]
fn numbers_run_out() {
    let settings = Settings {
        first_stream: STREAM_ID_MAX - 2,
        ..Settings::default()
    };
    let mut pair = Pair::with(settings, Settings::default());
    assert_eq!(pair.client.openable_count(), 2);
    let ids = [pair.open(), pair.open()];
    assert_eq!(ids, [STREAM_ID_MAX - 2, STREAM_ID_MAX]);
    assert_eq!(pair.client.request(&REQUEST, false), Err(NotOpened::NoIds));
    assert_eq!(pair.client.openable_count(), 0);
    assert!(!pair.client.is_spent());
    for id in ids {
        pair.client.reset(id, ErrorCode::CANCEL);
    }
    assert!(pair.client.is_spent());
    pair.pump();
    assert_eq!(pair.server.request(&REQUEST, false), Err(NotOpened::NoIds));
}

#[test]
fn no_more_streams_are_opened_than_the_peer_allows() {
    let settings = Settings {
        streams_max: 3,
        ..Settings::default()
    };
    let mut pair = Pair::with(Settings::default(), settings);
    let ids = [pair.open(), pair.open(), pair.open()];
    assert_eq!(
        pair.client.request(&REQUEST, false),
        Err(NotOpened::PeerLimit)
    );
    pair.client.reset(ids[1], ErrorCode::CANCEL);
    pair.pump();
    pair.events(End::Server);
    assert_eq!(pair.client.openable_count(), 1);
    pair.open();
    assert_eq!(
        pair.client.request(&REQUEST, false),
        Err(NotOpened::PeerLimit)
    );
}

#[test]
fn a_client_that_does_not_know_the_limit_yet_is_refused_and_may_try_again() {
    let settings = Settings {
        streams_max: 1,
        ..Settings::default()
    };
    let now = Instant::now();
    let mut client = Connection::new(Role::Client, Settings::default());
    let mut server = Connection::new(Role::Server, settings);
    let ids = [(); 2].map(|()| client.request(&REQUEST, false).unwrap());
    server.receive(client.output(), now).unwrap();
    client.receive(server.output(), now).unwrap();
    assert_eq!(
        client.next_event(),
        Some(Event::Reset(ids[1], ErrorCode::REFUSED_STREAM))
    );
    assert!(matches!(
        server.next_event(),
        Some(Event::Request { stream: 1, .. })
    ));
    assert_eq!(server.next_event(), None);
}

#[test]
fn a_farewell_refuses_the_streams_that_crossed_it() {
    let mut pair = Pair::new();
    let served = pair.open();
    pair.server.go_away(ErrorCode::NO_ERROR);
    let crossing = pair.client.request(&REQUEST, false).unwrap();
    pair.move_bytes(End::Server);
    let farewell = Event::GoAway {
        last: served,
        code: ErrorCode::NO_ERROR,
    };
    let refusal = Event::Reset(crossing, ErrorCode::REFUSED_STREAM);
    assert_eq!(pair.events(End::Client), [refusal, farewell]);
    assert_eq!(
        pair.client.request(&REQUEST, false),
        Err(NotOpened::GoingAway)
    );
    pair.client.reset(crossing, ErrorCode::CANCEL);
    pair.pump();
    assert!(pair.events(End::Server).is_empty());
    // The stream that is served goes on to its end.
    pair.client.write(served, b"still here").unwrap();
    pair.client.finish(served).unwrap();
    pair.pump();
    assert_eq!(
        pair.read(End::Server, served),
        (b"still here".to_vec(), true)
    );
    assert!(!pair.server.is_spent() && !pair.client.is_spent());
    pair.server.finish(served).unwrap();
    pair.pump();
    assert_eq!(pair.read(End::Client, served), (Vec::new(), true));
    assert!(pair.server.is_spent() && pair.client.is_spent());
}

#[test]
fn a_peer_that_does_not_read_gets_no_more_requests() {
    let mut client = Connection::new(Role::Client, Settings::default());
    let refusal = loop {
        match client.request(&REQUEST, false) {
            Ok(id) => client.reset(id, ErrorCode::CANCEL),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, NotOpened::Busy);
    assert!(client.output().len() < 512 * 1024);
}
