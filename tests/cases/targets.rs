//! Where a visitor is sent: one target of several, by address or name, from which source.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::name_server::{NameServer, Unknown};
use crate::support::program::{Launch, Program, forward_url_to};
use crate::support::servers::{TcpServer, Unanswering, echo};
use crate::support::visitors::{assert_closed, dial, exchange, read_count};
use crate::support::{DEADLINE, eventually, free_address, own_loopback};

const NAME: &str = "target.example";

#[test]
fn refused_target_closes_the_visitor_and_is_named_in_the_log() {
    let target = free_address();
    let program = Program::forward_to(target, "");
    assert_closed(&dial(program.tcp_address()));
    program.wait_complaint(&[&target.to_string()]);
}

#[test]
fn restarted_target_is_reached_again() {
    let address = free_address();
    let target = TcpServer::echo_at(address);
    let program = Program::forward_to(address, "");
    let visitor = dial(program.tcp_address());
    exchange(&visitor, b"first life");
    drop(target);
    assert_closed(&visitor);
    assert_closed(&dial(program.tcp_address()));
    let _target = TcpServer::echo_at(address);
    exchange(&dial(program.tcp_address()), b"second life");
}

/// Which of the targets, each with a banner of one letter, serves a new visitor.
#[track_caller]
fn served_by(address: SocketAddr) -> char {
    char::from(read_count(&dial(address), 1)[0])
}

#[test]
fn round_robin_spreads_evenly() {
    let targets = [
        TcpServer::banner("A"),
        TcpServer::banner("B"),
        TcpServer::banner("C"),
    ];
    let list = targets
        .each_ref()
        .map(|target| target.address().to_string())
        .join(",");
    let program = Program::start(&forward_url_to(&list, "lbs=0"));
    let mut letters: Vec<char> = (0..30).map(|_| served_by(program.tcp_address())).collect();
    letters.sort_unstable();
    assert_eq!(
        String::from_iter(letters),
        ["A", "B", "C"].map(|letter| letter.repeat(10)).concat()
    );
}

#[test]
fn targets_that_die_lose_no_new_visitor_in_any_balance() {
    for balance in ["lbs=0", "lbs=1", "lbs=2"] {
        let (first, second) = (free_address(), free_address());
        let dying = TcpServer::banner_at(first, "A");
        let _lasting = TcpServer::banner_at(second, "B");
        let url = forward_url_to(&format!("{first},{second}"), balance);
        let program = Launch::new(&[&url])
            .env("NP_REPORT_INTERVAL", "100ms")
            .start();
        for _ in 0..6 {
            served_by(program.tcp_address());
        }
        drop(dying);
        for _ in 0..10 {
            assert_eq!(served_by(program.tcp_address()), 'B', "{balance}");
        }
    }
}

#[test]
fn latency_balance_moves_to_a_target_that_appears_when_the_other_dies() {
    let (first, second) = (free_address(), free_address());
    let url = forward_url_to(&format!("{first},{second}"), "lbs=1");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    for (address, letter) in [(second, "B"), (first, "A"), (second, "B")] {
        let _only = TcpServer::banner_at(address, letter);
        for _ in 0..5 {
            assert_eq!(served_by(program.tcp_address()).to_string(), letter);
        }
    }
}

#[test]
fn latency_balance_measures_a_name_by_the_address_that_answers() {
    for dead in [
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        own_loopback().into(),
    ] {
        let unanswering = Unanswering::start();
        let address = free_address();
        let _target = TcpServer::banner_at(address, "B");
        let names = NameServer::start(&[(NAME, dead), (NAME, address.ip())], Unknown::Missing);
        let targets = format!("{},{NAME}:{}", unanswering.address(), address.port());
        let options = format!("noudp=1&lbs=1&dns={}", names.address());
        let program = Launch::new(&[&forward_url_to(&targets, &options)])
            .env("NP_REPORT_INTERVAL", "400ms")
            .env("NP_TCP_DIAL_TIMEOUT", "30s")
            .start();
        // The targets have been measured before the line is written.
        program.checkpoint();
        program.checkpoint();
        let began = Instant::now();
        assert_eq!(served_by(program.tcp_address()), 'B');
        let elapsed = began.elapsed();
        assert!(
            elapsed < Duration::from_secs(8),
            "{dead}: tried the one that does not answer for {elapsed:?}"
        );
    }
}

