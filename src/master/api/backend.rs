//! The server behind the front: tiny_http, on a Unix socket that only this process can reach.
//!
//! Whoever answers a request can learn that its client has left: tiny_http does not tell, so the
//! front does.
//!
//! tiny_http reads only what the front has checked, one request for each connection. Its thread
//! that accepts ends for good when the system refuses it a descriptor; so it is given a request
//! only while some are free, and begins anew should it end all the same.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::Level;
use rustix::fs::{Mode, OFlags};
use tiny_http::{Request, Server};

use crate::limits::{ACCEPT_PAUSE, API_DESCRIPTORS_SPARE};
use crate::runtime::descriptors::check_spare;
use crate::runtime::log::Repeated;
use crate::runtime::random::random_bytes;
use crate::runtime::threads::lock;
use crate::wire::http1::request::CALL_FIELD;

/// The server behind the front.
#[derive(Clone)]
pub struct Backend {
    shared: Arc<Shared>,
}

struct Shared {
    /// Where the socket may be, the best first.
    folders: Vec<PathBuf>,
    /// The server that runs, and the way to it.
    present: Mutex<Arc<Running>>,
    /// One connection is made at a time.
    turn: Mutex<()>,
    calls: Mutex<Calls>,
    closed: AtomicBool,
    stopped: Repeated,
}

/// Calls that have not been received yet.
#[derive(Default)]
struct Calls {
    /// The number of the last one.
    last: u64,
    /// By their numbers, what tells that the client has left.
    departures: HashMap<u64, Receiver<Infallible>>,
}

/// A connection to the server for one request; while it is there, so is its client.
pub struct Call {
    /// The bytes.
    pub stream: UnixStream,
    /// What the head of the request has to tell in `CALL_FIELD`.
    pub number: u64,
    backend: Backend,
    _presence: Sender<Infallible>,
}

/// A request that has passed the front.
pub struct Received {
    /// The request.
    pub request: Request,
    /// Disconnected when the client has left.
    pub departure: Receiver<Infallible>,
}

struct Running {
    server: Server,
    door: Door,
}

/// The way to a listening Unix socket.
enum Door {
    /// By a descriptor of its file, which is not there any more: nobody else finds it, and nothing
    /// is left behind whatever becomes of this process.
    Descriptor(OwnedFd),
    /// By the file, where the system has no `/proc`.
    File(Folder),
}

/// A folder for one socket that only this user may enter; removed with what is inside.
struct Folder {
    path: PathBuf,
}

impl Backend {
    /// Starts the server; its socket is made in the first of `folders` that takes it.
    ///
    /// Errors: none of them does, or the system is short of descriptors.
    pub fn start(folders: Vec<PathBuf>) -> io::Result<Self> {
        let running = Running::start(&folders)?;
        Ok(Self {
            shared: Arc::new(Shared {
                folders,
                present: Mutex::new(Arc::new(running)),
                turn: Mutex::new(()),
                calls: Mutex::default(),
                closed: AtomicBool::new(false),
                stopped: Repeated::new(Level::Error, "stops of the API server"),
            }),
        })
    }

    /// Returns the next request; `None` after [`Backend::close`]. For one thread.
    ///
    /// Blocks: until there is one.
    pub fn receive(&self) -> Option<Received> {
        loop {
            let present = self.present();
            // Who closes wakes the server that is present then, which may be another one.
            if self.is_closed() {
                return None;
            }
            match present.server.recv() {
                _ if self.is_closed() => return None,
                Ok(request) => {
                    let departure = self.take_departure(&request);
                    return Some(Received { request, departure });
                }
                Err(error) => self.start_again(&error),
            }
        }
    }

    /// Connects to the server, for one request.
    ///
    /// Errors: the system is short of descriptors, or the server is; a retry can help.
    pub fn call(&self) -> io::Result<Call> {
        let stream = self.connect()?;
        let (presence, departure) = bounded(0);
        let number = lock(&self.shared.calls).note(departure);
        Ok(Call {
            stream,
            number,
            backend: self.clone(),
            _presence: presence,
        })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let _turn = lock(&self.shared.turn);
        check_spare(API_DESCRIPTORS_SPARE)?;
        let present = self.present();
        let connected = present.door.connect();
        if let Err(error) = &connected
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            // Nobody listens any more: whoever receives is to begin anew.
            present.server.unblock();
        }
        connected
    }

    /// Returns what tells that the client of a request has left.
    fn take_departure(&self, request: &Request) -> Receiver<Infallible> {
        let mut fields = request.headers().iter();
        let field = fields.find(|field| field.field.equiv(CALL_FIELD));
        let number = field.and_then(|field| field.value.as_str().parse().ok());
        let departure =
            number.and_then(|number: u64| lock(&self.shared.calls).departures.remove(&number));
        // One who is not known any more has left.
        departure.unwrap_or_else(|| bounded(0).1)
    }

    /// Ends [`Backend::receive`].
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.present().server.unblock();
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn present(&self) -> Arc<Running> {
        Arc::clone(&lock(&self.shared.present))
    }

    /// Replaces a server that accepts nobody any more.
    fn start_again(&self, reason: &io::Error) {
        let stopped = &self.shared.stopped;
        match Running::start(&self.shared.folders) {
            Ok(running) => {
                stopped.log(format_args!("API server stopped: {reason}; started again"));
                *lock(&self.shared.present) = Arc::new(running);
            }
            Err(error) => {
                stopped.log(format_args!(
                    "API server stopped: {reason}; it cannot start again yet: {error}"
                ));
                std::thread::sleep(ACCEPT_PAUSE);
                // It has nothing left to say by itself.
                self.present().server.unblock();
            }
        }
    }
}

