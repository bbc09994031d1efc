//! What a peer must not do, and what it may.

use super::*;
use crate::wire::h2::ErrorCode;
use crate::wire::h2::frame::{ACK, PADDED, PRIORITY, Setting};

const KINDS: [FrameKind; 11] = [
    FrameKind::Data,
    FrameKind::Headers,
    FrameKind::Priority,
    FrameKind::ResetStream,
    FrameKind::Settings,
    FrameKind::PushPromise,
    FrameKind::Ping,
    FrameKind::GoAway,
    FrameKind::WindowUpdate,
    FrameKind::Continuation,
    FrameKind::Unknown(0x77),
];

/// Asserts that `bytes` end the connection with `code`, and that the peer is told so.
#[track_caller]
fn assert_broken(lone: &mut Lone, bytes: &[u8], code: ErrorCode) {
    lone.connection.sent(lone.connection.output().len());
    let error = lone.connection.receive(bytes, lone.now).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert_eq!(lone.connection.receive(bytes, lone.now), Err(error));
    let (header, payload) = lone.frames().pop().unwrap();
    assert_eq!(header.kind, FrameKind::GoAway);
    assert_eq!(payload[4..], code.0.to_be_bytes());
    assert!(!error.to_string().is_empty());
}

/// Asserts that `bytes` make the end reset a stream with `code`, and nothing more.
#[track_caller]
fn assert_reset(lone: &mut Lone, bytes: &[u8], id: StreamId, code: ErrorCode) {
    lone.connection.sent(lone.connection.output().len());
    lone.connection.receive(bytes, lone.now).unwrap();
    let frames = lone.frames();
    let (header, payload) = frames.last().expect("nothing was sent");
    assert_eq!((header.kind, header.stream), (FrameKind::ResetStream, id));
    assert_eq!(payload[..], code.0.to_be_bytes());
    assert!(lone.connection.failure.is_none());
}

fn settings(setting: Setting) -> Vec<u8> {
    frame(FrameKind::Settings, 0, 0, &setting.encode())
}

#[test]
fn a_client_starts_with_the_preface_and_settings() {
    let now = Instant::now();
    let mut server = Connection::new(Role::Server, Settings::default());
    assert_eq!(
        server.receive(b"GET / HTTP", now).unwrap_err().code,
        ErrorCode::PROTOCOL_ERROR
    );
    let mut server = Connection::new(Role::Server, Settings::default());
    server.receive(&PREFACE[..20], now).unwrap();
    assert!(server.receive(b"SM\r\r", now).is_err());
    for role in [Role::Client, Role::Server] {
        for kind in KINDS {
            let mut end = Connection::new(role, Settings::default());
            if role == Role::Server {
                end.receive(PREFACE, now).unwrap();
            }
            let outcome = end.receive(&frame(kind, 0, 0, &[]), now);
            assert_eq!(outcome.is_ok(), kind == FrameKind::Settings, "{kind:?}");
        }
        let mut end = Connection::new(role, Settings::default());
        if role == Role::Server {
            end.receive(PREFACE, now).unwrap();
        }
        assert!(
            end.receive(&frame(FrameKind::Settings, ACK, 0, &[]), now)
                .is_err()
        );
    }
}

#[test]
fn both_ends_say_who_they_are() {
    let client = Connection::new(Role::Client, Settings::default());
    assert!(client.output().starts_with(PREFACE));
    let (header, payload) = split_frames(client.output()).remove(0);
    assert_eq!(header.kind, FrameKind::Settings);
    let (said, _) = payload.as_chunks();
    assert!(said.contains(&Setting::EnablePush(0).encode()));
    let server = Connection::new(Role::Server, Settings::default());
    let (header, payload) = split_frames(server.output()).remove(0);
    assert_eq!(header.kind, FrameKind::Settings);
    let (said, _) = payload.as_chunks();
    assert!(said.contains(&Setting::StreamsMax(Settings::default().streams_max).encode()));
}

