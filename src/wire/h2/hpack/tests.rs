use super::*;
use crate::wire::mutation::Xorshift;

/// The list size that no test but those of the bound comes near.
const AMPLE: usize = 64 * 1024;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let octet = |index| u8::from_str_radix(&digits[index..index + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(octet).collect()
}

/// Returns the fields that `text` has, one in each line.
fn fields(text: &str) -> Vec<Field> {
    let field = |line: &str| {
        let (name, value) = line.trim().split_once(": ").unwrap();
        Field::new(name.as_bytes(), value.as_bytes())
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(field)
        .collect()
}

fn outgoing(fields: &[Field]) -> Vec<Outgoing<'_>> {
    let all = fields.iter();
    all.map(|field| Outgoing::new(&field.name, &field.value))
        .collect()
}

fn encode(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(&outgoing(fields), &mut block);
    block
}

fn decode_new(block: &[u8]) -> Result<Vec<Field>, HpackError> {
    Decoder::new(HPACK_TABLE_SIZE_MAX).decode(block, AMPLE)
}

/// One example of appendix C: a block, its list, and the table afterwards, the newest field first.
struct Example {
    plain: &'static str,
    huffman: &'static str,
    list: &'static str,
    table_size: usize,
    table: &'static str,
}

/// Appendix C.3, and C.4 with Huffman code.
const REQUESTS: [Example; 3] = [
    Example {
        plain: "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        huffman: "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        list: ":method: GET
               :scheme: http
               :path: /
               :authority: www.example.com",
        table_size: 57,
        table: ":authority: www.example.com",
    },
    Example {
        plain: "8286 84be 5808 6e6f 2d63 6163 6865",
        huffman: "8286 84be 5886 a8eb 1064 9cbf",
        list: ":method: GET
               :scheme: http
               :path: /
               :authority: www.example.com
               cache-control: no-cache",
        table_size: 110,
        table: "cache-control: no-cache
                :authority: www.example.com",
    },
    Example {
        plain: "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        huffman: "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        list: ":method: GET
               :scheme: https
               :path: /index.html
               :authority: www.example.com
               custom-key: custom-value",
        table_size: 164,
        table: "custom-key: custom-value
                cache-control: no-cache
                :authority: www.example.com",
    },
];

/// Appendix C.5, and C.6 with Huffman code; the table has 256 bytes.
const RESPONSES: [Example; 3] = [
    Example {
        plain: "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
                2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
                6c65 2e63 6f6d",
        huffman: "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                  2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        list: ":status: 302
               cache-control: private
               date: Mon, 21 Oct 2013 20:13:21 GMT
               location: https://www.example.com",
        table_size: 222,
        table: "location: https://www.example.com
                date: Mon, 21 Oct 2013 20:13:21 GMT
                cache-control: private
                :status: 302",
    },
    Example {
        plain: "4803 3330 37c1 c0bf",
        huffman: "4883 640e ffc1 c0bf",
        list: ":status: 307
               cache-control: private
               date: Mon, 21 Oct 2013 20:13:21 GMT
               location: https://www.example.com",
        table_size: 222,
        table: ":status: 307
                location: https://www.example.com
                date: Mon, 21 Oct 2013 20:13:21 GMT
                cache-control: private",
    },
    Example {
        plain: "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
                54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
                5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
                3d31",
        huffman: "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                  77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                  9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        list: ":status: 200
               cache-control: private
               date: Mon, 21 Oct 2013 20:13:22 GMT
               location: https://www.example.com
               content-encoding: gzip
               set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        table_size: 215,
        table: "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1
                content-encoding: gzip
                date: Mon, 21 Oct 2013 20:13:22 GMT",
    },
];

#[test]
fn numbers_of_the_standard() {
    // Appendix C.1: 10 and 1337 behind three bits, 42 at the start of an octet.
    let eight_bits = Kind::new(0, 0xff);
    for (kind, number, text) in [
        (TABLE_SIZE, 10, "2a"),
        (TABLE_SIZE, 1337, "3f 9a 0a"),
        (eight_bits, 42, "2a"),
    ] {
        let mut encoded = Vec::new();
        encode_number(kind, number, &mut encoded);
        assert_eq!(encoded, hex(text));
        let mut input = Input { rest: &encoded };
        assert_eq!(input.number(kind), Ok(number));
        assert!(input.rest.is_empty());
    }
}

#[test]
fn numbers_are_read_as_they_were_written() {
    for kind in [INDEXED, LITERAL_ADDED, TABLE_SIZE, LITERAL] {
        let mask = usize::from(kind.mask);
        let largest = mask + (1 << 28) - 1;
        for number in [0, 1, mask - 1, mask, mask + 127, mask + 128, 4096, largest] {
            let mut encoded = Vec::new();
            encode_number(kind, number, &mut encoded);
            assert!(kind.begins(encoded[0]));
            assert_eq!(Input { rest: &encoded }.number(kind), Ok(number));
            for end in 0..encoded.len() {
                let cut = Input {
                    rest: &encoded[..end],
                }
                .number(kind);
                assert_eq!(cut, Err(HpackError::Truncated));
            }
        }
        let mut encoded = Vec::new();
        encode_number(kind, largest + 1, &mut encoded);
        assert_eq!(
            Input { rest: &encoded }.number(kind),
            Err(HpackError::NumberTooLong)
        );
    }
}

#[test]
fn a_number_with_too_many_octets_is_refused_whatever_its_value() {
    for text in [
        "ff 80 80 80 80 00",
        "ff ff ff ff ff ff ff ff ff ff 01",
        "3f 80 80 80 80",
    ] {
        assert_eq!(decode_new(&hex(text)), Err(HpackError::NumberTooLong));
    }
    // Zeros behind the number are no harm while they are few.
    assert_eq!(
        decode_new(&hex("3f 80 80 80 00 82")),
        Ok(fields(":method: GET"))
    );
}

#[test]
fn fields_of_the_standard() {
    // Appendix C.2.
    for (block, list, is_added) in [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            "custom-key: custom-header",
            true,
        ),
        (
            "040c 2f73 616d 706c 652f 7061 7468",
            ":path: /sample/path",
            false,
        ),
        (
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            "password: secret",
            false,
        ),
        ("82", ":method: GET", false),
    ] {
        let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
        assert_eq!(decoder.decode(&hex(block), AMPLE), Ok(fields(list)));
        let table = if is_added {
            (55, fields(list))
        } else {
            (0, Vec::new())
        };
        assert_eq!(decoder.table.seen(), table);
    }
}

