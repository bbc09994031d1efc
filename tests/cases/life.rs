//! Start, stop, exhaustion, log and counters.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::Signal;

use crate::support::pattern::Pattern;
use crate::support::program::{Checkpoint, Launch, Program, forward_url, raise_descriptor_limit};
use crate::support::servers::{TcpServer, UdpServer, echo_both, set_deadline};
use crate::support::visitors::{
    assert_closed, dial, exchange, exchange_datagram, read_count, read_to_end, receive_datagram,
    try_dial, try_exchange, try_exchange_datagram, udp_visitor, wait_refused,
};
use crate::support::{eventually, free_address};

// The end.

#[test]
fn termination_lets_transfers_finish_and_refuses_new_visitors() {
    const THREADS: usize = 4;
    const EACH: usize = 50;
    const CHUNK: usize = 32 * 1024;
    raise_descriptor_limit();
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let mut program = Launch::new(&[&url])
        .env("NP_SHUTDOWN_TIMEOUT", "30s")
        .start();
    let address = program.tcp_address();
    let halfway = Barrier::new(THREADS + 1);
    let stopping = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for thread_index in 0..THREADS {
            let (halfway, stopping) = (&halfway, &stopping);
            scope.spawn(move || {
                let seed = |index: usize| u64::try_from(thread_index * EACH + index).unwrap();
                let mut transfers: Vec<(TcpStream, Pattern)> = (0..EACH)
                    .map(|index| (dial(address), Pattern::new(seed(index))))
                    .collect();
                let mut advance = |chunks: usize| {
                    for _ in 0..chunks {
                        for (visitor, pattern) in &mut transfers {
                            exchange(visitor, &pattern.take(CHUNK));
                        }
                    }
                };
                advance(4);
                halfway.wait();
                stopping.wait();
                advance(4);
                for (visitor, _) in &transfers {
                    visitor.shutdown(Shutdown::Write).unwrap();
                    assert_closed(visitor);
                }
            });
        }
        halfway.wait();
        program.signal(Signal::TERM);
        wait_refused(address);
        assert!(program.is_running());
        stopping.wait();
    });
    let finished_at = Instant::now();
    assert_eq!(program.wait_exit(), 0);
    let elapsed = finished_at.elapsed();
    assert!(
        elapsed < Duration::from_secs(5),
        "ended {elapsed:?} after its last connection"
    );
}

#[test]
fn termination_without_connections_is_immediate() {
    for signal in [Signal::TERM, Signal::INT] {
        let target = TcpServer::echo();
        let url = forward_url(target.address(), "");
        let mut program = Launch::new(&[&url])
            .env("NP_SHUTDOWN_TIMEOUT", "30s")
            .start();
        exchange(&dial(program.tcp_address()), b"used before");
        let signalled_at = Instant::now();
        program.signal(signal);
        assert_eq!(program.wait_exit(), 0, "{signal:?}");
        let elapsed = signalled_at.elapsed();
        assert!(elapsed < Duration::from_secs(5), "took {elapsed:?}");
    }
}

#[test]
fn idle_connections_are_ended_after_the_shutdown_time() {
    for signal in [Signal::TERM, Signal::INT] {
        let target = TcpServer::echo();
        let url = forward_url(target.address(), "");
        let mut program = Launch::new(&[&url])
            .env("NP_SHUTDOWN_TIMEOUT", "1s")
            .start();
        let visitor = dial(program.tcp_address());
        exchange(&visitor, b"then silent");
        let signalled_at = Instant::now();
        program.signal(signal);
        assert_closed(&visitor);
        let elapsed = signalled_at.elapsed();
        assert!(
            elapsed >= Duration::from_millis(900),
            "ended after {elapsed:?}"
        );
        assert_eq!(program.wait_exit(), 0, "{signal:?}");
        let elapsed = signalled_at.elapsed();
        assert!(elapsed < Duration::from_secs(5), "took {elapsed:?}");
    }
}