#[test]
fn a_frame_has_a_largest_size() {
    for kind in KINDS {
        let mut lone = Lone::server();
        lone.open(1);
        let header = FrameHeader {
            size: 16_385,
            kind,
            flags: 0,
            stream: 1,
        }
        .encode();
        assert_broken(&mut lone, &header, ErrorCode::FRAME_SIZE_ERROR);
    }
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&data(1, &[0; 16_384])).unwrap();
}

#[test]
fn frames_have_their_sizes() {
    let sizes = [
        (FrameKind::Priority, 1, 4),
        (FrameKind::Priority, 1, 6),
        (FrameKind::ResetStream, 1, 3),
        (FrameKind::ResetStream, 1, 5),
        (FrameKind::Settings, 0, 5),
        (FrameKind::Settings, 0, 7),
        (FrameKind::Ping, 0, 7),
        (FrameKind::Ping, 0, 9),
        (FrameKind::Ping, 0, 0),
        (FrameKind::GoAway, 0, 7),
        (FrameKind::WindowUpdate, 0, 3),
        (FrameKind::WindowUpdate, 1, 5),
    ];
    for (kind, id, size) in sizes {
        let mut lone = Lone::server();
        lone.open(1);
        assert_broken(
            &mut lone,
            &frame(kind, 0, id, &vec![1; size]),
            ErrorCode::FRAME_SIZE_ERROR,
        );
    }
    let mut lone = Lone::server();
    let bytes = frame(FrameKind::Settings, ACK, 0, &[0; 6]);
    assert_broken(&mut lone, &bytes, ErrorCode::FRAME_SIZE_ERROR);
}

#[test]
fn frames_belong_to_a_stream_or_to_the_connection() {
    let of_connection = [
        (FrameKind::Settings, 0),
        (FrameKind::Ping, 8),
        (FrameKind::GoAway, 8),
    ];
    for (kind, size) in of_connection {
        let mut lone = Lone::server();
        lone.open(1);
        assert_broken(
            &mut lone,
            &frame(kind, 0, 1, &vec![0; size]),
            ErrorCode::PROTOCOL_ERROR,
        );
    }
    let of_stream = [
        (FrameKind::Data, 3),
        (FrameKind::Headers, 3),
        (FrameKind::Priority, 5),
        (FrameKind::ResetStream, 4),
        (FrameKind::PushPromise, 4),
        (FrameKind::Continuation, 4),
    ];
    for (kind, size) in of_stream {
        for mut lone in [Lone::server(), Lone::client()] {
            assert_broken(
                &mut lone,
                &frame(kind, 0, 0, &vec![0; size]),
                ErrorCode::PROTOCOL_ERROR,
            );
        }
    }
}