#[test]
fn blocks_of_the_standard() {
    // Appendices C.3 to C.6.
    for (examples, table_size_max) in [(REQUESTS, 4096), (RESPONSES, 256)] {
        for block in [|e: &Example| e.plain, |e: &Example| e.huffman] {
            let mut decoder = Decoder::new(table_size_max);
            for example in &examples {
                let list = decoder.decode(&hex(block(example)), AMPLE);
                assert_eq!(list, Ok(fields(example.list)));
                let table = (example.table_size, fields(example.table));
                assert_eq!(decoder.table.seen(), table);
            }
        }
    }
}

#[test]
fn the_encoder_writes_the_blocks_of_the_standard() {
    for (examples, table_size_max) in [(REQUESTS, 4096), (RESPONSES, 256)] {
        let mut encoder = Encoder::new();
        encoder.set_size_max(table_size_max);
        if table_size_max != HPACK_TABLE_SIZE_MAX {
            assert_eq!(encode(&mut encoder, &[]), hex("3f e1 01"));
        }
        for example in &examples {
            let block = encode(&mut encoder, &fields(example.list));
            // The standard writes 307 in Huffman code, although that is no shorter.
            let expected = example.huffman.replace("4883 640e ff", "4803 3330 37");
            assert_eq!(block, hex(&expected));
            assert_eq!(encoder.table.seen().1, fields(example.table));
        }
    }
}

#[test]
fn what_repeats_is_one_octet() {
    let list = fields(":method: POST\n:scheme: https\n:path: /stream\n:authority: a.example");
    let mut encoder = Encoder::new();
    assert!(encode(&mut encoder, &list).len() > 10);
    assert_eq!(encode(&mut encoder, &list), hex("83 87 bf be"));
}

