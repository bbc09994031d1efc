//! Bodies in chunks.

use nodepass::limits::API_CHUNK_WASTE_MAX;
use nodepass::wire::http1::chunks::{Chunks, ChunksError};

use super::{take_byte, with_byte};

/// However a body is cut, it means the same and ends at the same place; data come out as they were
/// put into chunks.
pub fn run(mut input: &[u8]) -> bool {
    let how = usize::from(take_byte(&mut input));
    let whole = decode(input, input.len().max(1));
    assert_eq!(decode(input, 1 + how), whole);
    if let Ok((data, size, _)) = &whole {
        assert!(data.len() <= *size && *size <= input.len());
    }

    let body = encode(input.chunks(20 + how), b"");
    let behind = [&body[..], b"GET"].concat();
    assert_eq!(
        decode(&behind, 1 + how),
        Ok((input.to_vec(), body.len(), true))
    );
    matches!(whole, Ok((.., true)))
}

/// Returns the data, how many bytes belong to the body, and whether it is over.
fn decode(input: &[u8], piece_size: usize) -> Result<(Vec<u8>, usize, bool), ChunksError> {
    let mut chunks = Chunks::default();
    let (mut data, mut size) = (Vec::new(), 0);
    for mut piece in input.chunks(piece_size) {
        while !piece.is_empty() && !chunks.is_over() {
            let (taken, some) = chunks.decode(piece)?;
            assert!(taken > 0 && piece[..taken].ends_with(some));
            data.extend_from_slice(some);
            size += taken;
            piece = &piece[taken..];
        }
    }
    Ok((data, size, chunks.is_over()))
}

fn encode<'d>(pieces: impl Iterator<Item = &'d [u8]>, extension: &[u8]) -> Vec<u8> {
    let chunks = pieces.flat_map(|piece| {
        let size = format!("{:x}", piece.len());
        [size.as_bytes(), extension, b"\r\n", piece, b"\r\n"].concat()
    });
    chunks.chain(*b"0\r\n\r\n").collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut trailers = encode([&b"hello"[..], &[0x41; 31]].into_iter(), b"; e=\"x\"");
    trailers.splice(trailers.len() - 2.., *b"X: y\r\nZ:\r\n\r\n");
    let waste = vec![b'e'; API_CHUNK_WASTE_MAX - 1];
    vec![
        with_byte(0, b"0\r\n\r\n"),
        with_byte(3, &encode([&b"hello"[..]].into_iter(), b"")),
        with_byte(7, &trailers),
        with_byte(250, &[b"0;", &waste[..], b"\r\n\r\n"].concat()),
    ]
}
