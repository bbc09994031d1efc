//! Connections between the two ends that are ready before a visitor comes.
//!
//! | module | owns |
//! |---|---|
//! | [`shelf`] | the idle ones by id, and orders that wait for one; pure |
//! | [`pacing`] | how many, and how fast; pure |
//! | [`carrier`] | what one is carried by |
//! | [`connector`] | makes them, the client's side: [`tcp`], `web_socket`; `muxed` on `http2`, `quic` |
//!
//! A [`Pool`] is what both ends of a session have of it. The end that visitors come to takes
//! whichever is next, the other end the one that a signal names.

pub mod carrier;
pub mod connector;
#[cfg(feature = "http2")]
pub mod http2;
#[cfg(any(feature = "http2", feature = "quic"))]
pub mod muxed;
pub mod pacing;
#[cfg(feature = "quic")]
pub mod quic;
pub mod shelf;
pub mod tcp;
#[cfg(feature = "websocket")]
pub mod web_socket;

use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use self::carrier::{Carrier, refuse};
use self::shelf::{Claim, Put, Shelf};
use crate::limits::RETIREMENT;
use crate::net::stream::Condition;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::signal::PoolId;

/// One connection of a pool: open, its handshake done, its id known to both ends.
pub struct PoolConnection {
    /// The bytes.
    pub carrier: Carrier,
    /// Of the certificate that the server showed on it, at the client.
    pub fingerprint: Option<Fingerprint>,
    /// When its end was seen while it was idle.
    pub ended_at: Option<Instant>,
}

impl PoolConnection {
    /// Takes a connection that has just been made.
    pub fn new(carrier: Carrier, fingerprint: Option<Fingerprint>) -> Self {
        Self {
            carrier,
            fingerprint,
            ended_at: None,
        }
    }
}

/// The pool connections of one session, as one end sees them. `O` is what waits for one that a
/// signal has named before it was there.
pub struct Pool<O> {
    state: Mutex<State<O>>,
    /// Most idle connections.
    idle_max: usize,
}

struct State<O> {
    shelf: Shelf<PoolConnection, O>,
    /// How many of the idle ones had ended at the last look.
    ended_count: usize,
    /// When connections were last retired.
    retired_at: Option<Instant>,
    is_closed: bool,
}

impl<O> Pool<O> {
    /// Makes an empty pool for `idle_max` connections, in which `orders_max` orders may wait.
    pub fn new(idle_max: usize, orders_max: usize) -> Self {
        let shelf = Shelf::new(orders_max);
        Self {
            state: Mutex::new(State {
                shelf,
                ended_count: 0,
                retired_at: None,
                is_closed: false,
            }),
            idle_max,
        }
    }

