//! The Huffman code of string literals.
//!
//! The code is canonical: the lengths say everything, codes of one length go up with their symbols,
//! and longer ones follow. Everything else is made from the lengths by the compiler.
//!
//! Source: RFC 7541 section 5.2 (padding) and appendix B (lengths).

use super::HpackError;

/// The symbol that ends a string; no string may contain it.
const EOS: usize = 256;
const SYMBOLS_COUNT: usize = EOS + 1;
/// A binary tree has one node less than leaves.
const NODES_COUNT: usize = SYMBOLS_COUNT - 1;

const LENGTH_MAX: u8 = 30;

/// How many bits the code of each symbol has.
const LENGTHS: [u8; SYMBOLS_COUNT] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const CODES: [u32; SYMBOLS_COUNT] = canonical_codes();

// Only lengths that fill the tree without a gap end in the code of ones.
const _: () = assert!(CODES[EOS] == (1 << LENGTH_MAX) - 1);

/// The padding is at most so many ones; RFC 7541 section 5.2.
const PADDING_SIZE_MAX: u8 = 7;

/// A node of the tree: what was read since the last whole symbol. Nodes of ones alone come first,
/// so that the number of each is the count of its ones, and the root is 0.
type Node = u8;

/// What the next four bits lead to. No code is that short, so there is one symbol at most.
#[derive(Clone, Copy)]
enum Step {
    /// To another node.
    Go(Node),
    /// Through a leaf, the symbol, and on from the root.
    Emit(u8, Node),
    /// Through the end of the string, which must not be spelled out.
    Eos,
}

static STEPS: [[Step; 16]; NODES_COUNT] = steps();

/// Returns how long `bytes` would be in Huffman code, padding included (bytes).
pub(super) fn encoded_size(bytes: &[u8]) -> usize {
    let length = |&byte: &u8| usize::from(LENGTHS[usize::from(byte)]);
    bytes.iter().map(length).sum::<usize>().div_ceil(8)
}

/// Appends `bytes` to `into` in Huffman code.
pub(super) fn encode(bytes: &[u8], into: &mut Vec<u8>) {
    // The lowest `size` bits of `bits` are to leave: at most 7 and a code, and padding.
    let mut bits: u64 = 0;
    let mut size: u8 = 0;
    for &byte in bytes {
        let length = LENGTHS[usize::from(byte)];
        bits = bits << length | u64::from(CODES[usize::from(byte)]);
        size += length;
        while size >= 8 {
            size -= 8;
            into.push((bits >> size).to_le_bytes()[0]);
        }
    }
    if size > 0 {
        let padded = bits << 8 | 0xff;
        into.push((padded >> size).to_le_bytes()[0]);
    }
}

/// Returns the bytes that `input` writes in Huffman code: at most 8/5 of its size.
///
/// Errors: [`HpackError::Huffman`].
pub(super) fn decode(input: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut bytes = Vec::with_capacity(input.len() + input.len() / 5 * 3 + 3);
    let mut node: Node = 0;
    for octet in input {
        for bits in [octet >> 4, octet & 0x0f] {
            match STEPS[usize::from(node)][usize::from(bits)] {
                Step::Go(next) => node = next,
                Step::Emit(symbol, next) => {
                    bytes.push(symbol);
                    node = next;
                }
                Step::Eos => return Err(HpackError::Huffman),
            }
        }
    }
    if node > PADDING_SIZE_MAX {
        return Err(HpackError::Huffman);
    }
    Ok(bytes)
}