#[test]
fn second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let target = TcpServer::echo();
        let url = forward_url(target.address(), "");
        let mut program = Launch::new(&[&url])
            .env("NP_SHUTDOWN_TIMEOUT", "30s")
            .start();
        let address = program.tcp_address();
        let visitor = dial(address);
        exchange(&visitor, b"then silent");
        program.signal(first);
        wait_refused(address);
        assert!(program.is_running());
        let signalled_at = Instant::now();
        program.signal(second);
        assert_eq!(program.wait_exit(), 0);
        let elapsed = signalled_at.elapsed();
        assert!(elapsed < Duration::from_secs(5), "took {elapsed:?}");
        assert_closed(&visitor);
    }
}

#[test]
fn open_udp_sessions_do_not_delay_the_end_beyond_the_shutdown_time() {
    let target = UdpServer::echo();
    let url = forward_url(target.address(), "");
    let mut program = Launch::new(&[&url])
        .env("NP_SHUTDOWN_TIMEOUT", "1s")
        .start();
    exchange_datagram(&udp_visitor(program.udp_address()), b"hello");
    let signalled_at = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    let elapsed = signalled_at.elapsed();
    assert!(elapsed < Duration::from_secs(5), "took {elapsed:?}");
}

// Exhaustion.

#[test]
fn descriptors_running_out_spoil_no_connection_and_pass() {
    const VISITORS: usize = 200;
    const LINES_MAX: usize = 40;
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::through_shell("ulimit -n 64", &[&url]).start();
    let address = program.tcp_address();
    let before = program.descriptors_count();
    let label = |index: usize| format!("visitor {index:04}").into_bytes();
    let mut waiting = Vec::new();
    for index in 0..VISITORS {
        // A full queue of the listener makes a visitor wait in vain, which is a refusal too.
        let Ok(visitor) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) else {
            break;
        };
        // One that was refused already may say so here.
        let _ = (&visitor).write_all(&label(index));
        visitor.set_nonblocking(true).unwrap();
        waiting.push((index, visitor));
    }
    let mut served = Vec::new();
    let mut settled_at = Instant::now();
    eventually("a state that lasts", || {
        let before = waiting.len();
        let mut still_waiting = Vec::new();
        for (index, visitor) in waiting.drain(..) {
            let mut first = [0];
            match (&visitor).read(&mut first) {
                Ok(1) => {
                    visitor.set_nonblocking(false).unwrap();
                    set_deadline(&visitor);
                    let answer = [&first[..], &read_count(&visitor, 11)].concat();
                    assert_eq!(answer, label(index));
                    served.push(visitor);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    still_waiting.push((index, visitor));
                }
                // Refused.
                _ => {}
            }
        }
        waiting = still_waiting;
        if waiting.len() != before {
            settled_at = Instant::now();
        }
        (settled_at.elapsed() > Duration::from_secs(1)).then_some(())
    });
    assert!(
        served.len() >= 5,
        "only {} of {VISITORS} were served",
        served.len()
    );
    assert!(
        served.len() < 64,
        "{} were served with 64 descriptors",
        served.len()
    );
    let time_before = program.processor_time();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        for visitor in &served {
            exchange(visitor, b"still served");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let used = program.processor_time() - time_before;
    assert!(
        used < begin.elapsed() / 2,
        "spins while it waits for descriptors: {used:?}"
    );
    let complaints = program.complaints().len();
    assert!(
        complaints <= LINES_MAX,
        "{complaints} lines about one shortage"
    );
    drop(served);
    drop(waiting);
    eventually("the end of the shortage", || {
        (program.descriptors_count() <= before + 2).then_some(())
    });
    for _ in 0..20 {
        exchange(&dial(address), b"as before");
    }
}

// The start.

