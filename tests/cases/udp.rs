//! UDP forwarding: whole datagrams, each to its own visitor, from the address it was sent to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::support::pattern::Pattern;
use crate::support::program::{Launch, Program, forward_url, forward_url_to};
use crate::support::servers::{UdpServer, echo_both};
use crate::support::visitors::{
    check_single_slot, exchange_datagram, receive_datagram, try_exchange_datagram, udp_visitor,
};
use crate::support::{eventually, free_address};

/// How long an answer may take that will perhaps never come.
const SHORT_WAIT: Duration = Duration::from_millis(200);

/// A program that writes checkpoints often, and whatever else `variables` set.
fn start_with(url: &str, variables: &[(&str, &str)]) -> Program {
    let launch = Launch::new(&[url]).env("NP_REPORT_INTERVAL", "100ms");
    variables
        .iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value))
        .start()
}

#[test]
fn datagrams_of_every_size_pass_whole_both_ways() {
    let target = UdpServer::echo();
    let program = Program::forward_to(target.address(), "");
    let visitor = udp_visitor(program.udp_address());
    let mut pattern = Pattern::new(11);
    for size in [1, 0, 1472, 1473, 16384, 16385, 65507, 0, 1] {
        for _ in 0..3 {
            exchange_datagram(&visitor, &pattern.take(size));
        }
    }
}

#[test]
fn empty_first_datagram_opens_a_session() {
    let target = UdpServer::echo();
    let program = Program::forward_to(target.address(), "");
    exchange_datagram(&udp_visitor(program.udp_address()), b"");
}

#[test]
fn five_hundred_visitors_at_once_get_their_own_answers_in_order() {
    const VISITORS: usize = 500;
    const ROUNDS: usize = 4;
    // As many datagrams at once as a receive buffer of the default size surely holds.
    const GROUP: usize = 20;
    let target = UdpServer::echo();
    let program = start_with(&forward_url(target.address(), ""), &[]);
    let message = |visitor: usize, round: usize| format!("visitor {visitor} round {round}");
    let visitors: Vec<UdpSocket> = (0..VISITORS)
        .map(|index| {
            let visitor = udp_visitor(program.udp_address());
            exchange_datagram(&visitor, message(index, 0).as_bytes());
            visitor
        })
        .collect();
    let expected = u64::try_from(VISITORS).unwrap();
    program.wait_checkpoint(|checkpoint| checkpoint.udp_sessions == expected);
    for (group_index, group) in visitors.chunks(GROUP).enumerate() {
        let number = |index: usize| group_index * GROUP + index;
        for round in 1..=ROUNDS {
            for (index, visitor) in group.iter().enumerate() {
                visitor
                    .send(message(number(index), round).as_bytes())
                    .unwrap();
            }
        }
        for (index, visitor) in group.iter().enumerate() {
            for round in 1..=ROUNDS {
                let answer = String::from_utf8(receive_datagram(visitor)).unwrap();
                assert_eq!(answer, message(number(index), round));
            }
        }
    }
}

#[test]
fn burst_of_equal_datagrams_keeps_its_boundaries() {
    const COUNT: usize = 60;
    let target = UdpServer::echo();
    let program = Program::forward_to(target.address(), "");
    let visitor = udp_visitor(program.udp_address());
    exchange_datagram(&visitor, b"first");
    for seed in 0..20 {
        let mut pattern = Pattern::new(seed);
        // A shorter one ends the run, as kernels that join datagrams expect it.
        let sizes: Vec<usize> = [vec![1200; COUNT], vec![700], vec![64; 10]].concat();
        let sent: Vec<Vec<u8>> = sizes.iter().map(|size| pattern.take(*size)).collect();
        for datagram in &sent {
            visitor.send(datagram).unwrap();
        }
        for (index, datagram) in sent.iter().enumerate() {
            let answer = receive_datagram(&visitor);
            assert_eq!(
                answer.len(),
                datagram.len(),
                "datagram {index} of burst {seed}"
            );
            assert!(
                answer == *datagram,
                "datagram {index} of burst {seed} is another one"
            );
        }
    }
}

