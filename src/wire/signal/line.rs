//! Lines out of a stream, however it is cut.

use crate::limits::CONTROL_LINE_SIZE_MAX;

/// What a stream of lines has next.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its newline.
    Complete(Vec<u8>),
    /// More than [`CONTROL_LINE_SIZE_MAX`] bytes came without an end of line; what follows up to
    /// the next one belongs to it and is dropped.
    TooLong,
}

/// Splits a stream into lines; holds at most [`CONTROL_LINE_SIZE_MAX`] bytes.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The start of a line whose end has not come.
    partial: Vec<u8>,
    /// In a line that was reported as too long.
    skips: bool,
}

impl LineSplitter {
    /// Returns the next line and moves `input` on behind it; `None` when all of `input` is taken
    /// and more is needed.
    pub fn split(&mut self, input: &mut &[u8]) -> Option<Line> {
        loop {
            let end = input.iter().position(|byte| *byte == b'\n');
            let (piece, rest) = input.split_at(end.unwrap_or(input.len()));
            *input = rest.get(1..).unwrap_or_default();
            if self.skips {
                self.skips = end.is_none();
                if self.skips {
                    return None;
                }
                continue;
            }
            // The newline counts, whether it is there or still to come.
            if self.partial.len() + piece.len() >= CONTROL_LINE_SIZE_MAX {
                self.partial = Vec::new();
                self.skips = end.is_none();
                return Some(Line::TooLong);
            }
            self.partial.extend(piece);
            end?;
            return Some(Line::Complete(std::mem::take(&mut self.partial)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_in_pieces(stream: &[u8], piece_size: usize) -> Vec<Line> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for mut piece in stream.chunks(piece_size) {
            while let Some(line) = splitter.split(&mut piece) {
                lines.push(line);
            }
            assert!(piece.is_empty());
            assert!(splitter.partial.len() < CONTROL_LINE_SIZE_MAX);
        }
        lines
    }

    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let stream = b"one\n\ntwo\nthe rest";
        let expected = [&b"one"[..], b"", b"two"].map(|line| Line::Complete(line.to_vec()));
        for piece_size in 1..=stream.len() {
            assert_eq!(split_in_pieces(stream, piece_size), expected);
        }
    }

    #[test]
    fn the_longest_line_passes_and_one_byte_more_does_not() {
        let longest = vec![b'x'; CONTROL_LINE_SIZE_MAX - 1];
        let mut stream = [&longest[..], b"\n", &longest, b"x\n"].concat();
        stream.extend([vec![b'y'; 3 * CONTROL_LINE_SIZE_MAX], b"\nnext\n".to_vec()].concat());
        let expected = [
            Line::Complete(longest),
            Line::TooLong,
            Line::TooLong,
            Line::Complete(b"next".to_vec()),
        ];
        for piece_size in [1, 7, 4095, 4096, 4097, stream.len()] {
            assert_eq!(split_in_pieces(&stream, piece_size), expected);
        }
    }
}
