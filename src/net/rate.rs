//! The limit of option `rate`: bytes per second of one direction, all connections together.
//!
//! Time is cut into turns. Whoever wants to move bytes books the next free turn and waits for
//! it, so flows take turns in the order in which they asked, none waits for another one's
//! refill, and a lone flow runs smoothly. Pure: the caller brings the time and does the waiting.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::limits::{RATE_TURN_DURATION, RATE_TURN_SIZE_MAX, RATE_TURN_SIZE_MIN};
use crate::runtime::threads::lock;

/// Bytes per second in one megabit per second.
const BYTES_PER_MEGABIT: u64 = 125_000;

/// A shared limit on the bytes of one direction.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    turn_size: usize,
    /// When all turns booked so far will be over.
    booked_until: Mutex<Instant>,
}

/// A booked turn: this many bytes may be moved from that time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Bytes that may be moved.
    pub size: usize,
    /// When they may be moved.
    pub at: Instant,
}

/// A place in the queue for turns, of somebody who learns late how much there is to move.
#[derive(Debug, Default)]
pub struct Place {
    waiting: Option<Turn>,
}

impl Place {
    /// Returns the turn if it has come; else books it, or goes on waiting for it.
    ///
    /// Whoever gets it settles it, also if there was nothing to move.
    pub fn take_turn(&mut self, limit: &RateLimit, now: Instant) -> Option<Turn> {
        let turn = *self.waiting.get_or_insert_with(|| limit.book(now));
        self.waiting.take_if(|turn| turn.at <= now).map(|_| turn)
    }

    /// Returns when the turn comes that is waited for, if it has not come yet.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.waiting.map(|turn| turn.at).filter(|at| *at > now)
    }
}

impl RateLimit {
    /// Makes a limit of `megabits` (1 Mbit = 125,000 bytes) per second; at least 1 is taken.
    pub fn new(megabits: u64, now: Instant) -> Self {
        let bytes_per_second = megabits.max(1).saturating_mul(BYTES_PER_MEGABIT);
        let turns_per_second = 1_000_000 / RATE_TURN_DURATION.as_micros().max(1);
        let turn_size = u128::from(bytes_per_second) / turns_per_second;
        Self {
            bytes_per_second,
            turn_size: usize::try_from(turn_size)
                .unwrap_or(usize::MAX)
                .clamp(RATE_TURN_SIZE_MIN, RATE_TURN_SIZE_MAX),
            booked_until: Mutex::new(now),
        }
    }

    /// Books the next turn.
    ///
    /// Time that nobody booked is lost, but for one turn, so that a thread that wakes up late
    /// does not fall behind the rate.
    pub fn book(&self, now: Instant) -> Turn {
        let size = self.turn_size;
        let mut until = lock(&self.booked_until);
        let earliest = now.checked_sub(self.time_of(size)).unwrap_or(now);
        let at = (*until).max(earliest);
        *until = at + self.time_of(size);
        Turn { size, at }
    }

    /// Ends a turn in which `moved` bytes were moved: gives back what is left of it, or books
    /// the time of what was moved beyond it.
    pub fn settle(&self, turn: Turn, moved: usize) {
        let mut until = lock(&self.booked_until);
        if moved > turn.size {
            *until += self.time_of(moved - turn.size);
        } else {
            let left = self.time_of(turn.size - moved);
            *until = until.checked_sub(left).unwrap_or(*until);
        }
    }

    fn time_of(&self, size: usize) -> Duration {
        let nanoseconds = (size as u128) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `flows` book turns one after another for a second; returns the bytes of each.
    fn run(megabits: u64, flows: usize) -> Vec<usize> {
        let start = Instant::now();
        let limit = RateLimit::new(megabits, start);
        let mut moved = vec![0; flows];
        let mut due: Vec<Turn> = (0..flows).map(|_| limit.book(start)).collect();
        loop {
            let (flow, turn) = due
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, turn)| turn.at)
                .expect("there is a flow");
            if turn.at >= start + Duration::from_secs(1) {
                return moved;
            }
            moved[flow] += turn.size;
            due[flow] = limit.book(turn.at.max(start));
        }
    }

    #[test]
    fn a_lone_flow_gets_the_rate() {
        for megabits in [1, 8, 100, 1000] {
            let moved = run(megabits, 1)[0];
            let expected = usize::try_from(megabits * BYTES_PER_MEGABIT).unwrap();
            let slack = expected / 50 + RATE_TURN_SIZE_MAX.min(expected / 20);
            assert!(moved.abs_diff(expected) <= slack, "{megabits}: {moved}");
        }
    }

    #[test]
    fn flows_share_the_rate_evenly() {
        let moved = run(8, 5);
        let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
        assert!(
            most - least <= RateLimit::new(8, Instant::now()).turn_size * 2,
            "{moved:?}"
        );
        assert!(
            moved.iter().sum::<usize>().abs_diff(1_000_000) < 50_000,
            "{moved:?}"
        );
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let start = Instant::now();
        let limit = RateLimit::new(8, start);
        let later = start + Duration::from_secs(10);
        let early = (0..100).filter(|_| limit.book(later).at <= later).count();
        assert!(early <= 2, "{early} turns at once");
    }

    #[test]
    fn a_place_keeps_its_turn_until_it_has_come() {
        let start = Instant::now();
        let limit = RateLimit::new(8, start);
        let mut place = Place::default();
        while place.take_turn(&limit, start).is_some() {}
        let at = place.waits_until(start).unwrap();
        // Others that book meanwhile come later.
        limit.book(start);
        assert!(place.take_turn(&limit, start).is_none());
        assert_eq!(place.waits_until(start), Some(at));
        assert_eq!(place.take_turn(&limit, at).map(|turn| turn.at), Some(at));
        assert_eq!(place.waits_until(start), None);
    }

    #[test]
    fn a_turn_is_settled_by_what_was_moved() {
        let start = Instant::now();
        let limit = RateLimit::new(8, start);
        let first = limit.book(start);
        let second = limit.book(start);
        assert!(second.at > first.at);
        limit.settle(second, 0);
        assert_eq!(limit.book(start), second);
        limit.settle(second, second.size * 3);
        let third = limit.book(start);
        assert_eq!(third.at - second.at, limit.time_of(second.size * 3));
    }
}
