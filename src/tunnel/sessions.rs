//! The live sessions of an instance: who gets the next visitor.
//!
//! Visitors go round over the sessions that have an idle pool connection. One who finds none
//! waits here, and is woken when there may be one.
//!
//! Lock order: this list, then a session's pool.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::session::Session;
use super::uplink::{UdpWay, Uplink};
use crate::limits::{MUX_STACK_SIZE_MIN, SESSIONS_MAX, VISITOR_LOOK_INTERVAL};
use crate::net::race::Watch;
use crate::pool::Carrier;
use crate::runtime::event::Bell;
use crate::runtime::threads::{Crew, lock};
use crate::wire::signal::{PoolId, Signal};

/// The live sessions of an instance.
pub struct Sessions {
    state: Mutex<State>,
    /// There may be an idle pool connection.
    arrival: Condvar,
    /// Visitors who wait for one.
    waiting: AtomicUsize,
    /// The threads that read control channels.
    pub(super) readers: Crew,
    /// The threads of connections that carry many pool connections.
    pub(super) muxes: Crew,
}

#[derive(Default)]
struct State {
    live: Vec<Arc<Session>>,
    /// Where the next visitor begins to look.
    next_index: usize,
    /// Of threads that wait for an idle pool connection beside other things.
    bells: Vec<Arc<Bell>>,
    is_closed: bool,
}

/// A pool connection for a visitor, whom the other end has been told of.
pub struct Taken {
    /// The session that it belongs to.
    pub session: Arc<Session>,
    /// The connection.
    pub carrier: Carrier,
}

/// An idle pool connection and what it belongs to.
type Next = (Arc<Session>, PoolId, Carrier);

/// Why a visitor got no pool connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// No peer is there.
    NoSession,
    /// None became idle in time.
    NoneIdle(Duration),
    /// The program stops.
    Stopping,
    /// The visitor has left.
    Left,
}

