//! Which of several targets a visitor over UDP gets, and what becomes of it when that one dies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::support::name_server::{NameServer, Unknown};
use crate::support::program::{Launch, Program, forward_url_to};
use crate::support::servers::{TcpServer, UdpServer};
use crate::support::visitors::{ask, dial, exchange_datagram, read_count, udp_visitor};
use crate::support::{eventually, free_address};

/// How long an answer may take that will perhaps never come.
const SHORT_WAIT: Duration = Duration::from_millis(200);

/// How long an answer may take that has to come.
const LONG_WAIT: Duration = Duration::from_secs(3);

/// What a new visitor is answered within `wait`.
fn answer(address: SocketAddr, wait: Duration) -> Option<String> {
    ask(&udp_visitor(address), b"who is there", wait)
        .map(|answer| String::from_utf8(answer).unwrap())
}

/// Asserts that ten visitors are spread evenly over two targets that answer `A` and `B`.
#[track_caller]
fn assert_spread(program: &Program, what: &str) {
    let answers: Vec<String> = (0..10)
        .filter_map(|_| answer(program.udp_address(), LONG_WAIT))
        .collect();
    let count = |label: &str| answers.iter().filter(|answer| *answer == label).count();
    // A datagram or two may be lost.
    assert!(
        count("A") >= 4 && count("B") >= 4,
        "{what}: visitors went to {answers:?}"
    );
}

#[test]
fn round_robin_takes_turns_among_targets_with_names() {
    // Of the family that this system prefers for its own name.
    let local = ("localhost", 0).to_socket_addrs().unwrap().next().unwrap();
    let targets = ["A", "B"].map(|label| UdpServer::labelled_at(local, label));
    let [first, second] = targets.each_ref().map(UdpServer::address);
    let (a, b) = (first.port(), second.port());
    let names = NameServer::start(
        &[("one.example", local.ip()), ("two.example", local.ip())],
        Unknown::Missing,
    );
    let server = format!("dns={}", names.address());
    for (targets, options) in [
        (format!("localhost:{a},localhost:{b}"), "dns=0"),
        (format!("{first},localhost:{b}"), "dns=0"),
        (format!("localhost:{a},{second}"), "dns=5m"),
        (format!("one.example:{a},two.example:{b}"), server.as_str()),
        (format!("one.example:{a},one.example:{b}"), server.as_str()),
        (format!("{first},two.example:{b}"), server.as_str()),
    ] {
        let program = Program::start(&forward_url_to(&targets, options));
        assert_spread(&program, &targets);
    }
}

#[test]
fn refused_datagrams_move_no_tcp_visitor_to_the_backup() {
    let (first, second) = (free_address(), free_address());
    let _primary = TcpServer::banner_at(first, "A");
    let _backup = TcpServer::banner_at(second, "B");
    // Only the backup answers datagrams as well.
    let _datagrams = UdpServer::labelled_at(second, "B");
    for balance in ["lbs=2", "lbs=0"] {
        let program = Program::start(&forward_url_to(&format!("{first},{second}"), balance));
        let served_by = || char::from(read_count(&dial(program.tcp_address()), 1)[0]);
        let turns = |count: usize| String::from_iter((0..count).map(|_| served_by()));
        let expected = if balance == "lbs=2" { "AAAA" } else { "ABAB" };
        assert_eq!(turns(4), expected, "{balance}");
        for _ in 0..3 {
            // The answer of the other one shows that the first has refused.
            let visitor = udp_visitor(program.udp_address());
            eventually("an answer", || ask(&visitor, b"x", SHORT_WAIT));
        }
        assert_eq!(turns(4), expected, "{balance} after refused datagrams");
    }
}

#[test]
fn tcp_visitors_that_are_refused_move_no_udp_visitor_to_the_backup() {
    let (first, second) = (free_address(), free_address());
    let _backup = TcpServer::banner_at(second, "B");
    let _datagrams = [
        UdpServer::labelled_at(first, "A"),
        UdpServer::labelled_at(second, "B"),
    ];
    let program = Program::start(&forward_url_to(&format!("{first},{second}"), "lbs=2"));
    for _ in 0..4 {
        assert_eq!(read_count(&dial(program.tcp_address()), 1), b"B");
        let answer = answer(program.udp_address(), LONG_WAIT);
        assert_eq!(answer.as_deref(), Some("A"));
    }
}

