//! Options of either end, as they work through the tunnel.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::each::for_each;
use crate::support::servers::{
    TcpServer, UdpServer, counting_echo, echo, echo_both, flood, set_deadline,
};
use crate::support::tunnel::{Combination, End, Flow, Place, Plan};
use crate::support::visitors::{
    assert_closed, check_single_slot, dial, exchange, exchange_datagram, read_count, read_to_end,
    receive_datagram, try_dial, try_exchange, try_exchange_datagram, udp_visitor,
};
use crate::support::{DEADLINE, eventually, free_address};

/// How long an answer may take that will perhaps never come.
const SHORT_WAIT: Duration = Duration::from_millis(300);

/// A plain tunnel to `target` with `options` at one place.
fn plan_with(place: &Place, target: SocketAddr, options: &str) -> Plan {
    Combination::plain(place.flow)
        .to(target)
        .options(place.end, options)
}

// rate

/// Bytes that come out of `stream` in `window` after a short start.
#[track_caller]
fn measure(mut stream: &TcpStream, window: Duration) -> u64 {
    let mut buffer = vec![0; 64 * 1024];
    // What the buffers on the way have taken before the limit was felt.
    let begin = Instant::now() + Duration::from_millis(1000);
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the flow ended");
        let now = Instant::now();
        if now > begin + window {
            return total;
        }
        if now > begin {
            total += u64::try_from(count).unwrap();
        }
    }
}

#[test]
fn rate_of_either_end_holds_in_both_directions() {
    const WINDOW: Duration = Duration::from_secs(3);
    for_each(&Place::all(), |place| {
        let (report, uploaded) = mpsc::channel();
        let report = Mutex::new(report);
        let target = TcpServer::of_wishes(move |stream| {
            let measured = measure(stream, WINDOW);
            report.lock().unwrap().send(measured).unwrap();
        });
        let tunnel = plan_with(place, target.address(), "rate=8").start();
        let start = |wish: &[u8]| {
            let visitor = dial(tunnel.tcp());
            (&visitor).write_all(wish).unwrap();
            visitor
        };
        let (upload, downloads) = (start(b"U"), [start(b"D"), start(b"D")]);
        let (up, down) = thread::scope(|scope| {
            scope.spawn(|| flood(&upload));
            let flows = downloads
                .each_ref()
                .map(|visitor| scope.spawn(|| measure(visitor, WINDOW)));
            let counts = flows.map(|flow| flow.join().unwrap());
            let up = uploaded.recv_timeout(DEADLINE);
            // Ends the flood; the target has left, so it may have ended already.
            let _ = upload.shutdown(Shutdown::Both);
            (up.unwrap(), counts)
        });
        // One megabyte a second, which two flows share.
        // What the machine stands still meanwhile is lost to the rate.
        let range = 1_500_000..3_500_000;
        assert!(range.contains(&up), "{up} bytes up");
        let total = down.iter().sum();
        assert!(range.contains(&total), "{down:?} bytes down");
        assert!(down.iter().all(|one| one * 4 > total), "shares: {down:?}");
    });
}

// slot

#[test]
fn visitor_over_the_slots_of_either_end_is_refused_until_one_leaves() {
    for_each(&Place::all(), |place| {
        let target = TcpServer::echo();
        let tunnel = plan_with(place, target.address(), "slot=2").start();
        let first = dial(tunnel.tcp());
        exchange(&first, b"first");
        let second = dial(tunnel.tcp());
        exchange(&second, b"second");
        assert_closed(&dial(tunnel.tcp()));
        tunnel.program(place.end).wait_complaint(&["slot"]);
        exchange(&first, b"undisturbed");
        drop(first);
        let fourth = eventually("a free slot", || {
            let visitor = dial(tunnel.tcp());
            try_exchange(&visitor, b"fourth").ok().map(|()| visitor)
        });
        exchange(&second, b"undisturbed");
        exchange(&fourth, b"served");
    });
}

