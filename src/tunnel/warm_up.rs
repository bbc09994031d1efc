//! Fills the pool of a client's session: a bounded crew of threads, each making one connection at
//! a time, as many of them as the pacing asks for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::Level;

use super::session::Session;
use crate::limits::LOG_REPEAT_INTERVAL;
use crate::pool::connector::Connector;
use crate::pool::pacing::{Bounds, Made, Pacing};
use crate::pool::tcp::OpenError;
use crate::runtime::event::Event;
use crate::runtime::threads::{Crew, lock};

/// What fills the pool of one session.
pub struct WarmUp {
    connector: Connector,
    pacing: Mutex<Pacing>,
    /// Shared by all sessions of the client, one after another.
    crew: Crew,
    /// The last failure that was logged, and when.
    last_failure: Mutex<Option<(String, Instant)>>,
}

impl WarmUp {
    /// Makes connections with `connector`, on threads of `crew`.
    pub fn new(connector: Connector, bounds: Bounds, crew: Crew) -> Self {
        Self {
            connector,
            pacing: Mutex::new(Pacing::new(bounds)),
            crew,
            last_failure: Mutex::default(),
        }
    }

    /// Notes that a connection was taken and `idle_count` are left.
    pub fn note_take(&self, idle_count: usize) {
        lock(&self.pacing).note_take(idle_count, Instant::now());
    }

    /// Looks at the pool; returns the pause until the next look.
    pub fn look(&self, idle_count: usize) -> Duration {
        let mut pacing = lock(&self.pacing);
        pacing.look(idle_count);
        pacing.interval()
    }

    /// Returns whether far more are idle than the quiet pool of now needs.
    pub fn is_surplus(&self, idle_count: usize) -> bool {
        lock(&self.pacing).is_surplus(idle_count)
    }

    /// Returns how many idle connections the end that visitors come to keeps.
    pub fn level_allowed(&self) -> usize {
        lock(&self.pacing).level().saturating_mul(3).div_ceil(2)
    }

    /// Notes that the pool has been emptied on purpose.
    pub fn note_renewal(&self) {
        lock(&self.pacing).note_renewal();
    }

    /// Lets what its connections share end when `over` is raised.
    pub fn end_with(&self, over: &Arc<Event>) {
        self.connector.end_with(over);
    }

    /// Keeps nothing ready any more, and serves those who wait.
    pub fn wind_down(&self) {
        lock(&self.pacing).wind_down();
    }

    /// Sets threads to work, as many as connections are missing. Does not wait for them.
    pub fn refill(&self, session: &Arc<Session>, waiting_count: usize) {
        while self.begin(session, waiting_count) {
            let filling = Arc::clone(session);
            let started = self.crew.run(move || {
                if let Some(warm_up) = filling.warm_up() {
                    warm_up.work(&filling);
                }
            });
            if started.is_err() {
                // All threads are busy: each of them goes on until enough are there.
                lock(&self.pacing).cancel();
                return;
            }
        }
    }

    /// Makes connections until enough are there; each has been begun by then.
    fn work(&self, session: &Arc<Session>) {
        loop {
            let made = match self.connector.open(session.ended()) {
                // It is idle before it is no longer in flight, so that it is never missing in both.
                Ok((id, connection)) => match session.add(id, connection) {
                    true => Made::Connection,
                    false => Made::Nothing,
                },
                Err(_) if session.is_over() => Made::Nothing,
                Err(error) => self.note_failure(session, &error),
            };
            lock(&self.pacing).finish(made, Instant::now());
            let waiting_count = session.around().sessions.waiting_count();
            if session.is_over() || !self.begin(session, waiting_count) {
                return;
            }
        }
    }

    /// Says in the log what failed: each failure once in a while, however many there are.
    fn note_failure(&self, session: &Session, error: &OpenError) -> Made {
        let text = error.to_string();
        let now = Instant::now();
        let mut last = lock(&self.last_failure);
        let is_new = last.as_ref().is_none_or(|(before, logged_at)| {
            *before != text || now >= *logged_at + LOG_REPEAT_INTERVAL
        });
        let level = match (is_new, error.is_full()) {
            (true, false) => Level::Warn,
            _ => Level::Debug,
        };
        log::log!(
            level,
            "Pool connection to {} failed: {text}",
            session.peer()
        );
        if is_new {
            *last = Some((text, now));
        }
        match error.is_full() {
            true => Made::Full,
            false => Made::Nothing,
        }
    }

    fn begin(&self, session: &Session, waiting_count: usize) -> bool {
        let now = Instant::now();
        session.has_room() && lock(&self.pacing).begin(session.idle_count(), waiting_count, now)
    }
}
