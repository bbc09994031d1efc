//! One client: TLS, his requests one after another, and what he is told when one is no good.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::Around;
use super::places::{Place, Service};
use crate::limits::{
    API_BODY_SIZE_MAX, API_HANDSHAKE_TIMEOUT, API_HEAD_SIZE_MAX, API_IDLE_TIMEOUT,
    API_LINGER_SIZE_MAX, API_LINGER_TIMEOUT, API_READ_SIZE, API_REQUEST_TIMEOUT,
    API_SEND_BUFFER_SIZE, API_STALL_LOOK_INTERVAL, API_STALL_TIMEOUT,
};
use crate::master::api::headers::CORS_FIELDS;
use crate::net::cover::{ServerCover, Wants};
use crate::net::patient::Patience;
use crate::net::stream::{BoxedStream, PlainStream, Stream, is_passing};
use crate::runtime::event::timespec;
use crate::wire::http1::chunks::Chunks;
use crate::wire::http1::reason;
use crate::wire::http1::request::{
    BAD_CHUNKS, BODY_TOO_LARGE, BodyLength, CUT_SHORT, Refusal, RequestHead, TOO_SLOW,
};

/// All places are taken.
const NO_ROOM: Refusal = Refusal {
    status: 503,
    why: "Too many connections",
};

/// The client does not speak TLS.
const NOT_TLS: Refusal = Refusal {
    status: 400,
    why: "This API speaks TLS: use https",
};

/// Bytes at the start of a head that are looked at as they come: what is no HTTP is seen at once.
const OPENING_SIZE: usize = 64;

/// A client who can be read from and written to.
pub(super) struct Connection<'a> {
    pub(super) around: &'a Around,
    pub(super) place: &'a Place,
    pub(super) stream: BoxedStream,
    /// What has been read and not been used.
    input: Vec<u8>,
}