#[test]
fn nothing_comes_on_a_stream_that_was_never_opened() {
    for kind in [
        FrameKind::Data,
        FrameKind::ResetStream,
        FrameKind::WindowUpdate,
    ] {
        for id in [2, 5, 0x7fff_ffff] {
            for mut lone in [Lone::server(), Lone::client()] {
                assert_broken(
                    &mut lone,
                    &number_frame(kind, id, 1),
                    ErrorCode::PROTOCOL_ERROR,
                );
            }
        }
    }
    // A priority may come for any stream.
    Lone::server()
        .take(&frame(FrameKind::Priority, 0, 7, &[0; 5]))
        .unwrap();
    for id in [2, 3] {
        let mut lone = Lone::client();
        let bytes = lone.headers(id, 0, &RESPONSE);
        assert_broken(&mut lone, &bytes, ErrorCode::PROTOCOL_ERROR);
    }
    let mut lone = Lone::server();
    let bytes = lone.headers(2, 0, &REQUEST);
    assert_broken(&mut lone, &bytes, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn pushes_are_refused() {
    for mut lone in [Lone::server(), Lone::client()] {
        let bytes = frame(FrameKind::PushPromise, END_HEADERS, 1, &[0, 0, 0, 2]);
        assert_broken(&mut lone, &bytes, ErrorCode::PROTOCOL_ERROR);
    }
    for (value, is_right) in [(0, true), (1, false), (2, false)] {
        let outcome = Lone::client().take(&settings(Setting::EnablePush(value)));
        assert_eq!(outcome.is_ok(), is_right);
    }
    for (value, is_right) in [(0, true), (1, true), (2, false)] {
        let outcome = Lone::server().take(&settings(Setting::EnablePush(value)));
        assert_eq!(outcome.is_ok(), is_right);
    }
}

#[test]
fn settings_have_their_ranges() {
    let outcome = |setting| {
        Lone::server()
            .take(&settings(setting))
            .map_err(|error| error.code)
    };
    assert_eq!(outcome(Setting::StreamWindow(0)), Ok(()));
    assert_eq!(outcome(Setting::StreamWindow(0x7fff_ffff)), Ok(()));
    let flow = Err(ErrorCode::FLOW_CONTROL_ERROR);
    assert_eq!(outcome(Setting::StreamWindow(0x8000_0000)), flow);
    let protocol = Err(ErrorCode::PROTOCOL_ERROR);
    assert_eq!(outcome(Setting::FrameSizeMax(16_383)), protocol);
    assert_eq!(outcome(Setting::FrameSizeMax(16_384)), Ok(()));
    assert_eq!(outcome(Setting::FrameSizeMax(0x00ff_ffff)), Ok(()));
    assert_eq!(outcome(Setting::FrameSizeMax(0x0100_0000)), protocol);
    assert_eq!(outcome(Setting::Unknown(0x99, 1)), Ok(()));
    assert_eq!(outcome(Setting::HeaderTableSize(u32::MAX)), Ok(()));
}

#[test]
fn settings_are_acknowledged_once_each() {
    let mut lone = Lone::server();
    let is_acknowledgement =
        |frame: &&(FrameHeader, Vec<u8>)| frame.0.kind == FrameKind::Settings && frame.0.has(ACK);
    let bytes = settings(Setting::StreamsMax(7)).repeat(3);
    assert_eq!(
        lone.frames_after(&bytes)
            .iter()
            .filter(is_acknowledgement)
            .count(),
        3
    );
    assert!(
        lone.frames_after(&frame(FrameKind::Settings, ACK, 0, &[]))
            .is_empty()
    );
}

#[test]
fn a_block_of_fields_is_not_interrupted() {
    let mut lone = Lone::server();
    let block = lone.block(&REQUEST);
    let start = frame(FrameKind::Headers, 0, 1, &block[..10]);
    for kind in KINDS {
        let mut lone = Lone::server();
        lone.take(&start).unwrap();
        // Also a continuation of another stream.
        let id = if kind == FrameKind::Continuation {
            3
        } else {
            1
        };
        assert_broken(
            &mut lone,
            &frame(kind, 0, id, &[0; 8]),
            ErrorCode::PROTOCOL_ERROR,
        );
    }
    let mut lone = Lone::server();
    lone.open(1);
    let bytes = frame(FrameKind::Continuation, END_HEADERS, 1, &[]);
    assert_broken(&mut lone, &bytes, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn a_block_of_fields_may_come_in_parts_with_padding_and_priority() {
    let mut lone = Lone::server();
    let block = lone.block(&REQUEST);
    let start = [&[4][..], &[0; 5], &block[..5], &[0; 4]].concat();
    lone.take(&frame(
        FrameKind::Headers,
        PADDED | PRIORITY | END_STREAM,
        1,
        &start,
    ))
    .unwrap();
    lone.take(&frame(FrameKind::Continuation, 0, 1, &block[5..10]))
        .unwrap();
    lone.take(&frame(FrameKind::Continuation, 0, 1, &[]))
        .unwrap();
    assert_eq!(lone.connection.next_event(), None);
    lone.take(&frame(
        FrameKind::Continuation,
        END_HEADERS,
        1,
        &block[10..],
    ))
    .unwrap();
    let event = lone.connection.next_event();
    assert!(
        matches!(
            event,
            Some(Event::Request {
                stream: 1,
                is_end: true,
                ..
            })
        ),
        "{event:?}"
    );
}

#[test]
fn padding_is_no_longer_than_its_frame() {
    for kind in [FrameKind::Data, FrameKind::Headers] {
        for payload in [&b""[..], b"\x01", b"\x04abc"] {
            let mut lone = Lone::server();
            lone.open(1);
            let bytes = frame(kind, PADDED | END_HEADERS, 1, payload);
            assert_broken(&mut lone, &bytes, ErrorCode::PROTOCOL_ERROR);
        }
    }
}

#[test]
fn padding_of_data_is_no_data_and_counts_for_the_window() {
    let mut lone = Lone::server();
    lone.open(1);
    let padded = [&[100][..], b"abc", &[0; 100]].concat();
    let bytes = frame(FrameKind::Data, PADDED, 1, &padded).repeat(5000);
    // More than the window, but padding is given back.
    for part in bytes.chunks(7777) {
        lone.take(part).unwrap();
    }
    assert_eq!(lone.connection.readable_size(1), 15_000);
    let (read, _) = read_all(&mut lone.connection, 1, lone.now);
    assert_eq!(read, b"abc".repeat(5000));
    lone.take(&frame(
        FrameKind::Data,
        PADDED | END_STREAM,
        1,
        &[2, b'x', 0, 0],
    ))
    .unwrap();
    assert_eq!(
        read_all(&mut lone.connection, 1, lone.now),
        (b"x".to_vec(), true)
    );
}

#[test]
fn frames_of_unknown_kind_or_flags_are_ignored() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&frame(FrameKind::Unknown(0xfe), 0xff, 1, &[7; 10_000]))
        .unwrap();
    lone.take(&frame(FrameKind::Unknown(0xfe), 0, 0, &[]))
        .unwrap();
    lone.take(&frame(FrameKind::Ping, 0xfe, 0, &[0; 8]))
        .unwrap();
    lone.take(&frame(FrameKind::Data, 0xf6, 1, b"abc")).unwrap();
    assert_eq!(read_all(&mut lone.connection, 1, lone.now).0, b"abc");
}

#[test]
fn malformed_requests_are_reset_and_not_told_of() {
    let lists: [&[(&[u8], &[u8])]; 4] = [
        &REQUEST[1..],
        &[REQUEST[0], REQUEST[1], REQUEST[2], (b"Upper", b"x")],
        &[
            REQUEST[0],
            REQUEST[1],
            REQUEST[2],
            (b"connection", b"close"),
        ],
        &[],
    ];
    let mut lone = Lone::server();
    for (list, id) in lists.into_iter().zip((1..).step_by(2)) {
        let bytes = lone.headers(id, 0, list);
        assert_reset(&mut lone, &bytes, id, ErrorCode::PROTOCOL_ERROR);
        assert_eq!(lone.connection.next_event(), None);
        assert!(!lone.connection.is_open(id));
        // What was on its way is ignored.
        lone.take(&last_data(id, b"body")).unwrap();
    }
    assert_eq!(lone.connection.open_count(), 0);
}

#[test]
fn a_body_has_the_size_that_was_said() {
    let list = [&REQUEST[..], &[(b"content-length", b"5")]].concat();
    for (bodies, is_right) in [
        (vec![last_data(1, b"12345")], true),
        (vec![data(1, b"123"), last_data(1, b"45")], true),
        (vec![data(1, b"12345"), last_data(1, b"")], true),
        (vec![last_data(1, b"1234")], false),
        (vec![last_data(1, b"123456")], false),
        (vec![data(1, b"123456")], false),
        (vec![data(1, b"123"), last_data(1, b"")], false),
    ] {
        let mut lone = Lone::server();
        let head = lone.headers(1, 0, &list);
        lone.take(&head).unwrap();
        assert!(lone.connection.next_event().is_some());
        lone.take(&bodies.concat()).unwrap();
        let is_reset = |event| matches!(event, Event::Reset(1, ErrorCode::PROTOCOL_ERROR));
        let has_reset = std::iter::from_fn(|| lone.connection.next_event()).any(is_reset);
        assert_eq!(has_reset, !is_right, "{bodies:?}");
    }
    let mut lone = Lone::server();
    let head = lone.headers(1, END_STREAM, &list);
    assert_reset(&mut lone, &head, 1, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn nothing_comes_after_the_end_of_a_stream() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&last_data(1, b"abc")).unwrap();
    assert_reset(&mut lone, &data(1, b"more"), 1, ErrorCode::STREAM_CLOSED);
    // What had come is not lost.
    assert_eq!(read_all(&mut lone.connection, 1, lone.now).0, b"abc");
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&last_data(1, b"abc")).unwrap();
    let bytes = lone.headers(1, END_STREAM, &[(b"a", b"b")]);
    assert_reset(&mut lone, &bytes, 1, ErrorCode::STREAM_CLOSED);
}

#[test]
fn streams_that_are_over_take_late_frames_and_no_new_request() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.open(7);
    lone.connection.reset(1, ErrorCode::CANCEL);
    for id in [1, 3, 5] {
        lone.take(&number_frame(FrameKind::WindowUpdate, id, 5))
            .unwrap();
        lone.take(&number_frame(FrameKind::ResetStream, id, 8))
            .unwrap();
        lone.take(&data(id, b"late")).unwrap();
        let trailers = lone.headers(id, END_STREAM, &[(b"a", b"b")]);
        lone.take(&trailers).unwrap();
    }
    assert_eq!(lone.connection.next_event(), None);
    let bytes = lone.headers(3, 0, &REQUEST);
    assert_broken(&mut lone, &bytes, ErrorCode::STREAM_CLOSED);
}

