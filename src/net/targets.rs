//! Which of several targets gets the next visitor: option `lbs`. Pure; the caller brings the time.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::config::address::{Address, Host};
use crate::config::options::Balance;
use crate::limits::TARGET_RETRY_INTERVAL;
use crate::runtime::threads::lock;

/// The targets of an instance and what is known about them.
#[derive(Debug)]
pub struct Targets {
    addresses: Vec<Address>,
    balance: Balance,
    fallback_interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    health: Vec<Health>,
    /// Round robin: who is next.
    next: usize,
    /// Primary and backups: who is in use, and since when it is not the primary.
    active: usize,
    left_primary_at: Option<Instant>,
    /// How long the latest connect of a visitor took.
    latest: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failed_at: Option<Instant>,
    latency: Option<Duration>,
    /// The address of a name that has answered.
    answered_at: Option<SocketAddr>,
}

impl Targets {
    /// Makes the set; `addresses` has at least one.
    pub fn new(addresses: Vec<Address>, balance: Balance, fallback_interval: Duration) -> Self {
        let state = State {
            health: vec![Health::default(); addresses.len()],
            next: 0,
            active: 0,
            left_primary_at: None,
            latest: None,
        };
        Self {
            addresses,
            balance,
            fallback_interval,
            state: Mutex::new(state),
        }
    }

    /// Returns the targets in the order in which they were configured.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns the indexes of all targets in the order in which a visitor should try them.
    ///
    /// One that failed a moment ago comes last: it is tried when no other one answers.
    pub fn order(&self, now: Instant) -> Vec<usize> {
        let count = self.addresses.len();
        if count == 1 {
            return vec![0];
        }
        let mut state = lock(&self.state);
        let mut order: Vec<usize> = match self.balance {
            Balance::RoundRobin => {
                let first = state.next;
                state.next = (first + 1) % count;
                (0..count).map(|step| (first + step) % count).collect()
            }
            Balance::LowestLatency => {
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by_key(|index| state.health[*index].latency.unwrap_or(Duration::MAX));
                order
            }
            Balance::PrimaryBackup => {
                let is_back = state.left_primary_at.is_some_and(|left_at| {
                    now.saturating_duration_since(left_at) >= self.fallback_interval
                });
                if is_back {
                    state.active = 0;
                    state.left_primary_at = None;
                    state.health[0].failed_at = None;
                }
                let active = state.active;
                (0..count).map(|step| (active + step) % count).collect()
            }
        };
        // The sort is stable: the order among those that work, and among those that do not, stays.
        order.sort_by_key(|index| state.health[*index].is_failing(now));
        order
    }

    /// Returns a target that is in use: the one that answered a visitor last, at first the first.
    pub fn in_use(&self) -> usize {
        lock(&self.state).active
    }

    /// Returns whether a new session may come somewhere else than to this target's address: to
    /// another target, or to another address of its name.
    pub fn has_choice(&self, index: usize) -> bool {
        self.addresses.len() > 1 || matches!(self.addresses[index].host, Host::Name(_))
    }

    /// Notes that a target answered a visitor's connect after `latency`.
    pub fn note_success(&self, index: usize, latency: Duration, now: Instant) {
        let mut state = lock(&self.state);
        state.latest = Some(latency);
        state.health[index].failed_at = None;
        if state.active != index {
            state.active = index;
            // A change from one backup to another does not put the return off.
            let left_at = state.left_primary_at.unwrap_or(now);
            state.left_primary_at = (index != 0).then_some(left_at);
        }
    }

    /// Notes that a target did not answer.
    pub fn note_failure(&self, index: usize, now: Instant) {
        lock(&self.state).health[index].failed_at = Some(now);
    }

    /// Returns how long the latest connect of a visitor took, if there was one since the last
    /// call.
    pub fn take_latest(&self) -> Option<Duration> {
        lock(&self.state).latest.take()
    }

    /// Notes which address of a target has answered.
    pub fn note_address(&self, index: usize, address: SocketAddr) {
        lock(&self.state).health[index].answered_at = Some(address);
    }

    /// Puts the address that has answered before the others of its target.
    pub fn prefer_known(&self, index: usize, addresses: &mut [SocketAddr]) {
        let known = lock(&self.state).health[index].answered_at;
        // The sort is stable: the order of the others stays.
        addresses.sort_by_key(|address| Some(*address) != known);
    }