#[test]
fn target_that_does_not_answer_takes_only_its_share_of_the_dial_time() {
    let unanswering = Unanswering::start();
    let target = TcpServer::banner("B");
    let targets = format!("{},{}", unanswering.address(), target.address());
    for balance in ["lbs=0", "lbs=2"] {
        let program = Launch::new(&[&forward_url_to(&targets, balance)])
            .env("NP_TCP_DIAL_TIMEOUT", "3s")
            .start();
        for _ in 0..4 {
            assert_eq!(served_by(program.tcp_address()), 'B', "{balance}");
        }
    }
}

#[test]
fn backup_gives_way_to_the_first_target_after_the_fallback_interval() {
    const INTERVAL: Duration = Duration::from_millis(1500);
    let (first, second) = (free_address(), free_address());
    let primary = TcpServer::banner_at(first, "A");
    let _backup = TcpServer::banner_at(second, "B");
    let url = forward_url_to(&format!("{first},{second}"), "lbs=2");
    let program = Launch::new(&[&url])
        .env("NP_FALLBACK_INTERVAL", "1500ms")
        .start();
    for _ in 0..5 {
        assert_eq!(served_by(program.tcp_address()), 'A');
    }
    drop(primary);
    let before_leaving = Instant::now();
    assert_eq!(served_by(program.tcp_address()), 'B');
    let _primary = TcpServer::banner_at(first, "A");
    eventually("the return to the first target", || {
        let letter = served_by(program.tcp_address());
        let elapsed = before_leaving.elapsed();
        assert!(
            letter == 'B' || elapsed >= INTERVAL,
            "back after only {elapsed:?}"
        );
        (letter == 'A').then_some(())
    });
    assert_eq!(served_by(program.tcp_address()), 'A');
}

#[test]
fn ipv6_listener_serves_an_ipv6_target() {
    let target = TcpServer::start_at("[::1]:0".parse().unwrap(), echo);
    let program = Program::start(&format!("client://[::1]:0/{}?mode=1", target.address()));
    let address = program.tcp_address();
    assert!(address.is_ipv6(), "{address}");
    exchange(&dial(address), b"six");
}

#[test]
fn wildcard_listener_without_a_host_serves_both_families() {
    let target = TcpServer::echo();
    let program = Program::start(&format!("client://:0/{}?mode=1", target.address()));
    let port = program.tcp_address().port();
    for ip in ["127.0.0.1", "127.0.0.2", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        exchange(&dial(SocketAddr::from((ip, port))), b"any");
    }
}

#[test]
fn target_may_be_the_name_localhost() {
    let target = TcpServer::echo();
    let name = format!("localhost:{}", target.address().port());
    let program = Program::start(&forward_url_to(&name, ""));
    exchange(&dial(program.tcp_address()), b"by name");
}

#[test]
fn dial_option_sets_the_source_address() {
    let (report, sources) = mpsc::channel();
    let target = TcpServer::start(move |stream| {
        if stream.peek(&mut [0]).is_ok_and(|count| count == 1) {
            report.send(stream.peer_addr().unwrap().ip()).unwrap();
            echo(stream);
        }
    });
    let program = Program::forward_to(target.address(), "dial=127.0.0.2");
    exchange(&dial(program.tcp_address()), b"from where");
    assert_eq!(
        sources.recv_timeout(DEADLINE),
        Ok(IpAddr::from([127, 0, 0, 2]))
    );
}

#[test]
fn source_address_that_cannot_be_bound_is_one_error_and_no_obstacle() {
    let target = TcpServer::echo();
    // Reserved for documentation: no machine has it.
    let program = Program::forward_to(target.address(), "dial=192.0.2.1");
    for _ in 0..3 {
        exchange(&dial(program.tcp_address()), b"anyway");
    }
    program.wait_for("ERROR");
    let errors: Vec<String> = program
        .lines()
        .into_iter()
        .filter(|line| line.contains("ERROR"))
        .collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("192.0.2.1"), "{errors:#?}");
}