#[test]
fn a_response_that_comes_after_a_reset_is_ignored() {
    let mut lone = Lone::client();
    lone.connection.reset(1, ErrorCode::CANCEL);
    let bytes = lone.headers(1, 0, &[(b":status", b"200"), (b"x-a", b"1")]);
    lone.take(&bytes).unwrap();
    lone.take(&last_data(1, b"late")).unwrap();
    assert_eq!(lone.connection.next_event(), None);
}

#[test]
fn interim_responses_come_before_the_final_one() {
    let mut lone = Lone::client();
    let interim = lone.headers(1, 0, &[(b":status", b"103")]);
    lone.take(&interim.repeat(2)).unwrap();
    let last = lone.headers(1, 0, &RESPONSE);
    lone.take(&last).unwrap();
    for status in [&b"103"[..], b"103", b"200"] {
        let Some(Event::Response { fields, .. }) = lone.connection.next_event() else {
            panic!("no response");
        };
        assert_eq!(fields[0].value, status);
    }
    lone.take(&data(1, b"body")).unwrap();
    assert_eq!(read_all(&mut lone.connection, 1, lone.now).0, b"body");
}

#[test]
fn malformed_responses_are_reset_and_told_of() {
    let wrong: [&[(&[u8], &[u8])]; 3] = [&[], &[(b":status", b"2")], &[(b":path", b"/")]];
    for list in wrong {
        let mut lone = Lone::client();
        let bytes = lone.headers(1, 0, list);
        assert_reset(&mut lone, &bytes, 1, ErrorCode::PROTOCOL_ERROR);
        let event = lone.connection.next_event();
        assert_eq!(event, Some(Event::Reset(1, ErrorCode::PROTOCOL_ERROR)));
    }
    let mut lone = Lone::client();
    assert_reset(&mut lone, &data(1, b"body"), 1, ErrorCode::PROTOCOL_ERROR);
    let mut lone = Lone::client();
    let bytes = lone.headers(1, END_STREAM, &[(b":status", b"100")]);
    assert_reset(&mut lone, &bytes, 1, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn other_answers_than_200_are_for_the_owner_to_judge() {
    let mut lone = Lone::client();
    let bytes = lone.headers(1, END_STREAM, &[(b":status", b"503")]);
    lone.take(&bytes).unwrap();
    assert!(matches!(
        lone.connection.next_event(),
        Some(Event::Response { is_end: true, .. })
    ));
}

#[test]
fn trailers_end_a_direction() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&data(1, b"abc")).unwrap();
    let bytes = lone.headers(1, END_STREAM, &[(b"x-sum", b"6")]);
    lone.take(&bytes).unwrap();
    assert_eq!(
        read_all(&mut lone.connection, 1, lone.now),
        (b"abc".to_vec(), true)
    );
    for (flags, list) in [(0, (&b"a"[..], &b"b"[..])), (END_STREAM, (b":path", b"/"))] {
        let mut lone = Lone::server();
        lone.open(1);
        let bytes = lone.headers(1, flags, &[list]);
        assert_reset(&mut lone, &bytes, 1, ErrorCode::PROTOCOL_ERROR);
    }
}

