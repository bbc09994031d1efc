use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame as PeerFrame, FrameHeader};
use tungstenite::protocol::{Role as PeerRole, WebSocketConfig};
use tungstenite::{Bytes, Message, WebSocket};

use rustix::event::{PollFd, PollFlags};

use super::*;
use crate::limits::HALF_OPEN_TIMEOUT;
use crate::net::meter::Meter;
use crate::net::relay::{Ahead, CloseReason, Rates, Stock, Terms, relay};
use crate::net::stream::tests::{connected, wait_readable};
use crate::runtime::event::timespec;

const PATIENCE: Duration = Duration::from_secs(20);
const ALL_ENDS: [Ends; 3] = [Ends::Each, Ends::Both, Ends::BothLate];

/// Both ends of a connection: the client's and the server's.
fn pair(ends: Ends) -> (WebSocketStream, WebSocketStream) {
    let (near, far) = connected();
    (
        WebSocketStream::new(Box::new(near), Role::Client, ends, &[]),
        WebSocketStream::new(Box::new(far), Role::Server, ends, &[]),
    )
}

/// An end whose other end is a plain socket that waits.
fn end_and_socket(role: Role, ends: Ends) -> (WebSocketStream, TcpStream) {
    let (near, far) = connected();
    let socket = TcpStream::from(far.into_socket());
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let stream = WebSocketStream::new(Box::new(near), role, ends, &[]);
    (stream, socket)
}

/// Bytes that look random and are the same at every run.
fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[0]
    };
    (0..size).map(next).collect()
}

fn wait(stream: &dyn Stream, flags: PollFlags) {
    let mut set = [PollFd::from_borrowed_fd(stream.descriptor(), flags)];
    let limit = timespec(PATIENCE);
    assert_eq!(rustix::event::poll(&mut set, Some(&limit)), Ok(1));
}

/// Reads once, however long it takes for something to come.
fn read_some(stream: &mut WebSocketStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if is_passing(&error) => {
                if !stream.holds_bytes() {
                    wait(stream, PollFlags::IN);
                }
            }
            result => return result,
        }
    }
}

fn read_to_end(stream: &mut WebSocketStream) -> io::Result<Vec<u8>> {
    let (mut all, mut buffer) = (Vec::new(), [0; 5000]);
    loop {
        match read_some(stream, &mut buffer)? {
            0 => return Ok(all),
            size => all.extend(&buffer[..size]),
        }
    }
}

fn write_all(stream: &mut WebSocketStream, mut bytes: &[u8]) {
    while !bytes.is_empty() || stream.holds_unsent() {
        let result = match stream.holds_unsent() {
            true => stream.flush().map(|()| 0),
            false => stream.write(bytes),
        };
        match result {
            Ok(size) => bytes = &bytes[size..],
            Err(error) if is_passing(&error) => wait(stream, PollFlags::OUT),
            Err(error) => panic!("{error}"),
        }
    }
}

fn finish(stream: &mut WebSocketStream) {
    while let Err(error) = stream.finish() {
        assert!(is_passing(&error), "{error}");
        wait(stream, PollFlags::OUT);
    }
}

