//! A man in the middle who lets only the v1 dialect through.
//!
//! In front of a server of ours he makes it look like one of the 1.x line to a client of ours:
//! both then speak v1 with each other. Whatever is no native handshake passes as it is, datagrams
//! included.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::DEADLINE;
use super::servers::{TcpServer, drain, reset_on_close};
use super::udp_proxy::{UdpProxy, Weather, bind_both};

/// How long a client may say nothing before its connection goes on to the server all the same: a
/// v1 pool connection without TLS waits for the server to speak.
const SILENCE: Duration = Duration::from_millis(20);

/// What a 1.x server says to a request without a token.
const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

const HEAD_SIZE_MAX: usize = 8 * 1024;
const THREAD_STACK_SIZE: usize = 128 * 1024;

/// The man in the middle. Dropping him cuts what passes through him.
pub struct Downgrade {
    front: TcpServer,
    _datagrams: UdpProxy,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Downgrade {
    /// Starts in front of `server`, at a free port of 127.0.0.1.
    pub fn start(server: SocketAddr) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (listener, socket) = bind_both();
        let front = TcpServer::start_on(listener, {
            let requests = Arc::clone(&requests);
            move |client| pass(client, server, &requests)
        });
        Self {
            front,
            _datagrams: UdpProxy::start(socket, server, Weather::FAIR),
            requests,
        }
    }

    /// Where clients are to go.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// The heads of the handshake requests so far, both those answered here and those passed on.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Serves one connection.
fn pass(client: &TcpStream, server: SocketAddr, requests: &Mutex<Vec<String>>) {
    // A silent client gets its connection before it is known what it wants.
    let silent = is_silent(client);
    let mut opening = Vec::new();
    if !silent {
        let Ok(bytes) = read_opening(client) else {
            return;
        };
        if refuse(client, &bytes, requests) {
            return;
        }
        opening = bytes;
    }
    let Ok(server) = TcpStream::connect(server) else {
        return;
    };
    server.set_nodelay(true).unwrap();
    for stream in [client, &server] {
        // Whoever no longer reads must not keep us for ever.
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    let pair = Pair {
        client,
        server: &server,
        is_cut: AtomicBool::new(false),
        open_count: AtomicUsize::new(2),
    };
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(THREAD_STACK_SIZE)
            .spawn_scoped(scope, || pair.carry(&server, client))
            .unwrap();
        if silent {
            // Even one that has never said a word can end with a reset.
            let Ok(bytes) = read_opening(client) else {
                return pair.cut();
            };
            if refuse(client, &bytes, requests) {
                let _ = server.shutdown(Shutdown::Both);
                return;
            }
            opening = bytes;
        }
        match (&server).write_all(&opening) {
            Ok(()) => pair.carry(client, &server),
            Err(_) => pair.cut(),
        }
    });
}

/// Whether the client says nothing for a while.
fn is_silent(client: &TcpStream) -> bool {
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let peeked = client.peek(&mut [0]);
    client.set_read_timeout(None).unwrap();
    // Interrupted, if this process was stopped meanwhile: whoever is taken for silent is still heard.
    let waited = |error: &Error| {
        matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
        )
    };
    peeked.is_err_and(|error| waited(&error))
}

/// The head of a request; of anything else, the bytes that come first. Empty at the end.
fn read_opening(mut client: &TcpStream) -> io::Result<Vec<u8>> {
    const START: &[u8] = b"GET / ";
    let mut opening = Vec::new();
    let mut buffer = [0; 4096];
    while opening.len() < HEAD_SIZE_MAX {
        match client.read(&mut buffer)? {
            0 => break,
            count => opening.extend_from_slice(&buffer[..count]),
        }
        let is_request = opening.iter().zip(START).all(|(got, want)| got == want);
        let has_head = opening.windows(4).any(|end| end == b"\r\n\r\n");
        if !is_request || has_head {
            break;
        }
    }
    Ok(opening)
}

/// Answers a native handshake as a 1.x server would; `false` for anything else.
fn refuse(mut client: &TcpStream, opening: &[u8], requests: &Mutex<Vec<String>>) -> bool {
    if !opening.starts_with(b"GET /") {
        return false;
    }
    let head = String::from_utf8_lossy(opening).into_owned();
    let lower_case = head.to_ascii_lowercase();
    let is_native = lower_case.contains("\r\nnodepass-version:");
    // A pool connection of WebSocket begins with a request as well.
    if !lower_case.contains("\r\nupgrade:") {
        requests.lock().unwrap().push(head);
    }
    if is_native && client.write_all(REFUSAL.as_bytes()).is_ok() {
        let _ = client.shutdown(Shutdown::Write);
        // The client may have to be waited for, so that the answer is not reset away.
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = drain(client);
    }
    is_native
}

/// Two connections that are one.
struct Pair<'a> {
    client: &'a TcpStream,
    server: &'a TcpStream,
    /// One of them broke: both will be reset.
    is_cut: AtomicBool,
    /// Directions that have not ended.
    open_count: AtomicUsize,
}

impl Pair<'_> {
    /// Copies one direction until its end, which it passes on as what it was.
    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from.read(&mut buffer) {
                Ok(0) if self.is_cut.load(Ordering::SeqCst) => return,
                Ok(0) => {
                    // Before the other side can see it: whoever sees both ends knows of both.
                    self.open_count.fetch_sub(1, Ordering::SeqCst);
                    // The other side may have gone already.
                    let _ = to.shutdown(Shutdown::Write);
                    return self.watch(from);
                }
                Ok(count) if to.write_all(&buffer[..count]).is_ok() => {}
                Ok(_) | Err(_) => return self.cut(),
            }
        }
    }

    /// Waits for the end of the other direction, or for a reset of the side that has ended this one.
    fn watch(&self, ended: &TcpStream) {
        let turn = Timespec::try_from(SILENCE).unwrap();
        while self.open_count.load(Ordering::SeqCst) > 0 && !self.is_cut.load(Ordering::SeqCst) {
            let mut set = [PollFd::new(ended, PollFlags::empty())];
            let hung_up = poll(&mut set, Some(&turn)).is_ok_and(|count| count > 0);
            if hung_up && self.open_count.load(Ordering::SeqCst) > 0 {
                return self.cut();
            }
        }
    }

    /// Has both connections end with a reset, and nothing before it: they are closed when both
    /// directions have been given up, for which only their reading ends here.
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in [self.client, self.server] {
            reset_on_close(stream);
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}
