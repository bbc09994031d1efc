//! Who may speak with whom: keys, dialects, names and certificates.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};

use crate::support::certificates::Certificates;
use crate::support::each::for_each;
use crate::support::name_server::{NameServer, Unknown};
use crate::support::program::{Launch, Program};
use crate::support::servers::{TcpServer, drain, set_deadline};
use crate::support::tunnel::{Combination, End, Flow, Tls, Tunnel};
use crate::support::visitors::{dial, exchange};
use crate::support::{DEADLINE, free_address};

/// What both ends print when a session stands.
const UP: &str = " is up: ";

/// A plain tunnel, reverse.
fn plain() -> Combination {
    Combination::plain(Flow::Reverse)
}

#[track_caller]
fn assert_serves(tunnel: &Tunnel) {
    exchange(&dial(tunnel.tcp()), b"through the tunnel");
}

/// Waits until the client has tried twice in vain; its complaint.
#[track_caller]
fn wait_refused(tunnel: &Tunnel) -> String {
    let complaint = tunnel.client.wait_for_count("Client error: ", 2);
    for program in tunnel.programs() {
        assert_eq!(program.count(UP), 0, "a session in spite of {complaint}");
    }
    complaint
}

// Keys.

#[test]
fn keys_are_the_same_however_they_are_written() {
    let target = TcpServer::echo();
    for (server, client) in [
        ("p%40ss%2Fw%3Ard%20%25@", "p%40ss%2Fw%3Ard%20%25@"),
        ("key-1@", "key%2D1@"),
        ("%6Bey@", "key@"),
        ("schl%C3%BCssel@", "schl%c3%bcssel@"),
    ] {
        for combination in [plain(), plain().in_v1()] {
            let plan = combination.to(target.address());
            let tunnel = plan.keys(server, client).start();
            assert_serves(&tunnel);
            for program in tunnel.programs() {
                let log = program.lines().join("\n");
                for secret in ["p@ss", "p%40ss", "key-1", "key%2D1", "ssel@"] {
                    assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
                }
            }
        }
    }
}

#[test]
fn other_key_is_refused_by_the_server_and_the_client_says_so() {
    let target = TcpServer::echo();
    for_each(&Combination::all(), |combination| {
        let plan = combination.to(target.address());
        let tunnel = plan.keys("one@", "another@").launch();
        wait_refused(&tunnel);
        tunnel
            .server
            .wait_complaint(&["Handshake from", "refused", "key is not ours"]);
    });
}

#[test]
fn tunnel_without_a_key_works_and_warns_at_the_server() {
    let target = TcpServer::echo();
    for_each(&Flow::ALL, |flow| {
        // With port 0 only the server knows the port from which the key comes, once it has it.
        for address in [free_address(), SocketAddr::from(([127, 0, 0, 1], 0))] {
            let plan = Combination::plain(*flow).to(target.address());
            let tunnel = plan.keys("", "").tunnel_at(address).start();
            assert_serves(&tunnel);
            tunnel
                .server
                .wait_complaint(&["anyone who can reach the port"]);
        }
    });
}

#[test]
fn tunnel_without_a_key_has_that_of_its_port() {
    let target = TcpServer::echo();
    let address = free_address();
    let key = format!("{:x}@", address.port());
    for (server, client) in [("", &*key), (&*key, "")] {
        let plan = plain().to(target.address()).tunnel_at(address);
        assert_serves(&plan.keys(server, client).start());
    }
}

#[test]
fn key_that_is_set_is_no_reason_to_warn() {
    let target = TcpServer::echo();
    let tunnel = plain().to(target.address()).start();
    assert_serves(&tunnel);
    for program in tunnel.programs() {
        assert_eq!(program.complaints(), Vec::<String>::new());
    }
}

// Dialects.

#[test]
fn native_dialect_is_spoken_wherever_both_ends_may() {
    let target = TcpServer::echo();
    for (server, client) in [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")] {
        let plan = plain().to(target.address());
        let plan = plan.server(&format!("auth={server}"));
        assert_serves(&plan.client(&format!("auth={client}")).start());
    }
}

#[test]
fn server_with_auth_1_refuses_v1() {
    let target = TcpServer::echo();
    let plan = plain().in_v1().to(target.address());
    let tunnel = plan.server("auth=1").launch();
    wait_refused(&tunnel);
    tunnel.server.wait_complaint(&["Handshake from", "refused"]);
}

