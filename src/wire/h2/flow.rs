//! Flow control: what the peer lets us send, and what we let it send.
//!
//! A window that we give starts small and is doubled while it is what limits the peer: when half of
//! it is used up within one round trip, a larger one would be used too. The round trip is measured
//! by pings of our own.
//!
//! Source: RFC 9113 sections 5.2 and 6.9.

use std::time::{Duration, Instant};

use super::frame::WINDOW_MAX;
use crate::limits::{H2_PROBE_INTERVAL, H2_WINDOW_SHRINK_TIME};

/// How often a window is given back while it is used up once.
const UPDATES_PER_WINDOW: u32 = 8;

/// A window would be larger than one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowOverflow;

/// What the peer lets us send. Negative after it took back what was used already.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    /// Returns how many bytes may be sent.
    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Counts `size` sent bytes, which were available.
    pub(super) fn take(&mut self, size: usize) {
        debug_assert!(size <= self.available());
        self.0 -= i64::try_from(size).unwrap_or(i64::MAX);
    }

    /// Adds what a WINDOW_UPDATE gives, or a change of the settings, which may be negative.
    pub(super) fn change(&mut self, by: i64) -> Result<(), WindowOverflow> {
        let size = self.0.saturating_add(by);
        if size > i64::from(WINDOW_MAX) {
            return Err(WindowOverflow);
        }
        self.0 = size;
        Ok(())
    }
}

/// What we let the peer send on the connection or a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    /// What is to be open when nothing waits to be read.
    size: u32,
    /// What the peer may still send.
    open: i64,
    /// What has been read and not been given back; negative after the window has shrunk.
    owed: i64,
    /// What has been given back since then, to see how fast it is used.
    measured: u32,
    since: Option<Instant>,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            open: i64::from(size),
            owed: 0,
            measured: 0,
            since: None,
        }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Counts a frame of `size` bytes, of which the peer may send `grace` more than its window:
    /// it need not know yet that the window is smaller than one is by default.
    ///
    /// Errors: the peer did not have that much.
    pub(super) fn receive(
        &mut self,
        size: usize,
        grace: u32,
        now: Instant,
    ) -> Result<(), WindowOverflow> {
        let size = i64::try_from(size).map_err(|_| WindowOverflow)?;
        // Below zero there is still room for a frame without a byte, such as one that only ends the
        // stream. RFC 9113 section 6.9.1.
        if size > (self.open + i64::from(grace)).max(0) {
            return Err(WindowOverflow);
        }
        self.since.get_or_insert(now);
        self.open -= size;
        Ok(())
    }

    /// Counts `size` bytes as read.
    pub(super) fn consume(&mut self, size: usize) {
        self.owed = self
            .owed
            .saturating_add(i64::try_from(size).unwrap_or(i64::MAX));
    }

    /// Whether so much has been read that the peer should hear of it: often enough for most of the
    /// window to be in use all the time.
    pub(super) fn is_due(&self) -> bool {
        self.owed > 0 && self.owed >= i64::from(self.size / UPDATES_PER_WINDOW)
    }

    /// Returns what should become of the window, given the round trip: something new only when half
    /// of it was used since the last time.
    pub(super) fn tune(&mut self, round_trip: Option<Duration>, now: Instant) -> Tuning {
        let Some(since) = self.since.filter(|_| self.measured >= self.size / 2) else {
            return Tuning::Keep;
        };
        self.measured = 0;
        self.since = Some(now);
        let elapsed = now.saturating_duration_since(since);
        match round_trip {
            Some(round_trip) if elapsed <= round_trip => Tuning::Grow,
            _ if elapsed >= H2_WINDOW_SHRINK_TIME => Tuning::Shrink,
            _ => Tuning::Keep,
        }
    }

    /// Sets what is to be open; the difference is part of what is given back next.
    ///
    /// What the peer has been given is its own until it is used.
    pub(super) fn resize(&mut self, size: u32) {
        self.owed += i64::from(size) - i64::from(self.size);
        self.size = size;
    }

    /// Returns what a WINDOW_UPDATE is to give back, and counts it as given.
    pub(super) fn give_back(&mut self) -> u32 {
        let increment = self.owed.clamp(0, i64::from(WINDOW_MAX));
        self.owed -= increment;
        self.open += increment;
        let increment = u32::try_from(increment).unwrap_or(0);
        self.measured = self.measured.saturating_add(increment);
        increment
    }
}

/// What should become of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tuning {
    /// It limits the peer.
    Grow,
    /// It has the right size.
    Keep,
    /// It is hardly used.
    Shrink,
}

/// The round trip, measured by pings.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    value: Option<Duration>,
    asked_at: Option<Instant>,
    number: u64,
    is_waiting: bool,
}

impl RoundTrip {
    pub(super) fn value(&self) -> Option<Duration> {
        self.value
    }

    /// Returns the data of a ping to send, if it is time for one.
    pub(super) fn probe(&mut self, now: Instant) -> Option<[u8; 8]> {
        let is_early = self
            .asked_at
            .is_some_and(|at| now.saturating_duration_since(at) < H2_PROBE_INTERVAL);
        if self.is_waiting || is_early {
            return None;
        }
        self.asked_at = Some(now);
        self.is_waiting = true;
        self.number += 1;
        Some(self.number.to_be_bytes())
    }

