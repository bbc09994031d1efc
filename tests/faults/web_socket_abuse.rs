//! WebSocket of someone who keeps to no rule, or makes the server work without end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::DEADLINE;
use crate::support::ends::{End, KEY, QUICK, Reverse};
use crate::support::peer::web_socket::{
    BINARY, PING, WebSocket, encode_frame, header, read_head, upgrade_request,
};
use crate::support::peer::{PlayedClient, Stream, key};
use crate::support::servers::{TcpServer, set_deadline};
use crate::support::visitors::{assert_closed, dial, exchange, read_to_end};

const OPTIONS: &str = "type=2&tls=0";

/// What an offender may cost (bytes).
const GROWN_MAX: u64 = 32 << 20;

/// What makes another request of a good one.
type Spoil = fn(String) -> String;

/// How long a flood goes on that is not put an end to.
const FLOOD_TIME: Duration = Duration::from_millis(1500);

/// A server with an honest client, and one that has a visitor and whose pool connection the case
/// has in its hands.
struct Scene {
    server: End,
    honest: End,
    memory: u64,
    /// The visitor of the offender.
    visitor: TcpStream,
    stream: WebSocket,
    _offender: PlayedClient,
    _target: TcpServer,
}

impl Scene {
    #[track_caller]
    fn start() -> Self {
        let options = format!("mode=1&{OPTIONS}");
        let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
        let tunnel = server.tunnel_address();
        let mut offender = PlayedClient::join(tunnel, &key(KEY));
        offender.fill(1);
        server.wait_up(1);
        let visitor = dial(server.tcp_address());
        (&visitor).write_all(b"taken").unwrap();
        // No other visitor comes to this client: it has no more connections.
        let Stream::WebSocket(mut stream) = offender.next_visitor().1 else {
            panic!("a pool connection that is no WebSocket");
        };
        let mut taken = [0; 5];
        stream.read_exact(&mut taken).unwrap();
        let target = TcpServer::echo();
        let honest = End::client(tunnel, &target.address().to_string(), "min=4", QUICK);
        honest.wait_up(1);
        server.wait_up(2);
        Self {
            memory: server.memory_size(),
            server,
            honest,
            visitor,
            stream: *stream,
            _offender: offender,
            _target: target,
        }
    }

    #[track_caller]
    fn check_others(&self) {
        exchange(&dial(self.server.tcp_address()), b"served all the same");
        let grown = self.server.memory_size().saturating_sub(self.memory);
        assert!(grown < GROWN_MAX, "memory has grown by {grown} bytes");
        assert_eq!(self.honest.ended_count(), 0);
    }

    fn send(&mut self, bytes: &[u8]) {
        // It may be closed already.
        let _ = self.stream.below_mut().write_all(bytes);
    }

    /// The pool connection is closed, and its visitor with it, who gets no byte of it.
    #[track_caller]
    fn check_closed(mut self) {
        let _ = self.stream.below_mut().read_until_end();
        assert_closed(&self.visitor);
        self.check_others();
    }

    /// Sends `bytes` again and again, whatever becomes of it.
    #[track_caller]
    fn check_flood(mut self, bytes: &[u8], reads: bool) {
        let socket = self.stream.below().socket().try_clone().unwrap();
        socket.set_nonblocking(true).unwrap();
        let bytes = bytes.repeat(64 * 1024 / bytes.len());
        let began = Instant::now();
        let mut rest = &bytes[..];
        let mut is_closed = false;
        while began.elapsed() < FLOOD_TIME && !is_closed {
            for _ in 0..32 {
                match (&socket).write(rest) {
                    Ok(count) if count < rest.len() => rest = &rest[count..],
                    Ok(_) => rest = &bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => is_closed = true,
                }
                if reads {
                    let _ = (&socket).read(&mut [0; 64 * 1024]);
                }
            }
            self.check_others();
        }
        socket.set_nonblocking(false).unwrap();
        set_deadline(&socket);
        if !is_closed {
            // What was held back is forgotten with the connection.
            self.stream.below_mut().finish().unwrap();
        }
        drop(self.stream);
        assert_closed(&self.visitor);
        drop(socket);
    }
}

#[test]
fn frame_that_announces_more_than_there_can_be_is_closed() {
    let mut scene = Scene::start();
    // RFC 6455 section 5.2: the most significant bit must be 0.
    let mut bytes = vec![BINARY, 0xff];
    bytes.extend_from_slice(&[0xff; 8]);
    bytes.extend_from_slice(&[1, 2, 3, 4]);
    scene.send(&bytes);
    scene.check_closed();
}

