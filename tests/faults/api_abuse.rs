//! Clients of the API that keep to no rule, none of whom has the key: silent ones, slow ones, ones
//! without end, more of them than there are places.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::http::{Connection, encode, raw};
use crate::support::master::{Master, Settings};
use crate::support::peer::Stream;
use crate::support::program::raise_descriptor_limit;
use crate::support::{DEADLINE, eventually, own_loopback};

/// More clients than a master has places for.
const CROWD: usize = 600;

/// What an offender may cost (bytes).
const GROWN_MAX: u64 = 64 << 20;

/// The beginnings of requests of which the rest never comes.
const BEGINNINGS: [&str; 5] = [
    "",
    "G",
    "GET /api/v1/info HTTP/1.1\r\nHost: a\r\nX-A: ",
    "POST /api/v1/instances HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
    "POST /api/v1/instances HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
];

/// Sends what may not be taken.
fn send(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Connects from an address of one's own.
fn dial_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Closes a connection by a reset.
fn reset(stream: TcpStream) {
    let socket = SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Has a request with the key answered on a connection that stays open.
#[track_caller]
fn ask(master: &Master, connection: &mut Connection) {
    let path = master.path("/instances");
    let key = [("X-API-Key", master.key())];
    let answer = connection.request("GET", &path, &key, None).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.is_last());
}

/// Everybody else is served, on new connections.
#[track_caller]
fn check_served(master: &Master) {
    for _ in 0..3 {
        assert_eq!(master.get("/instances").0, 200);
    }
}

/// Sends `bytes`; the status of the answer, which is an error as they all are, and the last one.
#[track_caller]
fn status_of(master: &Master, bytes: &[u8]) -> u16 {
    let mut connection = master.dial().unwrap();
    let _ = connection.send_raw(bytes);
    let answer = connection.receive("GET").unwrap();
    assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("*"));
    assert_eq!(answer.field("Content-Type"), Some("application/json"));
    assert!(!answer.error().is_empty());
    assert!(answer.is_last());
    assert!(connection.read_until_end().is_empty());
    answer.status
}

#[test]
fn silent_and_slow_clients_lock_nobody_out() {
    raise_descriptor_limit();
    let master = Master::start();
    let memory = master.memory_size();
    let elsewhere = own_loopback();
    // One who works stays, wherever the others come from.
    let kept = dial_from(elsewhere, master.address());
    let mut kept = Connection::over(Stream::Plain(kept));
    ask(&master, &mut kept);
    let mut crowd = Vec::new();
    for round in 0..2 * CROWD {
        let stream = dial(master.address());
        send(&stream, BEGINNINGS[round % BEGINNINGS.len()].as_bytes());
        crowd.push(stream);
        if round % 100 == 0 {
            check_served(&master);
        }
    }
    ask(&master, &mut kept);
    // From where the crowd is, and from elsewhere.
    check_served(&master);
    for _ in 0..3 {
        let stream = dial_from(elsewhere, master.address());
        ask(&master, &mut Connection::over(Stream::Plain(stream)));
    }
    // Byte by byte they get no further.
    for (round, stream) in crowd.iter().enumerate() {
        send(stream, b"x");
        if round % 100 == 0 {
            check_served(&master);
        }
    }
    ask(&master, &mut kept);
    let grown = master.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    drop(crowd);
    ask(&master, &mut kept);
}

#[test]
fn a_stream_of_new_connections_locks_nobody_out() {
    raise_descriptor_limit();
    let master = Master::start();
    let elsewhere = own_loopback();
    let kept = dial_from(elsewhere, master.address());
    let mut kept = Connection::over(Stream::Plain(kept));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = std::collections::VecDeque::new();
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(stream) = TcpStream::connect(master.address()) else {
                        continue;
                    };
                    send(&stream, BEGINNINGS[2].as_bytes());
                    held.push_back(stream);
                    if held.len() > CROWD {
                        held.pop_front();
                    }
                }
            });
        }
        // A failure must not leave them running.
        let served = thread::scope(|inner| {
            let work = inner.spawn(|| {
                for _ in 0..30 {
                    ask(&master, &mut kept);
                    let stream = dial_from(elsewhere, master.address());
                    ask(&master, &mut Connection::over(Stream::Plain(stream)));
                    // Among the crowd one may be sent away, and comes again.
                    eventually("an answer among the crowd", || {
                        let key = [("X-API-Key", master.key())];
                        let answer = master.try_request("GET", "/instances", &key, None);
                        answer.ok().filter(|answer| answer.status == 200)
                    });
                }
            });
            work.join()
        });
        is_over.store(true, Ordering::Relaxed);
        served.unwrap();
    });
    check_served(&master);
}

#[test]
fn those_who_take_no_answer_lock_nobody_out() {
    raise_descriptor_limit();
    let master = Master::start();
    let memory = master.memory_size();
    let request = encode("GET", &master.path("/openapi.json"), &[], None).repeat(64);
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            let stream = dial(master.address());
            SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
            send(&stream, &request);
            stream
        })
        .collect();
    check_served(&master);
    let grown = master.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    // Nobody is waited for without end, even where nobody else wants the place.
    let descriptors = master.descriptors_count();
    eventually("those who take nothing to be cut", || {
        (master.descriptors_count() + 400 < descriptors).then_some(())
    });
    drop(crowd);
    check_served(&master);
}

