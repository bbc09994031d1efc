//! Pool type WebSocket, down to its frames: what our ends say and what they take.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK};
use crate::support::peer::web_socket::{BINARY, CLOSE, PING, PONG, WebSocket};
use crate::support::peer::{
    Control, Identity, PlayedClient, PlayedServer, Stream, handshake_v1, key,
};
use crate::support::servers::{TcpServer, set_deadline};
use crate::support::tunnel::{Combination, Flow, Tls, WEB_SOCKET};
use crate::support::visitors::{End as StreamEnd, dial, exchange, read_count, read_to_end};
use nodepass::wire::offer::{Flow as OfferedFlow, Offer, TlsMode, Transport};
use nodepass::wire::signal::{PoolId, Signal};

/// Our server and a played client, of either dialect, at which visitors arrive.
fn start_server(is_native: bool) -> (End, PlayedClient) {
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1&type=2", QUICK);
    let tunnel = server.tunnel_address();
    let client = if is_native {
        PlayedClient::join(tunnel, &key(KEY))
    } else {
        let offer = handshake_v1(tunnel, &key(KEY)).unwrap();
        PlayedClient::join_v1(tunnel, &key(KEY), offer)
    };
    server.wait_up(1);
    (server, client)
}

fn web_socket(stream: Stream) -> WebSocket {
    match stream {
        Stream::WebSocket(stream) => *stream,
        _ => panic!("a pool connection that is no WebSocket"),
    }
}

/// The next visitor's pool connection, whose visitor has said a word.
#[track_caller]
fn take_visitor(server: &End, client: &mut PlayedClient) -> (std::net::TcpStream, WebSocket) {
    client.try_fill().unwrap();
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"hello").unwrap();
    let mut stream = web_socket(client.next_visitor().1);
    let mut said = [0; 5];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    (visitor, stream)
}

#[test]
fn ping_is_answered_with_what_it_holds_before_and_while_a_visitor_is_served() {
    for_each(&[true, false], |is_native| {
        let (server, mut client) = start_server(*is_native);
        let id = client.try_fill().unwrap();
        let mut idle = web_socket(client.take(id));
        idle.send_frame(PING, b"idle").unwrap();
        assert_eq!(idle.next_frame().unwrap(), (PONG, b"idle".to_vec()));
        // Nobody has asked for this one.
        idle.send_frame(PONG, b"by the way").unwrap();
        idle.send_frame(PING, &[b'p'; 125]).unwrap();
        assert_eq!(idle.next_frame().unwrap(), (PONG, vec![b'p'; 125]));
        drop(idle);
        let (visitor, mut stream) = take_visitor(&server, &mut client);
        stream.send_frame(PING, b"busy").unwrap();
        assert_eq!(stream.next_frame().unwrap(), (PONG, b"busy".to_vec()));
        stream.write_all(b"answer").unwrap();
        assert_eq!(read_count(&visitor, 6), b"answer");
    });
}

#[test]
fn message_in_parts_with_pings_between_them_arrives_whole() {
    for_each(&[true, false], |is_native| {
        let (server, mut client) = start_server(*is_native);
        let (visitor, mut stream) = take_visitor(&server, &mut client);
        stream.send_frame(0x02, b"one ").unwrap();
        stream.send_frame(PING, b"between").unwrap();
        stream.send_frame(0x00, b"").unwrap();
        stream.send_frame(0x00, b"message ").unwrap();
        stream.send_frame(0x80, b"of parts").unwrap();
        assert_eq!(read_count(&visitor, 20), b"one message of parts");
        assert_eq!(stream.next_frame().unwrap(), (PONG, b"between".to_vec()));
        // Byte by byte, header and all.
        let socket = stream.below().socket().try_clone().unwrap();
        let large = vec![b'x'; 70_000];
        let bytes = crate::support::peer::web_socket::encode_frame(BINARY, &large, Some([9; 4]));
        let (slow, fast) = bytes.split_at(64);
        for byte in slow {
            (&socket).write_all(&[*byte]).unwrap();
        }
        (&socket).write_all(fast).unwrap();
        assert!(read_count(&visitor, large.len()) == large);
    });
}

#[test]
fn empty_message_ends_one_direction_of_a_native_connection() {
    let (server, mut client) = start_server(true);
    // The client's end first: the visitor hears it and can still speak.
    let (mut visitor, mut stream) = take_visitor(&server, &mut client);
    stream.write_all(b"last words").unwrap();
    stream.send_frame(BINARY, b"").unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"last words".to_vec(), StreamEnd::Finished)
    );
    visitor.write_all(b"answered all the same").unwrap();
    let mut said = [0; 21];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"answered all the same");
    // The visitor's end first.
    let (visitor, mut stream) = take_visitor(&server, &mut client);
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.next_frame().unwrap(), (BINARY, Vec::new()));
    stream.write_all(b"answer").unwrap();
    stream.finish().unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"answer".to_vec(), StreamEnd::Finished)
    );
}

