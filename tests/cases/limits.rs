//! Options that limit or leave out: protocols, slots, idle time, rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::program::Program;
use crate::support::servers::{TcpServer, drain, echo_both, flood};
use crate::support::visitors::{
    assert_closed, dial, exchange, exchange_datagram, read_count, read_to_end, try_dial,
    try_exchange, udp_visitor,
};
use crate::support::{DEADLINE, eventually};

#[test]
fn notcp_leaves_udp_alone() {
    let (_tcp, udp) = echo_both();
    let program = Program::forward_to(udp.address(), "notcp=1");
    let address = program.udp_address();
    exchange_datagram(&udp_visitor(address), b"udp");
    assert_eq!(
        try_dial(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(program.count("Listening on tcp"), 0);
}

#[test]
fn noudp_leaves_tcp_alone() {
    let (tcp, _udp) = echo_both();
    let program = Program::forward_to(tcp.address(), "noudp=1");
    let address = program.tcp_address();
    exchange(&dial(address), b"tcp");
    let visitor = udp_visitor(address);
    visitor.send(b"udp").unwrap();
    let refusal = visitor.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(program.count("Listening on udp"), 0);
}

#[test]
fn tcp_and_udp_share_the_port() {
    let (tcp, _udp) = echo_both();
    let program = Program::forward_to(tcp.address(), "");
    assert_eq!(program.tcp_address(), program.udp_address());
    exchange(&dial(program.tcp_address()), b"tcp");
    exchange_datagram(&udp_visitor(program.udp_address()), b"udp");
}

#[test]
fn visitor_over_the_slot_limit_is_refused_until_one_leaves() {
    let target = TcpServer::echo();
    let program = Program::forward_to(target.address(), "slot=2");
    let address = program.tcp_address();
    let first = dial(address);
    exchange(&first, b"first");
    let second = dial(address);
    exchange(&second, b"second");
    let third = dial(address);
    assert_closed(&third);
    program.wait_complaint(&["slot"]);
    exchange(&first, b"undisturbed");
    drop(first);
    let fourth = eventually("a free slot", || {
        let visitor = dial(address);
        try_exchange(&visitor, b"fourth").ok().map(|()| visitor)
    });
    exchange(&second, b"undisturbed");
    exchange(&fourth, b"served");
}

#[test]
fn silent_connection_is_closed_after_the_read_time() {
    let target = TcpServer::echo();
    let program = Program::forward_to(target.address(), "read=300ms");
    let visitor = dial(program.tcp_address());
    exchange(&visitor, b"hello");
    let silent_since = Instant::now();
    assert_closed(&visitor);
    let elapsed = silent_since.elapsed();
    assert!(
        elapsed >= Duration::from_millis(250),
        "closed after {elapsed:?}"
    );
    assert!(
        elapsed < Duration::from_secs(5),
        "closed only after {elapsed:?}"
    );
}

#[test]
fn activity_either_way_keeps_a_connection_over_the_read_time() {
    const PACE: Duration = Duration::from_millis(100);
    // Speaks alone: 18 bytes, which take three times the read time.
    let target = TcpServer::start(|mut stream| {
        for _ in 0..18 {
            if stream.write_all(b".").is_err() {
                return;
            }
            thread::sleep(PACE);
        }
        let _ = drain(stream);
    });
    let program = Program::forward_to(target.address(), "read=600ms");
    let listener = dial(program.tcp_address());
    let speaker = dial(program.tcp_address());
    // Starts to speak when the target has stopped, after which only it keeps its connection.
    assert_eq!(read_count(&speaker, 18), [b'.'; 18]);
    for _ in 0..12 {
        (&speaker).write_all(b".").unwrap();
        thread::sleep(PACE);
    }
    speaker.set_read_timeout(Some(PACE)).unwrap();
    let error = (&speaker)
        .read(&mut [0])
        .expect_err("closed though it speaks");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let (bytes, _) = read_to_end(&listener);
    assert_eq!(bytes, [b'.'; 18], "closed while the target spoke");
}

/// Reads 64 KiB every 50 ms, hardly more than one megabyte a second, for `window`.
#[track_caller]
fn read_slowly(mut stream: &TcpStream, window: Duration) {
    let begin = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    while begin.elapsed() < window {
        stream
            .read_exact(&mut buffer)
            .unwrap_or_else(|error| panic!("cut after {:?}: {error}", begin.elapsed()));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn slow_reader_is_not_idle() {
    assert_slow_readers_stay("read=2s", Duration::from_secs(7));
}

#[test]
fn slow_reader_is_not_idle_for_a_short_read_time() {
    assert_slow_readers_stay("read=500ms", Duration::from_secs(4));
}

/// Asserts that a slow target and a slow visitor get their bytes for `window`.
#[track_caller]
fn assert_slow_readers_stay(options: &str, window: Duration) {
    let (report, received) = mpsc::channel();
    let report = Mutex::new(report);
    let target = TcpServer::of_wishes(move |stream| {
        read_slowly(stream, window);
        report.lock().unwrap().send(()).unwrap();
    });
    let program = Program::forward_to(target.address(), options);
    let start = |wish: &[u8]| {
        let visitor = dial(program.tcp_address());
        (&visitor).write_all(wish).unwrap();
        visitor
    };
    let (upload, download) = (start(b"U"), start(b"D"));
    thread::scope(|scope| {
        scope.spawn(|| flood(&upload));
        let reader = scope.spawn(|| read_slowly(&download, window));
        let uploaded = received.recv_timeout(DEADLINE);
        // Ends the flood; the target has left, so it may have ended already.
        let _ = upload.shutdown(Shutdown::Both);
        assert_eq!(uploaded, Ok(()), "the slow target was cut off");
        reader.join().expect("the slow visitor was cut off");
    });
}

/// Bytes that come out of `stream` in `window` after a short start, and the longest silence.
#[track_caller]
fn measure(mut stream: &TcpStream, window: Duration) -> (u64, Duration) {
    let mut buffer = vec![0; 64 * 1024];
    let start_end = Instant::now() + Duration::from_millis(700);
    while Instant::now() < start_end {
        assert!(stream.read(&mut buffer).unwrap() > 0);
    }
    let begin = Instant::now();
    let (mut total, mut longest, mut last) = (0, Duration::ZERO, begin);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the flow ended");
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
        if now - begin > window {
            return (total, longest);
        }
        total += u64::try_from(count).unwrap();
    }
}

/// `rate=8` is one megabyte a second.
#[track_caller]
fn assert_one_megabyte_a_second(count: u64, window: Duration) {
    let expected = u64::try_from(window.as_millis()).unwrap() * 1000;
    let range = expected * 85 / 100..=expected * 115 / 100;
    assert!(range.contains(&count), "{count} bytes in {window:?}");
}

#[test]
fn rate_gives_a_lone_flow_all_of_it_smoothly() {
    const WINDOW: Duration = Duration::from_secs(2);
    let target = TcpServer::start(flood);
    let program = Program::forward_to(target.address(), "rate=8");
    let (count, longest) = measure(&dial(program.tcp_address()), WINDOW);
    assert_one_megabyte_a_second(count, WINDOW);
    assert!(
        longest < Duration::from_millis(250),
        "nothing came for {longest:?}"
    );
}

#[test]
fn rate_is_shared_by_the_flows_of_one_direction_and_counts_the_other_apart() {
    const WINDOW: Duration = Duration::from_secs(2);
    let (report, uploaded) = mpsc::channel();
    let report = Mutex::new(report);
    let target = TcpServer::of_wishes(move |stream| {
        let measured = measure(stream, WINDOW);
        report.lock().unwrap().send(measured).unwrap();
    });
    let program = Program::forward_to(target.address(), "rate=8");
    let start = |wish: &[u8]| {
        let visitor = dial(program.tcp_address());
        (&visitor).write_all(wish).unwrap();
        visitor
    };
    let upload = start(b"U");
    let downloads = [start(b"D"), start(b"D")];
    thread::scope(|scope| {
        scope.spawn(|| flood(&upload));
        let flows = downloads
            .each_ref()
            .map(|visitor| scope.spawn(|| measure(visitor, WINDOW).0));
        let counts = flows.map(|flow| flow.join().unwrap());
        let up = uploaded.recv_timeout(DEADLINE).unwrap().0;
        // Ends the flood; the target has left, so it may have ended already.
        let _ = upload.shutdown(Shutdown::Both);
        let [one, two] = counts;
        assert_one_megabyte_a_second(one + two, WINDOW);
        assert!(
            one.min(two) * 4 > one + two,
            "shares of {one} and {two} bytes"
        );
        assert_one_megabyte_a_second(up, WINDOW);
    });
}
