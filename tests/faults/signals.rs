//! Control channels that say what they should not, or nothing.

use std::net::SocketAddr;

use nodepass::wire::offer::{Flow, Offer, TlsMode, Transport};
use nodepass::wire::signal::{PoolId, Signal};

use crate::support::ends::{End, KEY, QUICK};
use crate::support::peer::{Control, PlayedClient, PlayedServer, key};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange};

const OFFER: Offer = Offer {
    flow: Flow::Reverse,
    pool_max: 16,
    tls: TlsMode::Plain,
    transport: Transport::Tcp,
};

/// How a line is spoiled.
const FORGERIES: [fn(&Control); 5] = [
    // Changed on its way: another MAC.
    |control| {
        control.send_altered(Signal::Flush, |mut line| {
            let last = line.len() - 2;
            line[last] = if line[last] == b'0' { b'1' } else { b'0' };
            line
        });
    },
    // Sent twice.
    |control| control.send_altered(Signal::Ping, |line| [&line[..], &line].concat()),
    // Lost on its way: the next one is out of order.
    |control| {
        control.send_altered(Signal::Ping, |_| Vec::new());
        control.send(Signal::Ping);
    },
    // Made up by someone without the key.
    |control| control.send_bytes(b"eyJhY3Rpb24iOiJmbHVzaCJ9.00000000000000000000000000000000\n"),
    // A line without an end.
    |control| control.send_bytes(&[b'A'; 8192]),
];

fn start_server() -> (End, SocketAddr) {
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1", QUICK);
    let tunnel = server.tunnel_address();
    (server, tunnel)
}

#[test]
fn forged_line_of_a_client_ends_its_session_as_tampered() {
    let (server, tunnel) = start_server();
    for (count, forge) in (1..).zip(FORGERIES) {
        let client = PlayedClient::join(tunnel, &key(KEY));
        server.wait_up(count);
        forge(&client.control);
        client.control.wait_end();
        server.wait_ended(count, &["tampered"]);
    }
}

#[test]
fn forged_line_of_a_server_ends_its_session_as_tampered() {
    let server = PlayedServer::start();
    let client = End::client(server.address(), "127.0.0.1:1", "min=2", QUICK);
    for (count, forge) in (1..).zip(FORGERIES) {
        let control = server.accept_native(&key(KEY), &OFFER, None);
        client.wait_up(count);
        server.close_pool();
        forge(&control);
        control.wait_end();
        client.wait_ended(count, &["Client error: session with", "tampered"]);
    }
}

#[test]
fn signal_for_a_connection_that_is_not_there_does_not_end_the_session() {
    let (server, tunnel) = start_server();
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    server.wait_up(1);
    client.fill(1);
    client.control.send(Signal::Tcp {
        remote: None,
        id: PoolId([7; 4]),
    });
    client.control.send(Signal::Ping);
    client.control.wait_for(&Signal::Pong);
    let visitor = dial(server.tcp_address());
    let (_, stream) = client.next_visitor();
    drop((visitor, stream));
    assert_eq!(server.ended_count(), 0);
}

#[test]
fn client_that_falls_silent_is_dropped_after_three_intervals() {
    let (server, tunnel) = start_server();
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    server.wait_up(1);
    let idle = client.fill(2);
    client.control.freeze();
    server.wait_ended(1, &[]);
    // What belonged to it is closed.
    for id in idle {
        assert_eq!(client.take(id).read_until_end(), b"");
    }
}

#[test]
fn server_that_falls_silent_is_left_and_tried_again() {
    let target = TcpServer::echo();
    let server = PlayedServer::start();
    let client = End::client(
        server.address(),
        &target.address().to_string(),
        "min=2",
        QUICK,
    );
    let silent = server.accept_native(&key(KEY), &OFFER, None);
    client.wait_up(1);
    silent.freeze();
    server.close_pool();
    client.wait_ended(1, &["Client error: session with"]);
    let control = server.accept_native(&key(KEY), &OFFER, None);
    client.wait_up(2);
    let mut stream = server.send_visitor(&control, |id| Signal::Tcp { remote: None, id });
    std::io::Write::write_all(&mut stream, b"served").unwrap();
    assert_eq!(stream.read_count(6), b"served");
}

#[test]
fn client_that_says_bye_is_dropped_at_once() {
    let target = TcpServer::echo();
    let (server, tunnel) = start_server();
    let other = End::client(tunnel, &target.address().to_string(), "min=2", QUICK);
    server.wait_up(1);
    let client = PlayedClient::join(tunnel, &key(KEY));
    server.wait_up(2);
    client.control.send(Signal::Bye);
    client.control.wait_end();
    server.wait_ended(1, &[]);
    for _ in 0..4 {
        exchange(&dial(server.tcp_address()), b"by the one that stays");
    }
    assert_eq!(other.ended_count(), 0);
}