const fn canonical_codes() -> [u32; SYMBOLS_COUNT] {
    let mut codes = [0; SYMBOLS_COUNT];
    let mut next = 0;
    let mut length = 1;
    while length <= LENGTH_MAX {
        next <<= 1;
        let mut symbol = 0;
        while symbol < SYMBOLS_COUNT {
            if LENGTHS[symbol] == length {
                codes[symbol] = next;
                next += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    codes
}

/// Where a bit leads to in the tree.
#[derive(Clone, Copy)]
enum Branch {
    Unset,
    Node(Node),
    Leaf(u8),
    Eos,
}

const fn tree() -> [[Branch; 2]; NODES_COUNT] {
    let mut tree = [[Branch::Unset; 2]; NODES_COUNT];
    let mut last_node: Node = 0;
    // From the end of the string downwards, so that its code of ones makes the first nodes.
    let mut symbol = SYMBOLS_COUNT;
    while symbol > 0 {
        symbol -= 1;
        let mut node: Node = 0;
        let mut left = LENGTHS[symbol];
        while left > 0 {
            left -= 1;
            let branch = &mut tree[node as usize][(CODES[symbol] >> left & 1) as usize];
            *branch = match *branch {
                _ if left == 0 && symbol == EOS => Branch::Eos,
                _ if left == 0 => Branch::Leaf(symbol.to_le_bytes()[0]),
                Branch::Node(below) => Branch::Node(below),
                _ => {
                    last_node += 1;
                    Branch::Node(last_node)
                }
            };
            if let Branch::Node(below) = *branch {
                node = below;
            }
        }
    }
    tree
}

const fn steps() -> [[Step; 16]; NODES_COUNT] {
    let tree = tree();
    let mut steps = [[Step::Eos; 16]; NODES_COUNT];
    let mut node = 0;
    while node < NODES_COUNT {
        let mut bits = 0;
        while bits < 16 {
            steps[node][bits] = walk(&tree, node, bits);
            bits += 1;
        }
        node += 1;
    }
    steps
}

/// Follows four bits from `node`.
const fn walk(tree: &[[Branch; 2]; NODES_COUNT], node: usize, bits: usize) -> Step {
    let mut at = node;
    let mut step = Step::Eos;
    let mut left = 4;
    while left > 0 {
        left -= 1;
        step = match (tree[at][bits >> left & 1], step) {
            (Branch::Node(below), Step::Emit(symbol, _)) => Step::Emit(symbol, below),
            (Branch::Node(below), _) => Step::Go(below),
            (Branch::Leaf(symbol), _) => Step::Emit(symbol, 0),
            (Branch::Eos, _) => return Step::Eos,
            (Branch::Unset, _) => panic!("the code has a gap"),
        };
        at = match step {
            Step::Go(next) | Step::Emit(_, next) => next as usize,
            Step::Eos => return Step::Eos,
        };
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mutation::Xorshift;

    /// Returns `bits`, filled up with `padding` to whole bytes.
    fn packed(mut bits: String, padding: char) -> Vec<u8> {
        while !bits.len().is_multiple_of(8) {
            bits.push(padding);
        }
        let octet = |index| u8::from_str_radix(&bits[index..index + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(octet).collect()
    }

    fn bits_of(symbol: usize) -> String {
        let length = usize::from(LENGTHS[symbol]);
        format!("{:0length$b}", CODES[symbol])
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        let listed = [
            (0, 0x1ff8, 13),
            (1, 0x007f_ffd8, 23),
            (2, 0x0fff_ffe2, 28),
            (9, 0x00ff_ffea, 24),
            (10, 0x3fff_fffc, 30),
            (22, 0x3fff_fffe, 30),
            (32, 0x14, 6),
            (35, 0xffa, 12),
            (39, 0x7fa, 11),
            (48, 0x0, 5),
            (58, 0x5c, 7),
            (88, 0xfc, 8),
            (92, 0x7_fff0, 19),
            (94, 0x3ffc, 14),
            (116, 0x9, 5),
            (127, 0x0fff_fffc, 28),
            (128, 0xf_ffe6, 20),
            (129, 0x3f_ffd2, 22),
            (153, 0x1f_ffdc, 21),
            (192, 0x03ff_ffe0, 26),
            (199, 0x01ff_ffec, 25),
            (EOS, 0x3fff_ffff, 30),
        ];
        for (symbol, code, length) in listed {
            assert_eq!((CODES[symbol], LENGTHS[symbol]), (code, length), "{symbol}");
        }
    }

    #[test]
    fn each_byte_is_read_behind_any_number_of_bits() {
        for byte in 0..=255 {
            for before_count in 0..8 {
                let mut text = vec![b'0'; before_count];
                text.push(byte);
                let spelled: String = text.iter().map(|&b| bits_of(b.into())).collect();
                let expected = packed(spelled, '1');
                let mut encoded = Vec::new();
                encode(&text, &mut encoded);
                assert_eq!(encoded, expected);
                assert_eq!(encoded_size(&text), expected.len());
                assert_eq!(decode(&encoded), Ok(text));
            }
        }
    }

    #[test]
    fn padding_is_fewer_than_eight_ones() {
        for count in 1..7 {
            let text = vec![b'0'; count];
            let bits = "00000".repeat(count);
            let mut encoded = packed(bits.clone(), '1');
            assert_eq!(decode(&encoded), Ok(text.clone()));
            assert_eq!(decode(&packed(bits, '0')), Err(HpackError::Huffman));
            encoded.push(0xff);
            assert_eq!(decode(&encoded), Err(HpackError::Huffman));
        }
        assert_eq!(decode(&[]), Ok(Vec::new()));
        for size in 1..6 {
            assert_eq!(decode(&vec![0xff; size]), Err(HpackError::Huffman));
        }
    }

    #[test]
    fn the_end_of_the_string_is_never_spelled_out() {
        for before_count in 0..8 {
            let spelled = "00000".repeat(before_count) + &bits_of(EOS);
            assert_eq!(
                decode(&packed(spelled.clone(), '1')),
                Err(HpackError::Huffman)
            );
            let more = spelled + "00000";
            assert_eq!(decode(&packed(more, '1')), Err(HpackError::Huffman));
        }
    }

    #[test]
    fn a_text_has_one_code() {
        let mut random = Xorshift::new(71);
        for _ in 0..5_000 {
            let text: [u8; 24] = random.bytes();
            let text = &text[..random.below(25)];
            let mut encoded = Vec::new();
            encode(text, &mut encoded);
            assert_eq!(decode(&encoded).as_deref(), Ok(text));
            let damaged = random.damage(&encoded);
            if let Ok(decoded) = decode(&damaged) {
                let mut again = Vec::new();
                encode(&decoded, &mut again);
                assert_eq!(again, damaged);
                assert!(decoded.len() <= damaged.len() * 8 / 5);
            }
        }
    }
}
