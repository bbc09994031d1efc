//! How much of what costs us more than the peer is borne: token buckets.

use std::time::Instant;

use crate::limits::{
    H2_EMPTY_FRAMES_BURST, H2_EMPTY_FRAMES_PER_SECOND, H2_PINGS_BURST, H2_PINGS_PER_SECOND,
    H2_RESETS_BURST, H2_RESETS_PER_SECOND, H2_SETTINGS_BURST, H2_SETTINGS_PER_SECOND,
    H2_UPDATES_BURST, H2_UPDATES_PER_SECOND,
};

const MILLION: u64 = 1_000_000;

/// The allowances of one peer.
#[derive(Debug)]
pub(super) struct Allowances {
    /// Streams that end by a reset.
    pub(super) resets: Bucket,
    /// SETTINGS.
    pub(super) settings: Bucket,
    /// PING, and answers to none.
    pub(super) pings: Bucket,
    /// Frames without effect.
    pub(super) empty_frames: Bucket,
    /// WINDOW_UPDATE.
    pub(super) updates: Bucket,
}

impl Allowances {
    pub(super) fn new(streams_max: u32) -> Self {
        let for_streams = streams_max.saturating_mul(2);
        let resets = H2_RESETS_BURST.saturating_add(for_streams);
        let empty_frames = H2_EMPTY_FRAMES_BURST.saturating_add(for_streams);
        Self {
            resets: Bucket::new(resets, H2_RESETS_PER_SECOND),
            settings: Bucket::new(H2_SETTINGS_BURST, H2_SETTINGS_PER_SECOND),
            pings: Bucket::new(H2_PINGS_BURST, H2_PINGS_PER_SECOND),
            empty_frames: Bucket::new(empty_frames, H2_EMPTY_FRAMES_PER_SECOND),
            updates: Bucket::new(H2_UPDATES_BURST, H2_UPDATES_PER_SECOND),
        }
    }
}

/// A token bucket: full at its start, refilled with time.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Millionths of tokens, so that short times count.
    level: u64,
    level_max: u64,
    per_second: u64,
    filled_at: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        let level_max = u64::from(burst) * MILLION;
        Self {
            level: level_max,
            level_max,
            per_second: u64::from(per_second),
            filled_at: None,
        }
    }

    /// Takes one token; returns whether there was one.
    #[must_use]
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.take_part(now, 1)
    }

    /// Takes one token divided by `divisor`; returns whether there was as much.
    #[must_use]
    pub(super) fn take_part(&mut self, now: Instant, divisor: u32) -> bool {
        let since = *self.filled_at.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since).as_micros();
        if elapsed > 0 {
            let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
            self.add(elapsed.saturating_mul(self.per_second));
            self.filled_at = Some(now);
        }
        let rest = self.level.checked_sub(MILLION / u64::from(divisor.max(1)));
        self.level = rest.unwrap_or(self.level);
        rest.is_some()
    }

    /// Adds `count` tokens.
    pub(super) fn earn(&mut self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.add(count.saturating_mul(MILLION));
    }

    fn add(&mut self, millionths: u64) {
        self.level = self.level.saturating_add(millionths).min(self.level_max);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(3, 10);
        assert!((0..3).all(|_| bucket.take(now)));
        assert!(!bucket.take(now));
        assert!(!bucket.take(now + Duration::from_millis(99)));
        assert!(bucket.take(now + Duration::from_millis(100)));
        assert!(!bucket.take(now + Duration::from_millis(100)));
        let later = now + Duration::from_secs(100);
        assert!((0..3).all(|_| bucket.take(later)));
        assert!(!bucket.take(later));
        bucket.earn(1);
        assert!(bucket.take(later));
        assert!(!bucket.take(later));
    }

    #[test]
    fn many_short_times_make_one_long_one() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1, 100);
        assert!(bucket.take(start));
        let taken =
            (1..=10_000).filter(|step| bucket.take(start + Duration::from_micros(*step * 10)));
        assert_eq!(taken.count(), 10);
    }
}
