//! How many connections a client keeps ready, and how fast it makes them.
//!
//! The level is how many should be idle. Demand that empties the pool doubles it, quiet lets it
//! sink back. A connection that was taken is replaced at once; the interval is only the pace of
//! the looks in between, and failing dials wait for the longest one.
//!
//! Pure: the time is given.
//!
//! Source: wire protocol, section 4, "Filling".

use std::time::{Duration, Instant};

use crate::limits::FIRST_FILL_FLIGHT_MAX;

/// A pool of which less than this part is left counts as empty.
const EMPTY_SHARE: usize = 8;

/// The pace of one session's pool.
#[derive(Debug)]
pub struct Pacing {
    bounds: Bounds,
    /// How many connections should be idle: from `bounds.min` to `bounds.max`.
    level: usize,
    /// Connections that are being made.
    in_flight: usize,
    /// Pause until the next look.
    interval: Duration,
    /// When the pool was last found empty, or as good as that, and the level raised.
    grown_at: Option<Instant>,
    /// Connections that have yet to be made until the pool has been full for the first time: that
    /// it is empty before says nothing of demand.
    first_fill: usize,
    /// It has never been full.
    is_new: bool,
    /// After a failure nothing is begun before this.
    paused_until: Option<Instant>,
}

/// Within which a pool moves.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Fewest idle connections that are aimed at.
    pub min: usize,
    /// Most idle connections.
    pub max: usize,
    /// Shortest pause between two looks.
    pub interval_min: Duration,
    /// Longest pause between two looks.
    pub interval_max: Duration,
}

/// What came of making a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// There is one more.
    Connection,
    /// The other end has no place for it, or not yet.
    Full,
    /// It failed.
    Nothing,
}

impl Pacing {
    /// Begins at the least level with the shortest pause. A `min` above `max` is cut.
    pub fn new(mut bounds: Bounds) -> Self {
        bounds.min = bounds.min.min(bounds.max);
        bounds.interval_min = bounds.interval_min.min(bounds.interval_max);
        Self {
            level: bounds.min,
            in_flight: 0,
            interval: bounds.interval_min,
            grown_at: None,
            first_fill: bounds.min,
            is_new: true,
            paused_until: None,
            bounds,
        }
    }

    /// Returns whether another connection is to be made now, and counts it as begun.
    ///
    /// `idle` are those that are ready, `waiting` the visitors who wait for one.
    pub fn begin(&mut self, idle: usize, waiting: usize, now: Instant) -> bool {
        let wanted = (self.level + waiting).min(self.bounds.max);
        // Each that is being made takes a thread and what a handshake leaves in memory.
        if self.is_new && self.in_flight >= FIRST_FILL_FLIGHT_MAX + waiting {
            return false;
        }
        if self.paused_until.is_some_and(|until| now < until) || idle + self.in_flight >= wanted {
            return false;
        }
        self.in_flight += 1;
        true
    }

    /// Notes what came of one that was begun.
    pub fn finish(&mut self, made: Made, now: Instant) {
        self.in_flight -= 1;
        self.paused_until = match made {
            Made::Connection => {
                self.first_fill = self.first_fill.saturating_sub(1);
                self.is_new &= self.first_fill > 0;
                None
            }
            Made::Full => Some(now + self.bounds.interval_min),
            Made::Nothing => Some(now + self.bounds.interval_max),
        };
    }

    /// Takes back that one was begun: there was nobody to make it.
    pub fn cancel(&mut self) {
        self.in_flight -= 1;
    }

    /// Notes that a connection was taken and `idle` are left.
    pub fn note_take(&mut self, idle: usize, now: Instant) {
        // The other end takes connections, and has heard of each new one, half a round trip before
        // this one knows: a few that seem to be left are gone already.
        if idle * EMPTY_SHARE >= self.level || self.first_fill > 0 {
            return;
        }
        // One burst empties the pool once, however many it has.
        let is_new = |grown_at| now >= grown_at + self.bounds.interval_min;
        if self.grown_at.is_none_or(is_new) {
            self.level = (self.level * 2).min(self.bounds.max);
            self.grown_at = Some(now);
        }
    }

