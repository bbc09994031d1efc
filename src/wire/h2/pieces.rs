//! Bytes that wait for their reader, in pieces that are given back as they are read.

use std::collections::VecDeque;

use crate::limits::{H2_PIECE_SIZE, H2_PIECES_IDLE_MAX};

/// Size of the first piece when few bytes come.
const SMALL_PIECE_SIZE: usize = H2_PIECE_SIZE / 4;

/// Bytes that have come and not been read.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// None is empty; only the last one has room left.
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that have been read.
    read: usize,
    size: usize,
}

/// Empty pieces for the next bytes.
#[derive(Debug, Default)]
pub(super) struct IdlePieces(Vec<Vec<u8>>);

impl Pieces {
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the first bytes; empty only when there are none.
    pub(super) fn first(&self) -> &[u8] {
        match self.pieces.front() {
            Some(piece) => &piece[self.read..],
            None => &[],
        }
    }

    /// Appends `bytes`.
    pub(super) fn append(&mut self, mut bytes: &[u8], idle: &mut IdlePieces) {
        self.size += bytes.len();
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| {
                piece
                    .capacity()
                    .max(SMALL_PIECE_SIZE)
                    .saturating_sub(piece.len())
            });
            if let Some(piece) = self.pieces.back_mut().filter(|_| room > 0) {
                let size = bytes.len().min(room);
                piece.extend_from_slice(&bytes[..size]);
                bytes = &bytes[size..];
            } else if self.pieces.is_empty() && bytes.len() < SMALL_PIECE_SIZE {
                // Grows with what comes, up to its size.
                self.pieces.push_back(Vec::with_capacity(bytes.len()));
            } else {
                self.pieces.push_back(idle.take());
            }
        }
    }

    /// Forgets the first `size` bytes: they are read. At most those of `first`.
    pub(super) fn remove(&mut self, size: usize, idle: &mut IdlePieces) {
        let size = size.min(self.first().len());
        self.read += size;
        self.size -= size;
        if size > 0 && self.first().is_empty() {
            self.read = 0;
            idle.put(self.pieces.pop_front());
        }
        if self.size == 0 {
            self.pieces = VecDeque::new();
        }
    }

    /// Forgets all bytes.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the memory taken (bytes).
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(Vec::capacity).sum();
        pieces + self.pieces.capacity() * size_of::<Vec<u8>>()
    }
}

impl IdlePieces {
    /// Returns an empty piece of full size.
    fn take(&mut self) -> Vec<u8> {
        self.0
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(H2_PIECE_SIZE))
    }

    fn put(&mut self, piece: Option<Vec<u8>>) {
        let Some(mut piece) = piece else {
            return;
        };
        if piece.capacity() == H2_PIECE_SIZE && self.0.len() < H2_PIECES_IDLE_MAX {
            piece.clear();
            self.0.push(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_the_order_in_which_they_came() {
        let (mut pieces, mut idle) = (Pieces::default(), IdlePieces::default());
        let all: Vec<u8> = (0..100_000_u32)
            .map(|index| index.to_be_bytes()[3])
            .collect();
        for (index, part) in all.chunks(777).enumerate() {
            pieces.append(part, &mut idle);
            assert!(pieces.size() > index * 700);
        }
        let mut read = Vec::new();
        while pieces.size() > 0 {
            let size = pieces.first().len().min(1000);
            read.extend_from_slice(&pieces.first()[..size]);
            pieces.remove(size, &mut idle);
        }
        assert!(read == all);
        assert_eq!(pieces.memory(), 0);
        assert!(idle.0.len() <= H2_PIECES_IDLE_MAX);
    }

    #[test]
    fn few_bytes_take_little_memory() {
        let (mut pieces, mut idle) = (Pieces::default(), IdlePieces::default());
        pieces.append(b"a line", &mut idle);
        assert!(pieces.memory() < 256, "{}", pieces.memory());
        for _ in 0..100_000 {
            pieces.append(b"x", &mut idle);
        }
        assert!(pieces.memory() < 140_000, "{}", pieces.memory());
    }
}
