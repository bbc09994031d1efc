//! Sessions of one server: whose they are, and which client takes the place of which.

use std::io::Write;
use std::net::SocketAddr;

use nodepass::wire::key::TunnelKey;

use crate::support::downgrade::Downgrade;
use crate::support::ends::{End, KEY, QUICK};
use crate::support::free_address;
use crate::support::peer::{PlayedClient, ask, handshake_v1, join_v1, key, say_hello};
use crate::support::program::{Launch, Program};
use crate::support::proxy::{Death, Proxy, Which};
use crate::support::servers::TcpServer;
use crate::support::tunnel::transports;
use crate::support::visitors::{assert_closed, dial, exchange, read_count};

/// What the log says of a session that gives way.
const REPLACED: &str = "the same client has come back";

fn start_server() -> (End, SocketAddr) {
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1", QUICK);
    let tunnel = server.tunnel_address();
    (server, tunnel)
}

/// A visitor is served through a played client.
#[track_caller]
fn check_visitor(entry: SocketAddr, client: &mut PlayedClient) {
    client.try_fill().unwrap();
    let visitor = dial(entry);
    let (_, mut stream) = client.next_visitor();
    stream.write_all(b"served").unwrap();
    stream.flush().unwrap();
    assert_eq!(read_count(&visitor, 6), b"served");
}

// Keys that come from the port.

#[test]
fn server_without_a_key_takes_v1_clients_with_either_key_of_its_port() {
    let address = free_address();
    let port = address.port();
    let keys = [
        TunnelKey::derived_from_port(port),
        TunnelKey::derived_fnv(port),
    ];
    for key in keys {
        let url = format!("server://{address}/127.0.0.1:0?mode=1&log=debug");
        let server = Program::start(&url);
        assert_eq!(server.tunnel_address(), address);
        let mut client = join_v1(address, &key);
        server.wait_for(" is up: v1, reverse, tls=0, type=0");
        check_visitor(server.tcp_address(), &mut client);
        let stranger = handshake_v1(address, &TunnelKey::derived_fnv(port ^ 1));
        assert!(stranger.is_err(), "a key of another port is taken");
    }
}

#[test]
fn client_without_a_key_tries_both_keys_of_its_port_on_a_v1_server() {
    let target = TcpServer::echo();
    for derive in [TunnelKey::derived_from_port, TunnelKey::derived_fnv] {
        let address = free_address();
        let downgrade = Downgrade::start(address);
        // The port that the client knows is that of the one in the middle.
        let front = downgrade.address();
        let key = derive(front.port());
        let key = std::str::from_utf8(key.as_bytes()).unwrap();
        let server = Program::start(&format!(
            "server://{key}@{address}/127.0.0.1:0?mode=1&log=debug"
        ));
        server.tunnel_address();
        let target = target.address();
        let url = format!("client://{front}/{target}?mode=2&min=4&log=debug");
        let client = Program::start(&url);
        client.wait_for(" is up: v1, reverse, tls=0, type=0");
        exchange(&dial(server.tcp_address()), b"through the tunnel");
        assert_eq!(client.count("Client error: "), 0);
    }
}

// Clients that come back.

#[test]
fn v1_client_whose_address_has_a_session_replaces_it() {
    let (server, tunnel) = start_server();
    let mut first = join_v1(tunnel, &key(KEY));
    server.wait_up(1);
    first.try_fill().unwrap();
    let visitor = dial(server.tcp_address());
    let (_, _carrying) = first.next_visitor();
    let mut second = join_v1(tunnel, &key(KEY));
    server.wait_ended(1, &[REPLACED]);
    first.control.wait_end();
    assert_closed(&visitor);
    server.wait_up(2);
    check_visitor(server.tcp_address(), &mut second);
    assert_eq!(server.ended_count(), 1);
}

#[test]
fn native_client_that_comes_back_ends_the_session_that_it_names_and_no_other() {
    let (server, tunnel) = start_server();
    let key = key(KEY);
    let first = PlayedClient::join(tunnel, &key);
    let mut other = PlayedClient::join(tunnel, &key);
    server.wait_up(2);
    let hello = say_hello(tunnel, &key, first.session);
    let answer = ask(tunnel, &hello.request).unwrap();
    let verified = hello.next.take(&answer).unwrap();
    // At once: before anything but the handshake has come.
    server.wait_ended(1, &[REPLACED]);
    first.control.wait_end();
    let mut back = PlayedClient::join_verified(tunnel, verified);
    server.wait_up(3);
    let entry = server.tcp_address();
    check_visitor(entry, &mut back);
    check_visitor(entry, &mut other);
    assert_eq!(server.ended_count(), 1);
}

#[test]
fn client_that_loses_its_server_names_its_last_session_when_it_is_back() {
    let target = TcpServer::echo();
    let patient = [QUICK, &[("NP_REPORT_INTERVAL", "10s")]].concat();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1", &patient);
    let tunnel = server.tunnel_address();
    let proxy = Proxy::start(tunnel);
    let target = target.address().to_string();
    let client = End::client(proxy.address(), &target, "min=4", QUICK);
    server.wait_up(1);
    client.wait_up(1);
    // The server does not see that its client is gone, and would not notice for long.
    assert_eq!(proxy.kill(Which::Control, Death::SilentForServer), 1);
    client.wait_ended(1, &[]);
    server.wait_ended(1, &[REPLACED]);
    client.wait_up(2);
    server.wait_up(2);
    exchange(&dial(server.tcp_address()), b"served");
    assert_eq!(server.ended_count(), 1);
}

// What is not built.

#[test]
fn pool_of_a_type_that_is_not_built_ends_the_server_with_status_1() {
    for number in (1..=3).filter(|number| !transports().contains(number)) {
        let address = free_address();
        let url = format!("server://k3y@{address}/127.0.0.1:0?mode=1&type={number}");
        let outcome = Launch::new(&[&url]).run();
        assert_eq!(outcome.status, 1, "{outcome:?}");
        let line = outcome.output.lines().find(|line| line.contains("ERROR"));
        let line = line.unwrap_or_else(|| panic!("no error: {outcome:?}"));
        let words = ["Server error: ", &format!("type={number}"), "type=0"];
        for word in words {
            assert!(line.contains(word), "no {word:?} in {line:?}");
        }
    }
}