#[test]
fn refusal_of_one_session_disturbs_no_other() {
    const VISITORS: usize = 4;
    let target = UdpServer::echo();
    let targets = format!("{},{}", target.address(), free_address());
    let program = Program::start(&forward_url_to(&targets, "lbs=0"));
    let mut served: Vec<UdpSocket> = Vec::new();
    let mut refused: Vec<UdpSocket> = Vec::new();
    for _ in 0..VISITORS {
        let visitor = udp_visitor(program.udp_address());
        let is_served = try_exchange_datagram(&visitor, b"hello", SHORT_WAIT);
        if is_served {
            served.push(visitor)
        } else {
            refused.push(visitor)
        }
    }
    assert!(!served.is_empty(), "no visitor was served");
    for round in 0..20 {
        for visitor in &refused {
            // Draws one refusal after another from the closed port.
            let _ = visitor.send(b"anyone?");
        }
        for visitor in &served {
            exchange_datagram(visitor, format!("round {round}").as_bytes());
        }
    }
}

#[test]
fn restarted_target_is_reached_by_the_same_visitor() {
    let address = free_address();
    let target = UdpServer::echo_at(address);
    let program = Program::forward_to(address, "");
    let visitor = udp_visitor(program.udp_address());
    exchange_datagram(&visitor, b"first life");
    drop(target);
    for _ in 0..3 {
        assert!(!try_exchange_datagram(&visitor, b"anyone?", SHORT_WAIT));
    }
    let _target = UdpServer::echo_at(address);
    eventually("an answer of the new target", || {
        try_exchange_datagram(&visitor, b"second life", SHORT_WAIT).then_some(())
    });
    exchange_datagram(&udp_visitor(program.udp_address()), b"another visitor");
}

#[test]
fn idle_session_ends_and_the_visitor_may_come_back() {
    let target = UdpServer::echo();
    let url = forward_url(target.address(), "");
    let program = start_with(&url, &[("NP_UDP_READ_TIMEOUT", "1s")]);
    let visitor = udp_visitor(program.udp_address());
    exchange_datagram(&visitor, b"hello");
    program.wait_checkpoint(|checkpoint| checkpoint.udp_sessions == 1);
    program.wait_checkpoint(|checkpoint| checkpoint.udp_sessions == 0);
    exchange_datagram(&visitor, b"hello again");
}

#[test]
fn busy_session_outlives_the_idle_time() {
    let (report, sources) = std::sync::mpsc::channel();
    let target = UdpServer::start_at(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        move |socket, datagram, from| {
            report.send(from).unwrap();
            socket.send_to(datagram, from).unwrap();
        },
    );
    let url = forward_url(target.address(), "");
    let program = start_with(&url, &[("NP_UDP_READ_TIMEOUT", "600ms")]);
    let visitor = udp_visitor(program.udp_address());
    for _ in 0..12 {
        exchange_datagram(&visitor, b"tick");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut sources: Vec<SocketAddr> = sources.try_iter().collect();
    sources.dedup();
    assert_eq!(sources.len(), 1, "the session was replaced: {sources:?}");
}

#[test]
fn replies_come_from_the_address_that_was_written_to() {
    let target = UdpServer::echo();
    for (listen, hosts) in [
        ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.0.0.3"][..]),
        (":0", &["127.0.0.1", "127.0.0.2", "::1"][..]),
        ("[::]:0", &["::1"][..]),
        ("127.0.0.2:0", &["127.0.0.2"][..]),
        ("[::1]:0", &["::1"][..]),
    ] {
        let program = Program::start(&format!("client://{listen}/{}?mode=1", target.address()));
        let port = program.udp_address().port();
        for host in hosts {
            let host: IpAddr = host.parse().unwrap();
            let visitor = udp_visitor(SocketAddr::from((host, port)));
            for _ in 0..3 {
                exchange_datagram(&visitor, listen.as_bytes());
            }
        }
    }
}

#[test]
fn one_visitor_socket_may_use_two_addresses_of_the_listener() {
    let target = UdpServer::echo();
    let program = Program::start(&format!("client://0.0.0.0:0/{}?mode=1", target.address()));
    let port = program.udp_address().port();
    let visitor = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    visitor
        .set_read_timeout(Some(crate::support::DEADLINE))
        .unwrap();
    for host in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 1]] {
        let address = SocketAddr::from((host, port));
        visitor.send_to(&host, address).unwrap();
        let mut buffer = [0; 16];
        let (count, from) = visitor.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..count], from), (&host[..], address));
    }
}

