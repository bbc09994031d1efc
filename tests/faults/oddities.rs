//! Clients that keep to the protocol, almost, or are slow at a bad moment.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use nodepass::wire::signal::PoolId;
use nodepass::wire::signal::Signal;

use crate::support::DEADLINE;
use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK};
use crate::support::peer::{PlayedClient, join_v1, key};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, read_count};

/// Longer than a silent connection is waited for where all clients of its address speak v1, and
/// shorter than where there are native ones as well.
const PAUSE: Duration = Duration::from_millis(300);

fn start_server(options: &str) -> (End, SocketAddr) {
    start_server_for("127.0.0.1:0", options)
}

fn start_server_for(target: &str, options: &str) -> (End, SocketAddr) {
    let server = End::server("127.0.0.1:0", target, options, QUICK);
    let tunnel = server.tunnel_address();
    (server, tunnel)
}

#[test]
fn client_that_answers_no_ping_is_given_up_however_many_it_sends() {
    let (server, tunnel) = start_server("mode=1");
    let client = PlayedClient::join(tunnel, &key(KEY));
    client.control.ignore_pings();
    server.wait_up(1);
    let began = Instant::now();
    while server.ended_count() == 0 {
        assert!(began.elapsed() < DEADLINE, "the session goes on");
        client.control.send(Signal::Ping);
        // Often enough never to be silent for long.
        thread::sleep(Duration::from_millis(50));
    }
    let elapsed = began.elapsed();
    // Three intervals of 300 ms, and some for the looks in between.
    let range = Duration::from_millis(500)..Duration::from_secs(4);
    assert!(range.contains(&elapsed), "given up after {elapsed:?}");
    client.control.wait_end();
}

#[test]
fn flushes_of_a_client_that_closes_nothing_use_up_no_descriptors() {
    const ROUNDS: usize = 50;
    const MAX: usize = 8;
    // A pool that is full, another one that was given up, and those who wait for a place.
    const GROWN_MAX: usize = 8 * MAX;
    // Far less than connections that were given up may be kept.
    const SETTLED: Duration = Duration::from_secs(3);
    for_each(&[1, 2], |mode| {
        let target = TcpServer::echo();
        let place = match mode {
            1 => "127.0.0.1:0".to_owned(),
            _ => target.address().to_string(),
        };
        let (server, tunnel) = start_server_for(&place, &format!("mode={mode}&max={MAX}"));
        let mut client = PlayedClient::join(tunnel, &key(KEY));
        server.wait_up(1);
        let before = server.descriptors_count();
        let mut kept: Vec<TcpStream> = Vec::new();
        for _ in 0..ROUNDS {
            let new: Vec<TcpStream> = (0..MAX)
                .map(|_| {
                    let mut stream = dial(tunnel);
                    let preface = client.ticket().encode_preface();
                    stream.write_all(&preface).unwrap();
                    stream
                })
                .collect();
            for mut stream in &new {
                let patience = Some(Duration::from_millis(40));
                stream.set_read_timeout(patience).unwrap();
                if stream.read_exact(&mut [0; 4]).is_err() {
                    // There is no place: none of the others will get one either.
                    break;
                }
            }
            kept.extend(new);
            client.control.send(Signal::Flush);
            client.control.send(Signal::Ping);
            // The answer says that the flush has been done.
            client.control.wait_for(&Signal::Pong);
        }
        let began = Instant::now();
        let grown = loop {
            let grown = server.descriptors_count().saturating_sub(before);
            if grown < GROWN_MAX || began.elapsed() > SETTLED {
                break grown;
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(
            grown < GROWN_MAX,
            "{grown} descriptors more than {before} after {ROUNDS} flushes in mode {mode}"
        );
        assert_eq!(server.ended_count(), 0);
    });
}

#[test]
fn first_bytes_that_are_late_join_a_native_session_beside_one_of_v1() {
    let (server, tunnel) = start_server("mode=1");
    let _v1 = join_v1(tunnel, &key(KEY));
    server.wait_for(" is up: v1, reverse, tls=0, type=0");
    let mut native = PlayedClient::join(tunnel, &key(KEY));
    server.wait_for(" is up: native, reverse, tls=0, type=0");
    // The first bytes come in two parts, then all of them late.
    for count in [2, 0] {
        let preface = native.ticket().encode_preface();
        let (first, rest) = preface.split_at(count);
        let mut stream = dial(tunnel);
        stream.write_all(first).unwrap();
        thread::sleep(PAUSE);
        stream.write_all(rest).unwrap();
        let mut id = [0; 4];
        stream.read_exact(&mut id).unwrap();
        // The native session has it, which has no other connection.
        let visitor = dial(server.tcp_address());
        let signal = native.control.next_signal();
        assert!(
            matches!(signal, Signal::Tcp { id: named, .. } if named.0 == id),
            "{signal:?} is not of the connection {id:?}"
        );
        stream.write_all(b"served").unwrap();
        assert_eq!(read_count(&visitor, 6), b"served");
    }
}

#[test]
#[cfg(feature = "tls")]
fn v1_connection_whose_hello_of_tls_comes_late_is_served() {
    use crate::support::peer::Stream;
    let (server, tunnel) = start_server("mode=1&tls=1");
    let mut client = join_v1(tunnel, &key(KEY));
    let checked = client.try_fill().unwrap();
    let Signal::Verify { id, fp } = client.control.next_signal() else {
        panic!("no check of the certificate comes first");
    };
    assert_eq!(id, checked);
    client.control.send(Signal::Verify { id, fp });
    server.wait_for(" is up: v1, reverse, tls=1, type=0");
    drop(client.take(checked));

    let socket = dial(tunnel);
    thread::sleep(PAUSE);
    let mut stream = Stream::begin_tls(socket).unwrap();
    let id = PoolId(stream.read_count(4).try_into().unwrap());
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let signal = client.control.next_signal();
    assert!(
        matches!(signal, Signal::Tcp { id: named, .. } if named == id),
        "{signal:?} is not of the connection {id}"
    );
    assert_eq!(stream.read_count(5), b"hello");
    stream.write_all(b"served").unwrap();
    stream.flush().unwrap();
    assert_eq!(read_count(&visitor, 6), b"served");
    assert_eq!(server.ended_count(), 0);
}
