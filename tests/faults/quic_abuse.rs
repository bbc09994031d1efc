//! Datagrams of strangers at the port of pool type QUIC, while visitors pass.

use std::fmt::{self, Display};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use quiche::{Header, Type};

use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::peer::quic::{Guest, Stranger};
use crate::support::peer::{PlayedClient, key};
use crate::support::program::raise_descriptor_limit;
use crate::support::servers::TcpServer;
use crate::support::udp_proxy::Random;
use crate::support::visitors::{assert_closed, dial, exchange};

const OPTIONS: &str = "type=1&tls=1";

/// What strangers may cost (bytes): buffers, and what a debug build and its allocator add.
const GROWN_MAX: u64 = 48 << 20;

/// The least size of a datagram that opens a connection (RFC 9000 section 14.1).
const INITIAL_SIZE: usize = 1200;

/// A version that is kept for seeing that it is not known (RFC 9000 section 15).
const UNKNOWN_VERSION: u32 = 0x1a2a_3a4a;

/// Length of the connection ids of strangers.
const ID_SIZE: usize = 8;

/// A tunnel with a visitor who is there all the time.
struct Scene {
    both: Reverse,
    visitor: TcpStream,
    memory: u64,
    target: TcpServer,
}

impl Scene {
    #[track_caller]
    fn start() -> Self {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), OPTIONS, "min=4");
        let visitor = dial(both.entry);
        exchange(&visitor, b"before");
        Self {
            memory: both.server.memory_size(),
            both,
            visitor,
            target,
        }
    }

    fn tunnel(&self) -> SocketAddr {
        self.both.tunnel
    }

    /// Old and new visitors are served. What the server had been sent before, it has seen then:
    /// what the client sends for them comes to the same socket.
    #[track_caller]
    fn check_visitors(&self) {
        exchange(&self.visitor, b"undisturbed");
        exchange(&dial(self.both.entry), b"served all the same");
    }

    /// Nobody else has noticed anything, and the memory has its bound.
    #[track_caller]
    fn check_others(&self) {
        self.check_visitors();
        let grown = self.both.server.memory_size().saturating_sub(self.memory);
        assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
        let address = self.target.address().to_string();
        let another = End::client(self.tunnel(), &address, "min=2", QUICK);
        another.wait_up(1);
        for _ in 0..4 {
            exchange(&dial(self.both.entry), b"served by either");
        }
        for end in [&self.both.server, &self.both.client] {
            assert_eq!(end.ended_count(), 0);
        }
        another.kill();
        // Until that is noticed it costs visitors.
        self.both.server.wait_ended(1, &[]);
    }
}

/// A packet with a long header up to its two ids (RFC 9000 section 17.2).
fn long_header(kind: u8, version: u32, destination: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xc0 | (kind << 4)];
    packet.extend(version.to_be_bytes());
    for id in [destination, source] {
        packet.push(u8::try_from(id.len()).unwrap());
        packet.extend(id);
    }
    packet
}

/// What looks like the first packet of a connection, and cannot be decrypted.
fn false_initial(random: &mut Random, token_size: u8) -> Vec<u8> {
    let (destination, source) = (random.bytes(ID_SIZE), random.bytes(ID_SIZE));
    let mut packet = long_header(0, quiche::PROTOCOL_VERSION, &destination, &source);
    // Tokens of up to 63 bytes have their length in one byte.
    packet.push(token_size.min(63));
    packet.extend(random.bytes(token_size.min(63).into()));
    let rest = u16::try_from(INITIAL_SIZE - packet.len() - 2).unwrap();
    packet.extend((0x4000 | rest).to_be_bytes());
    packet.extend(random.bytes(rest.into()));
    packet
}

/// The header of an answer.
#[track_caller]
fn header_of(answer: &mut [u8]) -> Header<'static> {
    Header::from_slice(answer, ID_SIZE).unwrap()
}