#[test]
fn client_with_auth_1_gives_nothing_to_a_v1_server() {
    let target = TcpServer::echo();
    let plan = plain().in_v1().to(target.address());
    let tunnel = plan.client("auth=1").launch();
    wait_refused(&tunnel);
    let requests = tunnel.downgrade().requests();
    assert!(!requests.is_empty());
    for request in requests {
        let request = request.to_ascii_lowercase();
        assert!(!request.contains("authorization"), "{request}");
    }
}

#[test]
fn client_tries_the_native_dialect_first_and_shows_its_token_only_to_v1() {
    let target = TcpServer::echo();
    let tunnel = plain().in_v1().to(target.address()).start();
    let requests = tunnel.downgrade().requests();
    let [first, second] = &requests[..] else {
        panic!("{requests:#?}");
    };
    let [first, second] = [first, second].map(|head| head.to_ascii_lowercase());
    assert!(first.contains("\r\nnodepass-nonce: "), "{first}");
    assert!(!first.contains("authorization"), "{first}");
    assert!(second.contains("\r\nauthorization: bearer "), "{second}");
    assert!(!second.contains("nodepass-"), "{second}");
}

// Names.

#[test]
fn tunnel_host_may_be_a_name() {
    let target = TcpServer::echo();
    let names = NameServer::start(
        &[("tunnel.example", Ipv4Addr::LOCALHOST.into())],
        Unknown::Missing,
    );
    let dns = format!("dns={}", names.address());
    for flow in Flow::ALL {
        for (name, options) in [("localhost", "dns=5m"), ("tunnel.example", &*dns)] {
            let plan = Combination::plain(flow).to(target.address());
            let plan = plan.tunnel_at(SocketAddr::from(([127, 0, 0, 1], 0)));
            let tunnel = plan.tunnel_host(name).client(options).start();
            assert_serves(&tunnel);
        }
    }
}

#[test]
fn tunnel_may_be_reached_over_ipv6() {
    let target = TcpServer::echo();
    for flow in Flow::ALL {
        let plan = Combination::plain(flow).to(target.address());
        let tunnel = plan.tunnel_at("[::1]:0".parse().unwrap()).start();
        assert_serves(&tunnel);
    }
}

/// A v1 server of nothing but a handshake, with `tls=1`: reports the host of each request, and
/// the name in each greeting of TLS.
fn start_listening_server() -> (TcpServer, mpsc::Receiver<Heard>) {
    let (report, heard) = mpsc::channel();
    let report = Mutex::new(report);
    let server = TcpServer::start(move |mut stream| {
        set_deadline(stream);
        let tell = |what| {
            // Who has heard enough no longer listens.
            let _ = report.lock().unwrap().send(what);
        };
        let mut first = [0];
        if stream.peek(&mut first).is_err() {
            return;
        }
        if first == [0x16] {
            return tell(Heard::Greeting(read_server_name(stream)));
        }
        let head = read_head(stream);
        let host = head
            .lines()
            .find_map(|line| line.strip_prefix("Host: "))
            .unwrap_or_default();
        tell(Heard::Request(host.to_owned()));
        let (status, body) = match head.contains("Authorization: ") {
            false => ("401 Unauthorized", ""),
            true => (
                "200 OK",
                "{\"flow\":\"-\",\"max\":4,\"tls\":\"1\",\"type\":\"0\"}\n",
            ),
        };
        let size = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {size}\r\n\r\n{body}"
        );
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let _ = drain(stream);
    });
    (server, heard)
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Of a handshake.
    Request(String),
    /// Of a pool connection.
    Greeting(Option<String>),
}

fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads a greeting of TLS; the server name in it.  Source: RFC 8446 section 4.1.2, RFC 6066
/// section 3.
fn read_server_name(mut stream: &TcpStream) -> Option<String> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let size = u16::from_be_bytes([header[3], header[4]]);
    let mut record = vec![0; usize::from(size)];
    stream.read_exact(&mut record).unwrap();
    // Kind and length of the message, version, random bytes.
    let mut rest = &record[4 + 2 + 32..];
    take_block(&mut rest, 1);
    take_block(&mut rest, 2);
    take_block(&mut rest, 1);
    let mut extensions = take_block(&mut rest, 2);
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_at(2);
        extensions = after;
        let mut extension = take_block(&mut extensions, 2);
        if kind == [0, 0] {
            let mut names = take_block(&mut extension, 2);
            assert_eq!(names[0], 0, "kind of name");
            names = &names[1..];
            let name = take_block(&mut names, 2);
            return Some(String::from_utf8(name.to_vec()).unwrap());
        }
    }
    None
}

