//! Pool connections that should not be, and those that die unseen.

use std::io::ErrorKind;
use std::net::SocketAddr;

use nodepass::wire::proof::SessionId;
use nodepass::wire::ticket::{TICKET_SIZE, Ticket};

use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::eventually;
use crate::support::peer::{PlayedClient, join_with, key};
use crate::support::proxy::{Death, Proxy, Which};
use crate::support::servers::TcpServer;
use crate::support::tunnel::{Combination, Flow};
use crate::support::visitors::{dial, exchange, read_to_end, try_dial, try_exchange};

fn start_server(options: &str) -> (End, SocketAddr) {
    let options = format!("mode=1&{options}");
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
    let tunnel = server.tunnel_address();
    (server, tunnel)
}

/// A visitor is served through a played client.
fn check_visitor(server: &End, client: &mut PlayedClient) {
    use std::io::Write;
    client.try_fill().unwrap();
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let (_, mut stream) = client.next_visitor();
    assert_eq!(stream.read_count(5), b"hello");
    stream.write_all(b"goodbye").unwrap();
    stream.finish().unwrap();
    assert_eq!(read_to_end(&visitor).0, b"goodbye");
}

#[track_caller]
fn assert_turned_away(tunnel: SocketAddr, preface: &[u8]) {
    match join_with(tunnel, false, preface) {
        Ok((id, _)) => panic!("it was given the id {id}"),
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            ),
            "{error}"
        ),
    }
}

#[test]
fn ticket_that_is_used_twice_is_closed_without_a_word() {
    let (server, tunnel) = start_server("");
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    let ticket = client.ticket().encode_preface();
    let (_, first) = join_with(tunnel, false, &ticket).unwrap();
    assert_turned_away(tunnel, &ticket);
    drop(first);
    check_visitor(&server, &mut client);
}

#[test]
fn ticket_with_one_bit_changed_is_closed_without_a_word() {
    let (server, tunnel) = start_server("");
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    let good = client.ticket().encode();
    // The last byte of the session id, of the counter and of the proof.
    for index in [15, 23, 39] {
        let mut bad: [u8; TICKET_SIZE] = good;
        bad[index] ^= 1;
        assert_turned_away(tunnel, &Ticket::decode(&bad).encode_preface());
    }
    // None of that has used up the good one.
    assert!(join_with(tunnel, false, &Ticket::decode(&good).encode_preface()).is_ok());
    check_visitor(&server, &mut client);
}

#[test]
fn ticket_of_another_session_is_closed_without_a_word() {
    let (server, tunnel) = start_server("");
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    let mut other = PlayedClient::join(tunnel, &key(KEY));
    assert_ne!(client.session, other.session);
    let SessionId(id) = client.session.unwrap();
    let mut ticket = other.ticket().encode();
    ticket[..id.len()].copy_from_slice(&id);
    assert_turned_away(tunnel, &Ticket::decode(&ticket).encode_preface());
    drop(other);
    server.wait_ended(1, &[]);
    check_visitor(&server, &mut client);
}

#[test]
fn pool_connection_without_a_ticket_is_closed_without_a_word() {
    let (server, tunnel) = start_server("");
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    // Silence is what a v1 client would say, and there is none.
    assert_turned_away(tunnel, b"");
    // Half a ticket never becomes a whole one.
    let half = &client.ticket().encode_preface()[..20];
    assert_turned_away(tunnel, half);
    check_visitor(&server, &mut client);
}

#[test]
fn pool_connection_beyond_the_maximum_is_closed() {
    const MAX: usize = 4;
    let (server, tunnel) = start_server("max=4");
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    assert_eq!(client.offer.pool_max, 4);
    let ids = client.fill(MAX);
    assert!(client.try_fill().is_err());
    // One that is taken makes room for another one.
    let _visitor = dial(server.tcp_address());
    let (_, stream) = client.next_visitor();
    eventually("room for one more", || client.try_fill().ok());
    drop(stream);
    for id in ids {
        assert_ne!(id, nodepass::wire::signal::PoolId::CONTROL);
    }
}

// Death between the ends.

/// A tunnel through a proxy with a full pool.
fn start_through_proxy(combination: Combination, target: &TcpServer) -> (End, End, Proxy) {
    let options = format!("max=16&{}", combination.server_options());
    let (server, tunnel) = start_server(&options);
    let proxy = Proxy::start(tunnel);
    let client = End::client(
        proxy.address(),
        &target.address().to_string(),
        "min=8",
        QUICK,
    );
    server.wait_up(1);
    eventually("a full pool", || {
        (proxy.count(Which::Idle) >= 8).then_some(())
    });
    (server, client, proxy)
}

#[test]
fn idle_connections_that_are_reset_cost_no_visitor() {
    for_each(&Combination::with_own_connections(), |combination| {
        let target = TcpServer::echo();
        let (server, client, proxy) = start_through_proxy(*combination, &target);
        for death in [Death::Reset, Death::Finished] {
            eventually("a full pool", || {
                (proxy.count(Which::Idle) >= 8).then_some(())
            });
            assert!(proxy.kill(Which::Idle, death) >= 8);
            // The dead are seen before they are handed out.
            for _ in 0..12 {
                exchange(&dial(server.tcp_address()), b"served all the same");
            }
        }
        assert_eq!(server.ended_count() + client.ended_count(), 0);
    });
}

#[test]
fn idle_connections_that_die_unseen_are_replaced() {
    for_each(&Combination::with_own_connections(), |combination| {
        let target = TcpServer::echo();
        let (server, client, proxy) = start_through_proxy(*combination, &target);
        assert!(proxy.kill(Which::Idle, Death::SilentForServer) >= 8);
        // Those that the server takes for alive cost a visitor each at worst, then service is back.
        let mut streak = 0;
        eventually("five visitors in a row that are served", || {
            let visitor = try_dial(server.tcp_address()).ok()?;
            let wait = Some(std::time::Duration::from_millis(700));
            visitor.set_read_timeout(wait).unwrap();
            let is_served = try_exchange(&visitor, b"anyone there").is_ok();
            streak = if is_served { streak + 1 } else { 0 };
            (streak == 5).then_some(())
        });
        assert_eq!(server.ended_count() + client.ended_count(), 0);
    });
}

#[test]
fn pool_survives_a_hundred_visitors_that_leave_at_once() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let both = Reverse::start(
            target.address(),
            &format!("max=16&{}", combination.server_options()),
            "min=4",
        );
        for _ in 0..100 {
            drop(dial(both.entry));
        }
        exchange(&dial(both.entry), b"served all the same");
        assert_eq!(both.client.ended_count(), 0);
    });
}