    /// Puts a connection; one too many, or one to a closed pool, is refused.
    pub fn put(&self, id: PoolId, connection: PoolConnection) -> Put<PoolConnection, O> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Put::Refused(connection);
        }
        state.shelf.put(id, connection)
    }

    /// Returns whether another connection may become idle.
    pub fn has_room(&self) -> bool {
        let state = lock(&self.state);
        // A peer that has connections retired over and over must not fill this side with them.
        let is_crowded = state.shelf.total_count() >= self.idle_max.saturating_mul(2);
        let alive_count = state.shelf.idle_count().saturating_sub(state.ended_count);
        !state.is_closed && !is_crowded && alive_count < self.idle_max
    }

    /// Takes the idle connection that has been here longest and is still alive.
    ///
    /// Nothing is sent to this end on an idle connection, so one with something to read has ended
    /// or is not what it should be.
    pub fn take_next(&self) -> Option<(PoolId, PoolConnection)> {
        let mut over = Vec::new();
        let mut state = lock(&self.state);
        let taken = loop {
            let Some((id, mut connection)) = state.shelf.take_next() else {
                break None;
            };
            if connection.carrier.check() == Condition::Silent {
                break Some((id, connection));
            }
            over.push(connection);
        };
        drop(state);
        taken
    }

    /// Takes the connection called `id`.
    pub fn take_by_id(&self, id: PoolId) -> Option<PoolConnection> {
        lock(&self.state).shelf.take_by_id(id)
    }

    /// Takes the connection called `id` for `order`, or lets the order wait for it until
    /// `deadline`.
    pub fn claim(&self, id: PoolId, order: O, deadline: Instant) -> Claim<PoolConnection, O> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Claim::Refused(order);
        }
        state.shelf.claim(id, order, deadline)
    }

    /// From now on only orders get the connections that are idle now; after `RETIREMENT` nobody.
    pub fn retire(&self, now: Instant) {
        let mut state = lock(&self.state);
        state.shelf.retire();
        state.retired_at = Some(now);
    }

    /// Drops the oldest idle connections until `count` are left.
    pub fn trim(&self, count: usize) {
        let mut over = Vec::new();
        let mut state = lock(&self.state);
        while state.shelf.idle_count() > count {
            over.extend(state.shelf.take_next());
        }
        drop(state);
        drop(over);
    }

    /// Drops all idle connections; orders go on waiting.
    pub fn flush(&self) {
        let over = lock(&self.state).shelf.sweep(|_| true);
        // They are closed when nobody waits for the lock.
        drop(over);
    }

    /// Drops everything, and takes nothing from now on.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let everything = state.shelf.clear();
        drop(state);
        drop(everything);
    }

    /// Drops the connections that ended `grace` ago, and returns the orders that have waited too
    /// long.
    ///
    /// At the end that dials, the end of a connection may be that of a visitor who had nothing to
    /// say, and whose signal is on its way, as data to read are those of another one.
    pub fn tend(&self, now: Instant, grace: Duration) -> Vec<(PoolId, O)> {
        let mut state = lock(&self.state);
        let is_over = |connection: &mut PoolConnection| {
            if connection.carrier.check() != Condition::Ended {
                return false;
            }
            let ended_at = *connection.ended_at.get_or_insert(now);
            now >= ended_at + grace
        };
        let mut over = state.shelf.sweep(is_over);
        if state
            .retired_at
            .take_if(|at| *at + RETIREMENT <= now)
            .is_some()
        {
            over.extend(state.shelf.take_retired());
        }
        let has_ended = |connection: &PoolConnection| connection.ended_at.is_some();
        state.ended_count = state.shelf.count_idle(has_ended);
        let late = state.shelf.expire(now);
        drop(state);
        drop(over);
        late
    }

    /// Breaks the silence of idle connections where it has become too long for those in between.
    ///
    /// What that says is taken off by the other end when it tends its pool, or takes a connection.
    pub fn keep_alive(&self) {
        let mut state = lock(&self.state);
        state.shelf.sweep(|connection| {
            connection.carrier.keep_alive();
            false
        });
    }

    /// Returns how many connections are idle.
    pub fn idle_count(&self) -> usize {
        let state = lock(&self.state);
        state.shelf.idle_count().saturating_sub(state.ended_count)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;
    use crate::net::stream::tests::connected;

    #[test]
    fn a_visitor_who_has_ended_before_his_signal_comes_is_not_lost() {
        const GRACE: Duration = Duration::from_secs(5);
        let (stream, peer) = connected();
        let pool: Pool<()> = Pool::new(8, 8);
        let (id, now) = (PoolId([1; 4]), Instant::now());
        let connection = PoolConnection::new(Carrier::Stream(Box::new(stream)), None);
        assert!(matches!(pool.put(id, connection), Put::Shelved));
        assert_eq!(pool.idle_count(), 1);
        peer.socket().shutdown(Shutdown::Write).unwrap();
        assert!(pool.tend(now, GRACE).is_empty());
        assert_eq!(pool.idle_count(), 0, "it is no use for others");
        assert!(matches!(pool.claim(id, (), now), Claim::Ready(..)));
    }

    #[test]
    fn what_has_ended_is_dropped_in_the_end() {
        let (stream, peer) = connected();
        let pool: Pool<()> = Pool::new(8, 8);
        let (id, now) = (PoolId([1; 4]), Instant::now());
        let connection = PoolConnection::new(Carrier::Stream(Box::new(stream)), None);
        assert!(matches!(pool.put(id, connection), Put::Shelved));
        drop(peer);
        pool.tend(now, Duration::from_secs(5));
        pool.tend(now + Duration::from_secs(5), Duration::from_secs(5));
        assert!(pool.take_by_id(id).is_none());
    }
}
