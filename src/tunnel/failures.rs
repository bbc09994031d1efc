//! Who has shown a wrong key of late: each next answer to the same address comes later.
//!
//! Pure: the time is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::{
    FAILURE_DELAY_FIRST, FAILURE_DELAY_MAX, FAILURE_MEMORY, FAILURES_REMEMBERED_MAX,
};

/// The addresses that have failed, in bounds.
#[derive(Debug, Default)]
pub struct Failures {
    by_address: HashMap<IpAddr, Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    delay: Duration,
    failed_at: Instant,
}

impl Failures {
    /// Notes a failure of `address`; returns how long its answer is to be held back.
    pub fn note(&mut self, address: IpAddr, now: Instant) -> Duration {
        let is_old = |record: &Record| now >= record.failed_at + FAILURE_MEMORY;
        let before = self
            .by_address
            .get(&address)
            .filter(|record| !is_old(record));
        let delay = before.map_or(Duration::ZERO, |record| {
            (record.delay * 2).clamp(FAILURE_DELAY_FIRST, FAILURE_DELAY_MAX)
        });
        if self.by_address.len() >= FAILURES_REMEMBERED_MAX {
            self.by_address.retain(|_, record| !is_old(record));
        }
        if self.by_address.len() >= FAILURES_REMEMBERED_MAX
            && !self.by_address.contains_key(&address)
        {
            // Somebody has very many addresses: being slow to one of them helps nothing.
            return FAILURE_DELAY_FIRST;
        }
        let failed_at = now;
        self.by_address.insert(address, Record { delay, failed_at });
        delay
    }

    /// Forgets the failures of an address that has shown the right key.
    pub fn forgive(&mut self, address: IpAddr) {
        self.by_address.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from(u32::try_from(number).unwrap()).into()
    }

    #[test]
    fn each_failure_of_one_address_is_answered_later() {
        let mut failures = Failures::default();
        let now = Instant::now();
        assert_eq!(failures.note(address(1), now), Duration::ZERO);
        assert_eq!(failures.note(address(1), now), FAILURE_DELAY_FIRST);
        assert_eq!(failures.note(address(1), now), FAILURE_DELAY_FIRST * 2);
        assert_eq!(failures.note(address(2), now), Duration::ZERO);
        for _ in 0..20 {
            failures.note(address(1), now);
        }
        assert_eq!(failures.note(address(1), now), FAILURE_DELAY_MAX);
    }

    #[test]
    fn failures_are_forgiven_and_forgotten() {
        let mut failures = Failures::default();
        let now = Instant::now();
        failures.note(address(1), now);
        failures.forgive(address(1));
        assert_eq!(failures.note(address(1), now), Duration::ZERO);
        let later = now + FAILURE_MEMORY;
        assert_eq!(failures.note(address(1), later), Duration::ZERO);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for number in 0..FAILURES_REMEMBERED_MAX + 10 {
            failures.note(address(number), now);
        }
        assert_eq!(failures.by_address.len(), FAILURES_REMEMBERED_MAX);
        failures.note(address(0), now + FAILURE_MEMORY);
        assert_eq!(failures.by_address.len(), 1);
    }
}