#[test]
fn windows_do_not_overflow() {
    let mut lone = Lone::server();
    lone.open(1);
    let update = |id, by| number_frame(FrameKind::WindowUpdate, id, by);
    lone.take(&update(1, 0x7fff_ffff - 0xffff)).unwrap();
    assert_reset(&mut lone, &update(1, 1), 1, ErrorCode::FLOW_CONTROL_ERROR);
    lone.take(&update(0, 0x7fff_ffff - 0xffff)).unwrap();
    assert_broken(&mut lone, &update(0, 1), ErrorCode::FLOW_CONTROL_ERROR);
    let mut lone = Lone::server();
    lone.open(1);
    lone.take(&update(1, 0x7fff_ffff - 0xffff)).unwrap();
    let bytes = settings(Setting::StreamWindow(0x1_0000));
    assert_broken(&mut lone, &bytes, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn an_update_of_nothing_is_an_error() {
    let mut lone = Lone::server();
    lone.open(1);
    let update = |id| number_frame(FrameKind::WindowUpdate, id, 0);
    assert_reset(&mut lone, &update(1), 1, ErrorCode::PROTOCOL_ERROR);
    assert_broken(&mut lone, &update(0), ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn nobody_sends_more_than_the_window() {
    let settings = Settings {
        stream_window: 100_000,
        stream_window_max: 100_000,
        connection_window: 200_000,
        ..Settings::default()
    };
    let mut lone = Lone::with(Role::Server, settings.clone());
    lone.open(1);
    lone.take(&data(1, &[0; 10_000]).repeat(10)).unwrap();
    assert_reset(&mut lone, &data(1, &[0]), 1, ErrorCode::FLOW_CONTROL_ERROR);
    assert_eq!(lone.connection.readable_size(1), 0);
    // That of the connection is given back only when a call is over.
    let mut lone = Lone::with(Role::Server, settings);
    lone.open(1);
    let bytes = data(1, &[0; 10_000]).repeat(21);
    assert_broken(&mut lone, &bytes, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn a_block_that_cannot_be_decoded_ends_the_connection() {
    let mut lone = Lone::server();
    let bytes = frame(FrameKind::Headers, END_HEADERS, 1, &[0xff; 40]);
    assert_broken(&mut lone, &bytes, ErrorCode::COMPRESSION_ERROR);
}

#[test]
fn a_broken_connection_lets_nothing_pass() {
    let mut lone = Lone::client();
    let response = lone.headers(1, 0, &RESPONSE);
    lone.take(&response).unwrap();
    lone.take(&data(1, b"read me")).unwrap();
    assert!(lone.take(&data(0, b"x")).is_err());
    let kind = |error: std::io::Error| error.kind();
    let aborted = ErrorKind::ConnectionAborted;
    assert_eq!(lone.connection.write(1, b"x").map_err(kind), Err(aborted));
    assert_eq!(lone.connection.finish(1).map_err(kind), Err(aborted));
    let mut buffer = [0; 10];
    assert_eq!(lone.connection.read(1, &mut buffer, lone.now).unwrap(), 7);
    assert_eq!(
        lone.connection.read(1, &mut buffer, lone.now).map_err(kind),
        Err(aborted)
    );
    assert!(lone.connection.request(&REQUEST, false).is_err());
    lone.connection.reset(1, ErrorCode::CANCEL);
    lone.connection.ping([0; 8]);
    assert!(lone.frames().is_empty());
    assert!(lone.connection.is_spent());
}