fn has_nothing(stream: &mut WebSocketStream) -> bool {
    let result = stream.read(&mut [0; 64]);
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn bytes_cross_both_ways_whatever_the_sizes() {
    let bytes = pattern(3_000_000);
    for is_from_client in [true, false] {
        let (client, server) = pair(Ends::Each);
        let (mut from, mut to) = match is_from_client {
            true => (client, server),
            false => (server, client),
        };
        let sent = bytes.clone();
        let writing = thread::spawn(move || {
            let (mut at, mut size) = (0, 1);
            while at < sent.len() {
                let end = sent.len().min(at + size);
                write_all(&mut from, &sent[at..end]);
                (at, size) = (end, size * 3 % 300_007 + 1);
            }
            finish(&mut from);
            from
        });
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = vec![0; 200_000];
        let mut room = 1;
        loop {
            let size = read_some(&mut to, &mut buffer[..room]).unwrap();
            if size == 0 {
                break;
            }
            got.extend(&buffer[..size]);
            room = room * 7 % 199_999 + 1;
        }
        assert!(got == bytes);
        writing.join().unwrap();
    }
}

#[test]
fn half_close_keeps_the_answer() {
    let (mut client, mut server) = pair(Ends::Each);
    write_all(&mut client, b"question");
    finish(&mut client);
    assert_eq!(read_to_end(&mut server).unwrap(), b"question");
    assert!(client.has_half_close() && has_nothing(&mut client));
    write_all(&mut server, b"answer");
    finish(&mut server);
    assert_eq!(read_to_end(&mut client).unwrap(), b"answer");
    // The end stays the end.
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert!(client.write(b"more").is_err());
    assert!(!client.holds_unsent() && !server.holds_unsent());
}

#[test]
fn behind_both_ends_the_connection_is_closed() {
    let (mut server, mut socket) = end_and_socket(Role::Server, Ends::Each);
    finish(&mut server);
    socket.write_all(&[0x82, 0x80, 1, 2, 3, 4]).unwrap();
    assert_eq!(read_to_end(&mut server).unwrap(), b"");
    assert!(!server.holds_unsent());
    let mut got = Vec::new();
    socket.read_to_end(&mut got).unwrap();
    assert_eq!(got, [0x82, 0, 0x88, 2, 3, 232]);
    drop(server);
}

#[test]
fn who_leaves_behind_his_end_is_seen_to_leave() {
    let (mut server, mut socket) = end_and_socket(Role::Server, Ends::Each);
    assert_eq!(server.has_left(), None);
    socket.write_all(&[0x82, 0x80, 1, 2, 3, 4]).unwrap();
    assert_eq!(read_to_end(&mut server).unwrap(), b"");
    assert_eq!(server.has_left(), Some(false));
    socket.write_all(&[0x89, 0x80, 1, 2, 3, 4]).unwrap();
    wait_readable(&server);
    assert_eq!(server.has_left(), Some(false));
    drop(socket);
    wait_readable(&server);
    assert_eq!(server.has_left(), Some(true));
}

#[test]
fn over_a_relay_who_leaves_behind_his_end_leaves_nobody_waiting() {
    let (visitor, mut application) = connected();
    let (mut server, mut socket) = end_and_socket(Role::Server, Ends::Each);
    socket.write_all(&[0x82, 0x80, 1, 2, 3, 4]).unwrap();
    let leaving = thread::spawn(move || {
        // The visitor hears the end, and is still there when the other end leaves.
        wait_readable(&visitor);
        assert_eq!(visitor.socket().read(&mut [0; 8]).unwrap(), 0);
        drop(socket);
        visitor
    });
    let (stock, meter) = (Stock::new(4096, 16), Meter::default());
    let stop = crate::runtime::event::Event::new().unwrap();
    let terms = Terms {
        stock: &stock,
        meter: &meter,
        rates: None,
        read_timeout: Some(PATIENCE),
        stop: &stop,
    };
    let reason = relay(&mut application, &mut server, Ahead::default(), terms);
    assert!(matches!(reason, CloseReason::OtherBroke(_)), "{reason}");
    leaving.join().unwrap();
}

#[test]
fn natively_a_cut_connection_is_no_end() {
    type Cutting = fn(WebSocketStream);
    let cuts: [Cutting; 4] = [
        |stream| drop(stream),
        |mut stream| stream.abort(Instant::now() + PATIENCE),
        |mut stream| {
            stream.queue_close();
            let _ = stream.flush();
        },
        |mut stream| {
            // Within a frame, and behind an end that was not sent.
            let mut mask = stream.append(Frame::Binary, b"x", 1);
            if stream.role == Role::Server {
                mask = stream.append(Frame::Binary, b"x", 100);
            }
            assert!(mask.is_ok());
            let _ = stream.flush();
        },
    ];
    for cut in cuts {
        for role in [Role::Client, Role::Server] {
            let (client, server) = pair(Ends::Each);
            let (mut from, mut to) = match role {
                Role::Client => (client, server),
                Role::Server => (server, client),
            };
            write_all(&mut from, b"some");
            let mut buffer = [0; 4];
            assert_eq!(read_some(&mut to, &mut buffer).unwrap(), 4);
            cut(from);
            assert!(read_to_end(&mut to).is_err());
            assert_eq!(to.check(), Condition::Ended);
        }
    }
}

#[test]
fn in_v1_the_end_of_one_direction_is_that_of_both() {
    let (mut client, mut server) = pair(Ends::Both);
    write_all(&mut server, b"all");
    finish(&mut server);
    assert_eq!(read_to_end(&mut client).unwrap(), b"all");
    assert!(!client.has_half_close());
    // Nobody hears it, and it is no fault.
    assert_eq!(client.write(b"more").unwrap(), 4);
    finish(&mut client);
    assert_eq!(read_to_end(&mut server).unwrap(), b"");
}

#[test]
fn in_v1_the_entry_leaves_it_to_the_exit_to_close() {
    let (near, far) = connected();
    let mut entry = WebSocketStream::new(Box::new(near), Role::Server, Ends::BothLate, &[]);
    let mut exit = WebSocketStream::new(Box::new(far), Role::Client, Ends::Both, &[]);
    write_all(&mut entry, b"question");
    finish(&mut entry);
    let mut buffer = [0; 100];
    assert_eq!(read_some(&mut exit, &mut buffer).unwrap(), 8);
    assert!(has_nothing(&mut exit));
    write_all(&mut exit, b"answer");
    assert_eq!(read_some(&mut entry, &mut buffer).unwrap(), 6);
    drop(entry);
    assert_eq!(read_to_end(&mut exit).unwrap(), b"");
}

/// It takes `HALF_OPEN_TIMEOUT`, which is what it is about.
#[test]
fn in_v1_a_relay_ends_when_nothing_moves_behind_one_end() {
    type Act = fn(&mut TcpStream, &TcpStream);
    let acts: [Act; 2] = [
        // The visitor has ended, is answered, and nothing follows.
        |socket, visitor| {
            visitor.shutdown(Shutdown::Write).unwrap();
            socket.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'a']).unwrap();
        },
        // The other end has closed, and the visitor goes on.
        |socket, mut visitor| {
            socket.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'a']).unwrap();
            socket.write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
            visitor.write_all(b"for nobody").unwrap();
        },
    ];
    let relays = acts.map(|act| {
        thread::spawn(move || {
            let (visitor, mut application) = connected();
            let visitor = TcpStream::from(visitor.into_socket());
            visitor.set_nonblocking(false).unwrap();
            visitor.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut server, mut socket) = end_and_socket(Role::Server, Ends::BothLate);
            act(&mut socket, &visitor);
            let (stock, meter) = (Stock::new(4096, 16), Meter::default());
            let stop = crate::runtime::event::Event::new().unwrap();
            let terms = Terms {
                stock: &stock,
                meter: &meter,
                rates: None,
                read_timeout: None,
                stop: &stop,
            };
            let started_at = Instant::now();
            let reason = relay(&mut application, &mut server, Ahead::default(), terms);
            assert!(matches!(reason, CloseReason::Finished), "{reason}");
            assert!(started_at.elapsed() >= HALF_OPEN_TIMEOUT);
            drop((application, server));
            let mut got = Vec::new();
            (&visitor).read_to_end(&mut got).unwrap();
            assert_eq!(got, b"a");
            got.clear();
            socket.read_to_end(&mut got).unwrap();
            assert!(got.ends_with(&[0x88, 2, 3, 232]));
        })
    });
    for relay in relays {
        relay.join().unwrap();
    }
}

