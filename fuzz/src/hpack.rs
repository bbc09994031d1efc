//! Blocks of header fields.

use nodepass::limits::HPACK_FIELDS_COUNT_MAX;
use nodepass::wire::h2::frame::{
    END_HEADERS, FrameHeader, FrameKind, HEADER_SIZE, PREFACE, strip_headers,
};
use nodepass::wire::h2::hpack::{Decoder, Encoder, Field, HpackError, Outgoing};

use super::{recordings, take_byte, with_byte};

const TABLE_SIZES_MAX: [usize; 4] = [0, 100, 512, 4096];
const LIST_SIZES_MAX: [usize; 4] = [64, 400, 2048, 16 * 1024];

/// Of all blocks of a connection, each behind its size in one byte: no list is larger than allowed,
/// one that is refused for its size leaves the table as the other end has it, and what was read can
/// be written and read again.
pub fn run(mut input: &[u8]) -> bool {
    let how = usize::from(take_byte(&mut input));
    let list_size_max = LIST_SIZES_MAX[how / 4 % 4];
    let mut decoder = Decoder::new(TABLE_SIZES_MAX[how % 4]);
    let mut generous = Decoder::new(TABLE_SIZES_MAX[how % 4]);
    let mut ours = (Encoder::new(), Decoder::new(4096));
    let mut is_read = false;
    while !input.is_empty() {
        let size = usize::from(take_byte(&mut input)).min(input.len());
        let block = input.split_off(..size).unwrap_or_default();
        let found = decoder.decode(block, list_size_max);
        let all = generous.decode(block, usize::MAX);
        match found {
            Ok(list) => {
                assert!(list_size(&list) <= list_size_max && list.len() <= HPACK_FIELDS_COUNT_MAX);
                assert_eq!(all.as_ref(), Ok(&list));
                is_read |= !list.is_empty();
            }
            Err(HpackError::TooLarge) => match &all {
                Ok(list) => assert!(list_size(list) > list_size_max),
                Err(error) => assert_eq!(*error, HpackError::TooLarge),
            },
            Err(error) => {
                assert_eq!(all, Err(error));
                return false;
            }
        }
        if let Ok(list) = all {
            ours.0.set_size_max(how * size);
            let again = ours.1.decode(&encode(&mut ours.0, &list), usize::MAX);
            assert_eq!(again, Ok(list));
        }
    }
    is_read
}

fn list_size(list: &[Field]) -> usize {
    list.iter()
        .map(|field| field.name.len() + field.value.len() + 32)
        .sum()
}

fn encode(encoder: &mut Encoder, list: &[Field]) -> Vec<u8> {
    let fields: Vec<_> = list
        .iter()
        .map(|field| Outgoing {
            name: &field.name,
            value: &field.value,
            is_sensitive: field.value.len() % 5 == 4,
        })
        .collect();
    let mut block = Vec::new();
    encoder.encode(&fields, &mut block);
    block
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for recording in &recordings::CONNECTIONS[4..] {
        for side in ["client", "server"] {
            let said = recordings::said(recording, side);
            let sized = blocks(&said[1]).into_iter().flat_map(|block| {
                with_byte(u8::try_from(block.len()).expect("short blocks"), block)
            });
            seeds.push(with_byte(15, &sized.collect::<Vec<u8>>()));
        }
    }
    // Sizes of the table, literals of all kinds, a Huffman code. RFC 7541 appendix C.
    let block = b"\x20\x3f\xe1\x1f\x40\x0acustom-key\x0dcustom-header\x04\x0c/sample/path\
        \x10\x08password\x06secret\x82\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff\xbe";
    seeds.push(
        [
            &[15, u8::try_from(block.len()).expect("short")],
            &block[..],
            &[2, 0xbe, 0x82],
        ]
        .concat(),
    );
    seeds
}

/// Returns the blocks of what one side of an HTTP/2 connection said.
fn blocks(mut said: &[u8]) -> Vec<&[u8]> {
    said = said.strip_prefix(PREFACE).unwrap_or(said);
    let mut blocks = Vec::new();
    while let Some((header, rest)) = said.split_first_chunk::<HEADER_SIZE>() {
        let header = FrameHeader::decode(header);
        let (payload, rest) = rest.split_at(header.size.min(rest.len()));
        if header.kind == FrameKind::Headers && header.has(END_HEADERS) {
            blocks.extend(strip_headers(&header, payload));
        }
        said = rest;
    }
    blocks
}