#[test]
fn udp_visitors_stay_on_the_backup_after_the_primary_has_refused() {
    // Longer than a failed target is passed over in the other balances.
    const WINDOW: Duration = Duration::from_secs(7);
    let backup = UdpServer::labelled("B");
    let targets = format!("{},{}", free_address(), backup.address());
    let program = Program::start(&forward_url_to(&targets, "lbs=2"));
    let first = udp_visitor(program.udp_address());
    eventually("an answer of the backup", || ask(&first, b"x", SHORT_WAIT));
    let began = Instant::now();
    let mut unanswered = 0;
    while began.elapsed() < WINDOW {
        // A datagram may be lost; the next one of the same visitor may not.
        let visitor = udp_visitor(program.udp_address());
        if ask(&visitor, b"x", LONG_WAIT).is_none() {
            unanswered += 1;
            assert!(unanswered < 2, "visitors went to the primary again");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(unanswered, 0);
}

#[test]
fn udp_visitors_return_to_the_primary_after_the_fallback_interval() {
    let (first, second) = (free_address(), free_address());
    let _backup = UdpServer::labelled_at(second, "B");
    let url = forward_url_to(&format!("{first},{second}"), "lbs=2");
    let program = Launch::new(&[&url])
        .env("NP_FALLBACK_INTERVAL", "6s")
        .start();
    let visitor = udp_visitor(program.udp_address());
    eventually("an answer of the backup", || {
        ask(&visitor, b"x", SHORT_WAIT)
    });
    let _primary = UdpServer::labelled_at(first, "A");
    eventually("the return to the first target", || {
        let answer = answer(program.udp_address(), LONG_WAIT)?;
        (answer == "A").then_some(())
    });
}

#[test]
fn visitor_of_a_target_that_dies_after_an_answer_is_given_to_another() {
    for balance in ["lbs=0", "lbs=1", "lbs=2"] {
        let addresses = [free_address(), free_address()];
        let mut targets = [("A", addresses[0]), ("B", addresses[1])]
            .map(|(label, address)| Some(UdpServer::labelled_at(address, label)));
        let list = addresses.map(|address| address.to_string()).join(",");
        let program = Program::start(&forward_url_to(&list, balance));
        let visitor = udp_visitor(program.udp_address());
        let before = eventually("an answer", || ask(&visitor, b"x", SHORT_WAIT));
        let (dead, other) = if before == b"A" { (0, "B") } else { (1, "A") };
        drop(targets[dead].take());
        let after = eventually("an answer of the other target", || {
            ask(&visitor, b"x", SHORT_WAIT).filter(|answer| *answer != before)
        });
        assert_eq!(after, other.as_bytes(), "{balance}");
    }
}

#[test]
fn udp_target_with_a_name_is_reached_again_after_its_restart() {
    let address = free_address();
    let names = NameServer::start(&[("one.example", address.ip())], Unknown::Missing);
    let program = Program::start(&forward_url_to(
        &format!("one.example:{}", address.port()),
        &format!("dns={}", names.address()),
    ));
    let visitor = udp_visitor(program.udp_address());
    for _ in 0..2 {
        let _target = UdpServer::echo_at(address);
        eventually("an answer", || ask(&visitor, b"x", SHORT_WAIT));
        exchange_datagram(&udp_visitor(program.udp_address()), b"another visitor");
    }
}

#[test]
fn name_with_both_families_reaches_the_one_that_listens_for_datagrams() {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let target = UdpServer::echo_at(local.parse().unwrap());
        let both = [
            ("both.example", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ("both.example", IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        let names = NameServer::start(&both, Unknown::Missing);
        let program = Program::start(&forward_url_to(
            &format!("both.example:{}", target.address().port()),
            &format!("dns={}", names.address()),
        ));
        let visitor = udp_visitor(program.udp_address());
        eventually("an answer", || ask(&visitor, b"x", SHORT_WAIT));
    }
}
