//! Two ends that follow the protocol.

use std::io::ErrorKind;

use super::*;
use crate::wire::h2::ErrorCode;

#[test]
fn a_stream_is_opened_answered_ended_and_forgotten() {
    let mut pair = Pair::new();
    let id = pair.client.request(&REQUEST, false).unwrap();
    pair.pump();
    let Some(Event::Request {
        stream,
        fields,
        is_end,
    }) = pair.server.next_event()
    else {
        panic!("no request");
    };
    assert_eq!((stream, is_end), (id, false));
    let got: Vec<_> = fields
        .iter()
        .map(|field| (&field.name[..], &field.value[..]))
        .collect();
    assert_eq!(got, REQUEST);
    assert_eq!(
        pair.server.write(id, b"early").unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    pair.server.respond(id, &RESPONSE, false);
    assert_eq!(pair.client.write(id, b"question").unwrap(), 8);
    pair.client.finish(id).unwrap();
    assert_eq!(
        pair.client.write(id, b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    assert_eq!(
        pair.client.finish(id).unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    pair.pump();
    assert_eq!(pair.server.next_event(), Some(Event::Readable(id)));
    assert!(pair.server.has_ended(id));
    assert_eq!(pair.server.readable_size(id), 8);
    assert_eq!(pair.read(End::Server, id), (b"question".to_vec(), true));
    // One direction has ended; the other one lives.
    assert!(pair.server.is_open(id));
    pair.server.write(id, b"answer").unwrap();
    pair.server.finish(id).unwrap();
    assert!(!pair.server.is_open(id));
    pair.pump();
    assert!(matches!(
        pair.client.next_event(),
        Some(Event::Response { .. })
    ));
    assert_eq!(pair.client.next_event(), Some(Event::Readable(id)));
    assert_eq!(pair.read(End::Client, id), (b"answer".to_vec(), true));
    assert!(!pair.client.is_open(id));
    assert_eq!((pair.client.open_count(), pair.server.open_count()), (0, 0));
    assert!(pair.events(End::Client).is_empty());
}

#[test]
fn an_end_that_comes_with_the_head_needs_no_read() {
    let mut pair = Pair::new();
    let id = pair.client.request(&REQUEST, true).unwrap();
    pair.pump();
    assert!(matches!(
        pair.server.next_event(),
        Some(Event::Request { is_end: true, .. })
    ));
    pair.server.respond(id, &RESPONSE, true);
    assert!(!pair.server.is_open(id));
    pair.pump();
    assert!(matches!(
        pair.client.next_event(),
        Some(Event::Response { is_end: true, .. })
    ));
    assert!(!pair.client.is_open(id));
    assert!(pair.events(End::Server).is_empty() && pair.events(End::Client).is_empty());
}

#[test]
fn an_end_is_told_of_after_the_data_before_it_were_read() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.write(id, b"abc").unwrap();
    pair.pump();
    assert_eq!(pair.events(End::Server), [Event::Readable(id)]);
    pair.client.finish(id).unwrap();
    pair.pump();
    assert_eq!(pair.events(End::Server), [Event::Readable(id)]);
    // A reader that takes what a read gives for all there is.
    let mut buffer = [0; 100];
    assert_eq!(pair.server.read(id, &mut buffer, pair.now).unwrap(), 3);
    assert_eq!(pair.events(End::Server), [Event::Readable(id)]);
    assert_eq!(pair.server.read(id, &mut buffer, pair.now).unwrap(), 0);
    assert!(pair.events(End::Server).is_empty());
}

#[test]
fn readers_are_told_once_until_they_have_read_everything() {
    let mut pair = Pair::new();
    let id = pair.open();
    let mut buffer = [0; 4];
    for _ in 0..3 {
        pair.client.write(id, b"abc").unwrap();
        pair.pump();
    }
    assert_eq!(pair.events(End::Server), [Event::Readable(id)]);
    pair.server.read(id, &mut buffer, pair.now).unwrap();
    pair.client.write(id, b"abc").unwrap();
    pair.pump();
    assert!(pair.events(End::Server).is_empty());
    pair.read(End::Server, id);
    pair.client.write(id, b"abc").unwrap();
    pair.pump();
    assert_eq!(pair.events(End::Server), [Event::Readable(id)]);
}

#[test]
fn bulk_passes_both_ways_unchanged_however_it_is_cut() {
    let mut pair = Pair::new();
    let id = pair.open();
    let all = pattern(3_000_000);
    let ends = [(End::Client, End::Server), (End::Server, End::Client)];
    let (mut written, mut read) = ([0; 2], [Vec::new(), Vec::new()]);
    let mut rounds = 0;
    while read.iter().any(|read| read.len() < all.len()) {
        for (index, (from, to)) in ends.into_iter().enumerate() {
            let rest = &all[written[index]..];
            match pair.end(from).write(id, rest) {
                Ok(size) => written[index] += size,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            pair.move_bytes(from);
            read[index].extend_from_slice(&pair.read(to, id).0);
            pair.events(to);
        }
        rounds += 1;
        assert!(rounds < 10_000);
    }
    assert!(read[0] == all && read[1] == all);
}

#[test]
fn what_was_written_before_a_reset_arrives() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.write(id, b"last words").unwrap();
    pair.client.reset(id, ErrorCode::CANCEL);
    assert!(!pair.client.is_open(id));
    pair.pump();
    let reset = Event::Reset(id, ErrorCode::CANCEL);
    assert_eq!(pair.events(End::Server), [Event::Readable(id), reset]);
    let mut buffer = [0; 100];
    assert_eq!(
        pair.server.write(id, b"x").unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(pair.server.read(id, &mut buffer, pair.now).unwrap(), 10);
    let error = pair.server.read(id, &mut buffer, pair.now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(!pair.server.is_open(id));
    let error = pair.server.read(id, &mut buffer, pair.now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert_eq!(pair.server.open_count(), 0);
}

#[test]
fn a_reset_after_the_end_leaves_the_data_readable() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.server.write(id, b"all of it").unwrap();
    pair.server.finish(id).unwrap();
    pair.server.reset(id, ErrorCode::NO_ERROR);
    pair.pump();
    let events = pair.events(End::Client);
    assert!(
        events.contains(&Event::Reset(id, ErrorCode::NO_ERROR)),
        "{events:?}"
    );
    assert_eq!(pair.read(End::Client, id), (b"all of it".to_vec(), true));
    assert!(!pair.client.is_open(id));
}

#[test]
fn a_stream_that_was_reset_never_ends_in_order() {
    let mut pair = Pair::new();
    let id = pair.client.request(&REQUEST, false).unwrap();
    pair.pump();
    pair.events(End::Server);
    pair.server.respond(id, &RESPONSE, false);
    pair.server.write(id, b"a part").unwrap();
    pair.server.reset(id, ErrorCode::CANCEL);
    pair.pump();
    let (client, now) = (&mut pair.client, pair.now);
    let mut buffer = [0; 100];
    assert_eq!(client.read(id, &mut buffer, now).unwrap(), 6);
    // The response has not been taken, so the stream is there for as long as it is read.
    for _ in 0..3 {
        let error = client.read(id, &mut buffer, now).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(client.is_reset(id) && !client.has_ended(id));
    }
    pair.events(End::Client);
    assert!(!pair.client.is_open(id));
}

#[test]
fn frames_on_their_way_to_a_stream_that_was_reset_do_no_harm() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.write(id, &pattern(50_000)).unwrap();
    pair.client.finish(id).unwrap();
    pair.server.write(id, &pattern(50_000)).unwrap();
    pair.server.reset(id, ErrorCode::CANCEL);
    pair.client.reset(id, ErrorCode::CANCEL);
    pair.pump();
    assert!(pair.events(End::Server).is_empty() && pair.events(End::Client).is_empty());
    let other = pair.open();
    pair.client.write(other, b"fine").unwrap();
    pair.pump();
    assert_eq!(pair.read(End::Server, other), (b"fine".to_vec(), false));
}

#[test]
fn pings_are_answered_and_the_round_trip_is_measured() {
    let mut pair = Pair::new();
    pair.client.ping(*b"01234567");
    pair.pump();
    assert_eq!(pair.events(End::Client), [Event::Pong(*b"01234567")]);
    assert_eq!(pair.events(End::Server), []);
    assert!(pair.client.round_trip().is_some() && pair.server.round_trip().is_some());
    assert!(pair.client.has_peer_settings());
}

#[test]
fn a_large_block_of_fields_travels_in_several_frames() {
    let value = "v".repeat(120);
    let names: Vec<String> = (0..200)
        .map(|index| format!("x-field-number-{index}"))
        .collect();
    let mut list = REQUEST.to_vec();
    list.extend(names.iter().map(|name| (name.as_bytes(), value.as_bytes())));
    let settings = Settings {
        header_list_size_max: 100_000,
        ..Settings::default()
    };
    let mut pair = Pair::with(Settings::default(), settings);
    let id = pair.client.request(&list, false).unwrap();
    pair.pump();
    let Some(Event::Request { stream, fields, .. }) = pair.server.next_event() else {
        panic!("no request");
    };
    assert_eq!((stream, fields.len()), (id, list.len()));
}