#[test]
fn taken_port_is_an_error_that_passes_when_the_port_is_freed() {
    let target = TcpServer::echo();
    for protocol in ["tcp", "udp"] {
        let taken = free_address();
        let listener = (protocol == "tcp").then(|| TcpListener::bind(taken).unwrap());
        let socket = (protocol == "udp").then(|| UdpSocket::bind(taken).unwrap());
        let url = format!("client://{taken}/{}?mode=1", target.address());
        let program = Launch::new(&[&url])
            .env("NP_SERVICE_COOLDOWN", "200ms")
            .start();
        let expected = format!("Client error: cannot listen on {protocol} {taken}: ");
        let line = program.wait_for(&expected);
        assert!(line.contains("ERROR"), "{line}");
        assert!(line.to_lowercase().contains("in use"), "{line}");
        // It keeps trying.
        program.wait_for_count(&expected, 2);
        drop((listener, socket));
        let both = (
            program.wait_for("Listening on tcp "),
            program.wait_for("Listening on udp "),
        );
        assert!(both.0.contains(&taken.to_string()) && both.1.contains(&taken.to_string()));
        exchange(&dial(taken), b"at last");
    }
}

#[test]
fn auto_mode_that_can_bind_is_single_end_and_says_why() {
    let (tcp, _udp) = echo_both();
    for option in ["", "?mode=0"] {
        let program = Program::start(&format!("client://127.0.0.1:0/{}{option}", tcp.address()));
        exchange(&dial(program.tcp_address()), b"tcp");
        exchange_datagram(&udp_visitor(program.udp_address()), b"udp");
        let reasons: Vec<String> = program
            .lines()
            .into_iter()
            .filter(|line| line.contains("single-end"))
            .collect();
        assert_eq!(reasons.len(), 1, "{reasons:#?}");
        assert!(reasons[0].contains("INFO"), "{reasons:#?}");
    }
}

#[test]
fn auto_mode_whose_address_is_taken_goes_to_a_server_there() {
    for protocol in ["tcp", "udp"] {
        let taken = free_address();
        let _listener = (protocol == "tcp").then(|| TcpListener::bind(taken).unwrap());
        let _socket = (protocol == "udp").then(|| UdpSocket::bind(taken).unwrap());
        for option in ["", "&mode=0"] {
            // Whoever listens there says nothing, so a short time is enough to know.
            let url = format!("client://{taken}/127.0.0.1:9?log=info{option}");
            let launch = Launch::new(&[&url]).env("NP_HANDSHAKE_TIMEOUT", "200ms");
            let mut program = launch.start();
            let line = program.wait_for("Mode 2 (dual-end) chosen: ");
            assert!(line.contains(&taken.to_string()), "{line}");
            let line = program.wait_for("Client error: ");
            assert!(line.contains(&taken.to_string()), "{line}");
            program.wait_for("Trying again in ");
            assert!(program.is_running());
        }
    }
}

#[test]
fn start_line_shows_the_core_and_hides_the_key() {
    let target = TcpServer::echo();
    let program = Program::forward_to(target.address(), "");
    let line = program.wait_for("Client started: client://");
    assert!(line.contains("INFO"), "{line}");
    assert!(line.contains(&target.address().to_string()), "{line}");
}

// Log and counters.

#[test]
fn log_lines_have_date_time_level_and_text() {
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "log=debug");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    exchange(&dial(program.tcp_address()), b"traffic");
    program.checkpoint();
    for line in program.lines() {
        // 2026-11-20 09:28:54.697  INFO  text
        let (time, rest) = line
            .split_at_checked(23)
            .unwrap_or_else(|| panic!("{line:?}"));
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00 00:00:00.000", "{line:?}");
        let level = rest.split_whitespace().next().unwrap_or_default();
        let levels = ["DEBUG", "INFO", "WARN", "ERROR", "EVENT"];
        assert!(levels.contains(&level), "{line:?}");
        assert!(
            !line.contains('\x1b'),
            "coloured though it is no terminal: {line:?}"
        );
    }
}

