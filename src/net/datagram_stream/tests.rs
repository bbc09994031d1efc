use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::*;
use crate::net::stream::{Condition, Stream};
use crate::runtime::event::Event;
use crate::runtime::threads::lock;

/// The other side of a made-up stream.
#[derive(Default)]
struct Wire {
    /// Each write, as far as it was taken.
    written: Vec<Vec<u8>>,
    /// How many bytes are taken before it is full.
    room: usize,
    /// What is taken first into a buffer of its own, as by TLS, and leaves by `flush`.
    is_buffering: bool,
    unsent: usize,
    /// What the reads give; at its end they would block.
    input: VecDeque<Vec<u8>>,
    is_ended: bool,
}

struct FakeStream {
    wire: Arc<Mutex<Wire>>,
    event: Event,
}

impl Stream for FakeStream {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = lock(&self.wire);
        let Some(mut part) = wire.input.pop_front() else {
            let end = wire.is_ended.then_some(0);
            return end.ok_or_else(|| io::ErrorKind::WouldBlock.into());
        };
        let size = part.len().min(buffer.len());
        buffer[..size].copy_from_slice(&part[..size]);
        if size < part.len() {
            wire.input.push_front(part.split_off(size));
        }
        Ok(size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = lock(&self.wire);
        assert_eq!(wire.unsent, 0, "what was taken before leaves first");
        let size = if wire.is_buffering {
            bytes.len()
        } else {
            bytes.len().min(wire.room)
        };
        if size == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.written.push(bytes[..size].to_vec());
        if wire.is_buffering {
            wire.unsent = size;
        } else {
            wire.room -= size;
        }
        Ok(size)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self, _: Instant) {}

    fn check(&mut self) -> Condition {
        Condition::Silent
    }

