//! Pool connections as streams of HTTP/2: the client's side.
//!
//! One connection carries them all. Another one is made when it takes no more: the server has
//! sent GOAWAY, the numbers of its streams have run out, or it carries as many as the server
//! allows. The streams that are on it stay there.
//!
//! Source: wire protocol, sections 4 and 8.

use std::io;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::tcp::{OpenError, TcpConnector};
use super::{Carrier, PoolConnection};
use crate::limits::{MUX_ANSWER_LOOK_INTERVAL, MUX_BUSY_PAUSE, MUX_LINES_LOST_MAX, MUX_LINES_MAX};
use crate::net::mux::http2::Http2;
use crate::net::mux::{Mux, MuxHandle, MuxStream, NotOpened};
use crate::runtime::event::Event;
use crate::runtime::threads::lock;
use crate::wire::alpn::H2;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::signal::PoolId;

/// Starts the thread of a connection.
pub type Launch = Box<dyn Fn(Mux<Http2>) -> io::Result<()> + Send + Sync>;

/// Makes the pool connections of one session.
pub struct Http2Connector {
    /// Makes what is below, and has the tickets; its cover is TLS, with the protocol `h2`.
    pub tcp: TcpConnector,
    /// What the server is called in requests.
    pub authority: String,
    /// Starts the thread of a connection.
    pub launch: Launch,
    /// The connections that there are.
    pub lines: Mutex<Lines>,
}

/// The connections of one session.
#[derive(Default)]
pub struct Lines {
    list: Vec<Line>,
    /// What ends them.
    over: Option<Arc<Event>>,
}

#[derive(Clone)]
struct Line {
    handle: MuxHandle,
    fingerprint: Option<Fingerprint>,
}

impl Http2Connector {
    /// Makes a pool connection.
    ///
    /// Blocks: for the handshake timeout; where a connection is to be made, for the dial timeout
    /// and another handshake timeout; hardly longer than until `stop`.
    /// Errors: what [`OpenError`] lists.
    pub fn open(&self, stop: &Event) -> Result<(PoolId, PoolConnection), OpenError> {
        let (mut full_count, mut lost_count) = (0, 0);
        loop {
            let line = self.line(full_count, stop)?;
            match self.ask(&line, stop)? {
                Ok((id, stream)) => {
                    let carrier = Carrier::Muxed(stream);
                    return Ok((id, PoolConnection::new(carrier, line.fingerprint)));
                }
                // The next one may have room.
                Err(NotOpened::Full) => full_count += 1,
                Err(NotOpened::Over) if lost_count < MUX_LINES_LOST_MAX => {
                    lost_count += 1;
                    self.retire(&line);
                }
                Err(NotOpened::Refused) => {
                    return Err(OpenError::NoId(io::ErrorKind::UnexpectedEof.into()));
                }
                Err(NotOpened::Over) => {
                    return Err(OpenError::NoId(io::ErrorKind::ConnectionAborted.into()));
                }
                Err(NotOpened::Busy) => {
                    return Err(OpenError::NoId(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    /// Asks for a stream of one connection.
    ///
    /// Errors: no answer came in time.
    fn ask(
        &self,
        line: &Line,
        stop: &Event,
    ) -> Result<Result<(PoolId, MuxStream), NotOpened>, OpenError> {
        let deadline = Instant::now() + self.tcp.handshake_timeout;
        let mut answered = line.handle.open(self.tcp.ticket());
        loop {
            let is_late = stop.is_raised() || Instant::now() >= deadline;
            match answered.recv_timeout(MUX_ANSWER_LOOK_INTERVAL) {
                // What waits to be sent leaves soon.
                Ok(Err(NotOpened::Busy)) if !is_late => {
                    stop.wait(MUX_BUSY_PAUSE);
                    answered = line.handle.open(self.tcp.ticket());
                }
                Ok(opened) => return Ok(opened),
                Err(RecvTimeoutError::Disconnected) => return Ok(Err(NotOpened::Over)),
                Err(RecvTimeoutError::Timeout) if is_late => {
                    return Err(OpenError::NoId(io::ErrorKind::TimedOut.into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Lets all connections end when `over` is raised.
    pub fn end_with(&self, over: &Arc<Event>) {
        let mut lines = lock(&self.lines);
        for line in &lines.list {
            line.handle.end_with(Arc::clone(over));
        }
        lines.over = Some(Arc::clone(over));
    }

    /// Returns the connection behind the first `skipped_count`, or makes it.
    ///
    /// While one thread makes it, the others wait for it.
    fn line(&self, skipped_count: usize, stop: &Event) -> Result<Line, OpenError> {
        let mut lines = lock(&self.lines);
        lines.list.retain(|line| !line.handle.is_over());
        if let Some(line) = lines.list.get(skipped_count) {
            return Ok(line.clone());
        }
        if lines.list.len() >= MUX_LINES_MAX {
            return Err(OpenError::NoId(io::ErrorKind::UnexpectedEof.into()));
        }
        let line = self.connect(stop)?;
        if let Some(over) = &lines.over {
            line.handle.end_with(Arc::clone(over));
        }
        lines.list.push(line.clone());
        Ok(line)
    }

    /// Opens nothing more on a connection, which ends when its last stream has.
    fn retire(&self, line: &Line) {
        line.handle.retire();
        lock(&self.lines)
            .list
            .retain(|other| !other.handle.is_same(&line.handle));
    }

    fn connect(&self, stop: &Event) -> Result<Line, OpenError> {
        let tcp = &self.tcp;
        let socket = tcp.dial(stop)?;
        let covered = tcp.cover.put_on_tls(socket, tcp.patience(stop));
        let (tls, fingerprint) = covered.map_err(OpenError::Cover)?;
        OpenError::require_pinned(tcp.pinned, fingerprint)?;
        if tls.protocol() != Some(H2) {
            return Err(OpenError::NotHttp2);
        }
        let transport = Http2::client(tls, self.authority.clone());
        // Whoever starts a session says what ends it; else the connection ends with this time.
        let expected_until = Instant::now() + 2 * self.tcp.handshake_timeout;
        let mux = Mux::new(transport, None, expected_until).map_err(OpenError::Connect)?;
        let handle = mux.handle();
        (self.launch)(mux).map_err(OpenError::Connect)?;
        Ok(Line {
            handle,
            fingerprint,
        })
    }
}

impl Drop for Http2Connector {
    fn drop(&mut self) {
        for line in &lock(&self.lines).list {
            line.handle.retire();
        }
    }
}