#[test]
fn checkpoint_counts_every_byte_of_both_protocols() {
    const REQUEST: usize = 300_001;
    const ANSWER: usize = 1_000_003;
    let address = free_address();
    let _tcp = TcpServer::start_at(address, |mut stream| {
        let (request, _) = read_to_end(stream);
        assert_eq!(request.len(), REQUEST);
        stream.write_all(&Pattern::new(1).take(ANSWER)).unwrap();
    });
    let _udp = UdpServer::start_at(address, |socket, datagram, sender| {
        socket
            .send_to(&Pattern::new(2).take(datagram.len() * 3), sender)
            .unwrap();
    });
    let url = forward_url(address, "");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let nothing = program.checkpoint();
    for _ in 0..2 {
        let visitor = dial(program.tcp_address());
        thread::scope(|scope| {
            scope.spawn(|| {
                (&visitor)
                    .write_all(&Pattern::new(3).take(REQUEST))
                    .unwrap();
                visitor.shutdown(Shutdown::Write).unwrap();
            });
            assert!(read_to_end(&visitor).0 == Pattern::new(1).take(ANSWER));
        });
    }
    let visitor = udp_visitor(program.udp_address());
    for size in [1, 0, 1000, 20_000] {
        visitor.send(&vec![0; size]).unwrap();
        assert_eq!(receive_datagram(&visitor).len(), size * 3);
    }
    let count = |number: usize| u64::try_from(number).unwrap();
    let zero = Checkpoint {
        mode: 1,
        ping: nothing.ping,
        pool: 0,
        tcp_sessions: 0,
        udp_sessions: 0,
        tcp_received: 0,
        tcp_sent: 0,
        udp_received: 0,
        udp_sent: 0,
    };
    assert_eq!(nothing, zero);
    let expected = Checkpoint {
        udp_sessions: 1,
        tcp_received: count(2 * REQUEST),
        tcp_sent: count(2 * ANSWER),
        udp_received: 21_001,
        udp_sent: 63_003,
        ..zero
    };
    program.wait_checkpoint(|checkpoint| checkpoint.tcp_sessions == 0);
    // The one before may have been on its way while the last datagram was.
    let now = program.checkpoint();
    let expected = Checkpoint {
        ping: now.ping,
        ..expected
    };
    assert_eq!(now, expected);
}

#[test]
fn checkpoint_counts_a_connection_while_it_lasts() {
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    let visitor = dial(program.tcp_address());
    exchange(&visitor, &[b'x'; 1000]);
    let now = program.wait_checkpoint(|checkpoint| checkpoint.tcp_received == 1000);
    assert_eq!((now.tcp_sessions, now.tcp_sent), (1, 1000));
}

#[test]
fn last_checkpoint_has_no_session_and_every_byte() {
    const CUT: usize = 3;
    let (tcp, _udp) = echo_both();
    let url = forward_url(tcp.address(), "");
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "60s")
        .env("NP_SHUTDOWN_TIMEOUT", "500ms")
        .start();
    let address = program.tcp_address();
    let visitors = [(); CUT].map(|()| dial(address));
    let datagrams = udp_visitor(program.udp_address());
    for visitor in &visitors {
        exchange(visitor, &[b'x'; 1000]);
    }
    exchange_datagram(&datagrams, &[b'x'; 100]);
    program.signal(Signal::TERM);
    wait_refused(address);
    // What passes while the program waits counts as well.
    exchange(&visitors[0], &[b'x'; 10]);
    assert_eq!(program.wait_exit(), 0);
    let last = program.last_checkpoint();
    let expected = Checkpoint {
        mode: 1,
        ping: last.ping,
        pool: 0,
        tcp_sessions: 0,
        udp_sessions: 0,
        tcp_received: 3010,
        tcp_sent: 3010,
        udp_received: 100,
        udp_sent: 100,
    };
    assert_eq!(last, expected);
    program.wait_complaint(&["3 connections", "cut"]);
    for visitor in &visitors {
        assert_closed(visitor);
    }
}

#[test]
fn last_checkpoint_counts_a_transfer_that_was_cut() {
    let target = TcpServer::start(|mut stream| {
        let chunk = vec![0; 64 * 1024];
        while stream.write(&chunk).is_ok() {}
    });
    let url = forward_url(target.address(), "rate=8");
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "60s")
        .env("NP_SHUTDOWN_TIMEOUT", "300ms")
        .start();
    let visitor = dial(program.tcp_address());
    let before = read_count(&visitor, 100_000).len();
    let got = thread::scope(|scope| {
        let reader = scope.spawn(|| before + read_to_end(&visitor).0.len());
        program.signal(Signal::TERM);
        assert_eq!(program.wait_exit(), 0);
        reader.join().unwrap()
    });
    let last = program.last_checkpoint();
    assert_eq!((last.tcp_sessions, last.tcp_received), (0, 0));
    // What was in the buffers of the system when the connection was reset is lost.
    let sent = usize::try_from(last.tcp_sent).unwrap();
    assert!(got <= sent && sent - got < 1_000_000, "{got} of {sent}");
}

