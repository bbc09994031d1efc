//! UDP: how fast one datagram after another is answered, and how many of a steady flow are lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::load::{Latencies, PingPong};

/// Size of the datagrams of all measurements.
const DATAGRAM_SIZE: usize = 1000;

/// Largest datagram that the target echoes.
pub const DATAGRAM_SIZE_MAX: usize = 64 * 1024;

/// What both ends ask of the kernel, so that losses are the forwarder's (bytes).
const SOCKET_BUFFER_SIZE: usize = 8 << 20;

/// How long to wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);

/// How long answers may still come in after the last datagram of a flow was sent.
const DRAIN_TIME: Duration = Duration::from_millis(300);

/// Number of the datagrams that only open the session.
const WARM_UP_NUMBER: u64 = u64::MAX;

/// What came of a steady flow.
pub struct Flow {
    pub sent: u32,
    pub received: u32,
    pub latencies: Latencies,
}

/// Asks for large socket buffers; without the right to exceed the system's limit, up to that.
pub fn enlarge_buffers(socket: &UdpSocket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_SIZE).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_SIZE);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_SIZE).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_SIZE);
    }
}

/// Sends one datagram at a time, the next one when the answer has come.
pub fn ping_pong(address: SocketAddr, duration: Duration) -> io::Result<PingPong> {
    let socket = open_session(address, ANSWER_TIMEOUT)?;
    let mut buffer = [0; DATAGRAM_SIZE];
    let mut latencies = Latencies::default();
    let mut number = 0;
    let started_at = Instant::now();
    while started_at.elapsed() < duration {
        number += 1;
        let sent_at = Instant::now();
        socket.send(&encode(number, started_at))?;
        // A late answer to an earlier datagram does not count; silence is a loss.
        while socket.recv(&mut buffer).is_ok() {
            if decode(&buffer).0 == number {
                latencies.add(sent_at.elapsed());
                break;
            }
        }
    }
    Ok(PingPong {
        seconds: started_at.elapsed().as_secs_f64(),
        latencies,
    })
}

/// Sends `rate` datagrams per second for a while and counts those that come back.
pub fn flow(address: SocketAddr, rate: u32, duration: Duration) -> io::Result<Flow> {
    let socket = open_session(address, Duration::from_millis(50))?;
    let total = u128::from(rate) * duration.as_micros() / 1_000_000;
    let total = u32::try_from(total).map_err(io::Error::other)?;
    let interval = Duration::from_secs(1) / rate;
    let started_at = Instant::now();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_flow(&socket, total, started_at, &ended));
        for index in 0..total {
            // The timer is coarser than the interval: what is overdue goes out at once.
            let due_at = started_at + interval * index;
            thread::sleep(due_at.saturating_duration_since(Instant::now()));
            // A datagram that cannot be sent shows as lost.
            let _ = socket.send(&encode(index.into(), started_at));
        }
        thread::sleep(DRAIN_TIME);
        ended.store(true, Ordering::Relaxed);
        let (received, latencies) = receiver.join().expect("the receiver does not panic");
        Ok(Flow {
            sent: total,
            received,
            latencies,
        })
    })
}

/// Counts the different datagrams of a flow, and how long each was on its way.
fn receive_flow(
    socket: &UdpSocket,
    total: u32,
    started_at: Instant,
    ended: &AtomicBool,
) -> (u32, Latencies) {
    let mut seen = vec![false; total as usize];
    let mut received = 0;
    let mut latencies = Latencies::default();
    let mut buffer = [0; DATAGRAM_SIZE];
    while !ended.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_err() {
            continue;
        }
        let (number, sent_after) = decode(&buffer);
        let slot = usize::try_from(number)
            .ok()
            .and_then(|index| seen.get_mut(index));
        if let Some(slot @ false) = slot {
            *slot = true;
            received += 1;
            latencies.add(started_at.elapsed().saturating_sub(sent_after));
        }
    }
    (received, latencies)
}

/// A socket whose datagrams are being answered: the forwarder has a session for it.
fn open_session(address: SocketAddr, receive_timeout: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(address)?;
    enlarge_buffers(&socket);
    if answers(&socket, ANSWER_TIMEOUT)? {
        socket.set_read_timeout(Some(receive_timeout))?;
        return Ok(socket);
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "no datagram was answered",
    ))
}

/// Whether a datagram sent to the address comes back.
pub fn is_answered(address: SocketAddr, timeout: Duration) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(address)?;
    answers(&socket, timeout)
}

fn answers(socket: &UdpSocket, timeout: Duration) -> io::Result<bool> {
    socket.set_read_timeout(Some(timeout))?;
    let mut buffer = [0; DATAGRAM_SIZE];
    for _ in 0..5 {
        // Refused, because nobody listens yet, is no answer either.
        let sent = socket.send(&encode(WARM_UP_NUMBER, Instant::now()));
        if sent.is_ok() && socket.recv(&mut buffer).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A datagram that holds its number and when it was sent.
fn encode(number: u64, started_at: Instant) -> [u8; DATAGRAM_SIZE] {
    let nanoseconds = u64::try_from(started_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut datagram = [0; DATAGRAM_SIZE];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    datagram[8..16].copy_from_slice(&nanoseconds.to_be_bytes());
    datagram
}

/// The number of a datagram, and how long after the start of the flow it was sent.
fn decode(datagram: &[u8; DATAGRAM_SIZE]) -> (u64, Duration) {
    let number = |from| u64::from_be_bytes(std::array::from_fn(|index| datagram[from + index]));
    (number(0), Duration::from_nanos(number(8)))
}
