//! HTTP/2 of someone who wants the server to work, or to remember, without end: a stranger, and a
//! client that has joined.

use std::fmt::{self, Display};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nodepass::wire::ticket::Ticket;

use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::peer::http2::{
    CONTINUATION, DATA, END_HEADERS, Flood, HEADERS, Mux, Opening, PING, RST_STREAM, SETTINGS,
    frame, literal, pool_request, request,
};
use crate::support::peer::{PlayedClient, Stream, key};
use crate::support::servers::TcpServer;
use crate::support::visitors::{assert_closed, dial, exchange};
use crate::support::{DEADLINE, eventually};

const OPTIONS: &str = "type=3&tls=1";

/// What an offender may cost (bytes): buffers, and what a debug build and its allocator add.
const GROWN_MAX: u64 = 48 << 20;

/// A stream that no played client has used.
const FIRST_STREAM: u32 = 1001;

/// The offender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Stranger,
    /// A client with a control channel, stream 1, and one more pool connection, stream 3.
    Joined,
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stranger => "a stranger",
            Self::Joined => "a client",
        })
    }
}

const BOTH: &[Who] = &[Who::Stranger, Who::Joined];

/// A server with an honest client, and an offender.
struct Scene {
    both: Reverse,
    /// A visitor that is there all the time.
    visitor: TcpStream,
    memory: u64,
    offender: Offender,
    _target: TcpServer,
}

enum Offender {
    Stranger(Mux),
    Joined(Box<PlayedClient>),
}

impl Scene {
    #[track_caller]
    fn start(who: Who) -> Self {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), OPTIONS, "min=4");
        let visitor = dial(both.entry);
        exchange(&visitor, b"before");
        let offender = match who {
            Who::Stranger => {
                let below = Stream::dial_http2(both.tunnel).unwrap();
                Offender::Stranger(Mux::client(below, Opening::of_client()))
            }
            Who::Joined => {
                let client = PlayedClient::join(both.tunnel, &key(KEY));
                both.server.wait_up(2);
                Offender::Joined(Box::new(client))
            }
        };
        Self {
            memory: both.server.memory_size(),
            both,
            visitor,
            offender,
            _target: target,
        }
    }

    fn mux(&mut self) -> &Mux {
        match &mut self.offender {
            Offender::Stranger(mux) => mux,
            Offender::Joined(client) => client.way().mux(),
        }
    }

    /// A ticket that is good, if the offender has any.
    fn ticket(&mut self) -> Option<Ticket> {
        match &mut self.offender {
            Offender::Stranger(_) => None,
            Offender::Joined(client) => Some(client.ticket()),
        }
    }

    /// Old and new visitors are served, and the memory has its bound.
    #[track_caller]
    fn check_others(&self) {
        exchange(&self.visitor, b"undisturbed");
        exchange(&dial(self.both.entry), b"served all the same");
        let grown = self.both.server.memory_size().saturating_sub(self.memory);
        assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    }

    /// The offender is closed, and nobody else notices.
    #[track_caller]
    fn check_closed(&mut self) {
        let began = Instant::now();
        loop {
            self.check_others();
            let seen = self.mux().seen();
            if seen.is_over {
                break;
            }
            assert!(began.elapsed() < DEADLINE, "it goes on: {seen:?}");
        }
        self.check_others();
        assert_eq!(self.both.client.ended_count(), 0);
    }
}

/// Whoever does this without end is closed.
fn check_flood(make: fn(Option<Ticket>) -> Flood) {
    for_each(BOTH, |who| {
        let mut scene = Scene::start(*who);
        let ticket = scene.ticket();
        let flood = make(ticket);
        scene.mux().flood(flood);
        scene.check_closed();
    });
}

/// The same bytes again and again.
fn repeat(bytes: &[u8], count: usize) -> Flood {
    let bytes = bytes.repeat(count);
    Box::new(move || Some(bytes.clone()))
}