#[test]
fn in_v1_the_end_of_the_connection_is_one_unless_it_is_within_a_frame() {
    for (wire, is_end) in [
        (&[0x82_u8, 1, b'x'][..], true),
        (&[0x82, 1, b'x', 0x82], false),
        (&[0x82, 1, b'x', 0x82, 5, b'y'], false),
        (&[0x02, 1, b'x'], false),
    ] {
        let (mut stream, mut socket) = end_and_socket(Role::Client, Ends::Both);
        socket.write_all(wire).unwrap();
        drop(socket);
        assert_eq!(read_to_end(&mut stream).is_ok(), is_end, "{wire:?}");
    }
}

#[test]
fn in_v1_a_dropped_end_says_goodbye_and_an_aborted_one_does_not() {
    for ends in ALL_ENDS {
        let (mut stream, mut socket) = end_and_socket(Role::Server, ends);
        write_all(&mut stream, b"x");
        drop(stream);
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        let goodbye: &[u8] = match ends {
            Ends::Each => &[],
            Ends::Both | Ends::BothLate => &[0x88, 2, 3, 232],
        };
        assert_eq!(got, [&[0x82, 1, b'x'], goodbye].concat());
        let (mut stream, mut socket) = end_and_socket(Role::Server, ends);
        write_all(&mut stream, b"x");
        stream.abort(Instant::now() + PATIENCE);
        drop(stream);
        let mut got = Vec::new();
        assert!(socket.read_to_end(&mut got).is_err());
        assert!(got.len() <= 3);
    }
}