    /// Looks at the pool, with `idle` connections ready; due each [`Pacing::interval`].
    pub fn look(&mut self, idle: usize) {
        if idle * 5 < self.level {
            self.interval = (self.interval / 2).max(self.bounds.interval_min);
        } else if idle * 5 > self.level * 4 {
            self.interval = (self.interval * 3 / 2).min(self.bounds.interval_max);
            self.level -= (self.level - self.bounds.min).div_ceil(8);
        }
    }

    /// Returns the pause until the next look.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns how many connections should be idle.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Returns whether far more are idle than this quiet pool needs: the level has sunk all the
    /// way.
    pub fn is_surplus(&self, idle: usize) -> bool {
        self.level == self.bounds.min && idle * 2 > self.level * 3
    }

    /// Notes that the pool has been emptied, which says nothing of demand.
    pub fn note_renewal(&mut self) {
        self.first_fill = self.level;
    }

    /// Keeps nothing ready any more: from now on connections are made for those who wait.
    pub fn wind_down(&mut self) {
        (self.bounds.min, self.level) = (0, 0);
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        let Bounds {
            min,
            max,
            interval_min,
            interval_max,
        } = self.bounds;
        assert!((min..=max).contains(&self.level), "{self:?}");
        assert!((interval_min..=interval_max).contains(&self.interval));
        assert!(self.in_flight <= max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        min: 64,
        max: 1024,
        interval_min: Duration::from_millis(100),
        interval_max: Duration::from_secs(1),
    };

    /// A pool that has been full once.
    fn filled() -> Pacing {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        let mut idle = 0;
        while pacing.begin(idle, 0, now) {
            pacing.finish(Made::Connection, now);
            idle += 1;
        }
        pacing
    }

    /// Begins all that may be begun; returns how many.
    fn begin_all(pacing: &mut Pacing, idle: usize, now: Instant) -> usize {
        let begun = (0..).take_while(|_| pacing.begin(idle, 0, now)).count();
        pacing.check_invariants();
        begun
    }

    #[test]
    fn the_pool_is_filled_to_its_least_level() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        let mut in_flight = begin_all(&mut pacing, 0, now);
        assert_eq!(in_flight, FIRST_FILL_FLIGHT_MAX);
        // Whoever waits does not wait for those before him.
        assert!(pacing.begin(0, 1, now));
        pacing.cancel();
        for made in 1..=64 {
            pacing.finish(Made::Connection, now);
            in_flight -= 1;
            in_flight += begin_all(&mut pacing, made, now);
            assert!(made + in_flight <= 64);
        }
        assert_eq!(in_flight, 0);
    }

