//! What instances write to their master.

use nodepass::limits::INSTANCE_LINE_SIZE_MAX;
use nodepass::master::supervisor::output::{Line, Lines, meaning};
use nodepass::wire::checkpoint::Checkpoint;

use super::{take_byte, with_byte};

/// However the output is cut, its lines are the same and none is too long; a checkpoint is read as
/// it was written.
pub fn run(mut input: &[u8]) -> bool {
    let piece_size = 1 + usize::from(take_byte(&mut input));
    let whole = lines(input, input.len().max(1));
    assert_eq!(lines(input, piece_size), whole);
    let mut has_meaning = false;
    for line in &whole {
        // A byte that is no text becomes three, and the mark of a cut is three.
        assert!(line.len() <= 3 * INSTANCE_LINE_SIZE_MAX + 3);
        let meaning = meaning(line);
        has_meaning |= meaning != Line::Other;
        if let Line::Checkpoint(checkpoint) = meaning {
            assert_eq!(Checkpoint::parse(&checkpoint.to_string()), Some(checkpoint));
        }
    }
    has_meaning
}

fn lines(output: &[u8], piece_size: usize) -> Vec<String> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    for piece in output.chunks(piece_size) {
        lines.push(piece, |line| found.push(line));
    }
    found.extend(lines.rest());
    found
}

pub fn seeds() -> Vec<Vec<u8>> {
    let checkpoint = Checkpoint {
        mode: 2,
        tcp_sent: u64::MAX,
        ..Checkpoint::default()
    };
    let output = format!(
        "2026-11-20 09:29:17.000  INFO  Server started\n\
         2026-11-20 09:29:17.000  EVENT  {checkpoint}\n\
         2026-11-20 09:29:18.000  ERROR  Client error: no answer\nrest"
    );
    let long = vec![b'x'; INSTANCE_LINE_SIZE_MAX + 1];
    vec![
        with_byte(9, output.as_bytes()),
        with_byte(255, &[&long[..], b"\n", output.as_bytes()].concat()),
    ]
}
