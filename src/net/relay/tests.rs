use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;

use super::*;
use crate::limits::TCP_BUFFER_SIZE_MIN;
use crate::net::stream::tests::connected;
use crate::net::stream::{Condition, PlainStream};

/// What a relay needs besides its streams.
struct Place {
    stock: Stock,
    meter: Meter,
    stop: Event,
}

impl Place {
    fn new() -> Self {
        Self {
            stock: Stock::new(16 * 1024, 1024),
            meter: Meter::default(),
            stop: Event::new().unwrap(),
        }
    }

    fn terms(&self, read_timeout: Option<Duration>) -> Terms<'_> {
        Terms {
            stock: &self.stock,
            meter: &self.meter,
            rates: None,
            read_timeout,
            stop: &self.stop,
        }
    }
}

/// Takes all that it is given at once and sends it a byte at a time.
struct Hesitant {
    stream: PlainStream,
    unsent: Vec<u8>,
    is_ending: bool,
}

impl Hesitant {
    fn new(stream: PlainStream) -> Self {
        Self {
            stream,
            unsent: Vec::new(),
            is_ending: false,
        }
    }
}

impl Stream for Hesitant {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.descriptor()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.unsent.is_empty() && !self.is_ending);
        self.unsent.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.is_ending {
            self.is_ending = true;
            self.unsent.push(b'.');
        }
        self.flush()?;
        self.stream.finish()
    }

    fn abort(&mut self, deadline: Instant) {
        self.stream.abort(deadline);
    }

    fn check(&mut self) -> Condition {
        self.stream.check()
    }

    fn holds_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(byte) = self.unsent.first() {
            self.stream.write(&[*byte])?;
            self.unsent.remove(0);
        }
        if self.unsent.is_empty() {
            return Ok(());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn blocking(stream: PlainStream) -> TcpStream {
    let socket = TcpStream::from(stream.into_socket());
    socket.set_nonblocking(false).unwrap();
    socket
}

fn text_of(mut socket: &TcpStream) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn bytes_ahead_come_first_and_are_not_counted() {
    let place = Place::new();
    let (visitor, mut application) = connected();
    let (mut other, target) = connected();
    let (visitor, target) = (blocking(visitor), blocking(target));
    (&visitor).write_all(b"question").unwrap();
    (&target).write_all(b"answer").unwrap();
    for socket in [&visitor, &target] {
        socket.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let longest = "x".repeat(TCP_BUFFER_SIZE_MIN);
    let ahead = Ahead {
        to_other: b"PROXY ",
        to_application: longest.as_bytes(),
    };
    let reason = relay(&mut application, &mut other, ahead, place.terms(None));
    assert!(matches!(reason, CloseReason::Finished), "{reason}");
    assert_eq!(text_of(&target), "PROXY question");
    assert_eq!(text_of(&visitor), longest + "answer");
    assert_eq!(place.meter.received.sum(), 8);
    assert_eq!(place.meter.sent.sum(), 6);
}

#[test]
fn a_stream_that_ends_while_bytes_are_unsent_is_carried_whole() {
    let place = Place::new();
    let (visitor, mut application) = connected();
    let (other, target) = connected();
    let (visitor, target) = (blocking(visitor), blocking(target));
    let mut other = Hesitant::new(other);
    (&visitor).write_all(b"all of it").unwrap();
    visitor.shutdown(std::net::Shutdown::Write).unwrap();
    target.shutdown(std::net::Shutdown::Write).unwrap();
    let terms = place.terms(None);
    let reason = relay(&mut application, &mut other, Ahead::default(), terms);
    assert!(matches!(reason, CloseReason::Finished), "{reason}");
    assert_eq!(text_of(&target), "all of it.");
}

#[test]
fn what_is_unsent_is_delivered_when_the_source_breaks() {
    let place = Place::new();
    let (visitor, mut application) = connected();
    let (other, target) = connected();
    let target = blocking(target);
    let mut other = Hesitant::new(other);
    other.unsent.extend_from_slice(b"before the break");
    let mut visitor = visitor;
    visitor.abort(Instant::now());
    drop(visitor);
    let terms = place.terms(None);
    let reason = relay(&mut application, &mut other, Ahead::default(), terms);
    assert!(
        matches!(reason, CloseReason::ApplicationBroke(_)),
        "{reason}"
    );
    let mut got = [0; 16];
    (&target).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"before the break");
    drop(other);
    let end = (&target).read(&mut got).map_err(|error| error.kind());
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
}

#[test]
fn an_idle_relay_ends_both_streams_in_order() {
    let place = Place::new();
    let (visitor, mut application) = connected();
    let (other, target) = connected();
    let mut other = Hesitant::new(other);
    let terms = place.terms(Some(Duration::from_millis(20)));
    let reason = relay(&mut application, &mut other, Ahead::default(), terms);
    assert!(matches!(reason, CloseReason::Idle), "{reason}");
    // Nothing is dropped yet: the ends come from the relay.
    assert_eq!(text_of(&blocking(visitor)), "");
    assert_eq!(text_of(&blocking(target)), ".");
}

#[test]
fn an_end_that_is_followed_by_a_reset_ends_the_relay() {
    let place = Place::new();
    let (mut application, visitor) = connected();
    let (mut other, peer) = connected();
    // Both are there before the relay looks: the end hides the reset from a read.
    peer.socket().shutdown(std::net::Shutdown::Write).unwrap();
    let socket = socket2::SockRef::from(peer.socket());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let terms = place.terms(None);
    let reason = relay(&mut application, &mut other, Ahead::default(), terms);
    assert!(matches!(reason, CloseReason::OtherBroke(_)), "{reason}");
    drop(visitor);
}

#[test]
fn an_owned_stream_of_any_kind_can_be_relayed() {
    let place = Place::new();
    place.stop.raise();
    let (_visitor, application) = connected();
    let (other, _target) = connected();
    let mut application: Box<dyn Stream + Send> = Box::new(application);
    let mut other: Box<dyn Stream + Send> = Box::new(other);
    let terms = place.terms(None);
    let reason = relay(&mut *application, &mut *other, Ahead::default(), terms);
    assert!(matches!(reason, CloseReason::Stopped), "{reason}");
}