#[test]
fn datagram_session_holds_a_slot_of_either_end_until_it_ends() {
    for_each(&Place::all(), |place| {
        let (tcp, _udp) = echo_both();
        let plan = plan_with(place, tcp.address(), "slot=1");
        let tunnel = plan.env("NP_UDP_READ_TIMEOUT", "1s").start();
        let complaining = tunnel.program(place.end);
        check_single_slot(tunnel.tcp(), tunnel.udp(), complaining);
    });
}

// read

#[test]
fn silent_connection_is_closed_after_the_read_time_of_either_end() {
    for_each(&Place::all(), |place| {
        let target = TcpServer::echo();
        let plan = plan_with(place, target.address(), "read=1s");
        let tunnel = plan.report("300ms").start();
        let visitor = dial(tunnel.tcp());
        // Busy for longer than the read time, which does no harm.
        for _ in 0..15 {
            exchange(&visitor, b"tick");
            thread::sleep(Duration::from_millis(100));
        }
        let silent_since = Instant::now();
        assert_closed(&visitor);
        let elapsed = silent_since.elapsed();
        let range = Duration::from_millis(750)..Duration::from_secs(5);
        assert!(range.contains(&elapsed), "closed after {elapsed:?}");
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.tcp_sessions == 0);
        }
    });
}

// proxy

/// The header in front of the 8 bytes of data of a visitor to `entry`, and the visitor's address.
#[track_caller]
fn proxy_header(flow: Flow, entry: &str, option: &str) -> (Vec<u8>, SocketAddr) {
    let (report, received) = mpsc::channel();
    let target = TcpServer::start(move |stream| {
        set_deadline(stream);
        let (bytes, _) = read_to_end(stream);
        if !bytes.is_empty() {
            report.send(bytes).unwrap();
        }
    });
    let plan = Combination::plain(flow).to(target.address());
    let tunnel = plan.entry_at(entry).exit(option).start();
    let visitor = dial(tunnel.tcp());
    (&visitor).write_all(b"the data").unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut bytes = received.recv_timeout(DEADLINE).unwrap();
    assert!(bytes.ends_with(b"the data"), "{bytes:?}");
    bytes.truncate(bytes.len() - 8);
    (bytes, visitor.local_addr().unwrap())
}

/// Entries of both families, and what the header calls the family.
const ENTRIES: [(&str, &str, u8); 2] = [("127.0.0.3:0", "TCP4", 0x11), ("[::1]:0", "TCP6", 0x21)];

#[test]
fn proxy_line_names_the_visitor_of_the_other_end() {
    for_each(&Flow::ALL, |flow| {
        for (entry, expected_family, _) in ENTRIES {
            let (header, visitor) = proxy_header(*flow, entry, "proxy=1");
            let line = String::from_utf8(header).unwrap();
            let words: Vec<&str> = line.strip_suffix("\r\n").unwrap().split(' ').collect();
            let [protocol, family, source, target, source_port, target_port] = words[..] else {
                panic!("{line:?}");
            };
            assert_eq!((protocol, family), ("PROXY", expected_family), "{line:?}");
            let ip: IpAddr = source.parse().unwrap();
            assert_eq!(
                SocketAddr::from((ip, source_port.parse().unwrap())),
                visitor
            );
            // Where the visitor went is not told through the tunnel; it must fit all the same.
            let target: IpAddr = target.parse().unwrap();
            assert_eq!(target.is_ipv4(), visitor.is_ipv4(), "{line:?}");
            assert!(target_port.parse::<u16>().is_ok(), "{line:?}");
        }
    });
}

#[test]
fn proxy_binary_header_names_the_visitor_of_the_other_end() {
    for_each(&Flow::ALL, |flow| {
        for (entry, _, family) in ENTRIES {
            let (header, visitor) = proxy_header(*flow, entry, "proxy=2");
            let ip = match visitor.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let (start, addresses) = header.split_at(16);
            let size = u8::try_from(2 * ip.len() + 4).unwrap();
            let expected = [&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], &[family, 0, size]].concat();
            assert_eq!(start, expected);
            assert_eq!(addresses.len(), usize::from(size));
            assert_eq!(addresses[..ip.len()], ip);
            let source_port = &addresses[2 * ip.len()..][..2];
            assert_eq!(source_port, visitor.port().to_be_bytes());
        }
    });
}

