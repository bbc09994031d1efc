//! The PROXY protocol header in front of the data.

use std::io::Write;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::mpsc;

use crate::support::DEADLINE;
use crate::support::program::Program;
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, read_count, read_to_end};

/// A program with `option` on `listen`, the bytes its target gets before the 8 bytes of data of a
/// visitor to `visit_ip`, and the addresses of the visitor: its own and the one it went to.
fn proxy_header(listen: &str, visit_ip: &str, option: &str) -> (Vec<u8>, SocketAddr, SocketAddr) {
    let (report, received) = mpsc::channel();
    let target = TcpServer::start(move |stream| {
        let (bytes, _) = read_to_end(stream);
        if !bytes.is_empty() {
            report.send(bytes).unwrap();
        }
    });
    let program = Program::start(&format!(
        "client://{listen}/{}?mode=1&{option}",
        target.address()
    ));
    let port = program.tcp_address().port();
    let visitor = dial(SocketAddr::from((
        visit_ip.parse::<IpAddr>().unwrap(),
        port,
    )));
    let (from, to) = (visitor.local_addr().unwrap(), visitor.peer_addr().unwrap());
    (&visitor).write_all(b"the data").unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut bytes = received.recv_timeout(DEADLINE).unwrap();
    assert!(bytes.ends_with(b"the data"), "{bytes:?}");
    bytes.truncate(bytes.len() - 8);
    (bytes, from, to)
}

#[test]
fn proxy_line_names_the_visitor() {
    for (listen, visit_ip, family) in [
        ("127.0.0.1:0", "127.0.0.1", "TCP4"),
        ("[::1]:0", "::1", "TCP6"),
        // A visitor that reaches an IPv6 socket over IPv4 is still an IPv4 visitor.
        (":0", "127.0.0.2", "TCP4"),
        (":0", "::1", "TCP6"),
    ] {
        let (bytes, from, to) = proxy_header(listen, visit_ip, "proxy=1");
        let expected = format!(
            "PROXY {family} {} {} {} {}\r\n",
            from.ip(),
            to.ip(),
            from.port(),
            to.port()
        );
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            expected,
            "listener {listen}"
        );
    }
}

#[test]
fn proxy_binary_header_names_the_visitor() {
    for (listen, visit_ip) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        (":0", "127.0.0.2"),
        (":0", "::1"),
    ] {
        let (bytes, from, to) = proxy_header(listen, visit_ip, "proxy=2");
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                expected.extend([0x21, 0x11, 0, 12]);
                expected.extend(from.octets());
                expected.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                expected.extend([0x21, 0x21, 0, 36]);
                expected.extend(from.octets());
                expected.extend(to.octets());
            }
            families => panic!("{families:?}"),
        }
        expected.extend(from.port().to_be_bytes());
        expected.extend(to.port().to_be_bytes());
        assert_eq!(bytes, expected, "listener {listen}");
    }
}

#[test]
fn proxy_line_is_sent_for_a_visitor_that_waits_for_the_target_to_speak() {
    let target = TcpServer::start(|mut stream| {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(read_count(stream, 1));
        }
        stream.write_all(&line).unwrap();
    });
    let program = Program::forward_to(target.address(), "proxy=1&block=123");
    let visitor = dial(program.tcp_address());
    let (line, _) = read_to_end(&visitor);
    let local = visitor.local_addr().unwrap();
    let expected = format!("PROXY TCP4 {} ", local.ip());
    assert!(line.starts_with(expected.as_bytes()), "{line:?}");
}
