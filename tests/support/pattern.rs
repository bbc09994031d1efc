//! Bytes that are cheap to make and to check, and of which no two positions look alike.

use std::io::{Read, Write};

/// Bytes after which the repeated noise gets its next stamp.
const BLOCK_SIZE: usize = 64 * 1024;

/// How much is written or read at once.
const CHUNK_SIZE: usize = 256 * 1024;

/// An endless stream of bytes, fixed by its seed.
///
/// Each block is the same noise with the number of the block at its front: lost, repeated or
/// reordered bytes shift the noise or break a stamp. Copying and comparing whole slices keeps
/// this fast in unoptimised builds as well.
pub struct Pattern {
    block: Vec<u8>,
    position: u64,
    expected: Vec<u8>,
}

impl Pattern {
    /// Starts the stream of `seed` at its first byte.
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut block = Vec::with_capacity(BLOCK_SIZE);
        while block.len() < BLOCK_SIZE {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        Self {
            block,
            position: 0,
            expected: Vec::new(),
        }
    }

    /// Fills `out` with the next bytes of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        let block_size = u64::try_from(BLOCK_SIZE).unwrap();
        let mut rest = out;
        while !rest.is_empty() {
            let stamp = (self.position / block_size).to_le_bytes();
            let start = usize::try_from(self.position % block_size).unwrap();
            let count = rest.len().min(BLOCK_SIZE - start);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.block[start..start + count]);
            if start < stamp.len() {
                let stamped = count.min(stamp.len() - start);
                now[..stamped].copy_from_slice(&stamp[start..start + stamped]);
            }
            self.position += u64::try_from(count).unwrap();
            rest = later;
        }
    }

    /// Panics unless `bytes` are the next ones of the stream.
    #[track_caller]
    pub fn check(&mut self, bytes: &[u8]) {
        let before = self.position;
        let mut expected = std::mem::take(&mut self.expected);
        expected.resize(bytes.len(), 0);
        self.fill(&mut expected);
        if expected != bytes {
            let offset = expected
                .iter()
                .zip(bytes)
                .take_while(|(a, b)| a == b)
                .count();
            panic!(
                "byte {} is not the one that was sent",
                before + u64::try_from(offset).unwrap()
            );
        }
        self.expected = expected;
    }

    /// The next `count` bytes of the stream.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }
}

/// Writes the first `count` bytes of the stream of `seed`.
#[track_caller]
pub fn send(mut writer: impl Write, seed: u64, count: u64) {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK_SIZE];
    let mut left = count;
    while left > 0 {
        let size = CHUNK_SIZE.min(usize::try_from(left).unwrap_or(CHUNK_SIZE));
        pattern.fill(&mut chunk[..size]);
        writer.write_all(&chunk[..size]).unwrap();
        left -= u64::try_from(size).unwrap();
    }
}

/// Reads exactly `count` bytes and checks that they are the first ones of the stream of `seed`.
#[track_caller]
pub fn receive(mut reader: impl Read, seed: u64, count: u64) {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK_SIZE];
    let mut left = count;
    while left > 0 {
        let size = CHUNK_SIZE.min(usize::try_from(left).unwrap_or(CHUNK_SIZE));
        let got = reader.read(&mut chunk[..size]).unwrap();
        assert!(got > 0, "the stream ended {left} bytes early");
        pattern.check(&chunk[..got]);
        left -= u64::try_from(got).unwrap();
    }
}