// Strangers without a connection.

#[test]
fn packet_of_an_unknown_version_is_answered_with_the_known_ones_if_it_is_large_enough() {
    let scene = Scene::start();
    let mut random = Random(1);
    let mut stranger = Stranger::new(scene.tunnel());
    // Those that are too small, then one that is not: only that one is answered.
    let sizes = [23, 100, INITIAL_SIZE / 2, INITIAL_SIZE - 1, INITIAL_SIZE];
    let mut last = (Vec::new(), Vec::new());
    for size in sizes {
        let (destination, source) = (random.bytes(ID_SIZE), random.bytes(ID_SIZE));
        let mut packet = long_header(0, UNKNOWN_VERSION, &destination, &source);
        packet.resize(size, 0);
        stranger.send(&packet);
        last = (destination, source);
    }
    let mut answer = stranger.wait_answer();
    assert!(answer.len() <= 3 * INITIAL_SIZE, "{} bytes", answer.len());
    let header = header_of(&mut answer);
    assert_eq!(header.ty, Type::VersionNegotiation);
    // The other way round, so that whoever has not sent it can tell.
    assert_eq!((&*header.scid, &*header.dcid), (&*last.0, &*last.1));
    let known = header.versions.unwrap_or_default();
    assert!(known.contains(&quiche::PROTOCOL_VERSION), "{known:?}");
    scene.check_others();
    assert_eq!(stranger.receive(), None);
}

/// What strangers send, and how much of it.
struct Noise {
    name: &'static str,
    count: usize,
    make: fn(&mut Random, usize) -> Vec<u8>,
}

impl Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const NOISES: &[Noise] = &[
    Noise {
        name: "garbage of every size",
        count: 3000,
        make: |random, index| {
            let sizes = [
                0, 1, 2, 5, 6, 7, 20, 21, 100, 1199, 1200, 1500, 9000, 65_507,
            ];
            random.bytes(sizes[index % sizes.len()])
        },
    },
    Noise {
        name: "first packets that cannot be decrypted",
        count: 50_000,
        make: |random, _| false_initial(random, 0),
    },
    Noise {
        name: "first packets with tokens that the server has not given",
        count: 10_000,
        make: |random, index| false_initial(random, u8::try_from(index % 64).unwrap()),
    },
    Noise {
        name: "first packets that are cut off",
        count: 5000,
        make: |random, index| {
            let mut packet = false_initial(random, 16);
            packet.truncate(index % INITIAL_SIZE);
            packet
        },
    },
    Noise {
        name: "packets in the middle of a handshake that there is not",
        count: 5000,
        make: |random, index| {
            // 0-RTT, Handshake and Retry.
            let kind = u8::try_from(1 + index % 3).unwrap();
            let (destination, source) = (random.bytes(index % 21), random.bytes(ID_SIZE));
            let version = quiche::PROTOCOL_VERSION;
            let mut packet = long_header(kind, version, &destination, &source);
            packet.extend(random.bytes(INITIAL_SIZE));
            packet
        },
    },
    Noise {
        name: "packets of versions that nobody knows",
        count: 5000,
        make: |random, index| {
            let version = 0x0a0a_0a0a | (u32::try_from(index).unwrap() << 4);
            let ids = (random.bytes(index % 21), random.bytes(index % 20));
            let mut packet = long_header(0, version, &ids.0, &ids.1);
            packet.resize(INITIAL_SIZE, 0);
            packet
        },
    },
    Noise {
        name: "ids that are longer than any may be",
        count: 2000,
        make: |random, index| {
            let ids = (random.bytes(21 + index % 234), random.bytes(255));
            let mut packet = long_header(0, quiche::PROTOCOL_VERSION, &ids.0, &ids.1);
            packet.extend(random.bytes(INITIAL_SIZE));
            packet
        },
    },
];

