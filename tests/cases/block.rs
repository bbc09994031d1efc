//! Blocked protocols: told by the first bytes of a visitor, whenever they come.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::DEADLINE;
use crate::support::program::Program;
use crate::support::servers::{TcpServer, counting_echo, set_deadline};
use crate::support::visitors::{End, assert_closed, dial, exchange, read_count, read_to_end};

/// Protocol as the log names it, digit of `block`, first bytes.
const BLOCKED: [(&str, &str, &[u8]); 8] = [
    ("SOCKS", "1", b"\x04\x01\x00\x50\x7f\x00\x00\x01user\0"),
    (
        "SOCKS",
        "1",
        b"\x04\x01\x00\x50\x00\x00\x00\x01user\0example.org\0",
    ),
    ("SOCKS", "1", b"\x05\x01\x00"),
    ("SOCKS", "1", b"\x05\x02\x00\x02"),
    ("HTTP", "2", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
    (
        "HTTP",
        "2",
        b"POST /form HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "HTTP",
        "2",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
    ),
    (
        "TLS",
        "3",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and much more",
    ),
];

/// Asserts that `visitor` is closed, and named with `protocol` in a warning.
#[track_caller]
fn assert_refused(program: &Program, visitor: &TcpStream, protocol: &str) {
    let address = visitor.local_addr().unwrap().to_string();
    assert_closed(visitor);
    let line = program.wait_complaint(&[&address]);
    assert!(line.contains(protocol), "{line}");
}

// One program for each visitor: warnings that follow each other closely may be summed up.

#[test]
fn blocked_protocols_are_refused_and_named() {
    let (target, reached) = counting_echo(b"");
    for digits in ["1", "2", "3", "123", "31"] {
        for (protocol, digit, bytes) in BLOCKED {
            let program = Program::forward_to(target.address(), &format!("block={digits}"));
            let visitor = dial(program.tcp_address());
            if digits.contains(digit) {
                (&visitor).write_all(bytes).unwrap();
                assert_refused(&program, &visitor, protocol);
                assert_eq!(
                    reached.swap(0, Ordering::SeqCst),
                    0,
                    "{protocol} block={digits}"
                );
            } else {
                exchange(&visitor, bytes);
                reached.store(0, Ordering::SeqCst);
            }
        }
    }
}

#[test]
fn blocked_protocols_are_refused_when_split_over_two_writes() {
    let (target, reached) = counting_echo(b"");
    for (protocol, _, bytes) in BLOCKED {
        let program = Program::forward_to(target.address(), "block=123");
        let visitor = dial(program.tcp_address());
        (&visitor).write_all(&bytes[..1]).unwrap();
        // Lets the first byte travel alone; where it does not, this proves less and still holds.
        thread::sleep(Duration::from_millis(20));
        // The first byte alone may already have been enough.
        let _ = (&visitor).write_all(&bytes[1..]);
        assert_refused(&program, &visitor, protocol);
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[test]
fn blocked_protocols_are_refused_from_a_visitor_that_speaks_late() {
    let (report, connected) = mpsc::channel();
    // Tells when it gets the PROXY line, which shows that waiting for first bytes has ended; then
    // what else it gets.
    let target = TcpServer::start(move |stream| {
        if stream.peek(&mut [0]).is_ok_and(|count| count == 1) {
            report.send(Vec::new()).unwrap();
            report.send(read_to_end(stream).0).unwrap();
        }
    });
    for (protocol, _, bytes) in BLOCKED {
        let program = Program::forward_to(target.address(), "block=123&proxy=1");
        let visitor = dial(program.tcp_address());
        connected.recv_timeout(DEADLINE).unwrap();
        (&visitor).write_all(bytes).unwrap();
        assert_refused(&program, &visitor, protocol);
        let reached = connected.recv_timeout(DEADLINE).unwrap();
        let line = String::from_utf8(reached).unwrap();
        assert!(
            line.starts_with("PROXY TCP4 ") && line.ends_with("\r\n"),
            "{line:?}"
        );
        assert_eq!(line.lines().count(), 1, "{line:?}");
    }
}

#[test]
fn blocked_protocols_are_refused_when_the_target_speaks_first() {
    let (target, reached) = counting_echo(b"welcome");
    for (protocol, _, bytes) in BLOCKED {
        let program = Program::forward_to(target.address(), "block=123");
        let visitor = dial(program.tcp_address());
        // The banner shows that waiting for first bytes has ended and the target is connected.
        assert_eq!(read_count(&visitor, 7), b"welcome");
        (&visitor).write_all(bytes).unwrap();
        assert_refused(&program, &visitor, protocol);
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[test]
fn other_protocols_pass_the_block() {
    let (target, _) = counting_echo(b"");
    let program = Program::forward_to(target.address(), "block=123");
    let others: [&[u8]; 8] = [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GETTING started\n",
        b"get well soon\n",
        b"\x00",
        b"\xff\xfe\xfd\xfc",
        b"\x16\x16\x16\x16\x16\x16\x16\x16",
        b"P",
        b"POS",
    ];
    for bytes in others {
        let visitor = dial(program.tcp_address());
        // Sent in one piece, and nothing after it: what could still become a blocked protocol
        // must not be held back for ever.
        exchange(&visitor, bytes);
        exchange(
            &visitor,
            b"GET / HTTP/1.1 inside another protocol is no HTTP\r\n\r\n",
        );
    }
    assert!(
        program.complaints().is_empty(),
        "{:#?}",
        program.complaints()
    );
}

#[test]
fn silent_visitor_gets_the_banner_in_spite_of_the_block() {
    let target = TcpServer::banner("220 ready\r\n");
    let program = Program::forward_to(target.address(), "block=123");
    let visitor = dial(program.tcp_address());
    assert_eq!(read_count(&visitor, 11), b"220 ready\r\n");
    exchange(&visitor, b"EHLO there\r\n");
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_closed(&visitor);
}

#[test]
fn visitor_that_ends_without_a_word_passes_the_block() {
    let target = TcpServer::banner("220 ready\r\n");
    let program = Program::forward_to(target.address(), "block=123");
    let visitor = dial(program.tcp_address());
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"220 ready\r\n".to_vec(), End::Finished)
    );
}

#[test]
fn nothing_of_a_late_blocked_visitor_reaches_a_target_that_spoke_first() {
    const BANNER: &str = "220 ready\r\n";
    let (report, received) = mpsc::channel();
    let target = TcpServer::start(move |mut stream| {
        set_deadline(stream);
        let _ = stream.write_all(BANNER.as_bytes());
        let _ = report.send(read_to_end(stream).0);
    });
    for _ in 0..5 {
        let program = Program::forward_to(target.address(), "block=2");
        let visitor = dial(program.tcp_address());
        assert_eq!(read_count(&visitor, BANNER.len()), BANNER.as_bytes());
        let request = [&b"GET / HTTP/1.1\r\n"[..], &[b'S'; 200_000]].concat();
        // May be refused while it is still being written.
        let _ = (&visitor).write_all(&request);
        assert_refused(&program, &visitor, "HTTP");
        let reached = received.recv_timeout(DEADLINE).unwrap();
        assert_eq!(reached.len(), 0, "bytes of a refused visitor");
    }
}

#[test]
fn unusual_requests_are_http_as_well() {
    let (target, reached) = counting_echo(b"");
    let requests: [&[u8]; 6] = [
        b"PROPFIND / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"BREW http://example.org/ HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for request in requests {
        let program = Program::forward_to(target.address(), "block=2");
        let visitor = dial(program.tcp_address());
        (&visitor).write_all(request).unwrap();
        assert_refused(&program, &visitor, "HTTP");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[test]
fn what_only_other_digits_block_is_connected() {
    let (target, _) = counting_echo(b"");
    // Each could become the start of a protocol that is not to be refused here.
    for (digits, first) in [
        ("2", 0x05),
        ("2", 0x16),
        ("2", 0x04),
        ("1", 0x16),
        ("3", 0x05),
    ] {
        let program = Program::forward_to(target.address(), &format!("block={digits}"));
        let visitor = dial(program.tcp_address());
        exchange(&visitor, &[first]);
        exchange(&visitor, b"\x01\x00GET / HTTP/1.1\r\n\r\n");
    }
}