impl Sessions {
    /// Makes an empty list.
    pub fn new(stack_size: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            arrival: Condvar::new(),
            waiting: AtomicUsize::new(0),
            readers: Crew::new("ctl-read", stack_size, SESSIONS_MAX),
            muxes: Crew::new("mux", stack_size.max(MUX_STACK_SIZE_MIN), SESSIONS_MAX),
        })
    }

    /// Adds a session; `false` when there are as many as may be.
    pub fn add(&self, session: Arc<Session>) -> bool {
        let mut state = lock(&self.state);
        let has_room = !state.is_closed && state.live.len() < SESSIONS_MAX;
        if has_room {
            state.live.push(session);
        }
        has_room
    }

    /// Removes a session that is over.
    pub fn remove(&self, session: &Session) {
        let mut state = lock(&self.state);
        state.live.retain(|other| !std::ptr::eq(&**other, session));
    }

    /// Returns the live sessions.
    pub fn list(&self) -> Vec<Arc<Session>> {
        lock(&self.state).live.clone()
    }

    /// Wakes whoever waits for a pool connection: one of them may be idle now.
    pub fn notify(&self) {
        let mut state = lock(&self.state);
        let bells = std::mem::take(&mut state.bells);
        drop(state);
        // One thread for one connection; a bell asks for as many as it needs.
        self.arrival.notify_one();
        for bell in bells {
            bell.ring();
        }
    }

    /// Ends all waiting for good.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.arrival.notify_all();
    }

    /// Returns how many visitors wait for a pool connection.
    pub fn waiting_count(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns how many pool connections are idle.
    pub fn idle_count(&self) -> usize {
        self.list().iter().map(|session| session.idle_count()).sum()
    }

    /// Returns the longest of the round trips to the peers.
    pub fn round_trip(&self) -> Duration {
        let times = self.list().into_iter().map(|session| session.round_trip());
        times.max().unwrap_or_default()
    }

    /// Takes a pool connection for a TCP visitor, as long as he is wanted.
    ///
    /// Blocks: while there is none, at most for `timeout`.
    pub fn take(
        &self,
        visitor: SocketAddr,
        timeout: Duration,
        watch: Watch<'_>,
    ) -> Result<Taken, NotTaken> {
        let wait = Wait {
            timeout,
            deadline: Instant::now() + timeout,
            watch,
        };
        loop {
            let (session, id, carrier) = self.wait_for_next(&wait)?;
            let signal = Signal::Tcp {
                remote: Some(visitor),
                id,
            };
            if announce(&session, &signal) {
                return Ok(Taken { session, carrier });
            }
            if wait.left().is_zero() {
                return Err(NotTaken::NoneIdle(timeout));
            }
        }
    }

    fn wait_for_next(&self, wait: &Wait<'_>) -> Result<Next, NotTaken> {
        let mut state = lock(&self.state);
        if let Some(taken) = state.take_next() {
            return Ok(taken);
        }
        let live = state.live.clone();
        drop(state);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A client makes more connections for those who wait.
        for session in live {
            session.refill();
        }
        let result = self.wait_in_line(wait);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        // The call that woke this one may have been for more than one connection, or for nobody.
        self.arrival.notify_one();
        result
    }

    fn wait_in_line(&self, wait: &Wait<'_>) -> Result<Next, NotTaken> {
        let mut state = lock(&self.state);
        loop {
            if !wait.watch.is_wanted() {
                return Err(NotTaken::Left);
            }
            if let Some(taken) = state.take_next() {
                return Ok(taken);
            }
            if state.is_closed {
                return Err(NotTaken::Stopping);
            }
            let left = wait.left();
            if left.is_zero() {
                let is_alone = state.live.is_empty();
                return Err(if is_alone {
                    NotTaken::NoSession
                } else {
                    NotTaken::NoneIdle(wait.timeout)
                });
            }
            // Nobody tells of a visitor who leaves while he waits.
            let pause = left.min(VISITOR_LOOK_INTERVAL);
            let waited = self.arrival.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes an idle connection.
    ///
    /// Errors: there is none; `bell` is rung when there may be one, and these sessions could make
    /// one.
    fn take_next_or_register(&self, bell: &Arc<Bell>) -> Result<Next, Vec<Arc<Session>>> {
        let mut state = lock(&self.state);
        if let Some(taken) = state.take_next() {
            return Ok(taken);
        }
        if !state.bells.iter().any(|other| Arc::ptr_eq(other, bell)) {
            state.bells.push(Arc::clone(bell));
        }
        Err(state.live.clone())
    }
}

/// How long a visitor waits for a pool connection.
struct Wait<'a> {
    timeout: Duration,
    deadline: Instant,
    /// Tells when he is not wanted any more.
    watch: Watch<'a>,
}

impl Wait<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Tells the other end of a visitor, and has his pool connection replaced.
///
/// Whoever cannot be told loses the connection, and the visitor gets another one: false.
fn announce(session: &Arc<Session>, signal: &Signal) -> bool {
    let is_told = session.send(signal).is_ok() && !session.is_over();
    if is_told {
        session.refill();
    }
    is_told
}

impl State {
    /// Takes an idle connection of the session whose turn it is, or of the next that has one.
    fn take_next(&mut self) -> Option<Next> {
        for _ in 0..self.live.len() {
            let index = self.next_index % self.live.len();
            self.next_index = index + 1;
            let session = &self.live[index];
            if let Some((id, carrier)) = session.take_next() {
                return Some((Arc::clone(session), id, carrier));
            }
        }
        None
    }
}

impl Uplink for Sessions {
    fn take_udp(&self, visitor: SocketAddr, bell: &Arc<Bell>) -> Option<UdpWay> {
        loop {
            let (session, id, carrier) = match self.take_next_or_register(bell) {
                Ok(taken) => taken,
                Err(live) => {
                    for session in live {
                        session.refill();
                    }
                    return None;
                }
            };
            let Ok(stream) = carrier.into_stream() else {
                // Without a descriptor for it the visitor has to come again.
                return None;
            };
            let signal = Signal::Udp {
                remote: Some(visitor),
                id,
            };
            if announce(&session, &signal) {
                return Some(UdpWay {
                    stream,
                    framing: session.framing(),
                    over: session.over(),
                });
            }
        }
    }
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSession => f.write_str("the other end of the tunnel is not connected"),
            Self::NoneIdle(time) => write!(
                f,
                "no pool connection became free within {:.1} s",
                time.as_secs_f64()
            ),
            Self::Stopping => f.write_str("the program is stopping"),
            Self::Left => f.write_str("the visitor has left"),
        }
    }
}