    /// Notes how long a connect to a target took; `None` if it failed.
    pub fn note_latency(&self, index: usize, latency: Option<Duration>) {
        lock(&self.state).health[index].latency = latency;
    }
}

impl Health {
    fn is_failing(&self, now: Instant) -> bool {
        self.failed_at
            .is_some_and(|at| now.saturating_duration_since(at) < TARGET_RETRY_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FALLBACK: Duration = Duration::from_secs(300);

    fn targets(balance: Balance) -> Targets {
        let addresses = ["a:1", "b:1", "c:1"]
            .map(|text| Address::parse(text).unwrap())
            .to_vec();
        Targets::new(addresses, balance, FALLBACK)
    }

    #[test]
    fn round_robin_takes_turns() {
        let (targets, now) = (targets(Balance::RoundRobin), Instant::now());
        assert_eq!(targets.order(now), [0, 1, 2]);
        assert_eq!(targets.order(now), [1, 2, 0]);
        assert_eq!(targets.order(now), [2, 0, 1]);
        assert_eq!(targets.order(now), [0, 1, 2]);
    }

    #[test]
    fn one_that_failed_a_moment_ago_comes_last() {
        let (targets, now) = (targets(Balance::RoundRobin), Instant::now());
        targets.note_failure(0, now);
        assert_eq!(targets.order(now), [1, 2, 0]);
        assert_eq!(targets.order(now), [1, 2, 0]);
        assert_eq!(targets.order(now + TARGET_RETRY_INTERVAL), [2, 0, 1]);
        targets.note_success(0, Duration::ZERO, now);
        assert_eq!(targets.order(now), [0, 1, 2]);
    }

    #[test]
    fn the_lowest_latency_comes_first() {
        let (targets, now) = (targets(Balance::LowestLatency), Instant::now());
        assert_eq!(targets.order(now), [0, 1, 2]);
        targets.note_latency(0, None);
        targets.note_latency(1, Some(Duration::from_millis(20)));
        targets.note_latency(2, Some(Duration::from_millis(10)));
        assert_eq!(targets.order(now), [2, 1, 0]);
        targets.note_failure(2, now);
        assert_eq!(targets.order(now), [1, 0, 2]);
    }

    #[test]
    fn the_primary_is_left_when_it_fails_and_tried_again_later() {
        let (targets, now) = (targets(Balance::PrimaryBackup), Instant::now());
        assert_eq!(targets.order(now), [0, 1, 2]);
        targets.note_failure(0, now);
        targets.note_success(1, Duration::ZERO, now);
        // Also after the failure is forgotten the backup stays in use.
        let later = now + FALLBACK - Duration::from_secs(1);
        assert_eq!(targets.order(later), [1, 2, 0]);
        let back = now + FALLBACK;
        assert_eq!(targets.order(back), [0, 1, 2]);
        // Still dead: it is left for another interval.
        targets.note_failure(0, back);
        targets.note_success(1, Duration::ZERO, back);
        assert_eq!(targets.order(back + TARGET_RETRY_INTERVAL), [1, 2, 0]);
        assert_eq!(targets.order(back + FALLBACK), [0, 1, 2]);
    }

    #[test]
    fn an_address_that_has_answered_comes_first() {
        let targets = targets(Balance::RoundRobin);
        let all = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut addresses = all;
        targets.prefer_known(0, &mut addresses);
        assert_eq!(addresses, all);
        targets.note_address(0, all[2]);
        targets.prefer_known(0, &mut addresses);
        assert_eq!(addresses, [all[2], all[0], all[1]]);
    }

    #[test]
    fn a_change_between_backups_does_not_put_the_return_off() {
        let (targets, now) = (targets(Balance::PrimaryBackup), Instant::now());
        targets.note_success(1, Duration::ZERO, now);
        targets.note_success(2, Duration::ZERO, now + FALLBACK / 2);
        assert_eq!(targets.order(now + FALLBACK), [0, 1, 2]);
    }

    #[test]
    fn when_all_fail_all_are_still_tried() {
        let (targets, now) = (targets(Balance::PrimaryBackup), Instant::now());
        for index in 0..3 {
            targets.note_failure(index, now);
        }
        assert_eq!(targets.order(now), [0, 1, 2]);
    }
}