#[test]
fn a_secret_is_in_no_table_and_never_an_index() {
    let mut encoder = Encoder::new();
    let ticket = Outgoing::sensitive(b"nodepass-ticket", b"\xaa\xbb");
    let known = Outgoing::sensitive(b":method", b"GET");
    let mut first = Vec::new();
    encoder.encode(&[ticket, known], &mut first);
    assert_eq!(first[0], 0x10);
    assert_eq!(first[first.len() - 8..], *b"\x02\xaa\xbb\x12\x03GET");
    assert_eq!(encoder.table.seen(), (0, Vec::new()));
    let mut second = Vec::new();
    encoder.encode(&[ticket, known], &mut second);
    assert_eq!(first, second);

    let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
    let list = decoder.decode(&first, AMPLE).unwrap();
    assert_eq!(
        outgoing(&list),
        [ticket, known].map(|f| Outgoing::new(f.name, f.value))
    );
    assert_eq!(decoder.table.seen(), (0, Vec::new()));
    assert_eq!(format!("{ticket:?}"), "nodepass-ticket: ***");
}

#[test]
fn a_field_larger_than_the_table_leaves_the_table_alone() {
    let small = Field::new(b"a", b"b");
    for (value_size, is_added) in [(4096 - 33, true), (4096 - 32, false)] {
        let mut encoder = Encoder::new();
        encode(&mut encoder, std::slice::from_ref(&small));
        let large = Field::new(b"c", &vec![b'd'; value_size]);
        let block = encode(&mut encoder, std::slice::from_ref(&large));
        let kept = if is_added { &large } else { &small };
        assert_eq!(encoder.table.seen().1, std::slice::from_ref(kept));
        assert_eq!(decode_new(&block), Ok(vec![large]));
    }
}

#[test]
fn changes_of_the_table_size_are_announced_once() {
    for (sizes, announced) in [
        (&[4096][..], ""),
        (&[65_536], ""),
        (&[256], "3fe101"),
        (&[0], "20"),
        (&[0, 4096], "20 3fe11f"),
        (&[100, 0, 50, 30], "20 3e"),
        (&[100, 30], "3e"),
        (&[100, 100_000], "3f45 3fe11f"),
    ] {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
        let list = fields("a: b");
        let mut block = encode(&mut encoder, &list);
        assert_eq!(decoder.decode(&block, AMPLE), Ok(list.clone()));
        for &size in sizes {
            encoder.set_size_max(size);
        }
        block = encode(&mut encoder, &[]);
        assert_eq!(block, hex(announced), "{sizes:?}");
        assert_eq!(decoder.decode(&block, AMPLE), Ok(Vec::new()));
        assert!(encode(&mut encoder, &[]).is_empty());
        block = encode(&mut encoder, &list);
        assert_eq!(decoder.decode(&block, AMPLE), Ok(list));
        assert_eq!(decoder.table.seen(), encoder.table.seen());
    }
}

#[test]
fn the_table_size_changes_only_before_the_fields_and_within_its_bound() {
    for (block, result) in [
        ("20 82", Ok(())),
        ("20 3fe11f 82", Ok(())),
        ("3fe11f", Ok(())),
        ("3fe21f", Err(HpackError::TableTooLarge)),
        ("3fffffff7f", Err(HpackError::TableTooLarge)),
        ("82 20", Err(HpackError::LateTableSize)),
        ("20 82 3fe11f", Err(HpackError::LateTableSize)),
        ("4001610162 20", Err(HpackError::LateTableSize)),
    ] {
        assert_eq!(decode_new(&hex(block)).map(drop), result, "{block}");
    }
    let mut decoder = Decoder::new(8192);
    assert_eq!(decoder.table.size_max(), 4096);
    assert_eq!(decoder.decode(&hex("3fe13f"), AMPLE), Ok(Vec::new()));
    assert_eq!(decoder.table.size_max(), 8192);
}

