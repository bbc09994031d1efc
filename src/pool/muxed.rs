//! Pool connections as streams of one connection: the client's side.
//!
//! One connection carries them all. Another one is made when it takes no more: the server has
//! sent GOAWAY, the numbers of its streams have run out, or it carries as many as the server
//! allows. The streams that are on it stay there.
//!
//! Source: wire protocol, sections 4 and 8.

use std::io;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tcp::OpenError;
use super::{Carrier, PoolConnection};
use crate::limits::{MUX_ANSWER_LOOK_INTERVAL, MUX_BUSY_PAUSE, MUX_LINES_LOST_MAX, MUX_LINES_MAX};
use crate::net::mux::{Mux, MuxHandle, MuxStream, NotOpened, Transport};
use crate::runtime::event::Event;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::signal::PoolId;
use crate::wire::ticket::Ticket;

/// Starts the thread of a connection.
pub type Launch<T> = Box<dyn Fn(Mux<T>) -> io::Result<()> + Send + Sync>;

/// Makes the connections that carry pool connections.
pub trait Trunk {
    /// What such a connection is.
    type Transport: Transport;

    /// Makes a connection; returns with it the certificate of the server.
    ///
    /// Blocks: for the dial timeout and the handshake timeout, hardly longer than until `stop`.
    fn connect(&self, stop: &Event) -> Result<(Self::Transport, Option<Fingerprint>), OpenError>;

    /// Returns the ticket of the next pool connection, if it has one.
    fn ticket(&self) -> Option<Ticket>;

    /// Returns how long a step of a handshake may take.
    fn handshake_timeout(&self) -> Duration;

    /// Returns how many connections the server takes of one session.
    fn lines_max(&self) -> usize {
        MUX_LINES_MAX
    }
}

/// Makes the pool connections of one session.
pub struct MuxedConnector<K: Trunk> {
    /// Makes the connections below.
    pub trunk: K,
    launch: Launch<K::Transport>,
    /// The connections that there are.
    lines: Mutex<Lines>,
}

/// The connections of one session.
#[derive(Default)]
struct Lines {
    list: Vec<Line>,
    /// What ends them.
    over: Option<Arc<Event>>,
}

#[derive(Clone)]
struct Line {
    handle: MuxHandle,
    fingerprint: Option<Fingerprint>,
}

impl<K: Trunk> MuxedConnector<K> {
    /// Makes pool connections on what `trunk` makes; `launch` starts the threads of that.
    pub fn new(trunk: K, launch: Launch<K::Transport>) -> Self {
        Self {
            trunk,
            launch,
            lines: Mutex::default(),
        }
    }

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
        let deadline = Instant::now() + self.trunk.handshake_timeout();
        let mut answered = line.handle.open(self.trunk.ticket());
        loop {
            let is_late = stop.is_raised() || Instant::now() >= deadline;
            match answered.recv_timeout(MUX_ANSWER_LOOK_INTERVAL) {
                // What waits to be sent leaves soon.
                Ok(Err(NotOpened::Busy)) if !is_late => {
                    stop.wait(MUX_BUSY_PAUSE);
                    answered = line.handle.open(self.trunk.ticket());
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
        if lines.list.len() >= self.trunk.lines_max() {
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
        let (transport, fingerprint) = self.trunk.connect(stop)?;
        // Whoever starts a session says what ends it; else the connection ends with this time.
        let expected_until = Instant::now() + 2 * self.trunk.handshake_timeout();
        let mux = Mux::new(transport, None, expected_until).map_err(OpenError::Connect)?;
        let handle = mux.handle();
        (self.launch)(mux).map_err(OpenError::Connect)?;
        Ok(Line {
            handle,
            fingerprint,
        })
    }
}

impl<K: Trunk> Drop for MuxedConnector<K> {
    fn drop(&mut self) {
        for line in &lock(&self.lines).list {
            line.handle.retire();
        }
    }
}
