//! Pool type HTTP/2, down to its frames: what our ends say and what they take.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nodepass::wire::proof::SessionId;
use nodepass::wire::signal::Signal;
use nodepass::wire::ticket::{TICKET_SIZE, Ticket};

use crate::support::ends::{End, KEY, QUICK};
use crate::support::eventually;
use crate::support::muxed::{self, check_half_close, check_visitor, take_visitor};
use crate::support::peer::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Mux, Opening, PING, RST_STREAM, SETTINGS, frame,
    pool_request, request,
};
use crate::support::peer::{PlayedClient, Stream, key};
use crate::support::proxy::{Proxy, Which};
use crate::support::servers::{TcpServer, echo_both, set_deadline};
use crate::support::tunnel::{Combination, Flow, HTTP2, Tls};
use crate::support::visitors::{
    assert_closed, dial, exchange, exchange_datagram, read_count, read_to_end, udp_visitor,
};

const OPTIONS: &str = "mode=1&type=3&tls=1";

fn start_server(options: &str) -> (End, PlayedClient) {
    muxed::start_server(HTTP2, options)
}

// Options.

#[test]
fn type_3_without_encryption_runs_with_a_certificate_of_its_own_and_says_so() {
    let (tcp, _udp) = echo_both();
    let combination = Combination {
        tls: Tls::SelfSigned,
        transport: HTTP2,
        ..Combination::plain(Flow::Reverse)
    };
    let plan = combination.to(tcp.address()).server("tls=0&type=3");
    let tunnel = plan.start();
    exchange(&dial(tunnel.tcp()), b"encrypted");
    exchange_datagram(&udp_visitor(tunnel.udp()), b"encrypted");
    tunnel.server.wait_for("tls=1");
}

// Joining.

#[track_caller]
fn assert_turned_away(mux: &Mux, ticket: Option<&Ticket>, what: &str) {
    let joined = mux.join(ticket);
    assert!(joined.is_err(), "{what} is taken");
}

#[test]
fn stream_with_a_ticket_that_is_no_good_is_closed_and_no_other() {
    let (server, mut client) = start_server("");
    let other = PlayedClient::join(server.tunnel_address(), &key(KEY));
    let idle = client.try_fill().unwrap();
    // On the connection of a client that has joined, and on one of its own.
    let below = Stream::dial_http2(server.tunnel_address()).unwrap();
    let stranger = Mux::client(below, Opening::of_client());
    for is_own in [true, false] {
        let mut wrong = client.ticket().encode();
        wrong[TICKET_SIZE - 1] ^= 1;
        let wrong = Ticket::decode(&wrong);
        let SessionId(session) = other.session.unwrap();
        let mut foreign = client.ticket().encode();
        foreign[..session.len()].copy_from_slice(&session);
        let foreign = Ticket::decode(&foreign);
        let used = client.ticket();
        let (_, joined) = client.way().mux().join(Some(&used)).unwrap();
        let mux = if is_own {
            client.way().mux()
        } else {
            &stranger
        };
        assert_turned_away(mux, None, "no ticket");
        assert_turned_away(mux, Some(&wrong), "a wrong ticket");
        assert_turned_away(mux, Some(&foreign), "a ticket of another session");
        assert_turned_away(mux, Some(&used), "a ticket for the second time");
        drop(joined);
    }
    // One that was there before is still good.
    let visitor = dial(server.tcp_address());
    (&visitor).write_all(b"hello").unwrap();
    let (signal, mut stream) = client.next_visitor();
    assert!(
        matches!(signal, Signal::Tcp { id, .. } if id == idle),
        "{signal:?}"
    );
    assert_eq!(stream.read_count(5), b"hello");
    assert_eq!(server.ended_count(), 0);
}

#[test]
fn stream_beyond_the_maximum_is_closed() {
    let (server, mut client) = start_server("max=4");
    client.fill(4);
    assert!(client.try_fill().is_err());
    let (_visitor, (_, _stream)) = (dial(server.tcp_address()), client.next_visitor());
    eventually("room for one more", || client.try_fill().ok());
}

