//! Visitors: connections and datagrams sent at the program, each with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::pattern::Pattern;
use super::program::Program;
use super::servers::set_deadline;
use super::{DEADLINE, eventually};

/// How long an answer that must not come is waited for.
const REFUSED_WAIT: Duration = Duration::from_millis(300);

/// How a connection ended, seen from the reading side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// End of stream.
    Finished,
    /// Connection reset.
    Reset,
}

/// Connects, with deadlines on everything that follows.
#[track_caller]
pub fn dial(address: SocketAddr) -> TcpStream {
    try_dial(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
}

/// The same, where a refusal is an answer.
pub fn try_dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    match socket.connect_timeout(&address.into(), DEADLINE) {
        // It was let in, and ended before anyone could look: a connection that reads as ended.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ) => {}
        result => result?,
    }
    let stream = TcpStream::from(socket);
    set_deadline(&stream);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends so many bytes, each by itself, to a target that returns them.
#[track_caller]
pub fn exchange_bytes(visitor: &TcpStream, count: usize) {
    let bytes = Pattern::new(7).take(count);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = visitor;
            for byte in bytes.chunks(1) {
                writer.write_all(byte).unwrap();
            }
        });
        assert!(read_count(visitor, count) == bytes);
    });
}

/// Sends `message` to an echo server and gets it back.
#[track_caller]
pub fn exchange(stream: &TcpStream, message: &[u8]) {
    if let Err(error) = try_exchange(stream, message) {
        panic!("no echo: {error}");
    }
}

/// The same, where a connection that ends is an answer. Other bytes than those sent never are.
#[track_caller]
pub fn try_exchange(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    assert!(answer == message, "the echo differs from what was sent");
    Ok(())
}

/// Reads exactly `count` bytes.
#[track_caller]
pub fn read_count(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until the connection ends: what came, and how it ended.
#[track_caller]
pub fn read_to_end(mut stream: &TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (bytes, End::Finished),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (bytes, End::Reset),
            // So says a read with a deadline when the whole process has stood still for a while.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("the connection did not end: {error}"),
        }
    }
}

/// Asserts that the connection ends, in whatever way, without a byte having come.
#[track_caller]
pub fn assert_closed(stream: &TcpStream) {
    let (bytes, _) = read_to_end(stream);
    assert!(
        bytes.is_empty(),
        "got {} bytes instead of an end",
        bytes.len()
    );
}

/// A UDP socket that talks to `address` only: a reply from elsewhere never reaches it.
pub fn udp_visitor(address: SocketAddr) -> UdpSocket {
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => "[::]:0".parse().unwrap(),
    };
    let socket = UdpSocket::bind(local).unwrap();
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// Receives one datagram.
#[track_caller]
pub fn receive_datagram(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                return buffer;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("no datagram: {error}"),
        }
    }
}

/// Sends one datagram to an echo server and gets it back.
#[track_caller]
pub fn exchange_datagram(socket: &UdpSocket, datagram: &[u8]) {
    socket.send(datagram).unwrap();
    assert!(
        receive_datagram(socket) == datagram,
        "the echo differs from what was sent"
    );
}

/// The same with `wait` for the answer; `false` when none came.
#[track_caller]
pub fn try_exchange_datagram(socket: &UdpSocket, datagram: &[u8], wait: Duration) -> bool {
    let answer = ask(socket, datagram, wait);
    assert!(
        answer.as_ref().is_none_or(|answer| answer == datagram),
        "the echo differs from what was sent"
    );
    answer.is_some()
}

/// Sends one datagram; the answer, whatever it says, if it comes within `wait`.
pub fn ask(socket: &UdpSocket, datagram: &[u8], wait: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(wait)).unwrap();
    let mut buffer = vec![0; 65536];
    // The send may carry the refusal of an earlier datagram.
    let answer = socket.send(datagram).and_then(|_| socket.recv(&mut buffer));
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    answer.ok().map(|count| buffer[..count].to_vec())
}

/// Waits until connections to `address` are refused.
#[track_caller]
pub fn wait_refused(address: SocketAddr) {
    eventually("a closed listener", || {
        try_dial(address)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            .then_some(())
    });
}

/// Checks that the datagrams of one visitor and the connection of another take turns in the only
/// slot there is; `program` says who is refused.
#[track_caller]
pub fn check_single_slot(tcp: SocketAddr, udp: SocketAddr, program: &Program) {
    exchange_datagram(&udp_visitor(udp), b"holds the slot");
    assert_closed(&dial(tcp));
    program.wait_complaint(&["slot"]);
    let visitor = eventually("a free slot", || {
        let visitor = dial(tcp);
        try_exchange(&visitor, b"tcp").ok().map(|()| visitor)
    });
    let datagrams = udp_visitor(udp);
    assert!(!try_exchange_datagram(&datagrams, b"refused", REFUSED_WAIT));
    exchange(&visitor, b"undisturbed");
    drop(visitor);
    eventually("a free slot", || {
        try_exchange_datagram(&datagrams, b"served", REFUSED_WAIT).then_some(())
    });
}
