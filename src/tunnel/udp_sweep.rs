//! When to look for UDP sessions that have come to their end. Pure; the caller brings the time.

use std::time::{Duration, Instant};

use crate::limits::{UDP_DRAIN_QUIET, UDP_OVER_INTERVAL, UDP_SWEEP_INTERVAL};

/// The clock of the looks at all sessions of a loop.
#[derive(Debug)]
pub(super) struct Sweep {
    /// A session without a datagram either way for this long ends.
    idle_timeout: Duration,
    is_draining: bool,
    swept_at: Instant,
    /// Somebody has rung: the next look should come soon.
    is_asked: bool,
}

impl Sweep {
    pub(super) fn new(idle_timeout: Duration, now: Instant) -> Self {
        Self {
            idle_timeout,
            is_draining: false,
            swept_at: now,
            is_asked: false,
        }
    }

    /// No new sessions from now on; those that are open end when they are quiet.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Asks for a look soon.
    pub(super) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Returns how long to sleep at most while there are sessions.
    pub(super) fn sleep_duration(&self, now: Instant) -> Duration {
        (self.swept_at + self.interval()).saturating_duration_since(now)
    }

    /// Returns whether it is time for a look, and begins to wait for the next one.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept_at) < self.interval() {
            return false;
        }
        self.swept_at = now;
        self.is_asked = false;
        true
    }

    pub(super) fn is_idle(&self, active_at: Instant, now: Instant) -> bool {
        active_at + self.idle_timeout <= now
    }

    /// Returns whether a session has been silent since about the look before this one.
    pub(super) fn is_resting(&self, active_at: Instant, now: Instant) -> bool {
        active_at + self.interval() <= now
    }

    /// Returns whether nobody would miss a session that was active last at that time, at a stop.
    pub(super) fn is_quiet(active_at: Instant, now: Instant) -> bool {
        active_at + UDP_DRAIN_QUIET <= now
    }

    fn interval(&self) -> Duration {
        let longest = match (self.is_asked, self.is_draining) {
            (true, _) => UDP_OVER_INTERVAL,
            (false, true) => UDP_DRAIN_QUIET / 4,
            (false, false) => UDP_SWEEP_INTERVAL,
        };
        (self.idle_timeout / 4).clamp(Duration::from_millis(1), longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    #[test]
    fn looks_come_at_their_interval_and_sooner_when_asked_for() {
        let start = Instant::now();
        let mut sweep = Sweep::new(IDLE, start);
        let at = |time: Duration| start + time;
        assert!(!sweep.is_due(at(UDP_SWEEP_INTERVAL / 2)));
        assert_eq!(sweep.sleep_duration(start), UDP_SWEEP_INTERVAL);
        assert!(sweep.is_due(at(UDP_SWEEP_INTERVAL)));
        assert!(!sweep.is_due(at(UDP_SWEEP_INTERVAL)));
        sweep.ask();
        let soon = at(UDP_SWEEP_INTERVAL);
        assert_eq!(sweep.sleep_duration(soon), UDP_OVER_INTERVAL);
        assert!(sweep.is_due(soon + UDP_OVER_INTERVAL));
        assert!(!sweep.is_due(soon + UDP_OVER_INTERVAL * 2));
    }

    #[test]
    fn short_idle_times_and_a_stop_make_looks_more_frequent() {
        let start = Instant::now();
        let mut sweep = Sweep::new(Duration::from_millis(100), start);
        assert_eq!(sweep.sleep_duration(start), Duration::from_millis(25));
        sweep = Sweep::new(IDLE, start);
        sweep.drain();
        assert_eq!(sweep.sleep_duration(start), UDP_DRAIN_QUIET / 4);
    }

    #[test]
    fn a_session_is_quiet_before_it_is_idle() {
        let start = Instant::now();
        let sweep = Sweep::new(IDLE, start);
        assert!(!Sweep::is_quiet(start, start));
        assert!(Sweep::is_quiet(start, start + UDP_DRAIN_QUIET));
        assert!(!sweep.is_resting(start, start + UDP_SWEEP_INTERVAL / 2));
        assert!(sweep.is_resting(start, start + UDP_SWEEP_INTERVAL));
        assert!(!sweep.is_idle(start, start + IDLE / 2));
        assert!(sweep.is_idle(start, start + IDLE));
    }
}