#[test]
fn ipv6_target_is_reached() {
    let target = UdpServer::echo_at("[::1]:0".parse().unwrap());
    let program = Program::forward_to(target.address(), "");
    exchange_datagram(&udp_visitor(program.udp_address()), b"six");
}

#[test]
fn dial_option_sets_the_source_of_datagrams() {
    let target = UdpServer::start_at(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        |socket, _, sender| {
            socket
                .send_to(sender.ip().to_string().as_bytes(), sender)
                .unwrap();
        },
    );
    let program = Program::forward_to(target.address(), "dial=127.0.0.2");
    let visitor = udp_visitor(program.udp_address());
    visitor.send(b"who am I").unwrap();
    assert_eq!(receive_datagram(&visitor), b"127.0.0.2");
}

#[test]
fn datagrams_over_the_size_limit_are_dropped_alone() {
    // Asked for a size, answers with a datagram of it, then with a small one.
    let target = UdpServer::start_at(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        |socket, datagram, sender| {
            if let Some(size) = std::str::from_utf8(datagram)
                .ok()
                .and_then(|t| t.parse().ok())
            {
                socket.send_to(&Pattern::new(5).take(size), sender).unwrap();
            }
            let length = datagram.len().to_string();
            socket.send_to(length.as_bytes(), sender).unwrap();
        },
    );
    let url = forward_url(target.address(), "");
    let program = start_with(&url, &[("NP_UDP_DATA_BUF_SIZE", "1000")]);
    let visitor = udp_visitor(program.udp_address());
    // From the visitor: 'z' is no number.
    for size in [1001, 65507, 1000] {
        visitor.send(&vec![b'z'; size]).unwrap();
    }
    assert_eq!(receive_datagram(&visitor), b"1000");
    // From the target.
    visitor.send(b"1001").unwrap();
    assert_eq!(receive_datagram(&visitor), b"4");
    visitor.send(b"1000").unwrap();
    assert_eq!(receive_datagram(&visitor), Pattern::new(5).take(1000));
    assert_eq!(receive_datagram(&visitor), b"4");
}

#[test]
fn session_holds_a_slot_until_it_ends() {
    let (tcp, _udp) = echo_both();
    let url = forward_url(tcp.address(), "slot=1");
    let program = start_with(&url, &[("NP_UDP_READ_TIMEOUT", "1s")]);
    check_single_slot(program.tcp_address(), program.udp_address(), &program);
}

#[test]
fn datagram_to_a_broadcast_address_is_answered() {
    let target = UdpServer::echo();
    for listen in ["0.0.0.0:0", ":0"] {
        let program = Program::start(&format!("client://{listen}/{}?mode=1", target.address()));
        let port = program.udp_address().port();
        let visitor = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        visitor.set_broadcast(true).unwrap();
        visitor
            .set_read_timeout(Some(crate::support::DEADLINE))
            .unwrap();
        for datagram in [&b"first"[..], b"", &[b'q'; 20_000]] {
            visitor
                .send_to(datagram, (Ipv4Addr::new(127, 255, 255, 255), port))
                .unwrap();
            let mut buffer = vec![0; 65536];
            let count = visitor
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("no answer from {listen}: {error}"));
            assert!(&buffer[..count] == datagram, "{listen}");
        }
        // Others are answered as before, and from where they wrote to.
        exchange_datagram(&udp_visitor(program.udp_address()), b"as before");
    }
}