#[test]
fn close_frame_ends_both_directions() {
    for_each(&[true, false], |is_native| {
        let (server, mut client) = start_server(*is_native);
        let (visitor, mut stream) = take_visitor(&server, &mut client);
        stream.write_all(b"last words").unwrap();
        stream.send_frame(CLOSE, &1000_u16.to_be_bytes()).unwrap();
        assert_eq!(read_to_end(&visitor).0, b"last words");
        if !is_native {
            let (first, payload) = stream.next_frame().unwrap();
            assert_eq!(first, CLOSE);
            assert!(payload.is_empty() || payload.len() >= 2, "{payload:?}");
        }
        // Natively it is no end but a break, to which there may be nothing more to say.
        let mut rest = Vec::new();
        let _ = stream.below_mut().read_to_end(&mut rest);
        assert!(
            *is_native || rest.is_empty(),
            "{rest:?} after the close frame"
        );
    });
}

#[test]
fn visitor_that_ends_is_closed_in_v1_once_it_is_quiet() {
    let (server, mut client) = start_server(false);
    let (visitor, mut stream) = take_visitor(&server, &mut client);
    visitor.shutdown(Shutdown::Write).unwrap();
    // What the other side says before that arrives.
    stream.write_all(b"answer").unwrap();
    assert_eq!(read_count(&visitor, 6), b"answer");
    assert_eq!(stream.next_frame().unwrap().0, CLOSE);
    let _ = stream.finish();
    assert_eq!(read_to_end(&visitor).0, b"");
}

#[test]
fn visitor_that_ends_gets_a_slow_answer_whole_in_v1() {
    const PARTS: usize = 20;
    let (server, mut client) = start_server(false);
    let (visitor, mut stream) = take_visitor(&server, &mut client);
    visitor.shutdown(Shutdown::Write).unwrap();
    for _ in 0..PARTS {
        // Slow, but never quiet for long.
        std::thread::sleep(std::time::Duration::from_millis(50));
        stream.write_all(b"part").unwrap();
    }
    stream.finish().unwrap();
    assert_eq!(read_to_end(&visitor).0, b"part".repeat(PARTS));
}

const OFFER: Offer = Offer {
    flow: OfferedFlow::Reverse,
    pool_max: 16,
    tls: TlsMode::Plain,
    transport: Transport::WebSocket,
};

/// Our client with a played server.
fn start_client(tls: bool) -> (End, PlayedServer, Control, TcpServer) {
    let target = TcpServer::start(|stream| {
        set_deadline(stream);
        crate::support::servers::echo(stream);
    });
    let server = PlayedServer::start();
    let address = target.address().to_string();
    let client = End::client(server.address(), &address, "min=2", QUICK);
    let (offer, identity) = if tls {
        let offer = Offer {
            tls: TlsMode::SelfSigned,
            ..OFFER
        };
        (offer, Some(Identity::make()))
    } else {
        (OFFER, None)
    };
    let control = server.accept_native(&key(KEY), &offer, identity.as_ref());
    client.wait_up(1);
    (client, server, control, target)
}

#[test]
fn our_client_masks_what_it_says_and_keeps_to_the_protocol() {
    let tls = cfg!(feature = "tls");
    for_each(&[false, tls], |tls| {
        let (client, server, control, _target) = start_client(*tls);
        let signal = |id: PoolId| Signal::Tcp { remote: None, id };
        // That what it says is masked is looked at in every frame.
        let mut stream = web_socket(server.send_visitor(&control, signal));
        stream.send_frame(PING, b"ping").unwrap();
        assert_eq!(stream.next_frame().unwrap(), (PONG, b"ping".to_vec()));
        stream.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        // The echo ends when it is told to, which the empty message does.
        stream.finish().unwrap();
        assert_eq!(stream.next_frame().unwrap(), (BINARY, Vec::new()));
        assert_eq!(client.ended_count(), 0);
    });
}

#[test]
fn our_client_closes_a_masked_frame_of_the_server() {
    let (client, server, control, _target) = start_client(false);
    let signal = |id: PoolId| Signal::Tcp { remote: None, id };
    let mut stream = web_socket(server.send_visitor(&control, signal));
    let masked = crate::support::peer::web_socket::encode_frame(BINARY, b"x", Some([1; 4]));
    stream.below_mut().write_all(&masked).unwrap();
    let _ = stream.below_mut().read_until_end();
    assert_eq!(client.ended_count(), 0);
}

