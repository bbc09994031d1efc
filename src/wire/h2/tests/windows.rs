//! Flow control between two ends.

use std::collections::VecDeque;
use std::io::ErrorKind;

use super::*;
use crate::limits::{H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, H2_WINDOW_SHRINK_TIME};
use crate::wire::h2::frame::{Setting, WINDOW_MAX};

/// A link with a delay and a rate, in steps of a millisecond.
struct Link {
    pair: Pair,
    step_size: usize,
    delay_steps: usize,
    to_server: VecDeque<Vec<u8>>,
    to_client: VecDeque<Vec<u8>>,
}

impl Link {
    fn new(bytes_per_second: usize, delay_steps: usize) -> Self {
        let pair = Pair {
            client: Connection::new(Role::Client, Settings::default()),
            server: Connection::new(Role::Server, Settings::default()),
            now: Instant::now(),
            cuts: Xorshift::new(7),
        };
        Self {
            pair,
            step_size: bytes_per_second / 1000,
            delay_steps,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
        }
    }

    fn step(&mut self) {
        let now = self.pair.now;
        let take = |end: &mut Connection, size: usize| {
            let bytes = end.output()[..end.output().len().min(size)].to_vec();
            end.sent(bytes.len());
            bytes
        };
        self.to_server
            .push_back(take(&mut self.pair.client, self.step_size));
        self.to_client
            .push_back(take(&mut self.pair.server, self.step_size));
        if self.to_server.len() > self.delay_steps {
            self.pair
                .server
                .receive(&self.to_server.pop_front().unwrap(), now)
                .unwrap();
            self.pair
                .client
                .receive(&self.to_client.pop_front().unwrap(), now)
                .unwrap();
        }
        self.pair.now += Duration::from_millis(1);
    }

    fn open(&mut self) -> StreamId {
        let id = self.pair.client.request(&REQUEST, false).unwrap();
        while self.pair.server.next_event().is_none() {
            self.step();
        }
        self.pair.server.respond(id, &RESPONSE, false);
        while self.pair.client.next_event().is_none() {
            self.step();
        }
        id
    }

    /// Has the server send all that goes; returns what the client read.
    fn download(&mut self, id: StreamId, chunk: &[u8], read_max: usize) -> usize {
        while self.pair.server.write(id, chunk).is_ok() {}
        self.step();
        while self.pair.server.next_event().is_some() {}
        let mut buffer = vec![0; read_max];
        self.pair
            .client
            .read(id, &mut buffer, self.pair.now)
            .unwrap_or(0)
    }
}

#[test]
fn a_stream_fills_a_fast_long_link_within_a_second() {
    let bytes_per_second = 125_000_000;
    let mut link = Link::new(bytes_per_second, 25);
    let id = link.open();
    let chunk = vec![1; 256 * 1024];
    let mut size = 0;
    for step in 0..1000 {
        let read_size = link.download(id, &chunk, 1_000_000);
        if step >= 600 {
            size += read_size;
        }
    }
    let share = size as f64 / (0.4 * bytes_per_second as f64);
    assert!(share > 0.95, "{share}");
    assert!(link.pair.client.streams[&id].receive.size() <= H2_STREAM_WINDOW_MAX);
}

#[test]
fn a_window_does_not_grow_for_a_slow_link_or_a_slow_reader() {
    for (bytes_per_second, read_max) in [(1_250_000, 100_000), (125_000_000, 500)] {
        let mut link = Link::new(bytes_per_second, 25);
        let id = link.open();
        let chunk = vec![1; 256 * 1024];
        let mut size = 0;
        for _ in 0..3000 {
            size += link.download(id, &chunk, read_max);
        }
        assert!(size > 1_000_000);
        let window = link.pair.client.streams[&id].receive.size();
        assert!(
            window <= 2 * H2_STREAM_WINDOW,
            "{window} at {bytes_per_second}"
        );
        assert_eq!(link.pair.client.growth, window - H2_STREAM_WINDOW);
    }
}