/// Serves at `address` with traffic of both protocols, then stops: all the program has printed.
fn output_with_traffic(options: &str) -> (Vec<String>, String) {
    let (tcp, _udp) = echo_both();
    // Silence does not tell a port that the program may choose.
    let address = free_address();
    let url = format!("client://key@{address}/{}?mode=1&{options}", tcp.address());
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .env("NP_SHUTDOWN_TIMEOUT", "500ms")
        .start();
    let visitor = eventually("a listener", || try_dial(address).ok());
    exchange(&visitor, b"tcp");
    let datagrams = udp_visitor(address);
    eventually("UDP", || {
        try_exchange_datagram(&datagrams, b"udp", Duration::from_millis(200)).then_some(())
    });
    // Some report intervals, so that there is something to keep silent about.
    thread::sleep(Duration::from_millis(400));
    drop(visitor);
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    (program.lines(), program.errors())
}

#[test]
fn log_none_is_silent() {
    assert_eq!(output_with_traffic("log=none"), (Vec::new(), String::new()));
}

#[test]
fn log_event_shows_checkpoints_only() {
    let (lines, errors) = output_with_traffic("log=event");
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(line.contains("EVENT"), "{line}");
        assert!(Checkpoint::parse(line).is_some(), "{line}");
    }
    assert_eq!(errors, "");
}

#[test]
fn log_levels_show_themselves_and_those_above() {
    let levels = ["DEBUG", "INFO", "WARN", "ERROR", "EVENT"];
    for (lowest, name) in ["debug", "info", "warn", "error"].iter().enumerate() {
        let (lines, _) = output_with_traffic(&format!("log={name}&unheard=of"));
        let level_of = |line: &String| {
            levels
                .iter()
                .position(|level| line.split_whitespace().nth(2) == Some(level))
        };
        assert!(
            lines.iter().all(|line| level_of(line) >= Some(lowest)),
            "{name}: {lines:#?}"
        );
        assert!(
            lines.iter().any(|line| line.contains("CHECK_POINT|")),
            "{name}: {lines:#?}"
        );
    }
}

#[track_caller]
fn assert_serves(address: SocketAddr, connections: usize) {
    eventually("a listener", || {
        try_exchange(&try_dial(address).ok()?, b"first").ok()
    });
    for _ in 0..connections {
        exchange(&dial(address), b"served");
    }
}

#[test]
fn closed_standard_output_stops_no_traffic() {
    let target = TcpServer::echo();
    let address = free_address();
    let url = format!("client://{address}/{}?mode=1&log=debug", target.address());
    let mut program = Launch::through_script("exec \"$0\" \"$@\" >&-", &[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    assert_serves(address, 50);
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
}

#[test]
fn standard_output_whose_reader_has_gone_stops_no_traffic() {
    let target = TcpServer::echo();
    let address = free_address();
    let url = format!("client://{address}/{}?mode=1&log=debug", target.address());
    let (read_end, write_end) = pipe().unwrap();
    drop(read_end);
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .output_to(write_end)
        .start();
    assert_serves(address, 50);
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
}

#[test]
fn standard_output_that_nobody_reads_stops_no_traffic() {
    let target = TcpServer::echo();
    let address = free_address();
    let url = format!("client://{address}/{}?mode=1&log=debug", target.address());
    let (read_end, write_end) = pipe().unwrap();
    // The smallest there is: a few dozen lines fill it.
    fcntl_setpipe_size(&write_end, 4096).unwrap();
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .output_to(write_end)
        .start();
    assert_serves(address, 500);
    program.signal(Signal::TERM);
    assert_eq!(program.wait_exit(), 0);
    let mut log = Vec::new();
    File::from(read_end).read_to_end(&mut log).unwrap();
    assert!(!log.is_empty());
}