#[test]
fn control_channel_that_is_closed_ends_the_session() {
    let (server, client) = start_server(true);
    // Its thread closes the connection without a close frame.
    drop(client);
    server.wait_ended(1, &[]);
}

#[test]
fn tunnel_over_web_socket_inside_tls_serves_in_both_dialects() {
    let native = |tls: &Tls| Combination {
        tls: *tls,
        transport: WEB_SOCKET,
        ..Combination::plain(Flow::Forward)
    };
    let native = Tls::built_in().iter().map(native);
    let both = native.flat_map(|one| [one, one.in_v1()]);
    for_each(&both.collect::<Vec<_>>(), |combination| {
        let target = TcpServer::echo();
        let tunnel = combination.to(target.address()).start();
        exchange(&dial(tunnel.tcp()), b"through the tunnel");
    });
}

/// Our client with a played server of either dialect, without TLS.
fn start_client_of(is_native: bool, flow: OfferedFlow, more: &str) -> (End, PlayedServer, Control) {
    let server = PlayedServer::start();
    let offer = Offer { flow, ..OFFER };
    let (address, options) = more.split_once('?').unwrap();
    let client = End::client(server.address(), address, options, QUICK);
    let control = if is_native {
        server.accept_native(&key(KEY), &offer, None)
    } else {
        server.accept_v1(&key(KEY), &offer)
    };
    client.wait_up(1);
    (client, server, control)
}

/// Takes a ping that comes of its own accord, and answers it.
#[track_caller]
fn answer_ping(stream: &mut WebSocket) {
    // That it is masked is looked at in every frame.
    assert_eq!(stream.next_frame().unwrap(), (PING, Vec::new()));
    stream.send_frame(PONG, b"").unwrap();
}

#[test]
fn our_client_sends_pings_where_its_visitor_is_silent_and_to_native_servers_where_there_is_none() {
    for_each(&[true, false], |is_native| {
        let target = TcpServer::echo();
        let more = format!("{}?min=2", target.address());
        let (client, server, control) = start_client_of(*is_native, OfferedFlow::Reverse, &more);
        let mut idle = web_socket(server.take(server.wait_idle(2)[0]));
        let signal = |id: PoolId| Signal::Tcp { remote: None, id };
        let mut stream = web_socket(server.send_visitor(&control, signal));
        answer_ping(&mut stream);
        answer_ping(&mut stream);
        // In the middle of a message as well.
        stream.send_frame(0x02, b"half a ").unwrap();
        assert_eq!(stream.next_frame().unwrap(), (BINARY, b"half a ".to_vec()));
        answer_ping(&mut stream);
        stream.send_frame(0x80, b"message").unwrap();
        assert_eq!(stream.next_frame().unwrap(), (BINARY, b"message".to_vec()));
        if *is_native {
            answer_ping(&mut idle);
            answer_ping(&mut idle);
        } else {
            // Several would have come meanwhile.
            let socket = idle.below().socket();
            socket.set_nonblocking(true).unwrap();
            let error = socket.peek(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        }
        assert_eq!(client.ended_count(), 0);
    });
}

#[test]
fn our_server_keeps_a_connection_alive_whose_client_has_ended() {
    let (server, mut client) = start_server(true);
    let (mut visitor, mut stream) = take_visitor(&server, &mut client);
    stream.finish().unwrap();
    for _ in 0..2 {
        // It asks for no answer: who has ended says nothing more.
        assert_eq!(stream.next_frame().unwrap(), (PONG, Vec::new()));
    }
    visitor.write_all(b"late").unwrap();
    assert_eq!(stream.next_frame().unwrap(), (BINARY, b"late".to_vec()));
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.next_frame().unwrap(), (BINARY, Vec::new()));
}

#[test]
fn answer_to_a_ping_is_no_word_of_the_target_while_the_visitor_is_yet_to_be_judged() {
    for_each(&[true, false], |is_native| {
        let more = "127.0.0.1:0?min=1&block=1";
        let (client, server, control) = start_client_of(*is_native, OfferedFlow::Forward, more);
        server.wait_idle(1);
        let mut visitor = dial(client.tcp_address());
        let Signal::Tcp { id, .. } = control.next_signal() else {
            panic!("no visitor");
        };
        let mut stream = web_socket(server.take(id));
        answer_ping(&mut stream);
        answer_ping(&mut stream);
        // One by one: a relay would judge the first one alone, and let all of it pass.
        for byte in [5, 1, 0] {
            visitor.write_all(&[byte]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        client.wait_for("SOCKS");
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert_eq!(said, b"");
    });
}