#[test]
fn proxy_line_comes_before_a_visitor_says_anything() {
    for_each(&Flow::ALL, |flow| {
        let target = TcpServer::start(|mut stream| {
            set_deadline(stream);
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(read_count(stream, 1));
            }
            stream.write_all(&line).unwrap();
        });
        let plan = Combination::plain(*flow).to(target.address());
        let tunnel = plan.exit("proxy=1").start();
        let visitor = dial(tunnel.tcp());
        let (line, _) = read_to_end(&visitor);
        let expected = format!("PROXY TCP4 {} ", visitor.local_addr().unwrap().ip());
        assert!(line.starts_with(expected.as_bytes()), "{line:?}");
    });
}

#[test]
fn proxy_header_is_not_for_the_end_that_visitors_come_to() {
    for_each(&Flow::ALL, |flow| {
        for option in ["proxy=1", "proxy=2"] {
            let target = TcpServer::echo();
            let plan = Combination::plain(*flow).to(target.address());
            let tunnel = plan.options(End::entry(*flow), option).start();
            exchange(&dial(tunnel.tcp()), b"the data alone");
            let errors = tunnel.programs().map(|program| program.count(" ERROR "));
            assert_eq!(errors, [0, 0]);
        }
    });
}

// block

/// Protocol as the log names it, digit of `block`, first bytes.
const BLOCKED: [(&str, &str, &[u8]); 3] = [
    ("SOCKS", "1", b"\x05\x01\x00"),
    ("HTTP", "2", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
    (
        "TLS",
        "3",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and much more",
    ),
];

#[test]
fn protocols_that_either_end_blocks_are_refused_and_named() {
    for_each(&Place::all(), |place| {
        let (target, reached) = counting_echo(b"");
        for (protocol, digit, bytes) in BLOCKED {
            let options = format!("block={digit}");
            let tunnel = plan_with(place, target.address(), &options).start();
            let visitor = dial(tunnel.tcp());
            (&visitor).write_all(bytes).unwrap();
            assert_closed(&visitor);
            let name = visitor.local_addr().unwrap().to_string();
            let program = tunnel.program(place.end);
            program.wait_complaint(&[protocol, &name]);
            assert_eq!(reached.swap(0, Ordering::SeqCst), 0, "{protocol}");
            for (other, _, bytes) in BLOCKED {
                if other != protocol {
                    exchange(&dial(tunnel.tcp()), bytes);
                }
            }
            reached.store(0, Ordering::SeqCst);
        }
    });
}

#[test]
fn silent_visitor_gets_the_banner_in_spite_of_the_block_of_either_end() {
    for_each(&Place::all(), |place| {
        let target = TcpServer::banner("220 ready\r\n");
        let tunnel = plan_with(place, target.address(), "block=123").start();
        let visitor = dial(tunnel.tcp());
        assert_eq!(read_count(&visitor, 11), b"220 ready\r\n");
        exchange(&visitor, b"EHLO there\r\n");
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_closed(&visitor);
    });
}

#[test]
fn blocked_visitor_that_speaks_late_is_refused_by_either_end() {
    for_each(&Place::all(), |place| {
        let (target, reached) = counting_echo(b"welcome");
        let tunnel = plan_with(place, target.address(), "block=2").start();
        let visitor = dial(tunnel.tcp());
        assert_eq!(read_count(&visitor, 7), b"welcome");
        (&visitor).write_all(BLOCKED[1].2).unwrap();
        assert_closed(&visitor);
        let name = visitor.local_addr().unwrap().to_string();
        let program = tunnel.program(place.end);
        program.wait_complaint(&["HTTP", &name]);
        assert_eq!(reached.load(Ordering::SeqCst), 0);
    });
}

// lbs

/// Which of the targets, each with a banner of one letter, serves a new visitor.
#[track_caller]
fn served_by(address: SocketAddr) -> char {
    char::from(read_count(&dial(address), 1)[0])
}

#[test]
fn round_robin_spreads_visitors_of_the_other_end_evenly() {
    for_each(&Flow::ALL, |flow| {
        let targets = ["A", "B", "C"].map(TcpServer::banner);
        let list = targets
            .each_ref()
            .map(|target| target.address().to_string())
            .join(",");
        let tunnel = Combination::plain(*flow).to(list).exit("lbs=0").start();
        let mut letters: Vec<char> = (0..30).map(|_| served_by(tunnel.tcp())).collect();
        letters.sort_unstable();
        let expected = ["A", "B", "C"].map(|letter| letter.repeat(10)).concat();
        assert_eq!(String::from_iter(letters), expected);
    });
}

#[test]
fn targets_that_die_lose_no_new_visitor_of_the_other_end() {
    for_each(&Flow::ALL, |flow| {
        for balance in ["lbs=0", "lbs=1", "lbs=2"] {
            let (first, second) = (free_address(), free_address());
            let dying = TcpServer::banner_at(first, "A");
            let _lasting = TcpServer::banner_at(second, "B");
            let plan = Combination::plain(*flow).to(format!("{first},{second}"));
            let tunnel = plan.exit(balance).start();
            for _ in 0..6 {
                served_by(tunnel.tcp());
            }
            drop(dying);
            for _ in 0..10 {
                assert_eq!(served_by(tunnel.tcp()), 'B', "{balance}");
            }
        }
    });
}

#[test]
fn backup_gives_way_to_the_first_target_after_the_fallback_interval() {
    const INTERVAL: Duration = Duration::from_millis(1500);
    for_each(&Flow::ALL, |flow| {
        let (first, second) = (free_address(), free_address());
        let primary = TcpServer::banner_at(first, "A");
        let _backup = TcpServer::banner_at(second, "B");
        let plan = Combination::plain(*flow).to(format!("{first},{second}"));
        let plan = plan.exit("lbs=2").env("NP_FALLBACK_INTERVAL", "1500ms");
        let tunnel = plan.start();
        for _ in 0..5 {
            assert_eq!(served_by(tunnel.tcp()), 'A');
        }
        drop(primary);
        let before_leaving = Instant::now();
        assert_eq!(served_by(tunnel.tcp()), 'B');
        let _primary = TcpServer::banner_at(first, "A");
        eventually("the return to the first target", || {
            let letter = served_by(tunnel.tcp());
            let elapsed = before_leaving.elapsed();
            assert!(
                letter == 'B' || elapsed >= INTERVAL,
                "back after only {elapsed:?}"
            );
            (letter == 'A').then_some(())
        });
    });
}

#[test]
fn datagrams_of_one_visitor_keep_to_one_of_several_targets() {
    for_each(&Flow::ALL, |flow| {
        let targets = ["A", "B"].map(UdpServer::labelled);
        let list = targets
            .each_ref()
            .map(|target| target.address().to_string())
            .join(",");
        let tunnel = Combination::plain(*flow).to(list).exit("lbs=0").start();
        let mut letters = Vec::new();
        for _ in 0..4 {
            let visitor = udp_visitor(tunnel.udp());
            let mut answers = Vec::new();
            for _ in 0..4 {
                visitor.send(b"who?").unwrap();
                answers.push(receive_datagram(&visitor));
            }
            answers.dedup();
            assert_eq!(answers.len(), 1, "{answers:?}");
            letters.append(&mut answers);
        }
        letters.sort_unstable();
        assert_eq!(letters.concat(), b"AABB");
    });
}

// dial

#[test]
fn dial_option_sets_the_source_at_the_end_that_dials() {
    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    for_each(&Flow::ALL, |flow| {
        let address = free_address();
        let (report, sources) = mpsc::channel();
        let _tcp = TcpServer::start_at(address, move |stream| {
            if stream.peek(&mut [0]).is_ok_and(|count| count == 1) {
                report.send(stream.peer_addr().unwrap().ip()).unwrap();
                echo(stream);
            }
        });
        let _udp = UdpServer::start_at(address, |socket, _, sender| {
            let text = sender.ip().to_string();
            socket.send_to(text.as_bytes(), sender).unwrap();
        });
        let plan = Combination::plain(*flow).to(address);
        let tunnel = plan.exit("dial=127.0.0.2").start();
        exchange(&dial(tunnel.tcp()), b"from where");
        assert_eq!(sources.recv_timeout(DEADLINE), Ok(SOURCE));
        let visitor = udp_visitor(tunnel.udp());
        visitor.send(b"who am I").unwrap();
        assert_eq!(receive_datagram(&visitor), b"127.0.0.2");
    });
}

// notcp, noudp

#[test]
fn notcp_of_either_end_leaves_udp_alone() {
    for_each(&Place::all(), |place| {
        let (tcp, _udp) = echo_both();
        let tunnel = plan_with(place, tcp.address(), "notcp=1").start();
        exchange_datagram(&udp_visitor(tunnel.udp()), b"udp");
        if place.is_entry() {
            let refusal = try_dial(tunnel.udp()).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(tunnel.entry().count("Listening on tcp"), 0);
        } else {
            assert_closed(&dial(tunnel.tcp()));
        }
        exchange_datagram(&udp_visitor(tunnel.udp()), b"still there");
    });
}

#[test]
fn noudp_of_either_end_leaves_tcp_alone() {
    for_each(&Place::all(), |place| {
        let (tcp, _udp) = echo_both();
        let tunnel = plan_with(place, tcp.address(), "noudp=1").start();
        exchange(&dial(tunnel.tcp()), b"tcp");
        if place.is_entry() {
            let visitor = udp_visitor(tunnel.tcp());
            visitor.send(b"udp").unwrap();
            let refusal = visitor.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(tunnel.entry().count("Listening on udp"), 0);
        } else {
            let visitor = udp_visitor(tunnel.udp());
            assert!(!try_exchange_datagram(&visitor, b"udp", SHORT_WAIT));
        }
        exchange(&dial(tunnel.tcp()), b"still there");
    });
}

#[test]
fn tcp_and_udp_share_the_port_of_the_entry() {
    for_each(&Flow::ALL, |flow| {
        let (tcp, _udp) = echo_both();
        let tunnel = Combination::plain(*flow).to(tcp.address()).start();
        assert_eq!(tunnel.tcp(), tunnel.udp());
    });
}

// min, max

#[test]
fn pool_comes_to_its_fewest_connections_at_both_ends() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        let plan = combination.to(target.address()).report("300ms");
        let tunnel = plan.min(13).start();
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.pool == 13);
        }
        for _ in 0..20 {
            exchange(&dial(tunnel.tcp()), b"takes one");
        }
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.tcp_sessions == 0 && now.pool >= 13);
        }
    });
}

#[test]
fn pool_never_has_more_than_its_most_connections_at_either_end() {
    const MAX: u64 = 5;
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        // Fewest is more than most here: the server's word counts.
        let plan = combination.to(target.address()).report("500ms");
        let tunnel = plan.min(40).max(5).start();
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.pool == MAX);
        }
        for _ in 0..3 {
            let visitors = [(); 20].map(|()| dial(tunnel.tcp()));
            for visitor in &visitors {
                exchange(visitor, b"one of many");
            }
        }
        for program in tunnel.programs() {
            program.wait_checkpoint(|now| now.tcp_sessions == 0 && now.pool == MAX);
            let most = program.checkpoints().iter().map(|then| then.pool).max();
            assert_eq!(most, Some(MAX));
        }
    });
}
