//! Target names: asked of the servers that the option names, remembered, and missed aloud.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::eventually;
use crate::support::name_server::{NameServer, Unknown};
use crate::support::program::{Launch, Program, forward_url_to, raise_descriptor_limit};
use crate::support::servers::{TcpServer, UdpServer, echo, reset_on_close};
use crate::support::visitors::{
    assert_closed, dial, exchange, exchange_datagram, try_exchange, try_exchange_datagram,
    udp_visitor,
};

const NAME: &str = "target.example";
const LOCAL_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCAL_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A program whose target is `name` at `port`, resolved by `servers`.
fn start(name: &str, port: u16, servers: &[&NameServer]) -> Program {
    let servers: Vec<String> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    Program::start(&forward_url_to(
        &format!("{name}:{port}"),
        &format!("dns={}", servers.join(",")),
    ))
}

#[test]
fn named_server_resolves_an_ipv4_target() {
    let target = TcpServer::echo();
    let names = NameServer::start(&[(NAME, LOCAL_V4)], Unknown::Missing);
    let program = start(NAME, target.address().port(), &[&names]);
    exchange(&dial(program.tcp_address()), b"by name");
    assert!(names.queries_count() > 0);
}

#[test]
fn named_server_resolves_an_ipv6_target() {
    let target = TcpServer::start_at("[::1]:0".parse().unwrap(), echo);
    let names = NameServer::start(&[(NAME, LOCAL_V6)], Unknown::Missing);
    let program = start(NAME, target.address().port(), &[&names]);
    exchange(&dial(program.tcp_address()), b"by name");
}

#[test]
fn name_with_both_families_reaches_the_one_that_listens() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let target = TcpServer::start_at(address.parse().unwrap(), echo);
        let both = [(NAME, LOCAL_V4), (NAME, LOCAL_V6)];
        let names = NameServer::start(&both, Unknown::Missing);
        let program = start(NAME, target.address().port(), &[&names]);
        exchange(&dial(program.tcp_address()), address.as_bytes());
    }
}

#[test]
fn named_server_resolves_a_udp_target() {
    let target = UdpServer::echo();
    let names = NameServer::start(&[(NAME, LOCAL_V4)], Unknown::Missing);
    let program = start(NAME, target.address().port(), &[&names]);
    exchange_datagram(&udp_visitor(program.udp_address()), b"by name");
}

#[test]
fn resolved_name_is_remembered() {
    let target = TcpServer::echo();
    let names = NameServer::start(&[(NAME, LOCAL_V4)], Unknown::Missing);
    let program = start(NAME, target.address().port(), &[&names]);
    for _ in 0..10 {
        exchange(&dial(program.tcp_address()), b"by name");
    }
    // One for each family.
    let count = names.queries_count();
    assert!(count <= 2, "{count} queries for ten connections");
}

#[test]
fn silent_or_failed_name_server_gives_way_to_the_next() {
    for unknown in [Unknown::Silence, Unknown::Failure] {
        let target = TcpServer::echo();
        let broken = NameServer::start(&[], unknown);
        let names = NameServer::start(&[(NAME, LOCAL_V4)], Unknown::Missing);
        let program = start(NAME, target.address().port(), &[&broken, &names]);
        let begin = Instant::now();
        exchange(&dial(program.tcp_address()), b"by name");
        let elapsed = begin.elapsed();
        // The dial timeout is the frame for all of it.
        assert!(
            elapsed < Duration::from_secs(6),
            "{unknown:?}: took {elapsed:?}"
        );
        assert!(
            broken.queries_count() > 0,
            "{unknown:?}: the first was not asked"
        );
    }
}

#[test]
fn name_that_does_not_exist_closes_the_visitor_and_is_named_in_the_log() {
    let names = NameServer::start(&[], Unknown::Missing);
    let program = start("missing.example", 80, &[&names]);
    assert_closed(&dial(program.tcp_address()));
    program.wait_complaint(&["missing.example"]);
}

#[test]
fn name_that_comes_to_exist_is_found() {
    let target = TcpServer::echo();
    let names = NameServer::start(&[], Unknown::Missing);
    let program = start(NAME, target.address().port(), &[&names]);
    assert_closed(&dial(program.tcp_address()));
    names.add(NAME, LOCAL_V4);
    eventually("the name", || {
        try_exchange(&dial(program.tcp_address()), b"found").ok()
    });
}

#[test]
fn missing_name_gives_way_to_a_target_that_works() {
    let target = TcpServer::echo();
    let names = NameServer::start(&[], Unknown::Missing);
    let list = format!("missing.example:80,{}", target.address());
    let program = Program::start(&forward_url_to(&list, &format!("dns={}", names.address())));
    for _ in 0..4 {
        exchange(&dial(program.tcp_address()), b"served all the same");
    }
}