#[test]
fn an_index_has_to_be_in_a_table() {
    for block in [
        "80", "be", "ff00", "ffffff7f", "7f00 00", "0f2f 00", "1f2f 00",
    ] {
        assert_eq!(
            decode_new(&hex(block)),
            Err(HpackError::NoSuchIndex),
            "{block}"
        );
    }
    let added = "40 0161 0162";
    for (index, is_there) in [("be", true), ("bf", false)] {
        let result = decode_new(&hex(&format!("{added} {index}")));
        assert_eq!(result.is_ok(), is_there);
    }
    // What was pushed out is gone.
    assert_eq!(
        decode_new(&hex("40 0161 0162 be")).map(|list| list.len()),
        Ok(2)
    );
    let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
    decoder.decode(&hex(added), AMPLE).unwrap();
    assert_eq!(
        decoder.decode(&hex("20 be"), AMPLE),
        Err(HpackError::NoSuchIndex)
    );
}

#[test]
fn damaged_huffman_codes_are_refused() {
    for string in ["81 00", "82 1fff", "84 ffffffff", "85 07ffffffff", "81 fe"] {
        for block in [format!("40 {string} 00"), format!("04 {string}")] {
            assert_eq!(
                decode_new(&hex(&block)),
                Err(HpackError::Huffman),
                "{block}"
            );
        }
    }
    assert_eq!(
        decode_new(&hex("04 80")),
        Ok(vec![Field::new(b":path", b"")])
    );
}

#[test]
fn a_name_may_come_from_the_field_that_its_own_addition_pushes_out() {
    // RFC 7541 section 4.4.
    let mut decoder = Decoder::new(64);
    decoder.decode(&hex("40 026162 0163"), AMPLE).unwrap();
    let block = [hex("7e 1c"), vec![b'd'; 28]].concat();
    let expected = Field::new(b"ab", &[b'd'; 28]);
    assert_eq!(decoder.decode(&block, AMPLE), Ok(vec![expected.clone()]));
    assert_eq!(decoder.table.seen(), (62, vec![expected]));
}

#[test]
fn a_list_may_be_as_large_as_its_bound() {
    let block = hex("82 40 0161 0162 be 00 0163 0164");
    let size = 42 + 34 * 3;
    let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
    let list = decoder.decode(&block, size).unwrap();
    assert_eq!(list, fields(":method: GET\na: b\na: b\nc: d"));
    assert_eq!(decoder.decode(&block, size - 1), Err(HpackError::TooLarge));
    assert_eq!(decoder.decode(&[], 0), Ok(Vec::new()));
    assert_eq!(decoder.decode(&hex("82"), 0), Err(HpackError::TooLarge));
    // The table has what the block that was too large has added.
    assert_eq!(decoder.table.seen(), (68, fields("a: b\na: b")));
    let many = vec![0x82; HPACK_FIELDS_COUNT_MAX];
    assert_eq!(
        decoder.decode(&many, AMPLE).map(|list| list.len()),
        Ok(many.len())
    );
    let more = vec![0x82; HPACK_FIELDS_COUNT_MAX + 1];
    assert_eq!(decoder.decode(&more, AMPLE), Err(HpackError::TooLarge));
}

#[test]
fn what_is_wrong_behind_the_bound_is_still_found() {
    let mut block = vec![0x82; 300];
    for (end, error) in [
        ("80", HpackError::NoSuchIndex),
        ("20", HpackError::LateTableSize),
        ("04 81 00", HpackError::Huffman),
        ("04 02", HpackError::Truncated),
    ] {
        block.truncate(300);
        block.extend(hex(end));
        assert_eq!(Decoder::new(4096).decode(&block, 100), Err(error));
    }
}

#[test]
fn a_bomb_is_not_unfolded() {
    // One field fills the table; each further octet stands for all of it.
    let large = Field::new(b"x", &[b'y'; 4096 - 33]);
    let mut block = encode(&mut Encoder::new(), std::slice::from_ref(&large));
    block.extend(vec![0xbe; 1_000_000]);
    let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
    assert_eq!(decoder.decode(&block, 16 * 1024), Err(HpackError::TooLarge));
    assert_eq!(decoder.table.seen(), (4096, vec![large.clone()]));
    let four = decoder.decode(&[0xbe; 4], 16 * 1024);
    assert_eq!(four, Ok(vec![large; 4]));

    // The same with literals that take the large name.
    let large = Field::new(&[b'y'; 4000], b"");
    let mut block = encode(&mut Encoder::new(), std::slice::from_ref(&large));
    block.extend(hex("0f2f 00").repeat(10_000));
    assert_eq!(decoder.decode(&block, 16 * 1024), Err(HpackError::TooLarge));
    block.extend(hex("7e 00").repeat(10_000));
    assert_eq!(decoder.decode(&block, 16 * 1024), Err(HpackError::TooLarge));
    assert_eq!(decoder.table.seen(), (4032, vec![large]));
}

