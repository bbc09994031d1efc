//! The far end of every measurement, in a process of its own: echo, sink and source.
//!
//! One port echoes whatever comes by TCP or UDP. On the other, the first byte of a connection
//! says what it is for (see `BulkRequest`).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, process, thread};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::bulk::{self, BulkRequest};
use crate::datagrams;
use crate::peers::Site;

/// First argument that turns this program into the target.
pub const SERVE_ARGUMENT: &str = "serve";

/// Most events that one look at the echo connections returns.
const EVENTS_COUNT_MAX: usize = 512;

/// A running target process; it ends when this is dropped.
pub struct Target {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub echo: SocketAddr,
    pub sink: SocketAddr,
}

impl Target {
    /// Starts this program again as a target and reads its ports from its first line.
    pub fn start(site: &Site) -> io::Result<Target> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args([SERVE_ARGUMENT, &site.target.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = site.spawn_far(&mut command)?;
        let questions = child.stdin.take().expect("standard input was asked for");
        let output = child.stdout.take().expect("standard output was asked for");
        let mut answers = BufReader::new(output);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let ports: Vec<u16> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let mut target = Target {
            child,
            questions,
            answers,
            echo: SocketAddr::new(site.target, 0),
            sink: SocketAddr::new(site.target, 0),
        };
        let [echo, sink] = ports[..] else {
            return Err(io::Error::other(format!(
                "the target process said {line:?}"
            )));
        };
        target.echo.set_port(echo);
        target.sink.set_port(sink);
        Ok(target)
    }

    /// Bytes that have arrived on bulk streams so far. A link is not on the way of this question.
    pub fn received_bytes(&mut self) -> io::Result<u64> {
        self.questions.write_all(b"\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim_end().parse().map_err(io::Error::other)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Serves on the given address until standard input ends, so that no target outlives the benchmark.
/// Each line there asks how many bytes have arrived on bulk streams.
pub fn serve(address: Option<String>) -> io::Result<()> {
    let address: IpAddr = address
        .and_then(|address| address.parse().ok())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let echo = TcpListener::bind((address, 0))?;
    let echo_datagrams = UdpSocket::bind(echo.local_addr()?)?;
    datagrams::enlarge_buffers(&echo_datagrams);
    let sink = TcpListener::bind((address, 0))?;
    println!(
        "{} {}",
        echo.local_addr()?.port(),
        sink.local_addr()?.port()
    );
    thread::spawn(move || serve_echo(&echo));
    thread::spawn(move || serve_datagrams(&echo_datagrams));
    let received_bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received_bytes);
    thread::spawn(move || serve_bulk(&sink, &counter));
    for question in io::stdin().lines() {
        question?;
        println!("{}", received_bytes.load(Ordering::Relaxed));
    }
    process::exit(0)
}

/// Sends back what arrives on any number of connections, all on one thread.
fn serve_echo(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, listener, event_key(listener), epoll::EventFlags::IN)?;
    // The descriptor's number is the index.
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_COUNT_MAX);
    loop {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if key == event_key(listener).u64() {
                while let Ok((connection, _)) = listener.accept() {
                    connection.set_nodelay(true)?;
                    connection.set_nonblocking(true)?;
                    let key = event_key(&connection);
                    epoll::add(&poll, &connection, key, epoll::EventFlags::IN)?;
                    let index = usize::try_from(key.u64()).expect("descriptors are small");
                    if connections.len() <= index {
                        connections.resize_with(index + 1, || None);
                    }
                    connections[index] = Some(connection);
                }
            } else {
                let index = usize::try_from(key).expect("descriptors are small");
                let ended = connections[index]
                    .as_mut()
                    .is_none_or(|open| echo_once(open).is_err());
                if ended {
                    connections[index] = None;
                }
            }
        }
    }
}

/// Echoes what has arrived; an error means that the connection is over.
///
/// Load generators wait for an answer before they send again, so the socket always has room: a
/// write that would block is an error.
fn echo_once(mut connection: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    match connection.read(&mut buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => connection.write_all(&buffer[..count]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; datagrams::DATAGRAM_SIZE_MAX];
    loop {
        // An error is a visitor's port that is gone; the next visitor wants its answer.
        if let Ok((count, visitor)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], visitor);
        }
    }
}

fn serve_bulk(listener: &TcpListener, received_bytes: &Arc<AtomicU64>) {
    for connection in listener.incoming().flatten() {
        let received_bytes = Arc::clone(received_bytes);
        thread::spawn(move || serve_bulk_connection(&connection, &received_bytes));
    }
}

fn serve_bulk_connection(mut connection: &TcpStream, received_bytes: &AtomicU64) -> io::Result<()> {
    let mut request = [0];
    connection.read_exact(&mut request)?;
    match BulkRequest::decode(request[0]) {
        Some(BulkRequest::Probe) => connection.write_all(&request),
        Some(BulkRequest::Receive) => bulk::drain(connection, |size| {
            received_bytes.fetch_add(size, Ordering::Relaxed);
        }),
        Some(BulkRequest::Send) => bulk::flood(connection, |_| ()),
        None => Ok(()),
    }
}

fn event_key(descriptor: &impl AsRawFd) -> epoll::EventData {
    let number = u64::try_from(descriptor.as_raw_fd()).expect("open descriptors are not negative");
    epoll::EventData::new_u64(number)
}