#[test]
fn idle_streams_answer_pings_and_keep_data() {
    for (role, ping, pong) in [
        (Role::Client, &[0x89_u8, 2, b'h', b'i'][..], 8),
        (Role::Server, &[0x89, 0x82, 0, 0, 0, 0, b'h', b'i'], 4),
    ] {
        let (mut stream, mut socket) = end_and_socket(role, Ends::Each);
        assert_eq!(stream.check(), Condition::Silent);
        for part in [&ping[..3], &ping[3..]] {
            socket.write_all(part).unwrap();
            wait(&stream, PollFlags::IN);
            assert_eq!(stream.check(), Condition::Silent);
        }
        let mut got = vec![0; pong];
        socket.read_exact(&mut got).unwrap();
        assert_eq!(got[0], 0x8a);
        let mask = if role == Role::Client { 0x80 } else { 0 };
        let key = [0; 4];
        let data = match role {
            Role::Client => [&[0x82, 4][..], b"data"].concat(),
            Role::Server => [&[0x82, 0x84][..], &key, b"data"].concat(),
        };
        assert_eq!(got[1], 2 | mask);
        socket.write_all(&data).unwrap();
        wait(&stream, PollFlags::IN);
        assert_eq!(stream.check(), Condition::Speaking);
        assert_eq!(stream.check(), Condition::Speaking);
        assert!(stream.holds_bytes());
        let mut buffer = [0; 3];
        assert_eq!(stream.read(&mut buffer).unwrap(), 3);
        assert_eq!(stream.read(&mut buffer).unwrap(), 1);
        assert_eq!(stream.check(), Condition::Silent);
        drop(socket);
        wait_readable(&stream);
        assert_eq!(stream.check(), Condition::Ended);
    }
}

#[test]
fn what_came_with_the_handshake_is_read_first() {
    let (near, far) = connected();
    let received = [0x82, 2, b'a', b'b', 0x82, 3, b'c'];
    let mut stream = WebSocketStream::new(Box::new(near), Role::Client, Ends::Each, &received);
    assert!(stream.holds_bytes());
    far.socket().write_all(b"de").unwrap();
    wait(&stream, PollFlags::IN);
    let mut got = [0; 5];
    let mut filled = 0;
    while filled < got.len() {
        filled += read_some(&mut stream, &mut got[filled..]).unwrap();
    }
    assert_eq!(&got, b"abcde");
    assert!(!stream.holds_bytes());
}

#[test]
fn an_answer_and_the_first_message_leave_together() {
    let (mut server, mut socket) = end_and_socket(Role::Server, Ends::Each);
    server.put_answer(b"HTTP/1.1 101 \r\n\r\n");
    assert!(server.holds_unsent());
    assert_eq!(server.write(&[0, 0, 0, 7]).unwrap(), 4);
    let mut got = [0; 64];
    let size = socket.read(&mut got).unwrap();
    assert_eq!(
        &got[..size],
        b"HTTP/1.1 101 \r\n\r\n\x82\x04\x00\x00\x00\x07"
    );
}

#[test]
fn who_is_not_answered_hears_nothing() {
    for ends in ALL_ENDS {
        let (mut server, mut socket) = end_and_socket(Role::Server, ends);
        server.put_answer(b"HTTP/1.1 101 \r\n\r\n");
        drop(server);
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        assert!(got.is_empty());
    }
}

#[test]
fn messages_can_be_had_one_by_one() {
    let (mut client, mut server) = pair(Ends::Both);
    for datagram in ["one", "two", "three"] {
        write_all(&mut client, datagram.as_bytes());
    }
    server.keep_messages();
    wait(&server, PollFlags::IN);
    let mut buffer = [0; 100];
    for datagram in ["one", "two", "three"] {
        let size = read_some(&mut server, &mut buffer).unwrap();
        assert_eq!(&buffer[..size], datagram.as_bytes());
    }
    assert!(has_nothing(&mut server) && !server.holds_bytes());
    // In two pieces, of which the first comes alone.
    client.append(Frame::Binary, b"cut in two", 10).unwrap();
    let end = std::mem::replace(&mut client.filled, 9);
    client.flush().unwrap();
    wait(&server, PollFlags::IN);
    assert!(has_nothing(&mut server) && !server.holds_bytes());
    (client.sent, client.filled) = (9, end);
    client.flush().unwrap();
    assert_eq!(read_some(&mut server, &mut buffer).unwrap(), 10);
    assert_eq!(&buffer[..10], b"cut in two");
}