    #[test]
    fn what_is_taken_is_replaced_at_once() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        pacing.note_take(60, now);
        assert_eq!(begin_all(&mut pacing, 60, now), 4);
    }

    #[test]
    fn visitors_who_wait_are_counted_in() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        let begun = (0..).take_while(|_| pacing.begin(0, 2000, now)).count();
        assert_eq!(begun, BOUNDS.max);
    }

    #[test]
    fn a_burst_doubles_the_level_once() {
        let now = Instant::now();
        let mut pacing = filled();
        for _ in 0..256 {
            pacing.note_take(0, now);
        }
        assert_eq!(begin_all(&mut pacing, 0, now), 128);
        pacing.note_take(0, now + BOUNDS.interval_min);
        assert_eq!(begin_all(&mut pacing, 0, now), 128);
        for _ in 0..10 {
            pacing.note_take(0, now + BOUNDS.interval_max);
        }
        pacing.check_invariants();
    }

    #[test]
    fn the_level_stays_within_its_bounds() {
        let start = Instant::now();
        let mut pacing = filled();
        for step in 0..20 {
            pacing.note_take(0, start + BOUNDS.interval_min * step);
        }
        assert_eq!(pacing.level, BOUNDS.max);
        assert!(!pacing.is_surplus(BOUNDS.max));
        let looks = (0..)
            .take_while(|_| {
                pacing.look(BOUNDS.max);
                pacing.check_invariants();
                pacing.level > BOUNDS.min
            })
            .count();
        assert!((10..60).contains(&looks), "{looks}");
        assert!(pacing.is_surplus(BOUNDS.max));
        assert!(!pacing.is_surplus(BOUNDS.min * 3 / 2));
    }

    #[test]
    fn a_pool_that_was_never_full_does_not_grow() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        pacing.note_take(0, now);
        assert_eq!(pacing.level(), BOUNDS.min);
    }

    #[test]
    fn the_interval_follows_demand() {
        let mut pacing = Pacing::new(BOUNDS);
        for _ in 0..20 {
            pacing.look(64);
        }
        assert_eq!(pacing.interval(), BOUNDS.interval_max);
        pacing.look(30);
        assert_eq!(pacing.interval(), BOUNDS.interval_max);
        for _ in 0..20 {
            pacing.look(12);
        }
        assert_eq!(pacing.interval(), BOUNDS.interval_min);
    }

    #[test]
    fn failures_wait_for_the_longest_interval() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        assert!(pacing.begin(0, 0, now));
        pacing.finish(Made::Nothing, now);
        assert!(!pacing.begin(0, 0, now + BOUNDS.interval_min));
        assert!(pacing.begin(0, 0, now + BOUNDS.interval_max));
        pacing.finish(Made::Connection, now + BOUNDS.interval_max);
        assert!(pacing.begin(0, 0, now + BOUNDS.interval_max));
    }

    #[test]
    fn a_pool_that_winds_down_serves_those_who_wait() {
        let now = Instant::now();
        let mut pacing = filled();
        pacing.wind_down();
        assert!(!pacing.begin(0, 0, now));
        assert!(pacing.begin(0, 1, now) && !pacing.begin(0, 1, now));
        pacing.note_take(0, now);
        pacing.look(64);
        assert_eq!(pacing.level(), 0);
    }

    #[test]
    fn a_renewal_is_no_demand() {
        let now = Instant::now();
        let mut pacing = filled();
        pacing.note_renewal();
        pacing.note_take(0, now);
        assert_eq!(pacing.level(), BOUNDS.min);
        for _ in 0..begin_all(&mut pacing, 0, now) {
            pacing.finish(Made::Connection, now);
        }
        pacing.note_take(0, now);
        assert_eq!(pacing.level(), BOUNDS.min * 2);
    }

    #[test]
    fn a_full_other_end_is_asked_again_soon() {
        let now = Instant::now();
        let mut pacing = Pacing::new(BOUNDS);
        assert!(pacing.begin(0, 0, now));
        pacing.finish(Made::Full, now);
        assert!(!pacing.begin(0, 0, now));
        assert!(pacing.begin(0, 0, now + BOUNDS.interval_min));
    }

    #[test]
    fn a_least_level_above_the_most_is_cut() {
        let bounds = Bounds { max: 8, ..BOUNDS };
        let mut pacing = Pacing::new(bounds);
        assert_eq!(begin_all(&mut pacing, 0, Instant::now()), 8);
    }

    /// A link on which each connection takes a while, and visitors who come at a steady rate.
    #[test]
    fn steady_demand_on_a_slow_link_is_met() {
        const STEP: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let mut pacing = filled();
        let (mut idle, mut unserved) = (64_usize, 0);
        // When connections that are being made will be ready: 100 steps after their begin.
        let mut ready = std::collections::VecDeque::new();
        let mut look_at = start;
        for step in 0..3000_u32 {
            let now = start + STEP * step;
            while ready.front().is_some_and(|at| *at <= now) {
                ready.pop_front();
                pacing.finish(Made::Connection, now);
                idle += 1;
            }
            if idle > 0 {
                idle -= 1;
                pacing.note_take(idle, now);
            } else {
                unserved += 1;
            }
            if now >= look_at {
                pacing.look(idle);
                look_at = now + pacing.interval();
            }
            while pacing.begin(idle, 0, now) {
                ready.push_back(now + STEP * 100);
            }
            pacing.check_invariants();
        }
        // A thousand a second; only the start, before the level has grown, may leave gaps.
        assert!(unserved < 150, "{unserved} of 3000");
    }
}