#[test]
fn requests_without_end_are_refused() {
    let master = Master::start();
    let post = "POST /api/v1/instances HTTP/1.1\r\nHost: a\r\n";
    let huge = "Content-Length: 1000000000000000000\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    for (bytes, status) in [
        (format!("GET /{}", "a".repeat(1 << 20)), 431),
        (format!("{post}A: {}", "a".repeat(1 << 20)), 431),
        (format!("{post}{}", "A: b\r\n".repeat(100_000)), 431),
        ("\r\n".repeat(100_000), 431),
        (format!("{post}{huge}{}", "a".repeat(1000)), 413),
        (
            format!("{post}{chunked}{}", "1\r\na\r\n".repeat(70_000)),
            413,
        ),
        (format!("{post}{chunked}7fffffffffffffff\r\na"), 413),
        (format!("{post}{chunked}1;{}", "a".repeat(1 << 20)), 400),
        (
            format!("{post}{chunked}0\r\n{}", "A: b\r\n".repeat(100_000)),
            400,
        ),
    ] {
        assert_eq!(status_of(&master, bytes.as_bytes()), status, "{bytes:.99}");
        check_served(&master);
    }
}

#[test]
fn requests_that_two_could_read_differently_are_refused() {
    let master = Master::start();
    let get = "GET /api/v1/info HTTP/1.1\r\n";
    let post = "POST /api/v1/info HTTP/1.1\r\nHost: a\r\n";
    for (bytes, status) in [
        (format!("{get}\r\n"), 400),
        (format!("{get}Host: a\r\nHost: b\r\n\r\n"), 400),
        (format!("{get}Host: a\r\nA : b\r\n\r\n"), 400),
        (format!("{get}Host: a\r\nA: b\r\n c\r\n\r\n"), 400),
        (format!("{get}Host: a\r\nA: b\0\r\n\r\n"), 400),
        (format!("{get}Host: a\r\nA: b\rc\r\n\r\n"), 400),
        (format!("{post}Content-Length: +2\r\n\r\n{{}}"), 400),
        (
            format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            400,
        ),
        (
            format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n"), 501),
        (
            "GET /api/v1/info HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
            505,
        ),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x03\x03".to_owned(), 400),
        ("\0".to_owned(), 400),
    ] {
        assert_eq!(status_of(&master, bytes.as_bytes()), status, "{bytes:?}");
    }
    check_served(&master);
}

#[test]
fn a_request_that_does_not_come_to_its_end_is_given_up() {
    let master = Master::start();
    let began = Instant::now();
    assert_eq!(status_of(&master, BEGINNINGS[3].as_bytes()), 408);
    // Whoever is slow is not given up at once.
    assert!(began.elapsed() > Duration::from_secs(5));
}

#[test]
fn clients_that_reset_before_they_are_accepted_stop_nothing() {
    let master = Master::start();
    master.signal(Signal::STOP);
    for _ in 0..200 {
        let stream = dial(master.address());
        send(&stream, BEGINNINGS[3].as_bytes());
        reset(stream);
    }
    master.signal(Signal::CONT);
    check_served(&master);
    for round in 0..200 {
        let stream = dial(master.address());
        let path = master.path("/openapi.json");
        let request = encode("GET", &path, &[], None);
        // At any moment of a request and its answer.
        send(&stream, &request[..request.len() * round / 199]);
        reset(stream);
    }
    check_served(&master);
}

#[test]
fn many_who_keep_their_connections_are_all_answered() {
    let master = Master::start();
    let mut clients: Vec<Connection> = (0..100).map(|_| master.dial().unwrap()).collect();
    let path = master.path("/instances");
    for _ in 0..3 {
        for client in &mut clients {
            let key = [("X-API-Key", master.key())];
            client.send("GET", &path, &key, None).unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.receive("GET").unwrap().status, 200);
        }
    }
}