#[test]
fn silent_name_server_disturbs_no_open_connection() {
    let target = TcpServer::echo();
    let silent = NameServer::start(&[(NAME, LOCAL_V4)], Unknown::Silence);
    let list = format!("{},silent.example:80", target.address());
    let program = Program::start(&forward_url_to(&list, &format!("dns={}", silent.address())));
    let open = dial(program.tcp_address());
    exchange(&open, b"open");
    // Its turn is the silent name: it waits there, or is passed on.
    let waiting = dial(program.tcp_address());
    eventually("the query", || (silent.queries_count() > 0).then_some(()));
    for _ in 0..10 {
        exchange(&open, b"undisturbed");
    }
    drop(waiting);
}

#[test]
fn stop_does_not_wait_for_a_silent_name_server() {
    const NAMES_TIMEOUT: Duration = Duration::from_secs(60);
    let silent = NameServer::start(&[], Unknown::Silence);
    let options = format!("dns={}", silent.address());
    let mut program = Launch::new(&[&forward_url_to("silent.example:80", &options)])
        .env("NP_TCP_DIAL_TIMEOUT", "60s")
        .env("NP_SHUTDOWN_TIMEOUT", "100ms")
        .start();
    let _waiting = dial(program.tcp_address());
    eventually("the query", || (silent.queries_count() > 0).then_some(()));
    let began = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    assert!(began.elapsed() < NAMES_TIMEOUT / 2);
}

#[test]
fn datagrams_of_many_visitors_wait_for_one_look_up() {
    const VISITORS: u64 = 2000;
    const THREADS_MAX: u64 = 60;
    raise_descriptor_limit();
    let target = UdpServer::echo();
    let names = NameServer::start(&[], Unknown::Silence);
    let list = format!("{NAME}:{}", target.address().port());
    let url = forward_url_to(&list, &format!("dns={}", names.address()));
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .env("NP_UDP_DIAL_TIMEOUT", "8s")
        .start();
    let address = program.udp_address();
    let mut threads_max = 0;
    let visitors: Vec<UdpSocket> = (0..VISITORS)
        .map(|_| {
            let visitor = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            visitor.connect(address).unwrap();
            visitor.send(b"anyone?").unwrap();
            threads_max = threads_max.max(program.threads_count());
            visitor
        })
        .collect();
    // Some datagrams may be lost on their way.
    program.wait_checkpoint(|checkpoint| checkpoint.udp_sessions > VISITORS * 3 / 4);
    threads_max = threads_max.max(program.threads_count());
    assert!(threads_max < THREADS_MAX, "{threads_max} threads");
    assert!(program.is_running());
    names.add(NAME, LOCAL_V4);
    let late = udp_visitor(address);
    eventually("an answer", || {
        try_exchange_datagram(&late, b"by name", Duration::from_secs(1)).then_some(())
    });
    drop(visitors);
}

#[test]
fn visitor_that_is_reset_during_a_look_up_frees_its_slot() {
    let silent = NameServer::start(&[], Unknown::Silence);
    let options = format!("slot=1&noudp=1&dns={}", silent.address());
    let program = Launch::new(&[&forward_url_to("silent.example:80", &options)])
        .env("NP_TCP_DIAL_TIMEOUT", "60s")
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let waiting = dial(program.tcp_address());
    eventually("the query", || (silent.queries_count() > 0).then_some(()));
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 1);
    reset_on_close(&waiting);
    drop(waiting);
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 0);
    // The next one is not refused, but waits in its turn.
    let next = dial(program.tcp_address());
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 1);
    drop(next);
}

#[test]
fn listen_name_that_does_not_resolve_is_an_error_that_passes() {
    let target = TcpServer::echo();
    for unknown in [Unknown::Silence, Unknown::Failure, Unknown::Missing] {
        for mode in [0, 1] {
            let names = NameServer::start(&[], unknown);
            let url = format!(
                "client://listen.example:0/{}?mode={mode}&dns={}",
                target.address(),
                names.address()
            );
            let mut program = Launch::new(&[&url])
                .env("NP_SERVICE_COOLDOWN", "200ms")
                .env("NP_TCP_DIAL_TIMEOUT", "500ms")
                .start();
            let line = program.wait_for_count("Client error: ", 2);
            assert!(
                line.contains("ERROR") && line.contains("listen.example"),
                "{line}"
            );
            assert!(program.is_running());
            names.add("listen.example", LOCAL_V4);
            exchange(&dial(program.tcp_address()), b"at last");
        }
    }
}

#[test]
fn stop_does_not_wait_for_the_name_to_listen_on() {
    const NAMES_TIMEOUT: Duration = Duration::from_secs(60);
    let silent = NameServer::start(&[], Unknown::Silence);
    let url = format!(
        "client://silent.example:0/127.0.0.1:9?mode=1&dns={}",
        silent.address()
    );
    let mut program = Launch::new(&[&url])
        .env("NP_TCP_DIAL_TIMEOUT", "60s")
        .start();
    eventually("the query", || (silent.queries_count() > 0).then_some(()));
    let began = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    assert!(began.elapsed() < NAMES_TIMEOUT / 2);
    assert_eq!(program.count("ERROR"), 0);
}
