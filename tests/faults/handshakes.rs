//! Clients that should not get a session at our server.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nodepass::limits::{LOG_REPEAT_INTERVAL, LOG_REPEAT_MAX};
use nodepass::wire::handshake::client::ClientError;

use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::peer::{PlayedClient, ask, handshake, handshake_v1, key, say_hello};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange};

fn start_server(options: &str) -> (End, SocketAddr) {
    let options = format!("mode=1&{options}");
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
    let tunnel = server.tunnel_address();
    (server, tunnel)
}

#[test]
fn client_with_another_key_is_refused_with_a_warning() {
    let (server, tunnel) = start_server("");
    let other = key("another");
    assert_eq!(
        handshake(tunnel, &other).err(),
        Some(ClientError::KeyRefused)
    );
    let line = server.wait_complaint(&["Handshake from 127.0.0.1:", "refused", "key is not ours"]);
    assert!(line.contains(" WARN "), "{line}");
    assert_eq!(
        handshake_v1(tunnel, &other).err(),
        Some(ClientError::KeyRefused)
    );
    server.wait_for_count("key is not ours", 2);
    assert!(handshake(tunnel, &key(KEY)).is_ok());
}

#[test]
fn wrong_keys_without_end_do_not_fill_the_log() {
    const ATTEMPTS: usize = 40;
    let (server, tunnel) = start_server("");
    let started_at = Instant::now();
    thread::scope(|scope| {
        for _ in 0..ATTEMPTS {
            scope.spawn(|| {
                let refused = handshake_v1(tunnel, &key("another"));
                assert_eq!(refused.err(), Some(ClientError::KeyRefused));
            });
        }
    });
    // The right key is let in all the same, from the same address.
    let mut client = PlayedClient::join(tunnel, &key(KEY));
    client.fill(1);
    server.wait_up(1);
    let intervals = started_at.elapsed().div_duration_f64(LOG_REPEAT_INTERVAL);
    let lines = server.count("key is not ours");
    // An interval that began before, and a line for what was left out in each.
    let allowed = (intervals + 2.0) * (f64::from(LOG_REPEAT_MAX) + 1.0);
    let lines = f64::from(u32::try_from(lines).unwrap());
    assert!((1.0..=allowed).contains(&lines), "{lines} lines");
}

#[test]
fn proof_that_is_sent_again_gets_no_session() {
    let (server, tunnel) = start_server("");
    let hello = say_hello(tunnel, &key(KEY), None);
    let first = ask(tunnel, &hello.request).unwrap();
    let second = ask(tunnel, &hello.request).unwrap();
    let verified = hello.next.take(&first).unwrap();
    let other = say_hello(tunnel, &key(KEY), None);
    let refused = other.next.take(&second).unwrap_err();
    assert!(matches!(refused, ClientError::Status(_)), "{refused:?}");
    server.wait_complaint(&["Handshake from ", "refused"]);
    // The one who sent it first is none the worse.
    let mut client = PlayedClient::join_verified(tunnel, verified);
    client.fill(1);
    server.wait_up(1);
}

#[test]
fn v1_client_is_refused_where_only_native_ones_are_wanted() {
    let (server, tunnel) = start_server("auth=1");
    let refused = handshake_v1(tunnel, &key(KEY));
    assert_eq!(refused.err(), Some(ClientError::KeyRefused));
    server.wait_complaint(&["Handshake from ", "refused", "auth=1"]);
    assert!(handshake(tunnel, &key(KEY)).is_ok());
}

#[test]
fn clients_that_never_open_the_control_channel_disturb_nobody() {
    const CLIENTS: usize = 20;
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), "", "min=4");
    let idlers: Vec<_> = (0..CLIENTS)
        .map(|_| handshake(both.tunnel, &key(KEY)).unwrap())
        .collect();
    for _ in 0..CLIENTS {
        exchange(&dial(both.entry), b"served all the same");
    }
    // After a while there is nothing left of them: 18 checkpoints are 5.4 s, and they have twice
    // the 2 s of a handshake, for a connect and for TLS.
    let seen = both.server.count("CHECK_POINT");
    both.server.wait_for_count("CHECK_POINT", seen + 18);
    for verified in idlers {
        let (.., mut tickets) = verified.session.into_client();
        let preface = tickets.issue().encode_preface();
        let joined = crate::support::peer::join_with(both.tunnel, false, &preface);
        assert!(
            joined.is_err(),
            "a forgotten session gave {:?}",
            joined.map(|(id, _)| id)
        );
    }
    exchange(&dial(both.entry), b"and still");
    assert_eq!(both.client.ended_count(), 0);
}

#[test]
fn client_that_says_half_a_request_is_closed_at_the_handshake_timeout() {
    let (_server, tunnel) = start_server("");
    let started_at = Instant::now();
    let stranger = dial(tunnel);
    std::io::Write::write_all(&mut &stranger, b"GET / HTTP/1.1\r\nHost: no").unwrap();
    crate::support::visitors::read_to_end(&stranger);
    // QUICK has 2 s.
    let elapsed = started_at.elapsed();
    assert!(
        elapsed >= Duration::from_millis(1900),
        "closed after {elapsed:?}"
    );
}
