//! Byte counters of an instance.

#![allow(
    clippy::disallowed_types,
    reason = "this is where those are told apart that have it"
)]

#[cfg(target_has_atomic = "64")]
use std::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit counter that any thread may add to, also on processors that have no 64-bit atomics
/// (32-bit MIPS), where it is a lock.
#[derive(Debug, Default)]
pub struct Counter {
    #[cfg(target_has_atomic = "64")]
    value: AtomicU64,
    #[cfg(not(target_has_atomic = "64"))]
    value: std::sync::Mutex<u64>,
}

impl Counter {
    /// Adds a number of bytes.
    pub fn add(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        #[cfg(target_has_atomic = "64")]
        self.value.fetch_add(bytes, Ordering::Relaxed);
        #[cfg(not(target_has_atomic = "64"))]
        {
            let mut value = crate::runtime::threads::lock(&self.value);
            *value = value.wrapping_add(bytes);
        }
    }

    /// Returns the sum so far.
    pub fn sum(&self) -> u64 {
        #[cfg(target_has_atomic = "64")]
        return self.value.load(Ordering::Relaxed);
        #[cfg(not(target_has_atomic = "64"))]
        return *crate::runtime::threads::lock(&self.value);
    }
}

/// What one protocol has moved on the application side: the sockets of visitors, or of targets
/// where the visitors are at the other end of a tunnel.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes read from the application side.
    pub received: Counter,
    /// Bytes written to the application side.
    pub sent: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_adds_up() {
        let counter = Counter::default();
        counter.add(3);
        counter.add(usize::MAX);
        counter.add(2);
        assert_eq!(counter.sum(), (usize::MAX as u64).wrapping_add(5));
    }
}
