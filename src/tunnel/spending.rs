//! What addresses have used up of late of something that all share.
//!
//! Pure: the time is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::{COVER_TIME_MAX, COVER_WINDOW};

/// Time that was spent on addresses, within one window of time after another.
#[derive(Debug, Default)]
pub struct Spending {
    began_at: Option<Instant>,
    by_address: HashMap<IpAddr, Duration>,
}

impl Spending {
    /// Notes that `time` was spent on `address`.
    pub fn spend(&mut self, address: IpAddr, time: Duration, now: Instant) {
        let is_over = self.began_at.is_none_or(|at| now >= at + COVER_WINDOW);
        if is_over {
            self.began_at = Some(now);
            // There are no more of them than could be served within the window.
            self.by_address.clear();
        }
        *self.by_address.entry(address).or_default() += time;
    }

    /// Returns until when nothing more is to be spent on `address`; `None` if something is.
    pub fn exhausted_until(&self, address: IpAddr, now: Instant) -> Option<Instant> {
        let until = self.began_at? + COVER_WINDOW;
        let spent = self.by_address.get(&address)?;
        (*spent >= COVER_TIME_MAX && now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn whoever_has_spent_all_waits_for_the_next_window() {
        let (one, other) = (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::BROADCAST.into());
        let start = Instant::now();
        let mut spending = Spending::default();
        assert_eq!(spending.exhausted_until(one, start), None);
        spending.spend(one, COVER_TIME_MAX / 2, start);
        assert_eq!(spending.exhausted_until(one, start), None);
        spending.spend(one, COVER_TIME_MAX / 2, start);
        let next = start + COVER_WINDOW;
        assert_eq!(spending.exhausted_until(one, start), Some(next));
        assert_eq!(spending.exhausted_until(other, start), None);
        assert_eq!(spending.exhausted_until(one, next), None);
        spending.spend(other, COVER_TIME_MAX, next);
        assert_eq!(spending.exhausted_until(one, next), None);
        assert!(spending.exhausted_until(other, next).is_some());
    }
}