#[test]
fn client_may_open_its_streams_on_several_connections() {
    let (server, mut client) = start_server("");
    let below = Stream::dial_http2(server.tunnel_address()).unwrap();
    let other = Mux::client(below, Opening::of_client());
    let ticket = client.ticket();
    let (id, mut stream) = other.join(Some(&ticket)).unwrap();
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let signal = client.control.next_signal();
    assert!(
        matches!(signal, Signal::Tcp { id: named, .. } if named == id),
        "{signal:?}"
    );
    let mut said = [0; 5];
    stream.read_exact(&mut said).unwrap();
    stream.write_all(b"served").unwrap();
    assert_eq!(read_count(&visitor, 6), b"served");
}

#[test]
fn requests_that_are_no_pool_connections_are_answered_and_disturb_nobody() {
    let (server, mut client) = start_server("");
    let (visitor, mut stream) = take_visitor(&server, &mut client);
    let below = Stream::dial_http2(server.tunnel_address()).unwrap();
    let stranger = Mux::client(below, Opening::of_client());
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/stream"),
        ("POST", "/"),
        ("CONNECT", "/stream"),
        ("HEAD", "/../../etc/passwd"),
    ] {
        let mut socket = stranger.open(request(method, path, &[])).unwrap();
        // Whatever is said, it is over soon.
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        if stranger.seen().is_over {
            // Those that are no requests at all may cost the connection.
            break;
        }
    }
    stream.write_all(b"undisturbed").unwrap();
    assert_eq!(read_count(&visitor, 11), b"undisturbed");
    check_visitor(&server, &mut client);
}

// Frames.

#[test]
fn ping_is_answered_and_what_nobody_knows_is_passed_over() {
    let (server, mut client) = start_server("");
    let mux = client.way().mux();
    mux.send(&frame(PING, 0, 0, b"12345678"));
    // A kind of frame and a setting of the future (RFC 9113 section 5.5).
    mux.send(&frame(0xbe, 0xff, 0, b"of the future"));
    mux.send(&frame(SETTINGS, 0, 0, &[0xbe, 0xef, 0, 0, 0, 1]));
    // PRIORITY, which has no meaning any more.
    mux.send(&frame(2, 0, 1, &[0, 0, 0, 0, 16]));
    // An answer to a ping that nobody has sent.
    mux.send(&frame(PING, ACK, 0, b"87654321"));
    mux.send(&frame(PING, 0, 0, b"12345678"));
    eventually("two answers", || {
        (mux.seen().pongs_count == 2).then_some(())
    });
    check_visitor(&server, &mut client);
    assert_eq!(server.ended_count(), 0);
}

#[test]
fn padding_and_priority_and_blocks_in_parts_are_taken() {
    const PADDED: u8 = 8;
    const PRIORITY: u8 = 0x20;
    let (server, mut client) = start_server("");
    let ticket = client.ticket();
    let block = pool_request(Some(&ticket));
    let (first, second) = block.split_at(block.len() / 2);
    // Padding of 3, and a priority, then part of the block.
    let opening = [&[3, 0, 0, 0, 0, 16][..], first, &[0; 3]].concat();
    // Far from the numbers that the played client comes to.
    let stream = 2001;
    let mux = client.way().mux();
    let mut bytes = frame(HEADERS, PADDED | PRIORITY, stream, &opening);
    bytes.extend(frame(9, END_HEADERS, stream, second));
    bytes.extend(frame(DATA, PADDED, stream, &[4, 0, 0, 0, 0, 0]));
    mux.send(&bytes);
    let before = mux.seen().frames.get(&HEADERS).copied().unwrap_or_default();
    eventually("an answer", || {
        let now = mux.seen().frames.get(&HEADERS).copied().unwrap_or_default();
        (now > before).then_some(())
    });
    // A visitor is given to it: the client is told of it.
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let signal = client.control.next_signal();
    assert!(matches!(signal, Signal::Tcp { .. }), "{signal:?}");
    // Padding counts as data for the window and is no data.
    let mux = client.way().mux();
    let padded = [&[200][..], b"served", &[0; 200]].concat();
    mux.send(&frame(DATA, PADDED | END_STREAM, stream, &padded));
    assert_eq!(read_to_end(&visitor).0, b"served");
}

#[test]
fn reset_of_a_stream_costs_its_visitor_alone() {
    let (server, mut client) = start_server("");
    let (lost, stream) = take_visitor(&server, &mut client);
    let (kept, mut other) = take_visitor(&server, &mut client);
    // Ids are given in the order in which streams are opened: control, the first, the second.
    let mux = client.way().mux();
    mux.send(&frame(RST_STREAM, 0, 3, &8_u32.to_be_bytes()));
    assert_closed(&lost);
    drop(stream);
    other.write_all(b"undisturbed").unwrap();
    assert_eq!(read_count(&kept, 11), b"undisturbed");
    // The other way round.
    drop(kept);
    let _ = other.read_until_end();
    check_visitor(&server, &mut client);
    assert_eq!(server.ended_count(), 0);
}

