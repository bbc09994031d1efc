//! Datagrams inside a byte stream.

use nodepass::wire::datagram::{DatagramDecoder, FRAMED_SIZE_MAX, Framed, encode_length};

use super::{take_byte, with_byte};

/// What the first byte chooses among: the largest datagram that is taken.
const SIZES_MAX: [usize; 4] = [16, 600, 4096, FRAMED_SIZE_MAX];

/// However a stream is cut, the same comes out, and nothing that is too large; what was written
/// comes out as it was.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let size_max = SIZES_MAX[usize::from(how % 4)];
    let (whole, ends_between) = decode(input, input.len().max(1), size_max);
    assert_eq!(
        decode(input, 1 + usize::from(how / 4), size_max),
        (whole.clone(), ends_between)
    );
    let total: usize = whole.iter().flatten().map(Vec::len).sum();
    assert!(total <= input.len());
    assert!(
        whole
            .iter()
            .flatten()
            .all(|datagram| datagram.len() <= size_max)
    );
    round_trip(input, 20 + usize::from(how));
    !whole.is_empty() && ends_between
}

/// Returns the datagrams, `None` for those that are too large, and whether the stream ends between
/// two.
fn decode(stream: &[u8], piece_size: usize, size_max: usize) -> (Vec<Option<Vec<u8>>>, bool) {
    let mut decoder = DatagramDecoder::new(size_max);
    let mut found = Vec::new();
    for mut piece in stream.chunks(piece_size) {
        while let Some(framed) = decoder.decode(&mut piece) {
            found.push(match framed {
                Framed::Datagram(datagram) => Some(datagram.to_vec()),
                Framed::TooLarge { size } => {
                    assert!(size > size_max);
                    None
                }
            });
        }
        assert!(piece.is_empty());
    }
    let ends_between = decoder.is_at_boundary();
    (found, ends_between)
}

fn round_trip(bytes: &[u8], datagram_size: usize) {
    let written: Vec<_> = bytes
        .chunks(datagram_size)
        .map(|datagram| Some(datagram.to_vec()))
        .collect();
    let stream = frame(bytes.chunks(datagram_size));
    assert_eq!(
        decode(&stream, 1 + stream.len() / 3, FRAMED_SIZE_MAX),
        (written, true)
    );
}

fn frame<'d>(datagrams: impl Iterator<Item = &'d [u8]>) -> Vec<u8> {
    datagrams
        .flat_map(|datagram| {
            let length = encode_length(datagram).expect("one that is small enough");
            [&length[..], datagram].concat()
        })
        .collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let datagrams: [&[u8]; 4] = [b"", b"a", &[7; 20], &[9; 700]];
    let stream = frame(datagrams.into_iter());
    (0..4).map(|how| with_byte(how * 3, &stream)).collect()
}