/// Writes until the stream takes nothing more; returns how much it took.
fn fill(stream: &mut WebSocketStream, bytes: &[u8]) -> usize {
    let mut taken = 0;
    loop {
        match stream.write(&bytes[taken..]) {
            Ok(size) => taken += size,
            Err(error) if is_passing(&error) => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_flood_of_pings_takes_no_memory() {
    for role in [Role::Client, Role::Server] {
        let (mut stream, mut socket) = end_and_socket(role, Ends::Each);
        let bytes = pattern(32_000_000);
        let taken = fill(&mut stream, &bytes);
        assert!(taken < bytes.len(), "the socket is full");
        let ping = match role {
            Role::Client => [&[0x89, 125][..], &[1; CONTROL_SIZE_MAX]].concat(),
            Role::Server => [&[0x89, 125 | 0x80, 0, 0, 0, 0][..], &[1; CONTROL_SIZE_MAX]].concat(),
        };
        let before = stream.send.len();
        for _ in 0..200 {
            socket.write_all(&ping.repeat(20)).unwrap();
            wait(&stream, PollFlags::IN);
            let _ = stream.read(&mut [0; 8192]);
        }
        assert!(stream.send.len() <= before + 2 * (FRAME_HEAD_SIZE_MAX + CONTROL_SIZE_MAX));
        // All of it arrives, and pongs between.
        let reading = thread::spawn(move || {
            let peer_role = match role {
                Role::Client => PeerRole::Server,
                Role::Server => PeerRole::Client,
            };
            let mut peer = peer(socket, peer_role);
            let (mut got, mut pongs_count) = (Vec::new(), 0);
            loop {
                match peer.read().unwrap() {
                    Message::Binary(data) if data.is_empty() => return (got, pongs_count),
                    Message::Binary(data) => got.extend(data),
                    Message::Pong(_) => pongs_count += 1,
                    other => panic!("{other}"),
                }
            }
        });
        write_all(&mut stream, &bytes[taken..]);
        finish(&mut stream);
        let (got, pongs_count) = reading.join().unwrap();
        assert!(got == bytes);
        // Each read had twenty of them to answer.
        assert!((1..=200).contains(&pongs_count), "{pongs_count} pongs");
    }
}

#[test]
fn nothing_is_held_while_nothing_flows() {
    for ends in ALL_ENDS {
        let (mut client, mut server) = pair(ends);
        write_all(&mut client, &[7; 100_000]);
        let mut buffer = vec![0; 100_000];
        let mut filled = 0;
        while filled < buffer.len() {
            filled += read_some(&mut server, &mut buffer[filled..]).unwrap();
        }
        write_all(&mut server, &[7; 10]);
        for stream in [&mut client, &mut server] {
            stream.rest();
            assert_eq!((stream.send.capacity(), stream.ahead.capacity()), (0, 0));
        }
    }
}

#[test]
fn a_violation_is_told_behind_the_data() {
    let (mut server, mut socket) = end_and_socket(Role::Server, Ends::Each);
    let wire = [&[0x82, 0x82, 0, 0, 0, 0][..], b"ok", &[0x82, 2], b"no"].concat();
    socket.write_all(&wire).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(read_some(&mut server, &mut buffer).unwrap(), 2);
    assert!(server.holds_bytes());
    let error = server.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(server.check(), Condition::Ended);
}

/// The library's own end, without its limits.
fn peer(socket: TcpStream, role: PeerRole) -> WebSocket<TcpStream> {
    let unlimited = WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None);
    WebSocket::from_raw_socket(socket, role, Some(unlimited))
}

#[test]
fn the_library_understands_both_roles() {
    for (role, peer_role) in [
        (Role::Client, PeerRole::Server),
        (Role::Server, PeerRole::Client),
    ] {
        let (mut stream, socket) = end_and_socket(role, Ends::Both);
        let bytes = pattern(1_000_000);
        let echoing = thread::spawn(move || {
            let mut peer = peer(socket, peer_role);
            let mut messages_count = 0;
            loop {
                match peer.read() {
                    Ok(Message::Binary(data)) => {
                        messages_count += 1;
                        echo(&mut peer, &data, messages_count);
                    }
                    Ok(Message::Pong(data)) => assert_eq!(&data[..], b"still there?"),
                    Ok(Message::Close(frame)) => {
                        assert_eq!(u16::from(frame.unwrap().code), 1000);
                    }
                    Ok(other) => panic!("{other}"),
                    Err(tungstenite::Error::ConnectionClosed) => return messages_count,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = vec![0; 70_000];
        for piece in bytes.chunks(50_001) {
            write_all(&mut stream, piece);
            let end = got.len() + piece.len();
            while got.len() < end {
                let size = read_some(&mut stream, &mut buffer).unwrap();
                got.extend(&buffer[..size]);
            }
        }
        assert!(got == bytes);
        finish(&mut stream);
        assert_eq!(read_to_end(&mut stream).unwrap(), b"");
        drop(stream);
        assert!(echoing.join().unwrap() >= 20);
    }
}

/// Sends data back, in parts, with a ping between two of them.
fn echo(peer: &mut WebSocket<TcpStream>, data: &Bytes, number: usize) {
    if number.is_multiple_of(2) {
        peer.send(Message::Binary(data.clone())).unwrap();
        return;
    }
    let cut = data.len() * (number % 7) / 7;
    let part = |opcode, is_final, data: Bytes| {
        let header = FrameHeader {
            is_final,
            opcode: OpCode::Data(opcode),
            ..FrameHeader::default()
        };
        Message::Frame(PeerFrame::from_payload(header, data))
    };
    peer.send(part(Data::Binary, false, data.slice(..cut)))
        .unwrap();
    peer.send(Message::Ping(Bytes::from_static(b"still there?")))
        .unwrap();
    peer.send(part(Data::Continue, true, data.slice(cut..)))
        .unwrap();
}

#[test]
fn the_library_closes_in_order() {
    for ends in [Ends::Both, Ends::BothLate] {
        let (mut stream, socket) = end_and_socket(Role::Client, ends);
        let mut peer = peer(socket, PeerRole::Server);
        peer.send(Message::Binary(Bytes::from_static(b"last")))
            .unwrap();
        peer.close(None).unwrap();
        assert_eq!(read_to_end(&mut stream).unwrap(), b"last");
        assert!(!stream.holds_unsent());
        loop {
            match peer.read() {
                Ok(Message::Close(_)) => {}
                Err(tungstenite::Error::ConnectionClosed) => break,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[cfg(feature = "tls")]
#[test]
fn it_works_over_tls() {
    let (near, far) = crate::net::tls::tests::established();
    let mut client = WebSocketStream::new(Box::new(near), Role::Client, Ends::Each, &[]);
    let mut server = WebSocketStream::new(Box::new(far), Role::Server, Ends::Each, &[]);
    let bytes = pattern(2_000_000);
    let sent = bytes.clone();
    let echoing = thread::spawn(move || {
        let got = read_to_end(&mut server).unwrap();
        write_all(&mut server, &got);
        finish(&mut server);
        assert!(!server.holds_unsent());
    });
    write_all(&mut client, &sent);
    finish(&mut client);
    assert!(read_to_end(&mut client).unwrap() == bytes);
    echoing.join().unwrap();
}

/// Reads what has come at a socket, until it is `size` bytes.
fn take(socket: &mut TcpStream, size: usize) -> Vec<u8> {
    let mut got = vec![0; size];
    socket.read_exact(&mut got).unwrap();
    got
}

/// Lets all that is silent be so for too long.
fn impatient(role: Role, ends: Ends) -> (WebSocketStream, TcpStream) {
    let (mut stream, socket) = end_and_socket(role, ends);
    stream.limit_silence(Duration::ZERO);
    (stream, socket)
}

/// Whether nothing has come at a socket whose other end has just been asked to write.
fn is_quiet(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let result = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

const EMPTY_MESSAGE_MASKED: [u8; 6] = [0x82, 0x80, 0, 0, 0, 0];

#[test]
fn a_client_breaks_a_silence_with_masked_pings_between_its_messages() {
    for ends in ALL_ENDS {
        let (mut stream, mut socket) = impatient(Role::Client, ends);
        let mut decoder = Decoder::new(Role::Server, ends == Ends::Each);
        for _ in 0..3 {
            assert!(stream.keep_alive().is_some());
            let mut ping = take(&mut socket, 6);
            assert_eq!(ping[..2], [0x89, 0x80]);
            assert_eq!(decoder.decode(&mut ping, Reach::All).size, 0);
            assert_eq!(decoder.take_ping(), Some(Vec::new()));
            assert_eq!(stream.write(b"data").unwrap(), 4);
            let mut data = take(&mut socket, 10);
            assert_eq!(decoder.decode(&mut data, Reach::All).size, 4);
            assert_eq!(data[..4], *b"data");
            // The answer is nobody's data, in the middle of a message neither.
            socket.write_all(&[0x02, 1, b'a', 0x8a, 0]).unwrap();
            socket.write_all(&[0x80, 1, b'b']).unwrap();
            let mut got = Vec::<u8>::new();
            while got.len() < 2 {
                let mut buffer = [0; 8];
                let size = read_some(&mut stream, &mut buffer).unwrap();
                got.extend(&buffer[..size]);
            }
            assert_eq!(got, b"ab");
        }
        assert_eq!(decoder.halt(), None);
    }
}

#[test]
fn a_silence_that_is_not_too_long_stays() {
    let (mut stream, mut socket) = impatient(Role::Client, Ends::Each);
    stream.limit_silence(PATIENCE);
    let before = Instant::now();
    let first = stream.keep_alive().unwrap();
    assert!(first >= before + PATIENCE);
    assert_eq!(stream.keep_alive(), Some(first));
    stream.write(b"data").unwrap();
    let second = stream.keep_alive().unwrap();
    assert!(second > first);
    // While the other end speaks it may well have closed behind that.
    socket.write_all(&[0x82, 1, b'x']).unwrap();
    assert_eq!(read_some(&mut stream, &mut [0; 8]).unwrap(), 1);
    assert!(stream.keep_alive().unwrap() > second);
    let mut said = Vec::new();
    drop(stream);
    (&socket).read_to_end(&mut said).unwrap();
    assert_eq!(said.len(), 10);
    let (mut unlimited, _socket) = end_and_socket(Role::Client, Ends::Each);
    assert_eq!(unlimited.keep_alive(), None);
}

#[test]
fn nothing_breaks_a_silence_while_something_waits_on_its_way() {
    let (mut stream, mut socket) = impatient(Role::Client, Ends::Each);
    socket.write_all(&[0x82, 1, b'x']).unwrap();
    wait_readable(&stream);
    assert!(stream.keep_alive().is_some());
    assert!(is_quiet(&socket), "the other end has spoken");
    assert_eq!(read_some(&mut stream, &mut [0; 8]).unwrap(), 1);
    assert!(stream.keep_alive().is_some());
    take(&mut socket, 6);

    // What the other end does not take.
    let data = pattern(16 << 20);
    let mut written = 0;
    while let Ok(size) = stream.write(&data[written..]) {
        written += size;
        assert!(written < data.len(), "the kernel takes everything");
    }
    for _ in 0..3 {
        assert!(stream.keep_alive().is_some());
    }
    let reader = thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::<u8>::new(), vec![0; 1 << 16]);
        let mut decoder = Decoder::new(Role::Server, true);
        while decoder.halt().is_none() {
            let size = socket.read(&mut buffer).unwrap();
            assert!(size > 0, "cut short");
            let decoded = decoder.decode(&mut buffer[..size], Reach::All);
            all.extend(&buffer[..decoded.size]);
        }
        assert_eq!(decoder.take_ping(), None);
        (all, decoder.halt())
    });
    while let Err(error) = stream.flush() {
        assert!(is_passing(&error), "{error}");
        wait(&stream, PollFlags::OUT);
    }
    while stream.finish().is_err() {
        wait(&stream, PollFlags::OUT);
    }
    let (all, halt) = reader.join().unwrap();
    assert!(all == data[..written]);
    assert_eq!(halt, Some(Halt::Empty));
}

#[test]
fn where_one_direction_is_over_the_end_of_the_other_asks_for_no_answer() {
    // A client whose server has ended.
    let (mut client, mut socket) = impatient(Role::Client, Ends::Each);
    socket.write_all(&[0x82, 0]).unwrap();
    assert_eq!(read_some(&mut client, &mut [0; 8]).unwrap(), 0);
    assert!(client.keep_alive().is_some());
    assert_eq!(take(&mut socket, 6)[..2], [0x8a, 0x80]);
    client.finish().unwrap();
    assert_eq!(client.keep_alive(), None);

    // A server, for its client and then for itself.
    let (mut server, mut socket) = impatient(Role::Server, Ends::Each);
    assert_eq!(server.keep_alive(), None);
    socket.write_all(&EMPTY_MESSAGE_MASKED).unwrap();
    assert_eq!(read_some(&mut server, &mut [0; 8]).unwrap(), 0);
    assert!(server.keep_alive().is_some());
    assert_eq!(take(&mut socket, 2), [0x8a, 0]);
    server.finish().unwrap();
    assert_eq!(server.keep_alive(), None);
}

#[test]
fn who_has_ended_breaks_no_silence() {
    for ends in ALL_ENDS {
        let (mut client, _socket) = impatient(Role::Client, ends);
        client.finish().unwrap();
        assert_eq!(client.keep_alive(), None, "{ends:?}");
        let (mut client, mut socket) = impatient(Role::Client, ends);
        socket.write_all(&[0x88, 2, 3, 232]).unwrap();
        let _ = read_some(&mut client, &mut [0; 8]);
        assert_eq!(client.keep_alive(), None, "{ends:?}");
    }
    for ends in [Ends::Both, Ends::BothLate] {
        let (mut server, mut socket) = impatient(Role::Server, ends);
        socket.write_all(&EMPTY_MESSAGE_MASKED).unwrap();
        assert!(server.read(&mut [0; 8]).is_err());
        assert_eq!(server.keep_alive(), None, "{ends:?}");
    }
}

/// A connection that breaks with the next write, and still has something to read.
struct Breaking {
    below: crate::net::stream::PlainStream,
    unread: Vec<u8>,
    is_broken: bool,
}

impl Stream for Breaking {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.below.descriptor()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_broken {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let size = self.unread.len();
        buffer[..size].copy_from_slice(&std::mem::take(&mut self.unread));
        Ok(size)
    }

    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        self.is_broken = true;
        Err(io::ErrorKind::ConnectionReset.into())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self, _: Instant) {}

    fn check(&mut self) -> Condition {
        Condition::Silent
    }
}

#[test]
fn what_broke_a_silent_connection_is_told_behind_what_it_had_sent() {
    for ends in ALL_ENDS {
        let (near, _far) = connected();
        let breaking = Breaking {
            below: near,
            unread: vec![0x82, 1, b'x'],
            is_broken: false,
        };
        let mut stream = WebSocketStream::new(Box::new(breaking), Role::Client, ends, &[]);
        stream.limit_silence(Duration::ZERO);
        assert!(stream.keep_alive().is_some());
        assert!(stream.holds_bytes(), "nothing else wakes its reader");
        let mut buffer = [0; 8];
        assert_eq!(stream.read(&mut buffer).unwrap(), 1);
        let error = read_some(&mut stream, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{ends:?}");
        assert_eq!(stream.keep_alive(), None);
    }
}

#[test]
fn a_relay_that_is_kept_alive_is_idle_all_the_same() {
    const PINGS_MAX: u32 = 200;
    for has_rate in [false, true] {
        let (mut client, mut socket) = end_and_socket(Role::Client, Ends::Each);
        client.limit_silence(Duration::from_millis(50));
        let (_visitor, mut application) = connected();
        let (stock, meter) = (Stock::new(4096, 16), Meter::default());
        let stop = crate::runtime::event::Event::new().unwrap();
        let rates = has_rate.then(|| Rates::new(1));
        let terms = Terms {
            stock: &stock,
            meter: &meter,
            rates: rates.as_ref(),
            read_timeout: Some(Duration::from_millis(500)),
            stop: &stop,
        };
        thread::scope(|scope| {
            let rates = &rates;
            let peer = scope.spawn(move || {
                let mut pings_count = 0;
                let mut head = [0; 6];
                while pings_count < PINGS_MAX && socket.read_exact(&mut head).is_ok() {
                    if head[0] != 0x89 {
                        break;
                    }
                    pings_count += 1;
                    // Others are busy: whoever has something to read waits for his turn.
                    for _ in 0..20 {
                        rates.iter().for_each(|rates| {
                            rates.sent.book(Instant::now());
                        });
                    }
                    if socket.write_all(&[0x8a, 0]).is_err() {
                        break;
                    }
                }
                pings_count
            });
            let reason = relay(&mut application, &mut client, Ahead::default(), terms);
            assert!(matches!(reason, CloseReason::Idle), "{reason}");
            drop(client);
            assert!(peer.join().unwrap() > 0);
        });
        assert_eq!((meter.received.sum(), meter.sent.sum()), (0, 0));
    }
}
