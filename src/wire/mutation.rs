//! Damaged input for the tests of decoders: the same at every run.

/// A small generator of numbers that look random (Marsaglia's xorshift64).
pub(crate) struct Xorshift(u64);

impl Xorshift {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Returns `original` with up to four bytes changed, put in or taken out, or cut short.
    pub(crate) fn damage(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..=self.below(4) {
            let index = self.below(bytes.len() + 1);
            match self.below(8) {
                0 => bytes.truncate(index),
                1 | 2 => bytes.insert(index, self.byte()),
                3 if index < bytes.len() => drop(bytes.remove(index)),
                4 if index < bytes.len() => bytes[index] ^= 1 << self.below(8),
                _ if index < bytes.len() => bytes[index] = self.byte(),
                _ => bytes.push(self.byte()),
            }
        }
        bytes
    }
}