/// Takes a block of bytes that follow their count, a number of `width` bytes.
fn take_block<'a>(rest: &mut &'a [u8], width: usize) -> &'a [u8] {
    let (number, after) = rest.split_at(width);
    let count = number
        .iter()
        .fold(0, |count, byte| count << 8 | usize::from(*byte));
    let (block, after) = after.split_at(count);
    *rest = after;
    block
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn server_name_of_handshake_and_tls_is_that_of_the_option_or_the_tunnel_host() {
    let target = TcpServer::echo();
    for (host, option, expected) in [
        ("127.0.0.1", "sni=front.example", Some("front.example")),
        ("localhost", "sni=front.example", Some("front.example")),
        ("localhost", "sni=none", Some("localhost")),
        ("localhost", "auth=0", Some("localhost")),
        ("127.0.0.1", "auth=0", None),
    ] {
        let (server, heard) = start_listening_server();
        let port = server.address().port();
        let url = format!(
            "client://k3y@{host}:{port}/{}?mode=2&min=2&log=debug&{option}",
            target.address()
        );
        let _client = Program::start(&url);
        let mut hosts = Vec::new();
        let greeted = loop {
            match heard.recv_timeout(DEADLINE).expect("a pool connection") {
                Heard::Request(host) => hosts.push(host),
                Heard::Greeting(name) => break name,
            }
        };
        assert_eq!(greeted.as_deref(), expected, "{host} {option}");
        assert!(hosts.len() >= 2, "{host} {option}: {hosts:?}");
        if let Some(expected) = expected {
            let with_port = format!("{expected}:{port}");
            for name in hosts {
                let fits = name == expected || name == with_port;
                assert!(fits, "{host} {option}: host {name:?}");
            }
        }
    }
}

// Certificates.

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn certificate_is_verified_against_the_server_name() {
    let target = TcpServer::echo();
    let verified = plain().with_tls(Tls::Verified);
    for combination in [verified, verified.in_v1()] {
        let plan = combination.to(target.address());
        let plan = plan.certificate_for(&["front.example"]);
        assert_serves(&plan.client("sni=front.example").start());

        let plan = combination.to(target.address());
        let plan = plan.certificate_for(&["front.example"]);
        let tunnel = plan.client("sni=other.example").launch();
        let complaint = wait_refused(&tunnel);
        assert!(complaint.contains("certificate"), "{complaint}");
    }
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn certificate_of_an_authority_that_the_client_does_not_know_is_refused() {
    let target = TcpServer::echo();
    let verified = plain().with_tls(Tls::Verified);
    for combination in [verified, verified.in_v1()] {
        let other = Certificates::for_names(&["localhost".to_owned()]);
        let roots = other.roots().display().to_string();
        let plan = combination.to(target.address());
        let plan = plan.env_of(End::Client, "SSL_CERT_FILE", &roots);
        let tunnel = plan.launch();
        let complaint = wait_refused(&tunnel);
        assert!(complaint.contains("certificate"), "{complaint}");
    }
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn missing_certificate_file_ends_the_server_and_is_named() {
    let address = free_address();
    let url = format!(
        "server://k3y@{address}/127.0.0.1:0?mode=1&tls=2&crt=/missing/chain.pem&key=/missing/key"
    );
    let outcome = Launch::new(&[&url]).run();
    assert!(matches!(outcome.status, 1 | 2), "{outcome:?}");
    let said = format!("{}{}", outcome.output, outcome.errors);
    assert!(said.contains("/missing/chain.pem"), "{outcome:?}");
}

#[test]
fn visitor_address_reaches_the_log_of_the_other_end() {
    for_each(&Flow::ALL, |flow| {
        let refused = free_address();
        let tunnel = Combination::plain(*flow).to(refused).start();
        let visitor = dial(tunnel.tcp());
        let name = visitor.local_addr().unwrap();
        assert!(matches!(name.ip(), IpAddr::V4(_)));
        tunnel
            .exit()
            .wait_complaint(&[&name.to_string(), &refused.to_string()]);
    });
}
