//! How many sessions may be open at once: option `slot`, and the descriptors that there are.
//!
//! A visitor who is let in although no descriptor is left for his target takes one that another
//! visitor needs: with many of them at the door nobody would be served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of an instance, for TCP and UDP sessions together.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    /// Descriptors for all sessions.
    descriptors_max: usize,
    taken: AtomicUsize,
    descriptors: AtomicUsize,
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

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// As many sessions are open as option `slot` allows.
    Slots(usize),
    /// The others have the descriptors that it would need.
    Descriptors,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    kind: Kind,
}

impl Slots {
    /// Makes `max` places, of which those may be taken that `descriptors_max` descriptors are enough
    /// for; `None` sets no limit of its own.
    pub fn new(max: Option<u32>, descriptors_max: usize) -> Arc<Self> {
        let max = max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let zero = AtomicUsize::default;
        Arc::new(Self {
            max,
            descriptors_max,
            taken: zero(),
            descriptors: zero(),
            tcp: zero(),
            udp: zero(),
        })
    }

    /// Takes a place.
    ///
    /// Errors: there is none.
    pub fn take(self: &Arc<Self>, kind: Kind) -> Result<Slot, Full> {
        if !add_within(&self.taken, 1, self.max) {
            return Err(Full::Slots(self.max));
        }
        if !add_within(&self.descriptors, kind.descriptors(), self.descriptors_max) {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Descriptors);
        }
        self.of(kind).fetch_add(1, Ordering::Relaxed);
        Ok(Slot {
            slots: Arc::clone(self),
            kind,
        })
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
        let (slots, kind) = (&self.slots, self.kind);
        slots.of(kind).fetch_sub(1, Ordering::Relaxed);
        slots
            .descriptors
            .fetch_sub(kind.descriptors(), Ordering::Relaxed);
        slots.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Kind {
    /// How many descriptors a session takes: a TCP visitor has one, and what he goes to another.
    fn descriptors(self) -> usize {
        match self {
            Self::Tcp => 2,
            Self::Udp => 1,
        }
    }
}

/// Adds to a count that must not exceed `max`; returns whether it was added.
fn add_within(count: &AtomicUsize, added: usize, max: usize) -> bool {
    let has_room = count.fetch_add(added, Ordering::Relaxed) < max.saturating_sub(added - 1);
    if !has_room {
        count.fetch_sub(added, Ordering::Relaxed);
    }
    has_room
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots(max) => write!(f, "slot={max} reached"),
            Self::Descriptors => f.write_str(
                "no descriptors are left for more; raise the limit of open files (ulimit -n)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_over_both_kinds() {
        let slots = Slots::new(Some(2), 100);
        let tcp = slots.take(Kind::Tcp).unwrap();
        let _udp = slots.take(Kind::Udp).unwrap();
        assert_eq!(slots.take(Kind::Tcp).unwrap_err(), Full::Slots(2));
        assert_eq!((slots.count(Kind::Tcp), slots.count(Kind::Udp)), (1, 1));
        drop(tcp);
        assert!(slots.take(Kind::Udp).is_ok());
        assert_eq!(slots.count(Kind::Tcp), 0);
    }

    #[test]
    fn without_a_limit_there_is_always_a_place() {
        let slots = Slots::new(None, 10_000);
        let taken: Vec<_> = (0..1000).flat_map(|_| slots.take(Kind::Tcp)).collect();
        assert_eq!(taken.len(), 1000);
    }

    #[test]
    fn who_would_find_no_descriptor_is_not_let_in() {
        let slots = Slots::new(None, 5);
        let taken = [slots.take(Kind::Tcp), slots.take(Kind::Tcp)];
        assert!(taken.iter().all(Result::is_ok));
        assert_eq!(slots.take(Kind::Tcp).unwrap_err(), Full::Descriptors);
        assert!(slots.take(Kind::Udp).is_ok());
        drop(taken);
        assert!(slots.take(Kind::Tcp).is_ok());
    }
}