#[test]
fn noise_of_many_strangers_is_answered_with_no_more_than_came_and_disturbs_nobody() {
    const STRANGERS: usize = 200;
    const BATCH: usize = 500;
    raise_descriptor_limit();
    for_each(NOISES, |noise| {
        let scene = Scene::start();
        let mut random = Random(2);
        let mut strangers: Vec<Stranger> = (0..STRANGERS)
            .map(|_| Stranger::new(scene.tunnel()))
            .collect();
        for index in 0..noise.count {
            let datagram = (noise.make)(&mut random, index);
            strangers[index % STRANGERS].send(&datagram);
            if index % BATCH == BATCH - 1 {
                scene.check_visitors();
                strangers.iter_mut().for_each(Stranger::check_balance);
            }
        }
        scene.check_others();
        strangers.iter_mut().for_each(Stranger::check_balance);
    });
}

#[test]
fn packet_of_a_connection_that_there_is_not_is_answered_with_less_if_at_all() {
    let scene = Scene::start();
    let mut random = Random(3);
    // One each, so that it is known which one is answered.
    let mut strangers = Vec::new();
    for size in (1..=64).chain([100, INITIAL_SIZE, 1500]) {
        let mut packet = random.bytes(size);
        // A short header (RFC 9000 section 17.3).
        packet[0] = 0x40 | (packet[0] & 0x3f);
        let mut stranger = Stranger::new(scene.tunnel());
        stranger.send(&packet);
        strangers.push(stranger);
    }
    scene.check_others();
    for stranger in &mut strangers {
        let sent = stranger.sent;
        // Two who answer each other would else do so for ever (RFC 9000 section 10.3.3).
        if let Some(answer) = stranger.receive() {
            assert!(answer.len() < sent, "{} for {sent} bytes", answer.len());
        }
        assert_eq!(stranger.receive(), None, "a second answer");
    }
}

// Strangers who speak the protocol.

#[test]
fn first_packet_is_answered_with_a_retry_that_is_no_larger() {
    raise_descriptor_limit();
    let scene = Scene::start();
    let mut random = Random(4);
    // They are never heard of again.
    let mut guests: Vec<Guest> = (0..500)
        .map(|_| Guest::new(scene.tunnel(), &random.bytes(16)))
        .collect();
    for guest in &mut guests {
        guest.speak();
        let mut answer = guest.stranger.wait_answer();
        assert_eq!(header_of(&mut answer).ty, Type::Retry);
        guest.stranger.check_balance();
    }
    scene.check_others();
    for guest in &mut guests {
        guest.stranger.check_balance();
    }
}

#[test]
fn token_is_good_for_the_address_that_it_was_given_to_and_no_other() {
    let scene = Scene::start();
    let mut random = Random(5);
    let mut honest = Guest::new(scene.tunnel(), &random.bytes(16));
    honest.speak();
    let mut retry = honest.stranger.wait_answer();
    honest.hear(&mut retry);
    // What would now be said, someone else says.
    let mut buffer = [0; 1500];
    let (count, _) = honest.connection.send(&mut buffer).unwrap();
    let mut thief = Stranger::new(scene.tunnel());
    for _ in 0..20 {
        thief.send(&buffer[..count]);
        scene.check_visitors();
        while let Some(mut answer) = thief.receive() {
            // Another Retry, or an end; nothing of a handshake that would go on.
            let kind = header_of(&mut answer).ty;
            assert_ne!(kind, Type::Handshake);
            assert!(answer.len() <= count, "{} for {count} bytes", answer.len());
        }
        thief.check_balance();
    }
    scene.check_others();
}

#[test]
fn handshakes_that_stop_in_the_middle_disturb_nobody() {
    const GUESTS: usize = 300;
    raise_descriptor_limit();
    let scene = Scene::start();
    let mut random = Random(6);
    let mut guests: Vec<Guest> = (0..GUESTS)
        .map(|_| Guest::new(scene.tunnel(), &random.bytes(16)))
        .collect();
    for guest in &mut guests {
        guest.speak();
        // The Retry, which is answered with its token; what comes then is not.
        let mut retry = guest.stranger.wait_answer();
        guest.hear(&mut retry);
        guest.speak();
    }
    scene.check_others();
}