    fn holds_unsent(&self) -> bool {
        lock(&self.wire).unsent > 0
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut wire = lock(&self.wire);
        let size = wire.unsent.min(wire.room);
        wire.unsent -= size;
        wire.room -= size;
        if wire.unsent > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

const SIZE_MAX: usize = 16 * 1024;

struct Pair {
    stream: DatagramStream,
    wire: Arc<Mutex<Wire>>,
    backlog: Arc<Backlog>,
}

fn pair(framing: Framing) -> Pair {
    let wire = Arc::new(Mutex::new(Wire {
        room: usize::MAX,
        ..Wire::default()
    }));
    let fake = FakeStream {
        wire: Arc::clone(&wire),
        event: Event::new().unwrap(),
    };
    let backlog = Arc::default();
    Pair {
        stream: DatagramStream::new(Box::new(fake), framing, SIZE_MAX, &backlog),
        wire,
        backlog,
    }
}

impl Pair {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    /// Reads until nothing more is there; returns datagrams, and the sizes of those stepped over.
    fn receive_all(&mut self, buffer_size: usize) -> (Vec<Vec<u8>>, Vec<usize>, Progress) {
        let (mut taken, mut skipped) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; buffer_size];
        loop {
            let progress = self.stream.receive(&mut buffer, |framed| match framed {
                Framed::Datagram(datagram) => taken.push(datagram.to_vec()),
                Framed::TooLarge { size } => skipped.push(size),
            });
            // What is read in pieces does not fill the buffer: only the wire knows its end.
            match progress.unwrap() {
                Progress::Ended => return (taken, skipped, Progress::Ended),
                _ if self.wire().input.is_empty() && !self.wire().is_ended => {
                    return (taken, skipped, Progress::Drained);
                }
                _ => {}
            }
        }
    }

    fn all_written(&self) -> Vec<u8> {
        self.wire().written.concat()
    }
}

fn framed(datagrams: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for datagram in datagrams {
        bytes.extend(encode_length(datagram).unwrap());
        bytes.extend(datagram);
    }
    bytes
}

fn samples() -> Vec<Vec<u8>> {
    [1, 0, 3, 300, 2, 0, 70]
        .iter()
        .zip(1..)
        .map(|(size, fill)| vec![fill; *size])
        .collect()
}

#[test]
fn datagrams_of_one_wake_up_leave_with_one_write() {
    let mut pair = pair(Framing::Framed);
    for datagram in samples() {
        assert_eq!(pair.stream.put(&datagram).unwrap(), Put::Taken);
    }
    assert!(pair.wire().written.is_empty());
    pair.stream.push_out().unwrap();
    assert_eq!(pair.wire().written, [framed(&samples())]);
    assert_eq!(pair.stream.pending.capacity(), 0);
    assert!(!pair.stream.wants_write());
}

#[test]
fn many_bytes_leave_before_the_end_of_the_wake_up() {
    let mut pair = pair(Framing::Framed);
    let datagram = vec![7; 1000];
    let count = DATAGRAM_WRITE_SIZE / 1000 + 1;
    for _ in 0..count {
        pair.stream.put(&datagram).unwrap();
    }
    assert_eq!(pair.wire().written.len(), 1);
    assert!(pair.stream.pending.len() <= DATAGRAM_WRITE_SIZE);
}

#[test]
fn however_little_a_stream_takes_the_bytes_stay_in_order() {
    let whole = framed(&samples());
    for step in 1..whole.len() {
        let mut pair = pair(Framing::Framed);
        pair.wire().room = step;
        for datagram in samples() {
            assert_eq!(pair.stream.put(&datagram).unwrap(), Put::Taken);
        }
        pair.stream.push_out().unwrap();
        while pair.stream.wants_write() {
            // Nothing is tried before the stream is said to be writable.
            let before = pair.wire().written.len();
            pair.wire().room = step;
            pair.stream.push_out().unwrap();
            assert_eq!(pair.wire().written.len(), before);
            pair.stream.resume().unwrap();
        }
        assert_eq!(pair.all_written(), whole);
        assert_eq!(pair.backlog.size.load(Ordering::Relaxed), 0);
        assert_eq!(pair.stream.pending.capacity(), 0);
    }
}

#[test]
fn a_full_backlog_loses_whole_datagrams_and_keeps_the_others() {
    let mut pair = pair(Framing::Framed);
    pair.wire().room = 10;
    let numbered: Vec<Vec<u8>> = (0..200_u8).map(|number| vec![number; 1000]).collect();
    let mut kept = Vec::new();
    for datagram in &numbered {
        match pair.stream.put(datagram).unwrap() {
            Put::Taken => kept.push(datagram.clone()),
            other => assert_eq!(other, Put::Full),
        }
    }
    let waiting = pair.stream.unsent_size();
    assert!(waiting <= DATAGRAM_BACKLOG_SIZE_MAX);
    assert!(waiting + 1002 > DATAGRAM_BACKLOG_SIZE_MAX);
    assert_eq!(pair.backlog.size.load(Ordering::Relaxed), waiting);
    // With room again all of what was kept leaves, and new ones are taken.
    pair.wire().room = usize::MAX;
    pair.stream.resume().unwrap();
    kept.push(b"later".to_vec());
    pair.stream.put(b"later").unwrap();
    pair.stream.push_out().unwrap();
    assert_eq!(pair.all_written(), framed(&kept));
}

#[test]
fn streams_share_a_backlog_that_has_a_bound() {
    let mut first = pair(Framing::Framed);
    let taken = DATAGRAM_BACKLOG_TOTAL_MAX - 100;
    first.backlog.size.fetch_add(taken, Ordering::Relaxed);
    assert_eq!(first.stream.put(&[0; 99]).unwrap(), Put::Full);
    assert_eq!(first.stream.put(&[0; 98]).unwrap(), Put::Taken);
    assert_eq!(first.stream.put(b"").unwrap(), Put::Full);
    let backlog = Arc::clone(&first.backlog);
    drop(first);
    assert_eq!(backlog.size.load(Ordering::Relaxed), taken);
}

#[test]
fn too_large_and_empty_datagrams_are_dropped_alone() {
    let mut framed_pair = pair(Framing::Framed);
    assert_eq!(
        framed_pair.stream.put(&[0; SIZE_MAX + 1]).unwrap(),
        Put::TooLarge
    );
    assert_eq!(framed_pair.stream.put(&[0; SIZE_MAX]).unwrap(), Put::Taken);
    assert_eq!(framed_pair.stream.put(b"").unwrap(), Put::Taken);
    let mut raw = pair(Framing::Raw);
    assert_eq!(raw.stream.put(&[0; SIZE_MAX + 1]).unwrap(), Put::TooLarge);
    assert_eq!(raw.stream.put(b"").unwrap(), Put::Empty);
    assert_eq!(raw.stream.put(&[0; SIZE_MAX]).unwrap(), Put::Taken);
    assert_eq!(raw.wire().written, [vec![0; SIZE_MAX]]);
}

#[test]
fn each_raw_datagram_is_a_write_of_its_own_also_after_a_stall() {
    let mut pair = pair(Framing::Raw);
    pair.stream.put(b"one").unwrap();
    pair.wire().room = 1;
    for datagram in [&b"two"[..], b"three", b"four"] {
        assert_eq!(pair.stream.put(datagram).unwrap(), Put::Taken);
    }
    assert!(pair.stream.wants_write());
    pair.wire().room = usize::MAX;
    pair.stream.resume().unwrap();
    let expected = [&b"one"[..], b"t", b"wo", b"three", b"four"];
    assert_eq!(pair.wire().written, expected);
    assert!(pair.stream.sizes.is_empty());
}

#[test]
fn what_a_stream_has_taken_but_not_sent_is_pushed_out() {
    let mut pair = pair(Framing::Framed);
    pair.wire().is_buffering = true;
    pair.wire().room = 3;
    pair.stream.put(b"datagram").unwrap();
    pair.stream.push_out().unwrap();
    assert!(pair.stream.wants_write());
    pair.stream.put(b"next").unwrap();
    pair.wire().room = usize::MAX;
    pair.stream.resume().unwrap();
    assert!(!pair.stream.wants_write());
    assert_eq!(pair.wire().unsent, 0);
    let expected = framed(&[b"datagram".to_vec(), b"next".to_vec()]);
    assert_eq!(pair.all_written(), expected);
}

#[test]
fn datagrams_come_out_whole_however_the_stream_is_cut() {
    let whole = framed(&samples());
    for step in 1..=whole.len() {
        for buffer_size in [1, 7, 64 * 1024] {
            let mut pair = pair(Framing::Framed);
            pair.wire().input = whole.chunks(step).map(<[u8]>::to_vec).collect();
            pair.wire().is_ended = true;
            let (taken, skipped, progress) = pair.receive_all(buffer_size);
            assert_eq!(taken, samples());
            assert!(skipped.is_empty());
            assert_eq!(progress, Progress::Ended);
        }
    }
}

#[test]
fn datagrams_that_are_too_large_are_stepped_over() {
    let mut pair = pair(Framing::Framed);
    let datagrams = [vec![1; SIZE_MAX + 1], vec![2; SIZE_MAX], vec![3; 60_000]];
    pair.wire().input.push_back(framed(&datagrams));
    let (taken, skipped, _) = pair.receive_all(1000);
    assert_eq!(taken, [vec![2; SIZE_MAX]]);
    assert_eq!(skipped, [SIZE_MAX + 1, 60_000]);
}

#[test]
fn a_stream_that_ends_within_a_datagram_is_broken() {
    let mut pair = pair(Framing::Framed);
    pair.wire().input.push_back(vec![0, 5, 1, 2]);
    pair.wire().is_ended = true;
    let mut buffer = [0; 64];
    let progress = pair.stream.receive(&mut buffer, |_| panic!("it is cut"));
    assert_eq!(progress.unwrap(), Progress::Drained);
    let error = pair.stream.receive(&mut buffer, |_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn each_raw_read_is_a_datagram_of_at_most_the_largest_size() {
    let mut pair = pair(Framing::Raw);
    pair.wire().input.push_back(vec![1; 5]);
    pair.wire().input.push_back(vec![2; SIZE_MAX + 5]);
    let (taken, _, progress) = pair.receive_all(64 * 1024);
    assert_eq!(taken, [vec![1; 5], vec![2; SIZE_MAX], vec![2; 5]]);
    assert_eq!(progress, Progress::Drained);
}
