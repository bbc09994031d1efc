//! A datagram inside a byte stream: its length in two bytes, big endian, and its bytes.
//!
//! Native pool connections carry UDP so: boundaries survive, and a datagram may be empty. A
//! datagram that is larger than the receiver wants is stepped over as a whole, never cut.
//!
//! Source: wire protocol, section 8, "UDP".

/// Size of the length in front of each datagram (bytes).
pub const LENGTH_SIZE: usize = 2;

/// Largest datagram that the length can tell of (bytes).
pub const FRAMED_SIZE_MAX: usize = 0xffff;

/// Returns the bytes that go in front of `datagram`; `None` if it is larger than
/// [`FRAMED_SIZE_MAX`].
pub fn encode_length(datagram: &[u8]) -> Option<[u8; LENGTH_SIZE]> {
    Some(u16::try_from(datagram.len()).ok()?.to_be_bytes())
}

/// What a stream of framed datagrams has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// A whole datagram.
    Datagram(&'a [u8]),
    /// One that was larger than the receiver takes has been stepped over: to be counted.
    TooLarge {
        /// Its size (bytes).
        size: usize,
    },
}

/// Takes datagrams out of a stream, however it is cut.
///
/// Holds at most one datagram of `size_max`; copies only those that arrive in pieces.
#[derive(Debug)]
pub struct DatagramDecoder {
    size_max: usize,
    state: State,
    /// The part of a datagram that is there; empty outside of [`State::Body`].
    partial: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between two datagrams.
    Length,
    /// Behind the first byte of a length.
    HalfLength(u8),
    /// In a datagram of this size; `partial` holds its start.
    Body { size: usize },
    /// In a datagram that is too large, with so many bytes to go.
    Skip { size: usize, left: usize },
    /// `partial` has been handed out.
    Delivered,
}

impl DatagramDecoder {
    /// Returns a decoder at the start of a stream that takes datagrams of up to `size_max` bytes.
    pub fn new(size_max: usize) -> Self {
        Self {
            size_max,
            state: State::Length,
            partial: Vec::new(),
        }
    }

    /// Returns the next datagram and moves `input` on behind it; `None` when all of `input` is
    /// taken and more is needed.
    pub fn decode<'a, 'input: 'a>(&'a mut self, input: &mut &'input [u8]) -> Option<Framed<'a>> {
        if matches!(self.state, State::Delivered) {
            // Given back: between two datagrams a stream costs no buffer.
            self.partial = Vec::new();
            self.state = State::Length;
        }
        loop {
            match self.state {
                State::Length => self.state = State::HalfLength(take_byte(input)?),
                State::HalfLength(high) => {
                    let size = usize::from(u16::from_be_bytes([high, take_byte(input)?]));
                    self.state = if size > self.size_max {
                        State::Skip { size, left: size }
                    } else {
                        State::Body { size }
                    };
                }
                State::Body { size } if self.partial.is_empty() && input.len() >= size => {
                    self.state = State::Length;
                    return Some(Framed::Datagram(take(input, size)));
                }
                State::Body { size } => {
                    self.partial.extend(take(input, size - self.partial.len()));
                    if self.partial.len() < size {
                        return None;
                    }
                    self.state = State::Delivered;
                    return Some(Framed::Datagram(&self.partial));
                }
                State::Skip { size, left } => {
                    let left = left - take(input, left).len();
                    if left > 0 {
                        self.state = State::Skip { size, left };
                        return None;
                    }
                    self.state = State::Length;
                    return Some(Framed::TooLarge { size });
                }
                State::Delivered => unreachable!("left before the loop and never entered in it"),
            }
        }
    }

    /// Returns whether a stream that ends here ends between two datagrams, not within one.
    pub fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Length | State::Delivered)
    }
}

fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

/// Takes `size` bytes, or all where there are fewer.
fn take<'a>(input: &mut &'a [u8], size: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(size.min(input.len()));
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::super::mutation::Xorshift;
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Taken {
        Datagram(Vec<u8>),
        TooLarge(usize),
    }

    fn frame(datagrams: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for datagram in datagrams {
            stream.extend(encode_length(datagram).unwrap());
            stream.extend(datagram);
        }
        stream
    }

    fn decode_all(decoder: &mut DatagramDecoder, mut input: &[u8], taken: &mut Vec<Taken>) {
        while let Some(framed) = decoder.decode(&mut input) {
            taken.push(match framed {
                Framed::Datagram(bytes) => Taken::Datagram(bytes.to_vec()),
                Framed::TooLarge { size } => Taken::TooLarge(size),
            });
        }
        assert!(input.is_empty());
    }

    #[test]
    fn length_is_two_bytes_big_endian() {
        assert_eq!(encode_length(b""), Some([0, 0]));
        assert_eq!(encode_length(&[0; 0x0102]), Some([1, 2]));
        assert_eq!(encode_length(&[0; FRAMED_SIZE_MAX]), Some([0xff, 0xff]));
        assert_eq!(encode_length(&[0; FRAMED_SIZE_MAX + 1]), None);
    }

    #[test]
    fn datagrams_keep_their_boundaries_however_the_stream_is_cut() {
        let sizes = [0, 1, 5, 0, 300, FRAMED_SIZE_MAX, 0];
        let datagrams: Vec<_> = sizes.map(|size| vec![7; size]).into();
        let expected: Vec<_> = datagrams.iter().cloned().map(Taken::Datagram).collect();
        let stream = frame(&datagrams);
        for piece_size in [1, 2, 3, 64, 4096, stream.len()] {
            let mut decoder = DatagramDecoder::new(FRAMED_SIZE_MAX);
            let mut taken = Vec::new();
            for piece in stream.chunks(piece_size) {
                decode_all(&mut decoder, piece, &mut taken);
            }
            assert_eq!(taken, expected, "pieces of {piece_size}");
            assert!(decoder.is_at_boundary());
        }
    }

    #[test]
    fn datagrams_that_are_too_large_are_stepped_over_as_a_whole() {
        let stream = frame(&[vec![1; 10], vec![2; 11], vec![3; 10]]);
        for piece_size in [1, 4, stream.len()] {
            let mut decoder = DatagramDecoder::new(10);
            let mut taken = Vec::new();
            for piece in stream.chunks(piece_size) {
                decode_all(&mut decoder, piece, &mut taken);
            }
            let expected = [
                Taken::Datagram(vec![1; 10]),
                Taken::TooLarge(11),
                Taken::Datagram(vec![3; 10]),
            ];
            assert_eq!(taken, expected, "pieces of {piece_size}");
        }
    }

    #[test]
    fn an_end_within_a_datagram_shows() {
        let stream = frame(&[b"ab".to_vec()]);
        for end in 0..=stream.len() {
            let mut decoder = DatagramDecoder::new(2);
            decode_all(&mut decoder, &stream[..end], &mut Vec::new());
            assert_eq!(decoder.is_at_boundary(), end == 0 || end == stream.len());
        }
    }

    #[test]
    fn any_stream_can_be_decoded_in_bounded_memory() {
        let mut random = Xorshift::new(3);
        for _ in 0..2_000 {
            let datagrams = [random.bytes::<3>().to_vec(), random.bytes::<40>().to_vec()];
            let damaged = random.damage(&frame(&datagrams));
            let mut decoder = DatagramDecoder::new(64);
            let mut taken = Vec::new();
            for piece in damaged.chunks(1 + random.below(damaged.len() + 1)) {
                decode_all(&mut decoder, piece, &mut taken);
                assert!(decoder.partial.len() <= 64);
            }
        }
    }
}
