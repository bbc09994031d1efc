//! What instances write: lines, cut out of a stream of bytes, and what they mean.

use crate::limits::INSTANCE_LINE_SIZE_MAX;
use crate::wire::checkpoint::Checkpoint;

/// What a line tells the master.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// The figures of the moment.
    Checkpoint(Checkpoint),
    /// The instance cannot do its work.
    Failure,
    /// Nothing that concerns the master.
    Other,
}

/// Returns what a line of the log means: date, level and text, two blanks between them.
pub fn meaning(line: &str) -> Line {
    let mut parts = line.splitn(3, "  ");
    let (Some(_), Some(level), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return Line::Other;
    };
    match level {
        "EVENT" => Checkpoint::parse(text).map_or(Line::Other, Line::Checkpoint),
        "ERROR"
            if ["Server error: ", "Client error: "]
                .iter()
                .any(|start| text.starts_with(start)) =>
        {
            Line::Failure
        }
        _ => Line::Other,
    }
}

/// Bytes on their way to become lines; of a line that is too long the rest is left out.
#[derive(Debug, Default)]
pub struct Lines {
    part: Vec<u8>,
    is_cut: bool,
}

impl Lines {
    /// Takes bytes, and hands each line that they complete to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(String)) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = INSTANCE_LINE_SIZE_MAX - self.part.len();
            self.is_cut |= piece.len() > room;
            self.part.extend_from_slice(&piece[..piece.len().min(room)]);
            if pieces.peek().is_some() {
                take(self.finish());
            }
        }
    }

    /// Returns the last line if it has no end, once no more bytes come.
    pub fn rest(&mut self) -> Option<String> {
        (!self.part.is_empty()).then(|| self.finish())
    }

    fn finish(&mut self) -> String {
        let mut line = String::from_utf8_lossy(&self.part).into_owned();
        self.part.clear();
        if std::mem::take(&mut self.is_cut) {
            line.push('…');
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut taken = Vec::new();
        for piece in pieces {
            lines.push(piece, |line| taken.push(line));
        }
        taken.extend(lines.rest());
        taken
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"one\n\ntwo\nthree";
        for end in 0..text.len() {
            let (first, second) = text.split_at(end);
            assert_eq!(lines(&[first, second]), ["one", "", "two", "three"]);
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_room() {
        let mut cut = Lines::default();
        for _ in 0..100 {
            cut.push(&[b'x'; 1000], |_| panic!("no line has ended"));
        }
        assert!(cut.part.capacity() <= 2 * INSTANCE_LINE_SIZE_MAX);
        let mut taken = Vec::new();
        cut.push(b"\nnext\n", |line| taken.push(line));
        assert_eq!(taken[0].len(), INSTANCE_LINE_SIZE_MAX + '…'.len_utf8());
        assert_eq!(taken[1], "next");
    }

    #[test]
    fn only_lines_of_the_right_level_count() {
        let at = |rest: &str| meaning(&format!("2026-11-20 09:28:54.697  {rest}"));
        let checkpoint = Checkpoint::default();
        assert_eq!(
            at(&format!("EVENT  {checkpoint}")),
            Line::Checkpoint(checkpoint)
        );
        assert_eq!(at(&format!("WARN  {checkpoint}")), Line::Other);
        assert_eq!(at("ERROR  Client error: it fails"), Line::Failure);
        assert_eq!(at("ERROR  Server error: it fails"), Line::Failure);
        assert_eq!(at("ERROR  Some other error: it fails"), Line::Other);
        assert_eq!(at("WARN  Client error: it fails"), Line::Other);
        assert_eq!(meaning("Client error: it fails"), Line::Other);
    }
}
