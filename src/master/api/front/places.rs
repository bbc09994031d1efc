//! Places for clients: how many there may be, and who gives way when all are taken.
//!
//! ```text
//!   Waits ──request complete──▶ Answers ◀──▶ Blocked
//!     ▲                            │
//!     └────────── answered ────────┘
//! ```
//!
//! Whoever waits for the client, be it for his request or for him to take the answer, can be sent
//! away for somebody else; a request that is being carried out cannot.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::limits::{API_EVICTION_TIMEOUT, API_TURNED_AWAY_MAX};
use crate::net::origin::oldest_of_busiest;
use crate::runtime::event::Event;
use crate::runtime::threads::lock;

/// The places for all clients.
pub struct Places {
    served_max: usize,
    turned_away_max: usize,
    book: Mutex<Book>,
    left: Condvar,
}

#[derive(Default)]
struct Book {
    taken: HashMap<u64, Entry>,
    next_number: u64,
    is_draining: bool,
}

struct Entry {
    origin: IpAddr,
    service: Service,
    stage: Stage,
    /// When it began to wait for its present request, as a number.
    since: u64,
    /// Raised to send him away.
    stop: Arc<Event>,
}

/// What becomes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// His requests are answered.
    Served,
    /// He is told that there is no room.
    TurnedAway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// For the client: no complete request has come.
    Waits,
    /// A request is carried out, or its answer leaves.
    Answers,
    /// The client does not take the answer.
    Blocked,
}

/// The place of one client; given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    number: u64,
    /// What the client gets.
    pub service: Service,
    /// Raised when he is to be left.
    pub stop: Arc<Event>,
}

impl Places {
    /// Makes places for so many clients.
    pub fn new(served_max: usize) -> Arc<Self> {
        Arc::new(Self {
            served_max,
            // Where there is little of everything, they must not take most of it.
            turned_away_max: served_max.div_ceil(4).min(API_TURNED_AWAY_MAX),
            book: Mutex::default(),
            left: Condvar::new(),
        })
    }

    /// Takes a place for a client of `origin`; `None` if there is none.
    ///
    /// Blocks: until one who gives way has left, at most `API_EVICTION_TIMEOUT`.
    /// Errors: the system has no descriptor left.
    pub fn take(self: &Arc<Self>, origin: IpAddr) -> io::Result<Option<Place>> {
        let stop = Arc::new(Event::new()?);
        let mut book = lock(&self.book);
        let mut service = Service::Served;
        let mut places_max = self.served_max;
        if !book.has_room(service, places_max) && !book.evict(service) {
            service = Service::TurnedAway;
            places_max = self.turned_away_max;
            if !book.has_room(service, places_max) {
                book.evict(service);
            }
        }
        let deadline = Instant::now() + API_EVICTION_TIMEOUT;
        while !book.has_room(service, places_max) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.left.wait_timeout(book, left);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if book.is_draining {
            return Ok(None);
        }
        let number = book.next();
        let entry = Entry {
            origin,
            service,
            stage: Stage::Waits,
            since: number,
            stop: Arc::clone(&stop),
        };
        book.taken.insert(number, entry);
        drop(book);
        Ok(Some(Place {
            places: Arc::clone(self),
            number,
            service,
            stop,
        }))
    }

    /// Sends those away who wait; whoever is answered goes after the answer.
    pub fn drain(&self) {
        let mut book = lock(&self.book);
        book.is_draining = true;
        let waiting = |entry: &&Entry| entry.stage == Stage::Waits;
        let waiting = book.taken.values().filter(waiting);
        waiting.for_each(|entry| entry.stop.raise());
    }

    /// Sends all away.
    pub fn stop(&self) {
        let mut book = lock(&self.book);
        book.is_draining = true;
        book.taken.values().for_each(|entry| entry.stop.raise());
    }
}

impl Book {
    fn next(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn has_room(&self, service: Service, places_max: usize) -> bool {
        let of_service = |entry: &&Entry| entry.service == service;
        self.taken.values().filter(of_service).count() < places_max
    }

    /// Sends one away who waits for his client: of the origin with most of them, the one who has
    /// waited longest. Returns whether there is one.
    fn evict(&mut self, service: Service) -> bool {
        let waiting = self.taken.iter().filter(|(_, entry)| {
            entry.service == service && entry.stage != Stage::Answers && !entry.stop.is_raised()
        });
        let places = waiting.map(|(number, entry)| (entry.origin, (entry.since, *number)));
        let oldest = oldest_of_busiest(places).and_then(|(_, number)| self.taken.get(&number));
        if let Some(entry) = oldest {
            entry.stop.raise();
        }
        oldest.is_some()
    }
}

impl Place {
    /// A complete request has come: the client cannot be sent away until it has been answered.
    ///
    /// Returns false if he has been sent away already.
    #[must_use]
    pub fn begin_answer(&self) -> bool {
        let mut book = self.book();
        if let Some(entry) = book.taken.get_mut(&self.number) {
            entry.stage = Stage::Answers;
        }
        !self.stop.is_raised()
    }

