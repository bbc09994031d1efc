//! Bytes of a stream on their way: quiche drops each piece when the peer has acknowledged it, and
//! so it can be known when all has arrived.

use std::ops::Range;
use std::sync::Arc;

use quiche::{BufFactory, BufSplit};

/// Makes pieces.
#[derive(Clone, Debug, Default)]
pub struct Pieces;

/// Some bytes of a stream.
#[derive(Clone, Debug)]
pub struct Piece {
    bytes: Arc<[u8]>,
    range: Range<usize>,
    /// Shared with all pieces of the stream that are on their way.
    _toll: Toll,
}

/// Tells whether pieces that were made with it are on their way.
#[derive(Clone, Debug, Default)]
pub struct Toll(Arc<()>);

impl Toll {
    /// Returns whether nothing is on its way.
    pub fn is_paid(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Returns a piece with a copy of `bytes`.
    pub fn piece(&self, bytes: &[u8]) -> Piece {
        Piece {
            bytes: bytes.into(),
            range: 0..bytes.len(),
            _toll: self.clone(),
        }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl BufSplit for Piece {
    fn split_at(&mut self, at: usize) -> Self {
        let middle = (self.range.start + at).min(self.range.end);
        let mut rest = self.clone();
        rest.range.start = middle;
        self.range.end = middle;
        rest
    }
}

impl BufFactory for Pieces {
    type Buf = Piece;
    type DgramBuf = Vec<u8>;

    fn buf_from_slice(bytes: &[u8]) -> Piece {
        Toll::default().piece(bytes)
    }

    fn dgram_buf_from_slice(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toll_is_paid_when_all_pieces_are_dropped() {
        let toll = Toll::default();
        assert!(toll.is_paid());
        let mut piece = toll.piece(b"some bytes");
        assert!(!toll.is_paid());
        let rest = piece.split_at(4);
        assert_eq!(
            (piece.as_ref(), rest.as_ref()),
            (&b"some"[..], &b" bytes"[..])
        );
        drop(piece);
        assert!(!toll.is_paid());
        drop(rest);
        assert!(toll.is_paid());
    }
}