impl Calls {
    /// Gives a call its number.
    fn note(&mut self, departure: Receiver<Infallible>) -> u64 {
        self.last += 1;
        self.departures.insert(self.last, departure);
        self.last
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        lock(&self.backend.shared.calls)
            .departures
            .remove(&self.number);
    }
}

impl Running {
    fn start(folders: &[PathBuf]) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for folder in folders {
            match open_door(folder) {
                Ok((door, listener)) => {
                    let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
                    return Ok(Self { server, door });
                }
                Err(error) => {
                    let text = format!("cannot make a socket in {}: {error}", folder.display());
                    last = io::Error::new(error.kind(), text);
                }
            }
        }
        Err(last)
    }
}

/// Listens on a new socket below `folder`.
fn open_door(folder: &Path) -> io::Result<(Door, UnixListener)> {
    let (folder_made, listener) = Folder::listen(folder)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let descriptor = rustix::fs::open(folder_made.socket(), flags, Mode::empty())?;
    let door = Door::Descriptor(descriptor);
    drop(folder_made);
    if door.connect().is_ok() {
        listener.accept()?;
        return Ok((door, listener));
    }
    let (folder, listener) = Folder::listen(folder)?;
    Ok((Door::File(folder), listener))
}

impl Door {
    /// Blocks: while as many connections as may wait do so.
    fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Self::Descriptor(socket) => {
                UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
            }
            Self::File(folder) => UnixStream::connect(folder.socket()),
        }
    }
}

impl Folder {
    /// Makes a folder below `parent`, and a socket in it.
    fn listen(parent: &Path) -> io::Result<(Self, UnixListener)> {
        let random = u64::from_ne_bytes(random_bytes()?);
        let path = parent.join(format!("nodepass-{random:016x}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        let folder = Self { path };
        let listener = UnixListener::bind(folder.socket())?;
        Ok((folder, listener))
    }

    fn socket(&self) -> PathBuf {
        self.path.join("api")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whatever is left of it harms nobody.
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use crossbeam_channel::TryRecvError;
    use tiny_http::Response;

    use super::*;

    /// A folder that is removed with what is inside.
    fn folder() -> Folder {
        let random = u64::from_ne_bytes(random_bytes().unwrap());
        let path = std::env::temp_dir().join(format!("backend-{random:016x}"));
        std::fs::create_dir(&path).unwrap();
        Folder { path }
    }

    /// Has a request received.
    fn pass(backend: &Backend) -> (Call, Received) {
        let mut call = backend.call().unwrap();
        let number = call.number;
        let head =
            format!("GET /x HTTP/1.1\r\n{CALL_FIELD}: {number}\r\nConnection: close\r\n\r\n");
        call.stream.write_all(head.as_bytes()).unwrap();
        let received = backend.receive().unwrap();
        assert_eq!(received.request.url(), "/x");
        (call, received)
    }

    fn ask(backend: &Backend) -> String {
        let (mut call, received) = pass(backend);
        let response = Response::from_string("here");
        received.request.respond(response).unwrap();
        let mut answer = String::new();
        call.stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn nothing_of_the_socket_is_left_to_find() {
        let folder = folder();
        let missing = folder.path.join("missing");
        let backend = Backend::start(vec![missing, folder.path.clone()]).unwrap();
        assert_eq!(std::fs::read_dir(&folder.path).unwrap().count(), 0);
        assert!(ask(&backend).ends_with("\r\n\r\nhere"));
        backend.close();
        assert!(backend.receive().is_none());
    }

    #[test]
    fn without_proc_the_socket_stays_until_the_end() {
        let parent = folder();
        let (made, listener) = Folder::listen(&parent.path).unwrap();
        let mode = std::fs::metadata(&made.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let door = Door::File(made);
        door.connect().unwrap();
        listener.accept().unwrap();
        drop(door);
        assert_eq!(std::fs::read_dir(&parent.path).unwrap().count(), 0);
    }

    #[test]
    fn without_a_folder_the_error_names_it() {
        let error = Backend::start(vec!["/missing/folder".into()])
            .err()
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/missing/folder"));
    }

    #[test]
    fn a_server_that_ends_begins_anew() {
        let folder = folder();
        let backend = Backend::start(vec![folder.path.clone()]).unwrap();
        let before = backend.present();
        backend.start_again(&io::ErrorKind::Other.into());
        assert!(!Arc::ptr_eq(&before, &backend.present()));
        assert!(ask(&backend).ends_with("here"));
    }

    #[test]
    fn whoever_answers_learns_that_the_client_has_left() {
        let folder = folder();
        let backend = Backend::start(vec![folder.path.clone()]).unwrap();
        let (call, received) = pass(&backend);
        let other = backend.call().unwrap();
        assert_eq!(received.departure.try_recv(), Err(TryRecvError::Empty));
        drop(call);
        assert_eq!(
            received.departure.try_recv(),
            Err(TryRecvError::Disconnected)
        );
        assert_eq!(lock(&backend.shared.calls).departures.len(), 1);
        drop(other);
        assert_eq!(lock(&backend.shared.calls).departures.len(), 0);
    }
}