#[test]
fn one_connection_carries_ten_thousand_requests() {
    let master = Master::start();
    let mut connection = master.dial().unwrap();
    for _ in 0..10_000 {
        ask(&master, &mut connection);
    }
    // None of them has left anything behind.
    assert!(master.descriptors_count() < 100);
    assert!(master.threads_count() < 100);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_bounded() {
    let master = Master::start();
    let memory = master.memory_size();
    let mut connection = master.dial().unwrap();
    let paths: Vec<String> = (0..2000).map(|number| format!("/none/{number}")).collect();
    let mut requests = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let body = format!("{number}");
        let body = (number % 2 == 0).then_some(body.as_bytes());
        let method = if body.is_some() { "POST" } else { "HEAD" };
        requests.extend(encode(method, path, &[], body));
    }
    let socket = connection.stream().socket().try_clone().unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&socket, &requests));
        for number in 0..paths.len() {
            let method = if number % 2 == 0 { "POST" } else { "HEAD" };
            let answer = connection.receive(method).unwrap();
            assert_eq!(answer.status, 404, "{number}");
            assert_eq!(answer.body.is_empty(), method == "HEAD");
        }
        sending.join().unwrap();
    });
    // One who reads none of the answers cannot have more and more of them made.
    let greedy = dial(master.address());
    greedy.set_nonblocking(true).unwrap();
    let flood = encode("GET", &master.path("/openapi.json"), &[], None).repeat(1000);
    let began = Instant::now();
    loop {
        match (&greedy).write(&flood) {
            Ok(_) => assert!(began.elapsed() < DEADLINE, "all is taken"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    check_served(&master);
    let grown = master.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
}

/// A master whose descriptors are enough for this many clients.
fn with_places(count: usize) -> Master {
    let settings = Settings::default().setup(&format!("ulimit -n {}", count * 14));
    Master::start_with(settings)
}

#[test]
fn when_all_places_are_busy_one_more_is_told_so() {
    let master = with_places(12);
    let mut streams: Vec<_> = (0..12).map(|_| master.events()).collect();
    for _ in 0..3 {
        let answer = master.try_request("GET", "/instances", &[("X-API-Key", master.key())], None);
        let answer = answer.unwrap();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("*"));
        assert!(!answer.error().is_empty());
    }
    for stream in &streams {
        assert!(!stream.is_ended());
    }
    // A place is free as soon as its client has left.
    drop(streams.pop());
    eventually("an answer", || {
        let answer = master.try_request("GET", "/instances", &[("X-API-Key", master.key())], None);
        answer.ok().filter(|answer| answer.status == 200)
    });
}

#[test]
fn clients_beyond_the_descriptors_stop_nothing() {
    let master = with_places(8);
    for _ in 0..3 {
        let crowd: Vec<TcpStream> = (0..300)
            .map(|round: usize| {
                let stream = dial(master.address());
                send(&stream, BEGINNINGS[round % BEGINNINGS.len()].as_bytes());
                stream
            })
            .collect();
        check_served(&master);
        let asked = encode("GET", &master.path("/openapi.json"), &[], None);
        for stream in &crowd {
            send(stream, &asked);
        }
        drop(crowd);
        check_served(&master);
    }
}

#[test]
fn whoever_half_closes_gets_his_answer() {
    let master = Master::start();
    let mut connection = master.dial().unwrap();
    let path = master.path("/info");
    let key = [("X-API-Key", master.key())];
    connection.send("GET", &path, &key, None).unwrap();
    let socket = connection.stream().socket();
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.receive("GET").unwrap().status, 200);
    assert!(connection.read_until_end().is_empty());
}

#[test]
fn event_streams_end_with_their_clients() {
    let master = Master::start();
    let (memory, before) = (master.memory_size(), master.descriptors_count());
    // More than there are places, while nothing happens that could be told.
    let request = encode(
        "GET",
        &master.path("/events"),
        &[("X-API-Key", master.key())],
        None,
    );
    for _ in 0..1000 {
        let mut connection = master.dial().unwrap();
        connection.send_raw(&request).unwrap();
        assert_eq!(connection.receive_head().unwrap().status, 200);
    }
    eventually("the end of all streams", || {
        (master.descriptors_count() < before + 20).then_some(())
    });
    let grown = master.memory_size().saturating_sub(memory);
    assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
    check_served(&master);
}

#[cfg(feature = "tls")]
#[test]
fn broken_tls_costs_nothing_but_its_place() {
    raise_descriptor_limit();
    let master = Master::start_with(Settings::default().options("log=info&tls=1"));
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for bytes in [
        &b"GET /api/v1/info HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        &[0xff; 100_000],
    ] {
        let stream = dial(master.address());
        send(&stream, bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut connection = Connection::over(Stream::Plain(stream));
        let answer = connection.read_until_end();
        // At most an alert, or for one who does not mean TLS a word in plain text.
        let is_http = bytes.starts_with(b"GET");
        assert_eq!(answer.starts_with(b"HTTP/1.1 400 "), is_http);
        assert!(answer.len() < 100 || is_http, "{answer:?}");
        check_served(&master);
    }
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|round| {
            let stream = dial(master.address());
            send(&stream, &hello[..round % hello.len()]);
            stream
        })
        .collect();
    check_served(&master);
    // Handshakes that do not end are given up.
    let descriptors = master.descriptors_count();
    eventually("the end of half handshakes", || {
        (master.descriptors_count() + 400 < descriptors).then_some(())
    });
    drop(crowd);
    check_served(&master);
}

#[test]
fn garbage_stops_nothing() {
    let master = Master::start();
    let mut seed = 88_172_645_463_325_252_u64;
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..300)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_be_bytes()[0]
            })
            .chain(*b"\r\n\r\n")
            .collect();
        let answer = raw(master.address(), &bytes);
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{bytes:?}");
    }
    check_served(&master);
}