#[test]
fn the_table_holds_no_more_fields_than_its_size_allows() {
    let block = hex("40 00 00").repeat(10_000);
    let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
    assert_eq!(decoder.decode(&block, AMPLE), Err(HpackError::TooLarge));
    assert_eq!(
        decoder.table.seen(),
        (4096, vec![Field::new(b"", b""); 128])
    );
}

#[test]
fn a_block_that_is_cut_is_a_shorter_list_or_truncated() {
    for example in REQUESTS.iter().take(1).chain(RESPONSES.iter().take(1)) {
        for text in [example.plain, example.huffman] {
            let (block, list) = (hex(text), fields(example.list));
            let mut whole_count = 0;
            for end in 0..block.len() {
                match decode_new(&block[..end]) {
                    Ok(cut) => {
                        assert_eq!(cut, list[..whole_count]);
                        whole_count += 1;
                    }
                    Err(error) => assert_eq!(error, HpackError::Truncated),
                }
            }
            assert_eq!(whole_count, list.len());
        }
    }
}

/// Returns a few fields, of which some come again and again.
fn random_fields(random: &mut Xorshift) -> Vec<Field> {
    let names: [&[u8]; 6] = [b":path", b":status", b"date", b"x-a", b"x-b", b""];
    let field = |random: &mut Xorshift| {
        let name = names[random.below(names.len())];
        let size = random.below(20) * random.below(20) * random.below(4);
        let value: Vec<u8> = match random.below(3) {
            0 => vec![b'0' + random.byte() % 4; size % 5],
            1 => (0..size).map(|_| b'a' + random.byte() % 26).collect(),
            _ => (0..size).map(|_| random.byte()).collect(),
        };
        Field::new(name, &value)
    };
    (0..random.below(8)).map(|_| field(random)).collect()
}

#[test]
fn both_ends_keep_the_same_table() {
    let mut random = Xorshift::new(72);
    for _ in 0..50 {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new(HPACK_TABLE_SIZE_MAX);
        for _ in 0..40 {
            if random.below(8) == 0 {
                encoder.set_size_max(random.below(6000));
            }
            let list = random_fields(&mut random);
            let mut to_send = outgoing(&list);
            for field in &mut to_send {
                field.is_sensitive = random.below(5) == 0;
            }
            let mut block = Vec::new();
            encoder.encode(&to_send, &mut block);
            let list_size: usize = list.iter().map(|f| field_size(&f.name, &f.value)).sum();
            if random.below(3) == 0 && list_size > 0 {
                let refused = decoder.decode(&block, list_size - 1);
                assert_eq!(refused, Err(HpackError::TooLarge));
            } else {
                assert_eq!(decoder.decode(&block, list_size), Ok(list));
            }
            assert_eq!(decoder.table.seen(), encoder.table.seen());
        }
    }
}

#[test]
fn damaged_blocks_stay_within_all_bounds() {
    let mut random = Xorshift::new(73);
    for _ in 0..2_000 {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new(512);
        let list_size_max = random.below(2048);
        for _ in 0..6 {
            encoder.set_size_max(random.below(600));
            let block = encode(&mut encoder, &random_fields(&mut random));
            let result = decoder.decode(&random.damage(&block), list_size_max);
            let (size, kept) = decoder.table.seen();
            let sum = |all: &[Field]| -> usize {
                all.iter()
                    .map(|field| field_size(&field.name, &field.value))
                    .sum()
            };
            assert!(size <= decoder.table.size_max() && decoder.table.size_max() <= 512);
            assert_eq!(size, sum(&kept));
            match result {
                Ok(list) => {
                    assert!(sum(&list) <= list_size_max);
                    let again = encode(&mut Encoder::new(), &list);
                    assert_eq!(decode_new(&again), Ok(list));
                }
                Err(HpackError::TooLarge) => {}
                Err(_) => break,
            }
        }
    }
}
