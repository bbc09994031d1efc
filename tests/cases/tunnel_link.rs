//! A tunnel over a long way: a visitor's first byte takes one round trip, and a burst loses none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::ends::End;
use crate::support::eventually;
use crate::support::link::{Link, NEAR, Place, skip};
use crate::support::proxy::Proxy;
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, read_count};

const DELAY: Duration = Duration::from_millis(25);

/// Idle pool connections.
const POOL_SIZE: usize = 64;

/// Visitors one after another, and how often that is tried: a busy machine may spoil some rounds,
/// but a tunnel that takes two round trips never passes one.
const VISITORS: usize = 15;
const ROUNDS: usize = 6;

/// Visitors at once, four times what is idle.
const BURST: usize = 256;

const ENVIRONMENT: &[(&str, &str)] = &[("NP_REPORT_INTERVAL", "500ms")];
const CLIENT_OPTIONS: &str = "min=64&noudp=1";

/// Waits until the pool is full.
fn wait_filled(server: &End) {
    eventually("a full pool", || {
        let lines = server.lines();
        let last = lines.iter().rev().find_map(|line| {
            let (_, rest) = line.split_once("|POOL=")?;
            rest.split('|').next()?.parse::<usize>().ok()
        });
        last.filter(|count| *count >= POOL_SIZE)
    });
}

/// How long a new visitor waits for the first byte of an answer to its own first one.
fn first_byte_time(entry: SocketAddr) -> Duration {
    let mut visitor = dial(entry);
    let sent_at = Instant::now();
    visitor.write_all(b"?").unwrap();
    assert_eq!(read_count(&visitor, 1), b"?");
    sent_at.elapsed()
}

/// New visitors wait for one round trip, not for two.
fn check_first_bytes(entry: SocketAddr) {
    let round_trip = 2 * DELAY;
    let mut medians = Vec::new();
    for _ in 0..ROUNDS {
        let mut times: Vec<Duration> = (0..VISITORS).map(|_| first_byte_time(entry)).collect();
        times.sort_unstable();
        let median = times[VISITORS / 2];
        assert!(times[0] >= round_trip, "{:?}: no such delay", times[0]);
        medians.push(median);
        if median < round_trip * 3 / 2 {
            return;
        }
    }
    panic!("medians of {medians:?} with a round trip of {round_trip:?}");
}

/// Each of many visitors at once gets its own answer.
fn check_burst(entry: SocketAddr) {
    let visitors: Vec<TcpStream> = (0..BURST).map(|_| dial(entry)).collect();
    let message = |index: usize| format!("visitor {index:04}").into_bytes();
    for (index, mut visitor) in visitors.iter().enumerate() {
        visitor.write_all(&message(index)).unwrap();
    }
    for (index, mut visitor) in visitors.iter().enumerate() {
        let expected = message(index);
        let mut answer = vec![0; expected.len()];
        let outcome = visitor.read_exact(&mut answer);
        assert!(outcome.is_ok(), "visitor {index}: {outcome:?}");
        assert_eq!(answer, expected, "visitor {index}");
    }
}

#[test]
fn over_a_slow_proxy_a_visitor_takes_one_round_trip_and_a_burst_loses_none() {
    let target = TcpServer::echo();
    let options = "mode=1&noudp=1";
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", options, ENVIRONMENT);
    let proxy = Proxy::start_with_delay(server.tunnel_address(), DELAY);
    let target = target.address().to_string();
    let _client = End::client(proxy.address(), &target, CLIENT_OPTIONS, ENVIRONMENT);
    server.wait_up(1);
    let entry = server.tcp_address();
    wait_filled(&server);
    check_first_bytes(entry);
    wait_filled(&server);
    check_burst(entry);
}

#[test]
fn over_a_slow_link_a_visitor_takes_one_round_trip_and_a_burst_loses_none() {
    const NAME: &str = "over_a_slow_link_a_visitor_takes_one_round_trip_and_a_burst_loses_none";
    let link = match Link::start(DELAY) {
        Ok(link) => link,
        Err(reason) => return skip(NAME, &reason),
    };
    let server = link.at(Place::Near, || {
        let tunnel = format!("{NEAR}:0");
        End::server(&tunnel, "127.0.0.1:0", "mode=1&noudp=1", ENVIRONMENT)
    });
    let tunnel = server.tunnel_address();
    let (_target, _client) = link.at(Place::Far, || {
        let target = TcpServer::echo();
        let address = target.address().to_string();
        let client = End::client(tunnel, &address, CLIENT_OPTIONS, ENVIRONMENT);
        (target, client)
    });
    server.wait_up(1);
    let entry = server.tcp_address();
    link.at(Place::Near, || {
        wait_filled(&server);
        check_first_bytes(entry);
        wait_filled(&server);
        check_burst(entry);
    });
}
