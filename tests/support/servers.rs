//! Targets: small servers that behave in one known way each.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::{DEADLINE, eventually};

/// Enough for a debug build's echo loop; two thousand of them must fit.
const THREAD_STACK_SIZE: usize = 256 * 1024;

/// A listener with one thread per connection. Dropping it is the death of a target: the port
/// closes and its connections end.
///
/// The program measures its targets by connections that carry nothing, so what a case is told of
/// a connection should begin with its first byte.
pub struct TcpServer {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    live: Arc<Mutex<Vec<Weak<TcpStream>>>>,
    accept: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Serves at a free port of 127.0.0.1.
    pub fn start(serve: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), serve)
    }

    /// Serves at `address`.
    pub fn start_at(
        address: SocketAddr,
        serve: impl Fn(&TcpStream) + Send + Sync + 'static,
    ) -> Self {
        Self::start_on(bind(|| TcpListener::bind(address)), serve)
    }

    /// Serves those who come to `listener`.
    pub fn start_on(
        listener: TcpListener,
        serve: impl Fn(&TcpStream) + Send + Sync + 'static,
    ) -> Self {
        // With the queue of the standard library, some of hundreds who come at once are reset.
        rustix::net::listen(&listener, 4096).unwrap();
        let listener = Arc::new(listener);
        let address = listener.local_addr().unwrap();
        let live = Arc::new(Mutex::new(Vec::new()));
        let serve = Arc::new(serve);
        let accept = thread::spawn({
            let (listener, live) = (Arc::clone(&listener), Arc::clone(&live));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true).unwrap();
                    let stream = Arc::new(stream);
                    live.lock().unwrap().push(Arc::downgrade(&stream));
                    let serve = Arc::clone(&serve);
                    thread::Builder::new()
                        .stack_size(THREAD_STACK_SIZE)
                        .spawn(move || serve(&stream))
                        .unwrap();
                }
            }
        });
        Self {
            address,
            listener,
            live,
            accept: Some(accept),
        }
    }

    /// Sends everything back, and ends when the other side ends.
    pub fn echo() -> Self {
        Self::start(echo)
    }

    /// The same at `address`.
    pub fn echo_at(address: SocketAddr) -> Self {
        Self::start_at(address, echo)
    }

    /// Speaks first, then sends everything back.
    pub fn banner(text: &'static str) -> Self {
        Self::banner_at(SocketAddr::from(([127, 0, 0, 1], 0)), text)
    }

    /// The same at `address`.
    pub fn banner_at(address: SocketAddr, text: &'static str) -> Self {
        Self::start_at(address, move |mut stream| {
            if stream.write_all(text.as_bytes()).is_ok() {
                echo(stream);
            }
        })
    }

    /// Sends each byte back before it reads the next one.
    pub fn echo_by_bytes() -> Self {
        Self::start(|mut stream| {
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                if stream.write_all(&byte).is_err() {
                    return;
                }
            }
        })
    }

    /// Sends without end to a visitor whose first byte is `D`; leaves any other one to `receive`.
    pub fn of_wishes(receive: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        Self::start(move |mut stream| {
            let mut wish = [0];
            if stream.read_exact(&mut wish).is_err() {
                return;
            }
            if wish == *b"D" {
                return flood(stream);
            }
            set_deadline(stream);
            receive(stream);
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // Wakes the accept call, which no close would.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        let _ = self.accept.take().unwrap().join();
        for stream in self.live.lock().unwrap().iter().filter_map(Weak::upgrade) {
            // Already gone is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Binds, waiting while the address is taken: a child that another test starts has copies of our
/// sockets for a moment, even of one that was closed here to free its port.
fn bind<T>(attempt: impl Fn() -> io::Result<T>) -> T {
    eventually("a free port", || match attempt() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        result => Some(result.unwrap()),
    })
}

/// Sends everything back until the other side ends or fails, then ends too.
pub fn echo(mut stream: &TcpStream) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A target that says `banner`, echoes, and counts the bytes that reach it.
pub fn counting_echo(banner: &'static [u8]) -> (TcpServer, Arc<AtomicU64>) {
    let reached = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&reached);
    let target = TcpServer::start(move |mut stream| {
        let mut buffer = [0; 1024];
        let _ = stream.write_all(banner);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            counter.fetch_add(u64::try_from(count).unwrap(), Ordering::SeqCst);
            if stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    });
    (target, reached)
}

/// Sends without end.
pub fn flood(mut stream: &TcpStream) {
    let chunk = vec![0; 64 * 1024];
    while stream.write(&chunk).is_ok() {}
}

/// Reads and forgets everything; returns how many bytes came before the end.
pub fn drain(mut stream: &TcpStream) -> io::Result<u64> {
    io::copy(&mut stream, &mut io::sink())
}

/// Makes the close of `stream` a reset.
pub fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A UDP target with one thread. Dropping it closes the port.
pub struct UdpServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Serves at `address`: `answer` gets each datagram and its sender.
    pub fn start_at(
        address: SocketAddr,
        answer: impl Fn(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
    ) -> Self {
        let socket = bind(|| UdpSocket::bind(address));
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let _ = SockRef::from(&socket).set_recv_buffer_size(4 << 20);
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut buffer = vec![0; 65536];
                while !stop.load(Ordering::SeqCst) {
                    if let Ok((count, sender)) = socket.recv_from(&mut buffer) {
                        answer(&socket, &buffer[..count], sender);
                    }
                }
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends each datagram back whole.
    pub fn echo() -> Self {
        Self::echo_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The same at `address`.
    pub fn echo_at(address: SocketAddr) -> Self {
        Self::start_at(address, |socket, datagram, sender| {
            let _ = socket.send_to(datagram, sender);
        })
    }

    /// Answers each datagram with `text` at a free port of 127.0.0.1.
    pub fn labelled(text: &'static str) -> Self {
        Self::labelled_at(SocketAddr::from(([127, 0, 0, 1], 0)), text)
    }

    /// The same at `address`.
    pub fn labelled_at(address: SocketAddr, text: &'static str) -> Self {
        Self::start_at(address, |socket, _, sender| {
            let _ = socket.send_to(text.as_bytes(), sender);
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

/// TCP and UDP echo at the same address, as a target that serves both.
pub fn echo_both() -> (TcpServer, UdpServer) {
    let address = super::free_address();
    (TcpServer::echo_at(address), UdpServer::echo_at(address))
}

/// A target that neither answers nor refuses: its listener has no room for another connection.
pub struct Unanswering {
    address: SocketAddr,
    _listener: Socket,
    _fillers: Vec<TcpStream>,
}

impl Unanswering {
    /// Starts at an address of its own.
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let local = SocketAddr::from((super::own_loopback(), 0));
        listener.bind(&local.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let filler = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
        Self {
            address,
            _listener: listener,
            _fillers: std::iter::from_fn(filler).collect(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Gives `stream` the deadline of the tests in both directions.
pub fn set_deadline(stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
}
