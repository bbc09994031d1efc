//! The pause before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::event::Event;
use super::shutdown::Signals;
use crate::limits::COOLDOWN_FACTOR_MAX;

/// The pause before a restart: doubled while restarts keep failing, never the same twice, so that
/// many programs that lost the same server do not come back in step.
#[derive(Debug)]
pub struct Cooldown {
    first: Duration,
    next: Duration,
}

impl Cooldown {
    /// Begins with a pause of about `first`.
    pub fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// Returns the next pause: up to a quarter longer than its step.
    pub fn next_pause(&mut self) -> Duration {
        self.step(RandomState::new().hash_one(()))
    }

    /// Waits for the next attempt; returns whether a signal came instead, and takes that one.
    ///
    /// Blocks: for the next pause, or until the signal.
    pub fn wait(&mut self, signals: &Signals) -> bool {
        self.wait_beside(signals, None)
    }

    /// The same; does not wait on when `event` is raised.
    pub fn wait_beside(&mut self, signals: &Signals, event: Option<&Event>) -> bool {
        let pause = self.next_pause();
        log::info!("Trying again in {:.1} s", pause.as_secs_f64());
        signals.wait(Some(Instant::now() + pause), event)
    }

    /// Begins anew: the last attempt was a success for a while.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    fn step(&mut self, random: u64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.first * COOLDOWN_FACTOR_MAX);
        let share = u32::try_from(random % 256).unwrap_or_default();
        pause + pause * share / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_varies() {
        let mut cooldown = Cooldown::new(Duration::from_secs(3));
        let pauses: Vec<u64> = (0..6).map(|_| cooldown.step(0).as_secs()).collect();
        assert_eq!(pauses, [3, 6, 12, 24, 30, 30]);
        let longest = cooldown.step(u64::MAX);
        assert!(longest > Duration::from_secs(37) && longest < Duration::from_secs(38));
        cooldown.reset();
        assert_eq!(cooldown.step(0).as_secs(), 3);
    }
}