#[test]
fn windows_together_grow_to_their_bound_and_shrink_again() {
    let growth_max = 1_000_000;
    let settings = Settings {
        growth_max,
        ..Settings::default()
    };
    let mut pair = Pair::with(Settings::default(), settings);
    let ids: Vec<StreamId> = (0..8).map(|_| pair.open()).collect();
    let chunk = pattern(100_000);
    for _ in 0..10 {
        for &id in &ids {
            for _ in 0..10 {
                pair.client.write(id, &chunk).unwrap();
                pair.pump();
                pair.read(End::Server, id);
                pair.pump();
            }
        }
    }
    let growth = pair.server.growth;
    assert!(growth > growth_max / 2 && growth <= growth_max, "{growth}");
    for _ in 0..20 {
        pair.now += H2_WINDOW_SHRINK_TIME;
        for &id in &ids {
            pair.client.write(id, &chunk).unwrap();
            pair.pump();
            pair.now += H2_WINDOW_SHRINK_TIME;
            pair.read(End::Server, id);
            pair.pump();
        }
    }
    assert_eq!(pair.server.growth, 0);
}

#[test]
fn windows_survive_growing_and_shrinking() {
    // However the window changes, the peer can go on for ever.
    let mut pair = Pair::new();
    let id = pair.open();
    let chunk = pattern(70_000);
    let mut steps = Xorshift::new(3);
    let (mut written, mut read) = (0_usize, 0_usize);
    for _ in 0..200 {
        pair.now += Duration::from_millis([0, 1, 9000][steps.below(3)]);
        while let Ok(size) = pair.client.write(id, &chunk) {
            written += size;
            if steps.below(4) == 0 {
                break;
            }
        }
        pair.pump();
        if steps.below(3) > 0 {
            read += pair.read(End::Server, id).0.len();
        }
        pair.events(End::Client);
        pair.events(End::Server);
    }
    pair.pump();
    read += pair.read(End::Server, id).0.len();
    assert_eq!(read, written);
    assert!(written > 5_000_000, "{written}");
}

