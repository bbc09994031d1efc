//! Datagrams of a visitor that wait for its way onward.

use crate::limits::{UDP_OPENING_COUNT_MAX, UDP_OPENING_SIZE_MAX, UDP_OPENING_TOTAL_MAX};

/// The datagrams of one visitor that wait.
#[derive(Debug, Default)]
pub(super) struct Held {
    datagrams: Vec<Vec<u8>>,
    size: usize,
}

impl Held {
    /// Adds a datagram; `total` counts the bytes that wait for all visitors. Beyond the limits
    /// datagrams are lost, as in a network that is busy.
    pub(super) fn put(&mut self, datagram: &[u8], total: &mut usize) {
        let size = datagram.len();
        if self.datagrams.len() < UDP_OPENING_COUNT_MAX
            && self.size + size <= UDP_OPENING_SIZE_MAX
            && *total + size <= UDP_OPENING_TOTAL_MAX
        {
            self.size += size;
            *total += size;
            self.datagrams.push(datagram.to_vec());
        }
    }

    /// Ends the waiting.
    pub(super) fn release(self, total: &mut usize) -> Vec<Vec<u8>> {
        *total -= self.size;
        self.datagrams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_wait_within_their_limits() {
        let mut total = 0;
        let mut many = Held::default();
        (0..=UDP_OPENING_COUNT_MAX).for_each(|_| many.put(b"ab", &mut total));
        assert_eq!(total, 2 * UDP_OPENING_COUNT_MAX);
        let mut large = Held::default();
        large.put(&vec![0; UDP_OPENING_SIZE_MAX], &mut total);
        large.put(b"a", &mut total);
        large.put(b"", &mut total);
        assert_eq!(many.release(&mut total).len(), UDP_OPENING_COUNT_MAX);
        assert_eq!(total, UDP_OPENING_SIZE_MAX);
        assert_eq!(large.release(&mut total).len(), 2);
        assert_eq!(total, 0);
        total = UDP_OPENING_TOTAL_MAX - 1;
        let mut last = Held::default();
        last.put(b"ab", &mut total);
        last.put(b"a", &mut total);
        assert_eq!(last.release(&mut total), [b"a"]);
    }
}