/// Something for each of the streams after the other, then for a next one.
fn each_stream(make: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Flood {
    let mut stream = FIRST_STREAM;
    Box::new(move || {
        let bytes = make(stream);
        stream += 2;
        // A client has no more numbers than these.
        (stream < 1 << 30).then_some(bytes)
    })
}

#[test]
fn rapid_resets_end_the_connection_and_disturb_nobody() {
    check_flood(|_| {
        each_stream(|stream| {
            let mut bytes = frame(HEADERS, END_HEADERS, stream, &pool_request(None));
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            bytes
        })
    });
}

#[test]
fn requests_without_a_ticket_and_without_end_disturb_nobody() {
    check_flood(|_| {
        each_stream(|stream| {
            let mut bytes = frame(HEADERS, END_HEADERS, stream, &pool_request(None));
            bytes.extend(frame(DATA, 0, stream, &[0]));
            bytes
        })
    });
}

#[test]
fn settings_without_end_end_the_connection_and_disturb_nobody() {
    check_flood(|_| repeat(&frame(SETTINGS, 0, 0, b""), 100));
}

#[test]
fn pings_without_end_end_the_connection_and_disturb_nobody() {
    check_flood(|_| repeat(&frame(PING, 0, 0, b"12345678"), 100));
}

#[test]
fn empty_data_without_end_ends_the_connection_and_disturbs_nobody() {
    check_flood(|ticket| {
        let stream = FIRST_STREAM;
        let opening = frame(HEADERS, END_HEADERS, stream, &pool_request(ticket.as_ref()));
        let mut opening = Some([opening, frame(DATA, 0, stream, &[0])].concat());
        let empty = frame(DATA, 0, stream, b"").repeat(100);
        Box::new(move || opening.take().or_else(|| Some(empty.clone())))
    });
}

/// A header block that never ends, in parts of this size.
fn endless_block(part_size: usize) -> Flood {
    let field = literal(b"x-more", &vec![b'x'; part_size]);
    let part = if part_size == 0 { Vec::new() } else { field };
    let mut opening = Some(frame(
        HEADERS,
        0,
        FIRST_STREAM,
        &request("POST", "/stream", &[]),
    ));
    let more = frame(CONTINUATION, 0, FIRST_STREAM, &part).repeat(10);
    Box::new(move || opening.take().or_else(|| Some(more.clone())))
}

#[test]
fn header_block_without_end_ends_the_connection_and_disturbs_nobody() {
    check_flood(|_| endless_block(8000));
}

#[test]
fn header_block_of_endless_empty_parts_ends_the_connection_and_disturbs_nobody() {
    check_flood(|_| endless_block(0));
}

#[test]
fn few_bytes_that_stand_for_enormous_headers_disturb_nobody() {
    /// A field of 4,000 bytes that is kept, then thousands of times the number of that.
    fn bomb(stream: u32) -> Vec<u8> {
        // Literal with incremental indexing and a new name (RFC 7541 section 6.2.1).
        let mut kept = literal(b"x", &[b'x'; 4000]);
        kept[0] = 0x40;
        // The newest entry of the dynamic table has the index 62.
        let block = [request("POST", "/stream", &[]), kept, vec![0xbe; 12_000]].concat();
        frame(HEADERS, END_HEADERS, stream, &block)
    }
    check_flood(|_| each_stream(bomb));
}

#[test]
fn other_ends_of_the_protocol_end_the_connection_and_disturb_nobody() {
    let spoiled: [(&str, Vec<u8>); 8] = [
        ("a frame of 16 MiB", {
            let mut bytes = frame(DATA, 0, 1, b"");
            bytes[..3].fill(0xff);
            bytes
        }),
        ("a ping of 7 bytes", frame(PING, 0, 0, b"1234567")),
        ("settings of 5 bytes", frame(SETTINGS, 0, 0, b"12345")),
        ("data for stream 0", frame(DATA, 0, 0, b"x")),
        (
            "more of no header block",
            frame(CONTINUATION, END_HEADERS, 1, b""),
        ),
        (
            "a stream of the server",
            frame(HEADERS, END_HEADERS, 2, &pool_request(None)),
        ),
        (
            "headers that are none",
            frame(HEADERS, END_HEADERS, FIRST_STREAM, &[0xff; 40]),
        ),
        ("a push", frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x88])),
    ];
    for_each(BOTH, |who| {
        for (name, bytes) in &spoiled {
            eprintln!("--- {who}: {name}");
            let mut scene = Scene::start(*who);
            scene.mux().send(bytes);
            scene.check_closed();
        }
    });
}