    /// Takes the answer to a ping; returns whether it was one of these.
    pub(super) fn answer(&mut self, data: [u8; 8], now: Instant) -> bool {
        if !self.is_waiting || data != self.number.to_be_bytes() {
            return false;
        }
        self.is_waiting = false;
        if let Some(at) = self.asked_at {
            let sample = now.saturating_duration_since(at);
            // Queues only ever add to the round trip: a shorter one is believed at once.
            self.value = Some(match self.value {
                Some(value) if sample > value => value + (sample - value) / 8,
                _ => sample,
            });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_goes_below_zero_and_comes_back() {
        let mut window = SendWindow::new(100);
        window.take(80);
        window.change(-50).unwrap();
        assert_eq!(window.available(), 0);
        window.change(30).unwrap();
        assert_eq!(window.available(), 0);
        window.change(1).unwrap();
        assert_eq!(window.available(), 1);
    }

    #[test]
    fn a_send_window_holds_31_bits_and_no_more() {
        let mut window = SendWindow::new(WINDOW_MAX);
        assert_eq!(window.available(), WINDOW_MAX as usize);
        assert_eq!(window.change(1), Err(WindowOverflow));
        window.take(1);
        assert_eq!(window.change(1), Ok(()));
    }

    #[test]
    fn a_receive_window_gives_back_what_was_read() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(1000);
        window.receive(1000, 0, now).unwrap();
        assert_eq!(window.receive(1, 0, now), Err(WindowOverflow));
        window.consume(124);
        assert!(!window.is_due());
        window.consume(1);
        assert!(window.is_due());
        assert_eq!(window.give_back(), 125);
        window.receive(125, 0, now).unwrap();
        assert_eq!(window.receive(1, 0, now), Err(WindowOverflow));
        assert_eq!(window.receive(1, 1, now), Ok(()));
    }

    /// RFC 9113 section 6.9.1: an empty frame may be sent without any room.
    #[test]
    fn a_receive_window_that_is_overdrawn_lets_nothing_but_empty_frames_in() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(10);
        // Within what the peer took for granted before it knew the size.
        window.receive(50, 100, now).unwrap();
        assert_eq!(window.receive(1, 0, now), Err(WindowOverflow));
        assert_eq!(window.receive(0, 0, now), Ok(()));
    }

    #[test]
    fn a_window_grows_only_when_half_of_it_lasts_less_than_a_round_trip() {
        let now = Instant::now();
        let trip = Duration::from_millis(50);
        let mut window = ReceiveWindow::new(1000);
        assert_eq!(window.tune(Some(trip), now), Tuning::Keep);
        let mut after = |used: usize, trip: Option<Duration>, at: Instant| {
            window.receive(used, 0, now).unwrap();
            window.consume(used);
            window.give_back();
            window.tune(trip, at)
        };
        assert_eq!(after(499, Some(trip), now), Tuning::Keep);
        assert_eq!(after(1, Some(trip), now + trip), Tuning::Grow);
        assert_eq!(after(500, Some(trip), now + trip * 3), Tuning::Keep);
        assert_eq!(after(500, None, now + trip * 3), Tuning::Keep);
        let late = now + trip * 3 + H2_WINDOW_SHRINK_TIME;
        assert_eq!(after(499, Some(trip), late), Tuning::Keep);
        assert_eq!(after(1, Some(trip), late), Tuning::Shrink);
    }

    #[test]
    fn a_resized_window_ends_up_at_its_size() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(1000);
        window.receive(600, 0, now).unwrap();
        window.consume(600);
        window.resize(2000);
        assert_eq!(window.give_back(), 1600);
        assert_eq!(window.open, 2000);
        window.receive(700, 0, now).unwrap();
        window.consume(700);
        window.resize(1000);
        assert!(!window.is_due());
        assert_eq!(window.give_back(), 0);
        window.receive(400, 0, now).unwrap();
        window.consume(400);
        assert_eq!(window.give_back(), 100);
        assert_eq!(window.open, 1000);
    }

    #[test]
    fn the_round_trip_follows_the_shortest() {
        let now = Instant::now();
        let mut trip = RoundTrip::default();
        let data = trip.probe(now).unwrap();
        assert_eq!(trip.probe(now + H2_PROBE_INTERVAL), None);
        assert!(!trip.answer([9; 8], now));
        assert!(trip.answer(data, now + Duration::from_millis(80)));
        assert!(!trip.answer(data, now));
        assert_eq!(trip.value(), Some(Duration::from_millis(80)));
        assert_eq!(trip.probe(now), None);
        let later = now + H2_PROBE_INTERVAL;
        let data = trip.probe(later).unwrap();
        assert!(trip.answer(data, later + Duration::from_millis(160)));
        assert_eq!(trip.value(), Some(Duration::from_millis(90)));
        let later = later + H2_PROBE_INTERVAL;
        let data = trip.probe(later).unwrap();
        assert!(trip.answer(data, later + Duration::from_millis(40)));
        assert_eq!(trip.value(), Some(Duration::from_millis(40)));
    }
}