#[test]
fn connection_that_brings_no_ticket_is_over_soon_and_disturbs_nobody() {
    let scene = Scene::start();
    let mut random = Random(7);
    let openings: [&[u8]; 6] = [
        // Nothing at all.
        b"",
        // What v1 says, of which there is no session.
        b"\0",
        b"\x01",
        b"\x01half a ticket",
        &[1; 41],
        b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n",
    ];
    let mut guests: Vec<Guest> = openings
        .iter()
        .map(|opening| {
            let mut guest = Guest::new(scene.tunnel(), &random.bytes(16));
            guest.establish();
            for stream in [0, 4, 8] {
                if !opening.is_empty() {
                    // It may be over by then.
                    let _ = guest.connection.stream_send(stream, opening, false);
                }
            }
            guest.speak();
            guest
        })
        .collect();
    scene.check_others();
    for (guest, opening) in guests.iter_mut().zip(openings) {
        guest.wait_over();
        let mut buffer = [0; 64];
        let answer = guest.connection.stream_recv(0, &mut buffer);
        assert!(!matches!(answer, Ok((1.., _))), "{opening:?} was answered");
    }
    scene.check_visitors();
}

#[test]
fn connection_that_opens_streams_without_end_disturbs_nobody() {
    let scene = Scene::start();
    let mut random = Random(8);
    let mut guest = Guest::new(scene.tunnel(), &random.bytes(16));
    guest.establish();
    let mut stream = 0;
    for _ in 0..30 {
        // No more than it may; then it waits for room.
        while guest.connection.stream_send(stream, b"\x01", false).is_ok() {
            stream += 4;
        }
        guest.turn();
        scene.check_visitors();
    }
    scene.check_others();
    guest.wait_over();
}

// A client that has joined.

#[test]
fn client_that_gives_no_window_holds_up_its_own_visitor_alone() {
    /// Far more than windows and sockets hold.
    const OFFERED: usize = 64 << 20;
    const TAKEN_MAX: usize = 32 << 20;
    const LULL: Duration = Duration::from_millis(500);
    let options = format!("mode=1&{OPTIONS}");
    // Its pings are not answered: it must not be given up for that meanwhile.
    let patient = [QUICK, &[("NP_REPORT_INTERVAL", "10s")]].concat();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, &patient);
    let tunnel = server.tunnel_address();
    let mut stalled = PlayedClient::join(tunnel, &key(KEY));
    stalled.fill(1);
    server.wait_up(1);
    let mut held_up = dial(server.tcp_address());
    held_up.write_all(b"taken by the one that stalls").unwrap();
    let (_, _stream) = stalled.next_visitor();
    stalled.way().link().stall();
    let target = TcpServer::echo();
    let honest = End::client(tunnel, &target.address().to_string(), "min=4", &patient);
    honest.wait_up(1);
    server.wait_up(2);
    let memory = server.memory_size();
    held_up.set_write_timeout(Some(LULL)).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let mut taken = 0;
    while taken < OFFERED {
        let Ok(count) = held_up.write(&chunk) else {
            break;
        };
        taken += count;
        if taken % (16 * chunk.len()) == 0 {
            exchange(&dial(server.tcp_address()), b"served all the same");
        }
    }
    assert!(
        taken < TAKEN_MAX,
        "{taken} bytes are held for someone who reads nothing"
    );
    exchange(&dial(server.tcp_address()), b"served all the same");
    let grown = server.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    // The end of that client is the end of its visitor.
    drop(stalled);
    server.wait_ended(1, &[]);
    assert_closed(&held_up);
    exchange(&dial(server.tcp_address()), b"and after");
}