/// A request that has come as a whole.
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) body: Vec<u8>,
}

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client is told why.
    Refused(Refusal),
    /// With the last answer, or because nothing more is wanted.
    Well,
    /// At once: the client is gone, or he is sent away.
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Connection<'_> {
    /// Serves a client until he or the place is gone; the body of a thread `client`.
    pub(super) fn serve(around: &Around, place: &Place, socket: OwnedFd, address: SocketAddr) {
        // Where it is refused, more hides in the kernel, and nothing else changes.
        let _ = SockRef::from(&socket).set_send_buffer_size(API_SEND_BUFFER_SIZE);
        let (stream, refusal) = match arrive(&around.cover, place, socket) {
            Ok(arrived) => arrived,
            Err(error) => return log::debug!("API client {address} did not arrive: {error}"),
        };
        let mut connection = Connection {
            around,
            place,
            stream,
            input: Vec::new(),
        };
        let end = match refusal {
            Some(refusal) => refusal.into(),
            None => connection.answer_all(),
        };
        // He may be sent away while his last words are waited for.
        place.end_answer();
        let answered = match &end {
            End::Refused(refusal) => {
                log::debug!("API client {address} refused: {}", refusal.why);
                connection.send(&error_answer(*refusal))
            }
            End::Well => Ok(()),
            End::Broken(error) => {
                return log::debug!("Connection of API client {address} ended: {error}");
            }
        };
        if answered.is_ok() {
            connection.linger();
        }
    }

    /// Answers requests, until there are no more.
    fn answer_all(&mut self) -> End {
        loop {
            let request = match self.receive() {
                Ok(Some(request)) => request,
                Ok(None) => return End::Well,
                Err(end) => return end,
            };
            if !self.place.begin_answer() {
                return io::Error::from(io::ErrorKind::Interrupted).into();
            }
            let stays_open = match self.relay(&request) {
                Ok(stays_open) => stays_open,
                Err(end) => return end,
            };
            if !self.place.end_answer() || !stays_open {
                return End::Well;
            }
        }
    }

    /// Reads a request; `None` when the client sends no more of them.
    ///
    /// Blocks: until it is complete, within the time that there is for it.
    fn receive(&mut self) -> Result<Option<Request>, End> {
        if self.input.is_empty() {
            self.input = Vec::new();
            self.stream.rest();
            match self.read_more(self.patience(API_IDLE_TIMEOUT)) {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let patience = self.patience(API_REQUEST_TIMEOUT);
        let head = self.receive_head(patience)?;
        if head.expects_continue && self.input.is_empty() {
            patience.write_all(&mut *self.stream, b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = match head.body {
            BodyLength::Nothing => Vec::new(),
            BodyLength::Exactly(size) => self.receive_bytes(size, patience)?,
            BodyLength::Chunked => self.receive_chunks(patience)?,
        };
        Ok(Some(Request { head, body }))
    }

    fn receive_head(&mut self, patience: Patience<'_>) -> Result<RequestHead, End> {
        let mut parsed_size = 0;
        loop {
            // A head ends with a line; to parse it at each byte would cost too much.
            let size = self.input.len();
            let has_line = self.input[parsed_size..].contains(&b'\n');
            if has_line || parsed_size < OPENING_SIZE || size >= API_HEAD_SIZE_MAX {
                parsed_size = size;
                if let Some((head, size)) = RequestHead::parse(&self.input)? {
                    self.input.drain(..size);
                    return Ok(head);
                }
            }
            self.read_rest(patience)?;
        }
    }

    fn receive_bytes(&mut self, size: usize, patience: Patience<'_>) -> Result<Vec<u8>, End> {
        while self.input.len() < size {
            self.read_rest(patience)?;
        }
        let rest = self.input.split_off(size);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    fn receive_chunks(&mut self, patience: Patience<'_>) -> Result<Vec<u8>, End> {
        let mut chunks = Chunks::default();
        let mut body = Vec::new();
        loop {
            let mut used = 0;
            while used < self.input.len() && !chunks.is_over() {
                let decoded = chunks.decode(&self.input[used..]);
                let (size, data) = decoded.map_err(|_| BAD_CHUNKS)?;
                body.extend_from_slice(data);
                used += size;
                let left = usize::try_from(chunks.left()).unwrap_or(usize::MAX);
                if body.len().saturating_add(left) > API_BODY_SIZE_MAX {
                    return Err(BODY_TOO_LARGE.into());
                }
            }
            self.input.drain(..used);
            if chunks.is_over() {
                return Ok(body);
            }
            self.read_rest(patience)?;
        }
    }

    /// Reads more of a request that has begun.
    fn read_rest(&mut self, patience: Patience<'_>) -> Result<(), End> {
        match self.read_more(patience) {
            Ok(0) => Err(CUT_SHORT.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(TOO_SLOW.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn read_more(&mut self, patience: Patience<'_>) -> io::Result<usize> {
        let mut buffer = [0; API_READ_SIZE];
        let size = patience.read(&mut *self.stream, &mut buffer)?;
        self.input.extend_from_slice(&buffer[..size]);
        Ok(size)
    }

    fn patience<'p>(&self, timeout: Duration) -> Patience<'p>
    where
        Self: 'p,
    {
        Patience::new(timeout, &self.place.stop)
    }

    /// Sends `bytes` to the client.
    ///
    /// Blocks: until they have left this process, at most `API_STALL_TIMEOUT` beyond the last ones
    /// that he took. While he takes nothing, his place can be given to somebody else.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        let mut deadline = None;
        loop {
            let sent = match left {
                [] => self.stream.flush().map(|()| 0),
                _ => self.stream.write(left),
            };
            match sent {
                Ok(_) if left.is_empty() => break,
                Ok(size) => {
                    left = &left[size..];
                    if deadline.take().is_some() {
                        self.place.set_blocked(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let until = *deadline.get_or_insert_with(|| {
                        self.place.set_blocked(true);
                        Instant::now() + API_STALL_TIMEOUT
                    });
                    self.wait_for_room(until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if deadline.is_some() {
            self.place.set_blocked(false);
        }
        Ok(())
    }

    /// Waits until the client may take more, or for one look at it.
    fn wait_for_room(&self, until: Instant) -> io::Result<()> {
        let now = Instant::now();
        if now >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let look_at = until.min(now + API_STALL_LOOK_INTERVAL);
        let descriptor = self.stream.descriptor();
        wait_for(descriptor, PollFlags::OUT, self.place, look_at)
    }

    /// Ends the connection such that the client reads all that was sent to him.
    ///
    /// Blocks: until he has ended as well, at most `API_LINGER_TIMEOUT`.
    fn linger(&mut self) {
        let patience = self.patience(API_LINGER_TIMEOUT);
        while let Err(error) = self.stream.finish() {
            let is_unsent = error.kind() == io::ErrorKind::WouldBlock;
            if !is_unsent || patience.write_all(&mut *self.stream, &[]).is_err() {
                return;
            }
        }
        let mut read_size = 0;
        let mut buffer = [0; API_READ_SIZE];
        while read_size < API_LINGER_SIZE_MAX {
            match patience.read(&mut *self.stream, &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(size) => read_size += size,
            }
        }
    }
}

/// Covers a connection; returns with it why none of its requests is read, if so.
///
/// Blocks: until the handshake is done, at most `API_HANDSHAKE_TIMEOUT`.
fn arrive(
    cover: &ServerCover,
    place: &Place,
    socket: OwnedFd,
) -> io::Result<(BoxedStream, Option<Refusal>)> {
    let deadline = Instant::now() + API_HANDSHAKE_TIMEOUT;
    let refusal = (place.service == Service::TurnedAway).then_some(NO_ROOM);
    let plain = PlainStream::new(socket);
    if cover.is_tls() && speaks_plainly(&plain, place, deadline)? {
        return Ok((Box::new(plain), Some(refusal.unwrap_or(NOT_TLS))));
    }
    let mut arriving = cover.put_on(plain).map_err(io::Error::other)?;
    loop {
        let wants = arriving.advance().map_err(io::Error::other)?;
        let Wants::Ready { read, write } = wants else {
            return Ok((arriving.into_stream(), refusal));
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read);
        flags.set(PollFlags::OUT, write);
        wait_for(arriving.descriptor(), flags, place, deadline)?;
    }
}

/// Returns whether the first byte of a client is that of a request, where TLS begins otherwise.
fn speaks_plainly(client: &PlainStream, place: &Place, deadline: Instant) -> io::Result<bool> {
    let mut first = [0];
    loop {
        match client.socket().peek(&mut first) {
            Ok(size) => return Ok(size > 0 && first[0].is_ascii_uppercase()),
            Err(error) if !is_passing(&error) => return Err(error),
            Err(_) => wait_for(client.descriptor(), PollFlags::IN, place, deadline)?,
        }
    }
}

/// Waits until a descriptor is ready.
///
/// Errors: `TimedOut`; `Interrupted` when the client is sent away.
fn wait_for(
    descriptor: BorrowedFd<'_>,
    flags: PollFlags,
    place: &Place,
    deadline: Instant,
) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut set = [
        PollFd::from_borrowed_fd(descriptor, flags),
        PollFd::new(&*place.stop, PollFlags::IN),
    ];
    // An interrupted poll is followed by another try.
    let _ = rustix::event::poll(&mut set, Some(&timespec(left)));
    if place.stop.is_raised() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(())
}

/// Returns what a client is told whose request is not let through; the connection ends with it.
fn error_answer(refusal: Refusal) -> Vec<u8> {
    let Refusal { status, why } = refusal;
    let body = format!("{}\n", serde_json::json!({ "error": why }));
    let mut answer = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in CORS_FIELDS {
        answer.extend([name, ": ", value, "\r\n"]);
    }
    answer += "Content-Type: application/json\r\n";
    answer += &format!("Content-Length: {}\r\n", body.len());
    answer += "Connection: close\r\n\r\n";
    answer += &body;
    answer.into_bytes()
}
