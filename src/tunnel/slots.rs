//! How many sessions may be open at once: option `slot`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of an instance, for TCP and UDP sessions together.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    taken: AtomicUsize,
    tcp: AtomicUsize,
    udp: AtomicUsize,
}

/// What kind of session takes a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// The datagrams of one visitor.
    Udp,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    kind: Kind,
}

impl Slots {
    /// Makes `max` places; `None` sets no limit.
    pub fn new(max: Option<u32>) -> Arc<Self> {
        let max = max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let zero = AtomicUsize::default;
        Arc::new(Self {
            max,
            taken: zero(),
            tcp: zero(),
            udp: zero(),
        })
    }

    /// Takes a place; `None` if all are taken.
    pub fn take(self: &Arc<Self>, kind: Kind) -> Option<Slot> {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.of(kind).fetch_add(1, Ordering::Relaxed);
        Some(Slot {
            slots: Arc::clone(self),
            kind,
        })
    }

    /// Returns how many places there are.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns how many sessions of a kind are open.
    pub fn count(&self, kind: Kind) -> usize {
        self.of(kind).load(Ordering::Relaxed)
    }

    fn of(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Tcp => &self.tcp,
            Kind::Udp => &self.udp,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.of(self.kind).fetch_sub(1, Ordering::Relaxed);
        self.slots.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_over_both_kinds() {
        let slots = Slots::new(Some(2));
        let tcp = slots.take(Kind::Tcp).unwrap();
        let _udp = slots.take(Kind::Udp).unwrap();
        assert!(slots.take(Kind::Tcp).is_none());
        assert_eq!((slots.count(Kind::Tcp), slots.count(Kind::Udp)), (1, 1));
        drop(tcp);
        assert!(slots.take(Kind::Udp).is_some());
        assert_eq!(slots.count(Kind::Tcp), 0);
    }

    #[test]
    fn without_a_limit_there_is_always_a_place() {
        let slots = Slots::new(None);
        let taken: Vec<_> = (0..1000).filter_map(|_| slots.take(Kind::Tcp)).collect();
        assert_eq!(taken.len(), 1000);
    }
}