#[test]
fn a_writer_without_window_waits_for_it() {
    let settings = Settings {
        stream_window: 1000,
        stream_window_max: 1000,
        ..Settings::default()
    };
    let mut pair = Pair::with(Settings::default(), settings);
    let id = pair.open();
    let chunk = pattern(2500);
    assert_eq!(pair.client.write(id, &chunk).unwrap(), 1000);
    let error = pair.client.write(id, &chunk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    pair.pump();
    assert!(pair.events(End::Client).is_empty());
    assert_eq!(pair.read(End::Server, id).0.len(), 1000);
    pair.pump();
    assert_eq!(pair.events(End::Client), [Event::Writable(id)]);
    assert_eq!(pair.client.write(id, &chunk).unwrap(), 1000);
    // The end needs no window.
    pair.client.finish(id).unwrap();
    pair.pump();
    assert_eq!(pair.read(End::Server, id).0.len(), 1000);
}

#[test]
fn settings_that_take_window_back_make_it_negative() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.open(3);
    let chunk = pattern(40_000);
    assert_eq!(lone.connection.write(1, &chunk).unwrap(), 40_000);
    let settings = |size| {
        frame(
            FrameKind::Settings,
            0,
            0,
            &Setting::StreamWindow(size).encode(),
        )
    };
    lone.take(&settings(10_000)).unwrap();
    assert_eq!(
        lone.connection.write(1, &chunk).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(lone.connection.write(3, &chunk[..100]).unwrap(), 100);
    // Still below zero.
    lone.take(&number_frame(FrameKind::WindowUpdate, 1, 30_000))
        .unwrap();
    assert_eq!(lone.connection.next_event(), None);
    lone.take(&number_frame(FrameKind::WindowUpdate, 1, 1))
        .unwrap();
    assert_eq!(lone.connection.next_event(), Some(Event::Writable(1)));
    assert_eq!(lone.connection.write(1, &chunk).unwrap(), 1);
    // Settings bring window as well as updates do.
    assert!(lone.connection.write(1, &chunk).is_err());
    lone.take(&settings(10_500)).unwrap();
    assert_eq!(lone.connection.next_event(), Some(Event::Writable(1)));
    assert_eq!(lone.connection.write(1, &chunk).unwrap(), 500);
    // A stream that is opened now starts with the new size.
    lone.open(5);
    assert_eq!(lone.connection.write(5, &chunk).unwrap(), 10_500);
}

#[test]
fn the_window_of_the_connection_is_shared_in_turns() {
    let mut lone = Lone::server();
    for id in [1, 3, 5] {
        lone.open(id);
    }
    let chunk = pattern(60_000);
    assert_eq!(lone.connection.write(1, &chunk).unwrap(), 60_000);
    assert_eq!(lone.connection.write(3, &chunk).unwrap(), 5535);
    for id in [1, 3, 5] {
        assert!(lone.connection.write(id, &chunk[..1000]).is_err());
    }
    assert_eq!(lone.connection.next_event(), None);
    lone.connection.sent(lone.connection.output().len());
    for id in [1, 3, 5] {
        assert_eq!(lone.connection.next_event(), None);
        lone.take(&number_frame(FrameKind::WindowUpdate, 0, 100))
            .unwrap();
        assert_eq!(lone.connection.next_event(), Some(Event::Writable(id)));
        assert_eq!(lone.connection.write(id, &chunk[..1000]).unwrap(), 100);
        assert!(lone.connection.write(id, &chunk[..1000]).is_err());
    }
}

#[test]
fn the_largest_windows_work() {
    let settings = Settings {
        stream_window: u32::MAX,
        stream_window_max: u32::MAX,
        connection_window: u32::MAX,
        growth_max: u32::MAX,
        ..Settings::default()
    };
    let mut pair = Pair::with(settings.clone(), settings);
    let id = pair.open();
    assert_eq!(
        pair.client.streams[&id].send.available(),
        WINDOW_MAX as usize
    );
    assert_eq!(pair.client.send.available(), WINDOW_MAX as usize);
    let chunk = pattern(200_000);
    for _ in 0..20 {
        assert_eq!(pair.client.write(id, &chunk).unwrap(), 200_000);
        pair.pump();
        assert_eq!(pair.read(End::Server, id).0, chunk);
    }
}

#[test]
fn a_window_smaller_than_the_default_counts_once_the_peer_knows() {
    let settings = Settings {
        stream_window: 1000,
        stream_window_max: 1000,
        ..Settings::default()
    };
    let mut lone = Lone::with(Role::Server, settings);
    lone.open(1);
    lone.take(&data(1, &[0; 1500])).unwrap();
    assert_eq!(lone.connection.readable_size(1), 1500);
    assert!(matches!(
        lone.connection.next_event(),
        Some(Event::Readable(1))
    ));
    lone.take(&frame(FrameKind::Settings, 1, 0, &[])).unwrap();
    lone.open(3);
    lone.take(&data(3, &[0; 1001])).unwrap();
    assert_eq!(lone.connection.readable_size(3), 0);
    assert!(matches!(
        lone.connection.next_event(),
        Some(Event::Reset(3, _))
    ));
}

#[test]
fn updates_wait_while_the_peer_does_not_take_the_output() {
    let mut lone = Lone::server();
    lone.open(1);
    lone.connection
        .receive(&number_frame(FrameKind::WindowUpdate, 1, 1 << 24), lone.now)
        .unwrap();
    lone.connection
        .receive(&number_frame(FrameKind::WindowUpdate, 0, 1 << 24), lone.now)
        .unwrap();
    while lone.connection.write(1, &[0; 10_000]).is_ok() {}
    for _ in 0..5000 {
        lone.connection.ping([0; 8]);
    }
    let size = lone.connection.output().len();
    let mut buffer = [0; 16_000];
    for _ in 0..15 {
        lone.connection
            .receive(&data(1, &[0; 16_000]), lone.now)
            .unwrap();
        lone.connection.read(1, &mut buffer, lone.now).unwrap();
    }
    let is_update = |frame: &&(FrameHeader, Vec<u8>)| frame.0.kind == FrameKind::WindowUpdate;
    let updates = |bytes: &[u8]| split_frames(bytes).iter().filter(is_update).count();
    assert_eq!(lone.connection.output().len(), size);
    lone.connection.sent(size);
    assert_eq!(updates(lone.connection.output()), 1);
}