    /// The client takes the answer, or does not. Says nothing before there is one.
    pub fn set_blocked(&self, is_blocked: bool) {
        let (from, to) = if is_blocked {
            (Stage::Answers, Stage::Blocked)
        } else {
            (Stage::Blocked, Stage::Answers)
        };
        if let Some(entry) = self.book().taken.get_mut(&self.number)
            && entry.stage == from
        {
            entry.stage = to;
        }
    }

    /// Waits for the client again. Returns false if no request of his is read any more.
    pub fn end_answer(&self) -> bool {
        let mut book = self.book();
        let since = book.next();
        if let Some(entry) = book.taken.get_mut(&self.number) {
            entry.stage = Stage::Waits;
            entry.since = since;
        }
        !book.is_draining
    }

    /// Returns whether this connection is to end with the present answer.
    pub fn is_draining(&self) -> bool {
        self.book().is_draining
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.places.book)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.book().taken.remove(&self.number);
        self.places.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));
    const NEAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Takes a place while those who are sent away leave at once.
    fn take(places: &Arc<Places>, held: &mut Vec<Place>, origin: IpAddr) -> Option<Place> {
        let taking = std::thread::spawn({
            let places = Arc::clone(places);
            move || places.take(origin).unwrap()
        });
        while !taking.is_finished() {
            held.retain(|place| !place.stop.is_raised());
            std::thread::yield_now();
        }
        taking.join().unwrap()
    }

    #[test]
    fn the_longest_waiting_of_the_busiest_gives_way() {
        let places = Places::new(3);
        let mut held = Vec::new();
        for origin in [NEAR, FAR, FAR] {
            let place = take(&places, &mut held, origin).unwrap();
            held.push(place);
        }
        let (near, oldest, other) = (held[0].number, held[1].number, held[2].number);
        // Its request has been answered meanwhile, so now the other one has waited longest.
        assert!(held[1].begin_answer() && held[1].end_answer());
        let newest = take(&places, &mut held, FAR).unwrap();
        assert_eq!(newest.service, Service::Served);
        let numbers: Vec<_> = held.iter().map(|place| place.number).collect();
        assert_eq!(numbers, [near, oldest]);
        assert!(!numbers.contains(&other));
    }

    #[test]
    fn who_is_answered_stays_unless_he_takes_nothing() {
        let places = Places::new(1);
        let mut held = vec![places.take(NEAR).unwrap().unwrap()];
        assert!(held[0].begin_answer());
        let turned_away = take(&places, &mut held, FAR).unwrap();
        assert_eq!(turned_away.service, Service::TurnedAway);
        drop(turned_away);
        assert_eq!(held.len(), 1);
        held[0].set_blocked(true);
        let served = take(&places, &mut held, FAR).unwrap();
        assert_eq!(served.service, Service::Served);
        assert!(held.is_empty());
    }

    #[test]
    fn those_who_are_turned_away_are_bounded() {
        let served_max = 4 * API_TURNED_AWAY_MAX;
        let places = Places::new(served_max);
        let held = (0..served_max).map(|_| places.take(NEAR).unwrap().unwrap());
        let mut held: Vec<_> = held.collect();
        assert!(held.iter().all(Place::begin_answer));
        for _ in 0..3 * API_TURNED_AWAY_MAX {
            let place = take(&places, &mut held, FAR).unwrap();
            assert_eq!(place.service, Service::TurnedAway);
            held.push(place);
        }
        assert_eq!(held.len(), served_max + API_TURNED_AWAY_MAX);
        assert!(!held[0].stop.is_raised());
    }

    #[test]
    fn draining_lets_answers_finish() {
        let places = Places::new(3);
        let held: Vec<_> = (0..2)
            .map(|_| places.take(NEAR).unwrap().unwrap())
            .collect();
        assert!(held[0].begin_answer());
        places.drain();
        assert!(!held[0].stop.is_raised() && held[0].is_draining());
        assert!(held[1].stop.is_raised() && !held[1].begin_answer());
        assert!(!held[0].end_answer());
        assert!(places.take(NEAR).unwrap().is_none());
        places.stop();
        assert!(held[0].stop.is_raised());
    }
}
