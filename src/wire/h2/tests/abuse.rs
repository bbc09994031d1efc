//! The known ways to make an end of HTTP/2 work for nothing, one test each.

use super::*;
use crate::limits::{
    H2_EMPTY_FRAMES_BURST, H2_HEADER_LIST_SIZE_MAX, H2_OUTPUT_ROOM, H2_PINGS_BURST,
    H2_PINGS_PER_SECOND, H2_RESETS_BURST, H2_SETTINGS_BURST, H2_UPDATES_BURST,
};
use crate::wire::h2::ErrorCode;
use crate::wire::h2::frame::{ACK, PADDED, Setting};

/// Takes what `bytes` makes until it is refused; returns how often it was not.
fn count_until_refused(lone: &mut Lone, mut bytes: impl FnMut(&mut Lone, u32) -> Vec<u8>) -> u32 {
    for count in 0..100_000 {
        let bytes = bytes(lone, count);
        if let Err(error) = lone.take(&bytes) {
            assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM, "{error}");
            return count;
        }
    }
    panic!("never refused");
}

const STREAMS_MAX: u32 = crate::limits::H2_STREAMS_MAX;

#[test]
fn rapid_resets_are_stopped() {
    let mut lone = Lone::server();
    let request_and_reset = |lone: &mut Lone, count: u32| {
        let id = 2 * count + 1;
        let reset = number_frame(FrameKind::ResetStream, id, 8);
        [lone.headers(id, 0, &REQUEST), reset].concat()
    };
    let count = count_until_refused(&mut lone, request_and_reset);
    assert_eq!(count, H2_RESETS_BURST + 2 * STREAMS_MAX);
    // Nothing is kept of them.
    assert!(lone.connection.streams.len() <= 1);
}

#[test]
fn resets_after_an_answer_are_borne_longer() {
    let mut lone = Lone::server();
    let count = count_until_refused(&mut lone, |lone, count| {
        let id = 2 * count + 1;
        while let Some(event) = lone.connection.next_event() {
            if let Event::Reset(id, _) = event {
                lone.connection.reset(id, ErrorCode::CANCEL);
            }
        }
        lone.open(id);
        number_frame(FrameKind::ResetStream, id, 8)
    });
    assert_eq!(count, 10 * (H2_RESETS_BURST + 2 * STREAMS_MAX));
}