#[test]
fn end_of_either_direction_leaves_the_other_one_open() {
    let (server, mut client) = start_server("");
    check_half_close(&server, &mut client);
}

#[test]
fn connection_that_breaks_ends_the_session_and_its_visitors() {
    let (server, mut client) = start_server("");
    let (visitor, _stream) = take_visitor(&server, &mut client);
    drop(client);
    server.wait_ended(1, &[]);
    assert_closed(&visitor);
}

// Many on one connection.

/// A tunnel of which the connections can be counted.
fn start_counted(target: &TcpServer, min: u32) -> (End, End, Proxy) {
    // Three of these without an answer end a session, and a busy machine may take a while.
    let patient = [QUICK, &[("NP_REPORT_INTERVAL", "3s")]].concat();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", OPTIONS, &patient);
    let proxy = Proxy::start(server.tunnel_address());
    let address = target.address().to_string();
    let client = End::client(proxy.address(), &address, &format!("min={min}"), &patient);
    server.wait_up(1);
    client.wait_up(1);
    (server, client, proxy)
}

#[test]
fn five_thousand_visitors_one_after_another_need_one_connection() {
    const VISITORS: usize = 5000;
    let target = TcpServer::echo();
    let (server, client, proxy) = start_counted(&target, 8);
    let entry = server.tcp_address();
    let memory = [server.memory_size(), client.memory_size()];
    for index in 0..VISITORS {
        let visitor = dial(entry);
        exchange(&visitor, format!("visitor {index}").as_bytes());
        visitor.shutdown(Shutdown::Write).unwrap();
        assert_closed(&visitor);
    }
    // That of the handshake may still be on its way out.
    eventually("one connection", || {
        (proxy.count(Which::All) == 1).then_some(())
    });
    for (end, before) in [&server, &client].into_iter().zip(memory) {
        let grown = end.memory_size().saturating_sub(before);
        assert!(grown < 16 << 20, "memory has grown by {grown} bytes");
        assert_eq!(end.ended_count(), 0);
    }
}

#[test]
fn visitor_that_does_not_read_holds_up_none_of_the_others() {
    const OTHERS: usize = 9;
    const SIZE: usize = 2 << 20;
    // A target that sends without end to whoever asks for it, and is an echo to the others.
    let target = TcpServer::start(|mut stream| {
        let mut wish = [0];
        if stream.read_exact(&mut wish).is_err() {
            return;
        }
        if wish == *b"!" {
            let chunk = vec![b'x'; 64 << 10];
            while stream.write_all(&chunk).is_ok() {}
        } else if stream.write_all(&wish).is_ok() {
            crate::support::servers::echo(stream);
        }
    });
    let (server, client, _proxy) = start_counted(&target, 16);
    let entry = server.tcp_address();
    let greedy = dial(entry);
    (&greedy).write_all(b"!").unwrap();
    read_count(&greedy, 1);
    let memory = [server.memory_size(), client.memory_size()];
    // The greedy one's way fills up meanwhile.
    let began = Instant::now();
    std::thread::scope(|scope| {
        for index in 0..OTHERS {
            scope.spawn(move || {
                let visitor = dial(entry);
                set_deadline(&visitor);
                let bytes = crate::support::pattern::Pattern::new(index as u64).take(SIZE);
                std::thread::scope(|scope| {
                    scope.spawn(|| (&visitor).write_all(&bytes).unwrap());
                    assert!(read_count(&visitor, SIZE) == bytes);
                });
                for _ in 0..20 {
                    exchange(&visitor, b"and one more");
                }
            });
        }
    });
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(15), "others took {elapsed:?}");
    for (end, before) in [&server, &client].into_iter().zip(memory) {
        let grown = end.memory_size().saturating_sub(before);
        assert!(grown < 64 << 20, "memory has grown by {grown} bytes");
        assert_eq!(end.ended_count(), 0);
    }
    // It has missed nothing.
    assert!(read_count(&greedy, SIZE).iter().all(|byte| *byte == b'x'));
}