#[test]
fn frame_that_announces_half_of_all_there_can_be_costs_no_memory() {
    let mut scene = Scene::start();
    let mut bytes = vec![BINARY, 0xff];
    bytes.extend_from_slice(&(1_u64 << 62).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    scene.send(&bytes);
    scene.check_others();
    // Its end is the end of the connection, and of no more.
    scene.stream.below_mut().finish().unwrap();
    scene.check_closed();
}

#[test]
fn ping_that_is_too_large_is_closed() {
    let mut scene = Scene::start();
    scene.send(&encode_frame(PING, &[b'p'; 126], Some([1, 2, 3, 4])));
    scene.check_closed();
}

#[test]
fn ping_in_parts_is_closed() {
    let mut scene = Scene::start();
    scene.send(&encode_frame(PING & 0x7f, b"p", Some([1, 2, 3, 4])));
    scene.check_closed();
}

#[test]
fn frame_of_a_client_that_is_not_masked_is_closed() {
    let mut scene = Scene::start();
    scene.send(&encode_frame(BINARY, b"in the clear", None));
    scene.check_closed();
}

#[test]
fn reserved_bits_and_reserved_kinds_of_frames_are_closed() {
    for first in [0xc2, 0xa2, 0x92, 0x83, 0x8b] {
        let mut scene = Scene::start();
        scene.send(&encode_frame(first, b"x", Some([1, 2, 3, 4])));
        scene.check_closed();
    }
}

#[test]
fn message_that_goes_on_without_having_begun_is_closed() {
    let mut scene = Scene::start();
    scene.send(&encode_frame(0x80, b"x", Some([1, 2, 3, 4])));
    scene.check_closed();
}

#[test]
fn endless_empty_parts_of_a_message_disturb_nobody() {
    let mut scene = Scene::start();
    scene.send(&encode_frame(0x02, b"", Some([1, 2, 3, 4])));
    scene.check_flood(&encode_frame(0x00, b"", Some([1, 2, 3, 4])), true);
}

#[test]
fn pings_without_end_disturb_nobody() {
    let ping = encode_frame(PING, b"anyone there", Some([1, 2, 3, 4]));
    Scene::start().check_flood(&ping, true);
}

#[test]
fn pings_of_someone_who_reads_no_answer_disturb_nobody() {
    let ping = encode_frame(PING, &[b'p'; 125], Some([1, 2, 3, 4]));
    Scene::start().check_flood(&ping, false);
}

// Before the upgrade.

#[test]
fn upgrade_that_comes_byte_by_byte_is_closed_at_the_handshake_timeout() {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), OPTIONS, "min=4");
    let began = Instant::now();
    let mut slow = dial(both.tunnel);
    slow.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let request = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nX: ";
    let endless = request.iter().chain(std::iter::repeat(&b'x'));
    for byte in endless {
        assert!(began.elapsed() < DEADLINE, "it goes on");
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        // Slow is what this client is.
        match slow.read(&mut [0; 256]) {
            Ok(0) => break,
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            _ => {}
        }
    }
    let elapsed = began.elapsed();
    // QUICK has 2 s.
    assert!(elapsed < Duration::from_secs(6), "closed after {elapsed:?}");
    exchange(&dial(both.entry), b"served all the same");
}

#[test]
fn upgrades_that_are_not_ours_are_refused_and_disturb_nobody() {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), OPTIONS, "min=4");
    let mut client = PlayedClient::join(both.tunnel, &key(KEY));
    both.server.wait_up(2);
    let good = |client: &mut PlayedClient| {
        String::from_utf8(upgrade_request("none", Some(&client.ticket()))).unwrap()
    };
    let spoil: [(&str, Spoil); 7] = [
        ("no ticket", |_| {
            String::from_utf8(upgrade_request("none", None)).unwrap()
        }),
        ("half a ticket", |request| {
            let ticket = header(request.as_bytes(), "NodePass-Ticket").unwrap();
            request.replace(ticket, &ticket[..40])
        }),
        ("a ticket that is changed", |request| {
            let ticket = header(request.as_bytes(), "NodePass-Ticket").unwrap();
            let last = if ticket.ends_with('0') { "1" } else { "0" };
            request.replace(ticket, &format!("{}{last}", &ticket[..ticket.len() - 1]))
        }),
        ("an old version", |request| {
            request.replace("Version: 13", "Version: 8")
        }),
        ("no key", |request| {
            request.replace("Sec-WebSocket-Key", "X-Key")
        }),
        ("a short key", |request| {
            let key = header(request.as_bytes(), "Sec-WebSocket-Key").unwrap();
            request.replace(key, "dG9vIHNob3J0")
        }),
        ("another method", |request| request.replace("GET", "PUT")),
    ];
    for (name, spoil) in spoil {
        let mut stream = dial(both.tunnel);
        stream
            .write_all(spoil(good(&mut client)).as_bytes())
            .unwrap();
        let (answer, _) = read_to_end(&stream);
        assert!(!answer.starts_with(b"HTTP/1.1 101"), "{name} is taken");
        exchange(&dial(both.entry), b"served all the same");
    }
    // A ticket is good once.
    let request = good(&mut client);
    let mut first = dial(both.tunnel);
    first.write_all(request.as_bytes()).unwrap();
    assert!(read_head(&mut first).unwrap().starts_with(b"HTTP/1.1 101"));
    let mut second = dial(both.tunnel);
    second.write_all(request.as_bytes()).unwrap();
    let (answer, _) = read_to_end(&second);
    assert!(
        !answer.starts_with(b"HTTP/1.1 101"),
        "a ticket is taken twice"
    );
    drop(first);
    exchange(&dial(both.entry), b"served all the same");
}

#[test]
fn head_of_an_upgrade_that_is_too_large_is_refused() {
    let target = TcpServer::echo();
    let both = Reverse::start(target.address(), OPTIONS, "min=4");
    let request = format!(
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nX: {}\r\n\r\n",
        "x".repeat(64 * 1024)
    );
    let mut stream = dial(both.tunnel);
    // It may be closed before all of it has left.
    let _ = stream.write_all(request.as_bytes());
    let (answer, _) = read_to_end(&stream);
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
    exchange(&dial(both.entry), b"served all the same");
}