#[test]
fn resets_that_the_peer_makes_us_send_are_stopped() {
    let mut lone = Lone::server();
    let request_and_mistake = |lone: &mut Lone, count: u32| {
        let id = 2 * count + 1;
        let mistake = number_frame(FrameKind::WindowUpdate, id, 0);
        [lone.headers(id, 0, &REQUEST), mistake].concat()
    };
    let count = count_until_refused(&mut lone, request_and_mistake);
    assert_eq!(count, H2_RESETS_BURST + 2 * STREAMS_MAX);
    let mut lone = Lone::server();
    let malformed = |lone: &mut Lone, count: u32| lone.headers(2 * count + 1, 0, &REQUEST[..1]);
    let count = count_until_refused(&mut lone, malformed);
    assert_eq!(count, H2_RESETS_BURST + 2 * STREAMS_MAX);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_then_stopped() {
    let mut lone = Lone::server();
    let count = count_until_refused(&mut lone, |lone, count| {
        lone.headers(2 * count + 1, 0, &REQUEST)
    });
    assert_eq!(count, STREAMS_MAX + H2_RESETS_BURST + 2 * STREAMS_MAX);
    assert_eq!(lone.connection.open_count(), STREAMS_MAX);
}

#[test]
fn a_flood_of_settings_is_stopped() {
    let bytes = frame(
        FrameKind::Settings,
        0,
        0,
        &Setting::StreamWindow(7).encode().repeat(2000),
    );
    let mut lone = Lone::server();
    for id in (1..1000).step_by(2) {
        lone.open(id);
    }
    let count = count_until_refused(&mut lone, |_, _| bytes.clone());
    // One came at the start.
    assert_eq!(count, H2_SETTINGS_BURST - 1);
}

#[test]
fn a_flood_of_pings_is_stopped_and_a_steady_ping_is_not() {
    let ping = frame(FrameKind::Ping, 0, 0, &[1; 8]);
    let count = count_until_refused(&mut Lone::server(), |_, _| ping.clone());
    assert_eq!(count, H2_PINGS_BURST);
    let acknowledgement = frame(FrameKind::Ping, ACK, 0, &[0xaa; 8]);
    let count = count_until_refused(&mut Lone::server(), |_, _| acknowledgement.clone());
    assert_eq!(count, H2_PINGS_BURST);
    let mut lone = Lone::server();
    for _ in 0..10_000 {
        lone.take(&ping).unwrap();
        lone.advance(Duration::from_secs(1) / H2_PINGS_PER_SECOND);
    }
}

#[test]
fn data_without_a_byte_are_stopped() {
    for bytes in [
        data(1, &[]),
        frame(FrameKind::Data, PADDED, 1, &[3, 0, 0, 0]),
    ] {
        let mut lone = Lone::server();
        lone.open(1);
        let count = count_until_refused(&mut lone, |_, _| bytes.clone());
        assert_eq!(count, H2_EMPTY_FRAMES_BURST + 2 * STREAMS_MAX);
    }
}

#[test]
fn priorities_and_unknown_frames_are_stopped() {
    for (kind, size) in [(FrameKind::Priority, 5), (FrameKind::Unknown(0x20), 0)] {
        let bytes = frame(kind, 0, 1, &vec![0; size]);
        let count = count_until_refused(&mut Lone::server(), |_, _| bytes.clone());
        assert_eq!(count, H2_EMPTY_FRAMES_BURST + 2 * STREAMS_MAX);
    }
}

#[test]
fn repeated_farewells_are_stopped() {
    let bytes = frame(FrameKind::GoAway, 0, 0, &[0; 8]);
    let count = count_until_refused(&mut Lone::client(), |lone, _| {
        while lone.connection.next_event().is_some() {}
        bytes.clone()
    });
    assert_eq!(count, H2_EMPTY_FRAMES_BURST + 2 * STREAMS_MAX + 1);
}

#[test]
fn endless_interim_responses_are_stopped() {
    let mut lone = Lone::client();
    let count = count_until_refused(&mut lone, |lone, _| {
        while lone.connection.next_event().is_some() {}
        lone.headers(1, 0, &[(b":status", b"103")])
    });
    assert_eq!(count, H2_EMPTY_FRAMES_BURST + 2 * STREAMS_MAX);
    // Those that nobody takes are bounded much lower.
    let mut lone = Lone::client();
    let bytes = lone.headers(1, 0, &[(b":status", b"103")]).repeat(100);
    lone.take(&bytes).unwrap();
    assert!(lone.connection.streams[&1].heads.len() < 10);
    assert!(lone.connection.streams[&1].reset.is_some());
}

#[test]
fn a_flood_of_continuations_is_stopped() {
    for part in [&[][..], &[0; 4]] {
        let mut lone = Lone::server();
        lone.take(&frame(FrameKind::Headers, 0, 1, &[])).unwrap();
        let bytes = frame(FrameKind::Continuation, 0, 1, part);
        assert_eq!(count_until_refused(&mut lone, |_, _| bytes.clone()), 8);
    }
}

#[test]
fn a_block_of_fields_that_is_too_large_is_not_kept() {
    let mut lone = Lone::server();
    lone.take(&frame(FrameKind::Headers, 0, 1, &[0; 16_384]))
        .unwrap();
    let bytes = frame(FrameKind::Continuation, 0, 1, &[0; 16_384]);
    assert_eq!(count_until_refused(&mut lone, |_, _| bytes.clone()), 1);
    assert!(lone.connection.block.is_none());
}

#[test]
fn a_list_of_fields_that_is_too_large_costs_its_stream() {
    let value = [b'v'; 100];
    let mut list = REQUEST.to_vec();
    list.extend([(&b"x-field"[..], &value[..]); H2_HEADER_LIST_SIZE_MAX / 100]);
    let mut lone = Lone::server();
    let block = lone.block(&list);
    let (first, rest) = block.split_at(block.len().min(16_000));
    let start = frame(FrameKind::Headers, 0, 1, first);
    let end = frame(FrameKind::Continuation, END_HEADERS, 1, rest);
    lone.take(&[start, end].concat()).unwrap();
    assert_eq!(lone.connection.next_event(), None);
    assert!(!lone.connection.is_open(1));
    // The tables of both ends are still equal.
    lone.open(3);
}

#[test]
fn tiny_updates_of_windows_are_stopped() {
    let bytes = number_frame(FrameKind::WindowUpdate, 0, 1);
    let count = count_until_refused(&mut Lone::server(), |_, _| bytes.clone());
    assert_eq!(count, H2_UPDATES_BURST);
    // Also when each of them lets a byte pass.
    let mut lone = Lone::server();
    lone.open(1);
    let chunk = [0; 70_000];
    lone.take(&number_frame(FrameKind::WindowUpdate, 0, 1 << 20))
        .unwrap();
    assert_eq!(lone.connection.write(1, &chunk).unwrap(), 65_535);
    let bytes = number_frame(FrameKind::WindowUpdate, 1, 1);
    let count = count_until_refused(&mut lone, |lone, _| {
        let _ = lone.connection.write(1, &chunk);
        lone.connection.next_event();
        bytes.clone()
    });
    assert!(count <= H2_UPDATES_BURST, "{count}");
}

#[test]
fn updates_that_data_account_for_never_stop() {
    // One for the stream and one for the connection, for each 4 KiB and for each small frame.
    for size in [1_usize, 100, 4096, 16_000] {
        let mut lone = Lone::server();
        lone.open(1);
        let chunk = vec![0; size];
        for _ in 0..20_000 {
            lone.connection.write(1, &chunk).unwrap();
            lone.connection.sent(lone.connection.output().len());
            for part in chunk.chunks(4096) {
                let increment = u32::try_from(part.len()).unwrap();
                for id in [0, 1] {
                    lone.take(&number_frame(FrameKind::WindowUpdate, id, increment))
                        .unwrap();
                }
            }
        }
    }
}

#[test]
fn a_small_block_that_stands_for_a_large_list_costs_its_stream() {
    let mut lone = Lone::server();
    let value = [b'v'; 3900];
    let fields = [&REQUEST[..], &[(b"x-bomb", &value)]].concat();
    let first = lone.headers(1, 0, &fields);
    lone.take(&first).unwrap();
    assert!(matches!(
        lone.connection.next_event(),
        Some(Event::Request { .. })
    ));
    // Each octet names the last entry of the table, or its name.
    let (start, rest) = (lone.block(&REQUEST), [0xbe; 12_000]);
    let bytes = frame(
        FrameKind::Headers,
        END_HEADERS,
        3,
        &[&start[..], &rest].concat(),
    );
    let frames = lone.frames_after(&bytes);
    assert!(frames.iter().any(|(header, payload)| {
        (header.kind, header.stream) == (FrameKind::ResetStream, 3)
            && payload[..] == ErrorCode::ENHANCE_YOUR_CALM.0.to_be_bytes()
    }));
    assert_eq!(lone.connection.next_event(), None);
    assert!(lone.connection.failure.is_none());
    lone.open(5);
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    // Each of these has an answer.
    let mut lone = Lone::server();
    let mut outcome = Ok(());
    let mut size_max = 0;
    for count in 0..1_000_000_u32 {
        let ping = frame(FrameKind::Ping, 0, 0, &[1; 8]);
        outcome = lone.connection.receive(&ping, lone.now);
        size_max = size_max.max(lone.connection.output().len());
        if outcome.is_err() {
            break;
        }
        // Slow enough for the limit of pings.
        lone.now += Duration::from_millis(u64::from(count % 2) * 21);
    }
    assert_eq!(outcome.unwrap_err().code, ErrorCode::ENHANCE_YOUR_CALM);
    assert!(
        size_max > H2_OUTPUT_ROOM && size_max < 3 * H2_OUTPUT_ROOM,
        "{size_max}"
    );
}

#[test]
fn a_peer_that_never_opens_a_window_keeps_no_more_than_the_output() {
    let mut lone = Lone::server();
    lone.take(&frame(
        FrameKind::Settings,
        0,
        0,
        &Setting::StreamWindow(0).encode(),
    ))
    .unwrap();
    for id in (1..2000).step_by(2) {
        lone.open(id);
        assert!(lone.connection.write(id, b"answer").is_err());
    }
    assert_eq!(lone.connection.output().len(), 0);
    assert_eq!(lone.connection.next_event(), None);
    // The owner has had enough.
    for id in (1..2000).step_by(2) {
        lone.connection.reset(id, ErrorCode::CANCEL);
    }
    assert!(lone.connection.streams.is_empty() && lone.connection.writers.len() <= 64);
}

#[test]
fn what_nobody_reads_is_bounded_by_the_windows() {
    let mut lone = Lone::server();
    for id in [1, 3, 5] {
        while lone.connection.next_event().is_some() {}
        lone.open(id);
        let mut refused = 0;
        for _ in 0..1000 {
            lone.take(&data(id, &[7])).unwrap();
            lone.take(&data(id, &[7; 1000])).unwrap();
            refused += u32::from(lone.connection.streams[&id].reset.is_some());
        }
        assert!(refused > 0);
    }
    let mut lone = Lone::server();
    lone.open(1);
    for _ in 0..256 * 1024 {
        lone.take(&data(1, &[7])).unwrap();
    }
    assert_eq!(lone.connection.readable_size(1), 256 * 1024);
    assert!(lone.connection.streams[&1].pieces.memory() <= 300 * 1024);
}

#[test]
fn frames_that_never_end_take_little_memory() {
    let mut lone = Lone::server();
    let header = FrameHeader {
        size: 16_384,
        kind: FrameKind::Unknown(0x20),
        flags: 0,
        stream: 1,
    };
    lone.take(&header.encode()).unwrap();
    for _ in 0..16_383 {
        lone.take(&[0]).unwrap();
    }
    assert!(lone.connection.input.memory() <= 32 * 1024);
    lone.take(&[0]).unwrap();
    assert_eq!(lone.connection.input.memory(), 0);
}

#[test]
fn a_busy_tunnel_never_meets_a_limit() {
    // 5,000 visitors in a minute at 500 at once, of whom one in three leaves at once; each end
    // says everything with the smallest frames and gives windows back at once.
    let mut pair = Pair::new();
    let mut open = std::collections::VecDeque::new();
    for visitor in 0..6000_u32 {
        let id = pair.open();
        open.push_back(id);
        for _ in 0..5 {
            pair.client.write(id, b"q").unwrap();
            pair.server.write(id, b"a").unwrap();
        }
        if open.len() >= 500 {
            let id = open.pop_front().unwrap();
            if visitor % 3 == 0 {
                pair.client.reset(id, ErrorCode::CANCEL);
                pair.pump();
                pair.server.reset(id, ErrorCode::CANCEL);
            } else {
                pair.client.finish(id).unwrap();
                pair.server.finish(id).unwrap();
                pair.pump();
                pair.read(End::Client, id);
                pair.read(End::Server, id);
            }
        }
        pair.pump();
        pair.events(End::Client);
        pair.events(End::Server);
        pair.now += Duration::from_millis(12);
    }
    assert_eq!(pair.server.open_count(), 499);
}

#[test]
fn visitors_that_leave_before_the_answer_meet_no_limit() {
    // 500 at a moment, 5,000 in a minute.
    let mut lone = Lone::server();
    let mut ids = (1..).step_by(2);
    for _ in 0..60 {
        for id in ids.by_ref().take(500) {
            let reset = number_frame(FrameKind::ResetStream, id, 8);
            let bytes = [lone.headers(id, 0, &REQUEST), reset].concat();
            lone.take(&bytes).unwrap();
        }
        assert!(lone.connection.streams.is_empty());
        lone.advance(Duration::from_secs(6));
    }
}

#[test]
fn a_pool_that_is_flushed_meets_no_limit() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        let ids: Vec<StreamId> = (0..STREAMS_MAX).map(|_| pair.open()).collect();
        for &id in &ids {
            pair.client.reset(id, ErrorCode::CANCEL);
        }
        pair.pump();
        for id in ids {
            pair.server.reset(id, ErrorCode::CANCEL);
        }
        pair.events(End::Server);
    }
}