#[test]
fn window_that_is_made_larger_than_there_can_be_ends_no_more_than_its_connection() {
    for_each(BOTH, |who| {
        let mut scene = Scene::start(*who);
        let most = 0x7fff_ffff_u32.to_be_bytes();
        scene.mux().send(&frame(8, 0, 0, &most).repeat(2));
        scene.check_closed();
    });
}

#[test]
fn strangers_with_many_connections_disturb_nobody_and_are_closed() {
    const STRANGERS: usize = 100;
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), OPTIONS, "min=4");
    let memory = both.server.memory_size();
    let strangers: Vec<Mux> = (0..STRANGERS)
        .filter_map(|_| Stream::dial_http2(both.tunnel).ok())
        .map(|below| Mux::client(below, Opening::of_client()))
        .collect();
    for _ in 0..10 {
        exchange(&dial(both.entry), b"served all the same");
    }
    let another = End::client(both.tunnel, &target.address().to_string(), "min=2", QUICK);
    another.wait_up(1);
    let grown = both.server.memory_size().saturating_sub(memory);
    // A connection with TLS and its thread.
    let grown_max = u64::try_from(STRANGERS).unwrap() * (512 << 10);
    assert!(grown < grown_max, "memory has grown by {grown} bytes");
    for stranger in &strangers {
        stranger.wait_over();
    }
    exchange(&dial(both.entry), b"and after");
    assert_eq!(both.client.ended_count(), 0);
}

#[test]
fn client_that_gives_no_window_holds_up_its_own_visitor_alone() {
    /// Far more than windows and sockets hold.
    const OFFERED: usize = 64 << 20;
    const TAKEN_MAX: usize = 24 << 20;
    let server = End::server(
        "127.0.0.1:0",
        "127.0.0.1:0",
        &format!("mode=1&{OPTIONS}"),
        // Its pings have no window either: it must not be given up for that meanwhile.
        &[],
    );
    let tunnel = server.tunnel_address();
    let mut stalled = PlayedClient::join(tunnel, &key(KEY));
    stalled.fill(1);
    server.wait_up(1);
    let mut held_up = dial(server.tcp_address());
    held_up.write_all(b"taken by the one that stalls").unwrap();
    let (_, _stream) = stalled.next_visitor();
    // Not a byte more for any stream, whatever is read.
    stalled.way().mux().stall();
    let target = TcpServer::echo();
    let honest = End::client(tunnel, &target.address().to_string(), "min=4", QUICK);
    honest.wait_up(1);
    server.wait_up(2);
    let memory = server.memory_size();
    held_up.set_nonblocking(true).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let (mut taken, mut blocked_at) = (0, None);
    while taken < OFFERED {
        match held_up.write(&chunk) {
            Ok(count) => (taken, blocked_at) = (taken + count, None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let since = *blocked_at.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(500) {
                    break;
                }
            }
            Err(error) => panic!("the visitor was cut: {error}"),
        }
        exchange(&dial(server.tcp_address()), b"served all the same");
    }
    assert!(
        taken < TAKEN_MAX,
        "{taken} bytes are held for someone who reads nothing"
    );
    let grown = server.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    held_up.set_nonblocking(false).unwrap();
    // The end of that client is the end of its visitor.
    drop(stalled);
    eventually("the end of its session", || {
        (server.ended_count() == 1).then_some(())
    });
    assert_closed(&held_up);
    exchange(&dial(server.tcp_address()), b"and after");
}
